#!/usr/bin/env bash
# Makes docs/example-report.html on this machine: both example models in two recipes and two runtimes, measured in turns.
# It takes some minutes, and the machine should have nothing else to do meanwhile. Bundles and runs stay in build/.
#   make quickstart && PATH="$PWD/.venv/bin:$PATH" docs/make_example_report.sh
set -euo pipefail
cd "$(dirname "$0")/.."
out=build/example-report
intents=examples/intents
mkdir -p "$out"

for recipe in int8 fp32; do
  [ -d "$out/intents-$recipe.edgelm" ] || edgelm convert $intents/intents.keras -o "$out/intents-$recipe.edgelm" \
    --recipe $recipe --custom-objects $intents/model.py --tokenizer $intents/tokenizer.json \
    --labels $intents/labels.txt --validation $intents/data/test.csv
  [ -d "$out/stories-$recipe.edgelm" ] || edgelm convert examples/stories/stories.keras -o "$out/stories-$recipe.edgelm" \
    --recipe $recipe
done

edgelm benchmark "$out"/intents-*.edgelm --runtime litert --runtime onnx --texts $intents/data/test.csv --deadline-ms 20 \
  -o "$out/answering.json" --force
edgelm benchmark "$out"/stories-*.edgelm --runtime litert --runtime onnx -p 64 -d 64 --depth 0 --depth 128 --depth 320 \
  -o "$out/writing.json" --force
edgelm report "$out/answering.json" "$out/writing.json" -o docs/example-report.html --force

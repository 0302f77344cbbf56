#!/usr/bin/env bash
# The main job on real input: a trained Keras classifier becomes verified, measured bundles, and a report compares them.
# Run it through `make quickstart`, which installs edgelm first.
set -euo pipefail
cd "$(dirname "$0")/.."
out=build/quickstart
intents=examples/intents
mkdir -p "$out"

step() { printf '\n== %s\n' "$*"; }
show() { printf '$'; printf ' %q' "$@"; printf '\n'; "$@"; }

for recipe in int8 fp32; do
  step "Convert the trained intent classifier to TFLite and ONNX ($recipe), checked against Keras on 3,080 real questions"
  show edgelm convert $intents/intents.keras -o "$out/intents-$recipe.edgelm" --recipe $recipe --force \
    --custom-objects $intents/model.py --tokenizer $intents/tokenizer.json --labels $intents/labels.txt \
    --validation $intents/data/test.csv
done

step "Check the bundle as a device does: files, tokenizer, numbers"
show edgelm verify "$out/intents-int8.edgelm"

step "Classify three real questions, without TensorFlow"
while IFS= read -r question; do
  show edgelm run "$out/intents-int8.edgelm" "$question"
done < $intents/questions.txt

step "Measure both bundles in both runtimes, in alternation"
show edgelm benchmark "$out/intents-int8.edgelm" "$out/intents-fp32.edgelm" --runtime litert --runtime onnx \
  --seconds 3 -o "$out/run.json" --force

step "Write the report"
show edgelm report "$out/run.json" -o "$out/report.html" --force
printf '\nThe report, to open in a browser:\n%s\n' "$PWD/$out/report.html"

r"""What a recipe costs a language model: its perplexity, in each runtime, on text that nothing was fitted to.

    python benchmarks/perplexity.py -o benchmarks/results/perplexity.json \\
        --model stories260K examples/stories/stories.keras examples/stories/tokenizer.json stories.txt \\
        --model SmolLM2-135M-Instruct build/assistant/assistant.keras build/assistant/tokenizer.json news.txt

A text file holds one text a line, or texts between lines of ``<|endoftext|>``. The first texts, `--tokens` tokens of them or
more, are what is measured; those after them are the calibration text. For each recipe with integers three ways are measured:
`plain` rounds the weights as they are, `own text` prepares them by text that the model wrote itself, `text` by the calibration
text (where the file is long enough). A model whose file is absent is skipped, with a word. Rows of other models stay in the
JSON file, and a table is written beside it.

Perplexity is deterministic; it needs no rounds and no quiet machine. Times of preparation are of the machine as it was.

Needs: pip install -e '.[convert,keras-hub,litert,onnx]'
"""

from __future__ import annotations

import argparse
import datetime
import importlib.metadata
import json
import math
import platform
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np

RECIPES = {
    "fp32": "fp32",
    "int8": "dynamic_wi8_afp32",
    "int4": "dynamic_wi4b32_afp32",
    # What a gate would keep first: the parts whose rounding costs most for their size.
    "int4, attention int8": "dynamic_wi4b32_afp32",
}
WIDER = {"int4, attention int8": ".attention."}  # names of the parts that are stored in 8 bits
RUNTIMES = ("litert", "onnx")
PACKAGES = ("ai-edge-litert", "onnxruntime", "keras", "keras-hub", "numpy")
LONGEST = 320  # tokens of a text
CALIBRATION = 6144  # tokens, as many as are used


def read_spec(file: Path) -> Any:
    """Return the spec of a Keras model."""
    import keras
    import keras_hub  # noqa: F401 - registers its layers
    from edgelm_converters.families import recognise

    recognition = recognise(keras.models.load_model(file, compile=False), None)
    if recognition.spec is None:
        raise SystemExit(f"error: {file} is not recognised: {recognition.reason}")
    return recognition.spec


def read_texts(file: Path, tokenizer_file: Path, limit: int, longest: int) -> tuple[list[Any], list[Any]]:
    """Return the ids of the texts that are measured, and of those for calibration."""
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(str(tokenizer_file))
    content = file.read_text(encoding="utf-8")
    texts = content.split("<|endoftext|>") if "<|endoftext|>" in content else content.splitlines()
    parts: tuple[list[Any], list[Any]] = ([], [])
    counts = [0, 0]
    for text in texts:
        ids = np.asarray(tokenizer.encode(text.strip()).ids, np.int32)[:longest]
        if len(ids) < 2:
            continue
        part = 0 if counts[0] < limit else 1
        parts[part].append(ids)
        counts[part] += len(ids)
        if counts[1] >= CALIBRATION:
            break
    return parts


def measure(spec: Any, recipe: str, runtime: str, sequences: list[Any], folder: Path) -> tuple[float, int]:
    """Return the perplexity of a model written for a runtime, and the bytes of its files."""
    from edgelm_converters.causal_parity import surprise
    from edgelm_converters.emit.onnx_decoder import emit_onnx_decoder
    from edgelm_converters.emit.tflite_decoder import emit_tflite_decoder
    from edgelm_runtimes.program import ProgramOptions
    from edgelm_runtimes.registry import open_causal

    longest = max(len(ids) for ids in sequences)
    with tempfile.TemporaryDirectory(dir=folder) as inner:
        if runtime == "litert":
            path = Path(inner) / "model.tflite"
            signatures = emit_tflite_decoder(spec, path, recipe=recipe, caches=(longest,), prefill=(64,), verify=(64,))
        else:
            path = Path(inner) / "model.onnx"
            signatures = emit_onnx_decoder(spec, path, recipe=recipe, context_length=longest)
        size = sum(file.stat().st_size for file in Path(inner).iterdir())
        program = open_causal(runtime, path, signatures, ProgramOptions())
        try:
            total = sum(surprise(ids, program.forward(ids, 0, logits="all")) for ids in sequences)
        finally:
            program.close()
    return math.exp(total / sum(len(ids) - 1 for ids in sequences)), size


def measure_model(
    name: str, spec: Any, texts: tuple[list[Any], list[Any]], folder: Path, recipes: list[str], ways: list[str]
) -> list[dict[str, Any]]:
    """Return a row for each recipe, way of preparation and runtime; rises are against fp32, which is measured in any case."""
    from edgelm_converters.parts import parts_of, widen
    from edgelm_converters.prepare import prepare_weights

    sequences, calibration = texts
    tokens = sum(len(ids) - 1 for ids in sequences)
    enough = sum(map(len, calibration)) >= CALIBRATION
    rows: list[dict[str, Any]] = []
    floats: dict[str, float] = {}
    for short, recipe in RECIPES.items():
        if short not in ("fp32", *recipes):
            continue
        kept = WIDER.get(short)
        wide = spec if kept is None else widen(spec, {part.name: 8 for part in parts_of(spec) if kept in part.name})
        for way in ("plain",) if short == "fp32" else ways:
            if way == "text" and not enough:
                continue
            start = time.perf_counter()
            given = calibration if way == "text" else None
            prepared = wide if way == "plain" else prepare_weights(wide, recipe, given)[0]
            seconds = time.perf_counter() - start
            for runtime in RUNTIMES:
                perplexity, size = measure(prepared, recipe, runtime, sequences, folder)
                floats.setdefault(runtime, perplexity)
                row = {
                    "model": name, "recipe": short, "weights": way, "runtime": runtime, "tokens": tokens,
                    "perplexity": round(perplexity, 4), "rise": round(perplexity / floats[runtime] - 1, 5),
                    "size_bytes": size, "preparation_s": None if way == "plain" else round(seconds, 1),
                }  # fmt: skip
                rows.append(row)
                print(row, file=sys.stderr, flush=True)
    return rows


def merged(before: list[dict[str, Any]], made: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return rows with new ones in place of those that they repeat, in the order of the recipes."""

    def key(row: dict[str, Any]) -> tuple[str, ...]:
        return row["model"], row["recipe"], row["weights"], row["runtime"]

    again = {key(row) for row in made}
    models = list(dict.fromkeys(row["model"] for row in (*before, *made)))
    places, ways = list(RECIPES), ["plain", "own text", "text"]
    return sorted(
        [*(row for row in before if key(row) not in again), *made],
        key=lambda row: (models.index(row["model"]), places.index(row["recipe"]), ways.index(row["weights"])),
    )


def table(result: dict[str, Any]) -> str:
    """Return the result as Markdown."""
    lines = [
        "# Perplexity of language models, by recipe",
        "",
        f"{result['date']}, {result['machine']}; {', '.join(f'{k} {v}' for k, v in result['versions'].items())}.",
        "Rise: against fp32 in the same runtime. How it is measured says `perplexity.py`.",
        "",
        "| model | recipe | weights | runtime | perplexity | rise | MB |",
        "|---|---|---|---|---|---|---|",
    ]
    lines.extend(
        f"| {row['model']} | {row['recipe']} | {row['weights']} | {row['runtime']} | {row['perplexity']:.3f} | "
        f"{row['rise']:+.2%} | {row['size_bytes'] / 1e6:.2f} |"
        for row in result["rows"]
    )
    return "\n".join(lines) + "\n"


def main() -> int:
    """Run the command line; return the exit status."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", 1)[0])
    parser.add_argument("-o", "--output", type=Path, required=True, help="the JSON file; the table goes beside it")
    parser.add_argument(
        "--model", nargs=4, action="append", required=True, metavar=("NAME", "KERAS", "TOKENIZER", "TEXT")
    )
    parser.add_argument("--tokens", type=int, default=5000, help="least number of tokens that are measured")
    parser.add_argument("--recipes", nargs="+", default=list(RECIPES), choices=list(RECIPES))
    parser.add_argument("--ways", nargs="+", default=["plain", "own text", "text"], help="how weights are prepared")
    arguments = parser.parse_args()
    rows: list[dict[str, Any]] = []
    if arguments.output.is_file():
        rows = json.loads(arguments.output.read_text(encoding="utf-8"))["rows"]
    for name, model, tokenizer, text in arguments.model:
        absent = [file for file in (model, tokenizer, text) if not Path(file).is_file()]
        if absent:
            print(f"{name} is skipped: there is no {absent[0]}.", file=sys.stderr)
            continue
        spec = read_spec(Path(model))
        texts = read_texts(Path(text), Path(tokenizer), arguments.tokens, min(LONGEST, spec.max_length or LONGEST))
        with tempfile.TemporaryDirectory() as folder:
            made = measure_model(name, spec, texts, Path(folder), arguments.recipes, arguments.ways)
        rows = merged(rows, made)
        result = {
            "date": datetime.datetime.now(datetime.UTC).date().isoformat(),
            "machine": f"{platform.machine()}, {platform.system()}",
            "versions": {package: importlib.metadata.version(package) for package in PACKAGES},
            "rows": rows,
        }
        arguments.output.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
        arguments.output.with_suffix(".md").write_text(table(result), encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())

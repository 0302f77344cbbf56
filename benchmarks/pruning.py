r"""What pruning costs a model, and what it brings on each runtime.

    python benchmarks/pruning.py -o benchmarks/results/pruning.json \\
        --stories build/stories15M/stories.keras build/stories15M/tokenizer.json stories.txt

The encoder is the intent classifier of `examples/intents`: pruned on its training questions, measured on its test questions.
The language model is any that `examples/stories/make.py` writes, on a text of which the first part is measured and the rest is
calibration text; it is left out where it is not given. Accuracy and perplexity are those of the fp32 ONNX file in ONNX Runtime,
and nothing was trained again after pruning.

Latency is a ratio, whole model / pruned model: both take turns, in an order drawn anew each round, on one thread; a ratio is
taken in each round, and their median and quartiles are reported. 32 and 128 tokens of an encoder; 128 tokens of a prompt, and
16 tokens after it one by one, of a language model.

Needs: pip install -e '.[convert,keras-hub,litert,onnx]'
"""

from __future__ import annotations

import argparse
import csv
import datetime
import importlib
import importlib.metadata
import json
import platform
import random
import statistics
import sys
import tempfile
import time
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

HERE = Path(__file__).resolve().parent
INTENTS = HERE.parent / "examples" / "intents"
INT8 = "dynamic_wi8_afp32"
PACKAGES = ("ai-edge-litert", "onnxruntime", "numpy")
UNITS = "heads=0.25,ffn=0.3"

INTENT_PRUNINGS = (
    "heads=0.25", "heads=0.25,correct=false", "ffn=0.3", "ffn=0.3,correct=false", UNITS, f"{UNITS},correct=false",
    f"{UNITS},score=activation", f"{UNITS},score=magnitude", f"{UNITS},score=magnitude,correct=false",
    f"{UNITS},scope=global", "heads=0.5,ffn=0.6", "heads=0.5,ffn=0.6,correct=false", "layers=1", "sparsity=0.5",
    "sparsity=0.5,score=magnitude", "pattern=2:4", "pattern=2:4,score=magnitude",
)  # fmt: skip
STORY_PRUNINGS = (
    "heads=0.25",
    "ffn=0.3",
    UNITS,
    f"{UNITS},correct=false",
    "layers=1",
    "layers=1,correct=false",
    "sparsity=0.5",
)
TIMED = (UNITS, "heads=0.5,ffn=0.6", "pattern=2:4")


# ------------------------------------------------------------------------------------------------------ models


def read_intents() -> tuple[Any, list[Any], list[Any], Any]:
    """Return the classifier's spec, the ids of its training and test questions, and the right answers."""
    sys.path.insert(0, str(INTENTS))
    importlib.import_module("model")  # registers the example's layers
    import keras
    from edgelm_converters.families import recognise
    from tokenizers import Tokenizer

    spec = recognise(keras.saving.load_model(INTENTS / "intents.keras", compile=False), None).spec
    tokenizer = Tokenizer.from_file(str(INTENTS / "tokenizer.json"))
    labels = (INTENTS / "labels.txt").read_text(encoding="utf-8").splitlines()

    def read(name: str) -> tuple[list[Any], Any]:
        with (INTENTS / "data" / name).open(newline="", encoding="utf-8") as file:
            rows = list(csv.DictReader(file))
        encoded = tokenizer.encode_batch([row["text"].strip() for row in rows])
        return [np.asarray(entry.ids, np.int32) for entry in encoded], np.array(
            [labels.index(row["category"]) for row in rows]
        )

    training, _ = read("train.csv")
    return spec, training, *read("test.csv")


def accuracy(spec: Any, questions: list[Any], answers: Any, folder: Path) -> float:
    """Return the share of questions that the fp32 ONNX file answers rightly."""
    import onnxruntime
    from edgelm_converters.emit.onnx import emit_onnx

    path = folder / "accuracy.onnx"
    emit_onnx(spec, path, recipe="fp32")
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    order = sorted(range(len(questions)), key=lambda row: len(questions[row]))
    right = 0
    for start in range(0, len(order), 64):
        rows = order[start : start + 64]
        ids = np.zeros((len(rows), max(len(questions[row]) for row in rows)), np.int32)
        for line, row in zip(ids, rows, strict=True):
            line[: len(questions[row])] = questions[row]
        right += int((session.run(None, {spec.token_input: ids})[0].argmax(1) == answers[rows]).sum())
    return right / len(questions)


# ------------------------------------------------------------------------------------------------------ latency


def turns(whole: Callable[[], object], pruned: Callable[[], object], rounds: int) -> dict[str, float]:
    """Return the ratio of two calls' times, whole / pruned: quartiles over the rounds."""
    ratios = []
    for call in (whole, pruned):
        call()
    for _ in range(rounds):
        taken: dict[int, list[float]] = {0: [], 1: []}
        for number in random.sample([0, 1] * 5, 10):
            start = time.perf_counter()
            (whole, pruned)[number]()
            taken[number].append(time.perf_counter() - start)
        ratios.append(min(taken[0]) / min(taken[1]))
    low, middle, high = statistics.quantiles(ratios, n=4)
    return {"faster": round(middle, 3), "low": round(low, 3), "high": round(high, 3)}


def encoder_call(spec: Any, runtime: str, recipe: str, tokens: int, path: Path) -> Callable[[], object]:
    """Write an encoder for a runtime; return one run of it, and leave the file at `path`."""
    ids = np.random.default_rng(3).integers(5, 1000, (1, tokens)).astype(np.int32)
    if runtime == "onnx":
        import onnxruntime
        from edgelm_converters.emit.onnx import emit_onnx

        emit_onnx(spec, path, recipe=recipe)
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = 1
        session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
        return lambda: session.run(None, {spec.token_input: ids})
    from ai_edge_litert.interpreter import Interpreter
    from edgelm_converters.emit.tflite import emit_tflite

    emit_tflite(spec, path, recipe=recipe, lengths=(tokens,))
    runner = Interpreter(str(path), num_threads=1).get_signature_runner(f"serve_{tokens}")
    return lambda: runner(**{spec.token_input: ids})


def time_encoder(whole: Any, pruned: Any, pruning: str, rounds: int, folder: Path) -> list[dict[str, Any]]:
    """Return a row for each runtime, recipe and length."""
    rows = []
    for runtime in ("litert", "onnx"):
        for recipe in ("fp32", INT8):
            for tokens in (32, 128):
                files = [folder / f"{name}.{runtime}" for name in ("whole", "pruned")]
                calls = [
                    encoder_call(spec, runtime, recipe, tokens, file)
                    for spec, file in zip((whole, pruned), files, strict=True)
                ]
                row = {
                    "model": "intents",
                    "pruning": pruning,
                    "runtime": runtime,
                    "recipe": recipe,
                    "run": f"{tokens} tokens",
                }
                rows.append(row | turns(*calls, rounds) | sizes(*files))
                print(rows[-1], file=sys.stderr, flush=True)
    return rows


def time_decoder(whole: Any, pruned: Any, pruning: str, rounds: int, folder: Path) -> list[dict[str, Any]]:
    """Return a row for each runtime and recipe, of a prompt and of the tokens after it."""
    from edgelm_converters.emit.onnx_decoder import emit_onnx_decoder
    from edgelm_converters.emit.tflite_decoder import emit_tflite_decoder
    from edgelm_runtimes.program import ProgramOptions
    from edgelm_runtimes.registry import open_causal

    ids = np.random.default_rng(3).integers(5, 250, 144).astype(np.int32)
    rows = []
    for runtime in ("litert", "onnx"):
        for recipe in ("fp32", INT8):
            programs, files = [], []
            for name, spec in (("whole", whole), ("pruned", pruned)):
                path = folder / f"{name}.{'tflite' if runtime == 'litert' else 'onnx'}"
                if runtime == "litert":
                    signatures = emit_tflite_decoder(spec, path, recipe=recipe, caches=(256,), prefill=(128,))
                else:
                    signatures = emit_onnx_decoder(spec, path, recipe=recipe, context_length=256)
                programs.append(open_causal(runtime, path, signatures, ProgramOptions(threads=1)))
                files.append(path)

            def read(program: Any) -> Callable[[], object]:
                return lambda: program.forward(ids[:128], 0)

            def write(program: Any) -> Callable[[], object]:
                return lambda: [program.forward(ids[at : at + 1], at) for at in range(128, 144)]

            for run, call in (("prompt of 128", read), ("16 tokens", write)):
                row = {"model": "stories", "pruning": pruning, "runtime": runtime, "recipe": recipe, "run": run}
                rows.append(row | turns(*map(call, programs), max(3, rounds // 3)) | sizes(*files))
                print(rows[-1], file=sys.stderr, flush=True)
            for program in programs:
                program.close()
    return rows


def sizes(whole: Path, pruned: Path) -> dict[str, int]:
    """Return the bytes of both files, and of a zip of each."""
    found = {}
    for name, path in (("whole", whole), ("pruned", pruned)):
        packed = path.with_suffix(".zip")
        with zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED) as file:
            file.write(path, path.name)
        found |= {f"{name}_bytes": path.stat().st_size, f"{name}_zip_bytes": packed.stat().st_size}
    return found


# ------------------------------------------------------------------------------------------------------ the runs


def cost_of(
    name: str, spec: Any, prunings: tuple[str, ...], samples: list[Any], measure: Callable[[Any], float]
) -> Any:
    """Yield a row, and the pruned model, for each pruning; the whole model comes first."""
    from edgelm_converters.compress.pruning import Pruning, prune

    yield {"model": name, "pruning": "none", "value": round(measure(spec), 4), "kept": 1.0, "notes": []}, spec
    for pruning in prunings:
        pruned, step = prune(spec, Pruning.parse(pruning), samples)
        kept = round(step.parameters_after / step.parameters_before, 4)
        row = {
            "model": name,
            "pruning": pruning,
            "value": round(measure(pruned), 4),
            "kept": kept,
            "notes": list(step.notes),
        }
        print(row, file=sys.stderr, flush=True)
        yield row, pruned


def table(result: dict[str, Any]) -> str:
    """Return the result as Markdown."""
    lines = [
        "# Pruning",
        "",
        f"{result['date']}, {result['machine']}; {', '.join(f'{k} {v}' for k, v in result['versions'].items())}.",
        "How it is measured says `pruning.py`. Nothing was trained again: these are one-shot figures.",
        "",
        *(f"{remark}\n" for remark in result["remarks"]),
        "| model | pruning | metric | kept weights |",
        "|---|---|---|---|",
    ]
    for row in result["costs"]:
        value = f"{row['value']:.2%} right" if row["model"] == "intents" else f"perplexity {row['value']:.3f}"
        lines.append(f"| {row['model']} | `{row['pruning']}` | {value} | {row['kept']:.1%} |")
    lines += [
        "",
        "Latency: whole / pruned, median (quartiles). Sizes: of the file, and of a zip of it, pruned / whole.",
        "",
        "| model | pruning | runtime | recipe | run | times faster | size | zipped |",
        "|---|---|---|---|---|---|---|---|",
    ]
    lines.extend(
        f"| {row['model']} | `{row['pruning']}` | {row['runtime']} | {row['recipe']} | {row['run']} | "
        f"{row['faster']:.2f} ({row['low']:.2f}-{row['high']:.2f}) | {row['pruned_bytes'] / row['whole_bytes']:.0%} | "
        f"{row['pruned_zip_bytes'] / row['whole_zip_bytes']:.0%} |"
        for row in result["latency"]
    )
    return "\n".join(lines) + "\n"


def main() -> int:
    """Run the command line; return the exit status."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", 1)[0])
    parser.add_argument("-o", "--output", type=Path, required=True, help="the JSON file; the table goes beside it")
    parser.add_argument(
        "--stories", nargs=3, metavar=("KERAS", "TOKENIZER", "TEXT"), help="a language model to prune too"
    )
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--tokens", type=int, default=5000, help="least number of tokens whose perplexity is measured")
    arguments = parser.parse_args()
    result: dict[str, Any] = {
        "date": datetime.datetime.now(datetime.UTC).date().isoformat(),
        "machine": f"{platform.machine()}, {platform.system()}",
        "versions": {package: importlib.metadata.version(package) for package in PACKAGES},
        "remarks": [],  # by hand, of what disturbed a run
        "costs": [],
        "latency": [],
    }

    def write() -> None:
        arguments.output.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
        arguments.output.with_suffix(".md").write_text(table(result), encoding="utf-8")

    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        spec, training, questions, answers = read_intents()
        for row, pruned in cost_of(
            "intents", spec, INTENT_PRUNINGS, training, lambda model: accuracy(model, questions, answers, folder)
        ):
            result["costs"].append(row)
            if row["pruning"] in TIMED:
                result["latency"] += time_encoder(spec, pruned, row["pruning"], arguments.rounds, folder)
            write()
        if arguments.stories is not None:
            sys.path.insert(0, str(HERE))
            import perplexity

            model, tokenizer, text = map(Path, arguments.stories)
            spec = perplexity.read_spec(model)
            measured, calibration = perplexity.read_texts(text, tokenizer, arguments.tokens, 256)
            for row, pruned in cost_of(
                "stories", spec, STORY_PRUNINGS, calibration,
                lambda model: perplexity.measure(model, "fp32", "onnx", measured, folder)[0],
            ):  # fmt: skip
                result["costs"].append(row)
                if row["pruning"] in TIMED:
                    result["latency"] += time_decoder(spec, pruned, row["pruning"], arguments.rounds, folder)
                write()
    return 0


if __name__ == "__main__":
    sys.exit(main())

"""Translation side by side: what each recipe costs in BLEU, and how fast a sentence comes, beside what others take.

    python benchmarks/translation.py --ctranslate2-python ct2/bin/python -o benchmarks/results/translation.json

Quality: the shipped translator in each recipe and runtime, greedy, on its 2,000 held-out sentences; BLEU and chrF by sacrebleu
against all translations of each. Speed: sources of about 10, 25 and 60 tokens, made of held-out sentences one after the other;
all contestants take turns, in an order drawn anew each round, each answering all sources of a length; a row has the median of
a sentence over the sources of the best round, and the time to the first token where the contestant tells it. CTranslate2 has a
process of its own; all have the same number of threads.

The result is merged into what the output file has, part by part; a table is written beside it.

Needs: pip install -e '.[convert,litert,onnx]' openvino; CTranslate2 where --ctranslate2-python is.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import random
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from translation_peers import EXAMPLE, Answer, agreement, ctranslate2_peer, keras_peer, load_example, openvino_peer

HERE = Path(__file__).parent
RECIPES = ("fp32", "fp16", "dynamic_wi8_afp32", "weight_only_wi8_afp32", "dynamic_wi4b32_afp32")
RUNTIMES = {"litert": "tflite", "onnx": "onnx"}
TIMED = ("fp32", "dynamic_wi8_afp32", "dynamic_wi4b32_afp32")
LENGTHS = (10, 25, 60)  # source tokens, [END] among them
SOURCES = 8  # of each length


def convert(model: Path, recipe: str, folder: Path) -> Path:
    """Return the bundle of a recipe, made where it is not there."""
    import edgelm

    path = folder / f"{recipe}.edgelm"
    if not path.exists():
        edgelm.convert(
            model, path, recipe=recipe, tokenizer=EXAMPLE / "tokenizer.json", custom_objects=EXAMPLE / "model.py",
            calibration=EXAMPLE / "held_out.csv",
        )  # fmt: skip
    return path


def score(hypotheses: list[str], held_out: dict[str, list[str]]) -> dict[str, float]:
    """Return BLEU and chrF against all translations."""
    import sacrebleu

    most = max(map(len, held_out.values()))
    references = [[row[place] if place < len(row) else None for row in held_out.values()] for place in range(most)]
    return {
        "bleu": sacrebleu.BLEU().corpus_score(hypotheses, references).score,
        "chrf": sacrebleu.CHRF().corpus_score(hypotheses, references).score,
    }


def quality(folder: Path) -> list[dict[str, Any]]:
    """Return a row for each recipe and runtime."""
    from data import read_held_out
    from edgelm_runtimes import load

    held_out = read_held_out(EXAMPLE / "held_out.csv")
    rows = []
    for recipe in RECIPES:
        bundle = convert(EXAMPLE / "translator.keras", recipe, folder)
        for runtime, target in RUNTIMES.items():
            with load(bundle, runtime=runtime, threads=1) as session:
                texts = [session.translate(text).text for text in held_out]
                size = next(found.size_bytes for found in session.manifest.artifacts if found.format == target)
            rows.append({"recipe": recipe, "runtime": runtime, "size_bytes": size, **score(texts, held_out)})
            print(rows[-1], file=sys.stderr, flush=True)
    return rows


def sources_of(tokenizer: Any, texts: Sequence[str], length: int) -> list[list[int]]:
    """Return sources of about that many tokens: sentences one after the other, none cut."""
    found: list[list[int]] = []
    joined: list[int] = []
    for text in texts:
        ids = tokenizer.encode(text).ids
        if abs(len(joined) + len(ids) + 1 - length) <= 1:
            found.append([*joined, *ids])
            joined = []
        elif len(joined) + len(ids) + 1 < length:
            joined += ids
        if len(found) == SOURCES:
            break
    return found


def ours(bundle: Path, runtime: str, threads: int, stack: contextlib.ExitStack) -> Callable[[Sequence[int]], Answer]:
    """Return edgelm as a peer; the time is of the whole call, with what Python does around it."""
    from edgelm_runtimes import load

    session = stack.enter_context(load(bundle, runtime=runtime, threads=threads))

    def ask(source: Sequence[int]) -> Answer:
        started = time.perf_counter()
        result = session.translate(list(source[:-1]))
        seconds = time.perf_counter() - started
        answer = Answer(list(result.ids), seconds)
        first[id(answer)] = result.ttft_s
        return answer

    return ask


first: dict[int, float | None] = {}


def speed(folder: Path, threads: int, rounds: int, ctranslate2: Path | None) -> list[dict[str, Any]]:
    """Return a row for each contestant and length."""
    model, tokenizer, texts = load_example()
    rows = []
    with contextlib.ExitStack() as stack:
        peers: dict[str, Callable[[Sequence[int]], Answer]] = {"keras, no cache": keras_peer(model)}
        with contextlib.suppress(ImportError):
            peers["openvino, no cache"] = openvino_peer(model, threads)
        if ctranslate2 is not None:
            for kind in ("float32", "int8"):
                peer = ctranslate2_peer(ctranslate2, model, tokenizer, kind, threads)
                peers[f"ctranslate2, {kind}"] = stack.enter_context(peer)
        for recipe in TIMED:
            bundle = convert(EXAMPLE / "translator.keras", recipe, folder)
            for runtime in RUNTIMES:
                peers[f"edgelm {runtime}, {recipe}"] = ours(bundle, runtime, threads, stack)
        for length in LENGTHS:
            sources = [[*source, 2] for source in sources_of(tokenizer, texts, length)]
            expected = [peers["keras, no cache"](source) for source in sources]
            medians: dict[str, list[float]] = {name: [] for name in peers}
            firsts: dict[str, list[float]] = {name: [] for name in peers}
            same: dict[str, float] = {}
            for _ in range(rounds):
                for name in random.sample(list(peers), len(peers)):
                    answers = [peers[name](source) for source in sources]
                    medians[name].append(statistics.median(answer.seconds for answer in answers))
                    told = [first.pop(id(answer), None) for answer in answers]
                    if None not in told:
                        firsts[name].append(statistics.median(value for value in told if value is not None))
                    same[name] = agreement(answers, expected)
            tokens = statistics.median(len(answer.ids) for answer in expected)
            for name in peers:
                rows.append(
                    {
                        "contestant": name, "threads": threads, "source_tokens": length, "target_tokens": tokens,
                        "sentence_s": min(medians[name]), "rounds_s": medians[name],
                        "first_token_s": min(firsts[name], default=None), "same_as_keras": same[name],
                    }
                )  # fmt: skip
                print({k: v for k, v in rows[-1].items() if k != "rounds_s"}, file=sys.stderr, flush=True)
    return rows


def table(result: dict[str, Any]) -> str:
    """Return the result as Markdown."""
    facts = result["facts"]
    lines = ["# Translation, English to Spanish", "", f"{facts['date']}, {facts['machine']}; {facts['versions']}.", ""]
    if result.get("quality"):
        lines += [
            "2,000 held-out sentences, greedy. Keras, float32: "
            f"BLEU {facts['keras']['bleu']:.2f}, chrF {facts['keras']['chrf']:.2f}.",
            "", "| recipe | runtime | MB | BLEU | to Keras | chrF |", "|---|---|---|---|---|---|",
        ]  # fmt: skip
        lines += [
            f"| {row['recipe']} | {row['runtime']} | {row['size_bytes'] / 1e6:.2f} | {row['bleu']:.2f} | "
            f"{row['bleu'] - facts['keras']['bleu']:+.2f} | {row['chrf']:.2f} |"
            for row in result["quality"]
        ]
    for threads in sorted({row["threads"] for row in result.get("speed", [])}):
        lines += [
            "", f"Milliseconds a sentence, batch 1, greedy, {threads} thread(s): the median of {SOURCES} sources in the best "
            "round; in brackets the first token.", "",
            "| contestant | " + " | ".join(f"{length} source tokens" for length in LENGTHS) + " | same answers as Keras |",
            "|---|" + "---|" * (len(LENGTHS) + 1),
        ]  # fmt: skip
        rows = [row for row in result["speed"] if row["threads"] == threads]
        for name in dict.fromkeys(row["contestant"] for row in rows):
            found = [row for row in rows if row["contestant"] == name]
            cells = [
                f"{row['sentence_s'] * 1e3:.2f}"
                + ("" if row["first_token_s"] is None else f" ({row['first_token_s'] * 1e3:.2f})")
                for row in found
            ]
            same = statistics.mean(row["same_as_keras"] for row in found)
            lines.append(f"| {name} | {' | '.join(cells)} | {same:.0%} |")
    return "\n".join(lines) + "\n"


def main() -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", 1)[0])
    parser.add_argument("-o", "--output", type=Path, default=HERE / "results" / "translation.json")
    parser.add_argument("--folder", type=Path, help="bundles are kept here; a temporary folder without it")
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--ctranslate2-python", type=Path, help="an interpreter that has ctranslate2")
    only = parser.add_mutually_exclusive_group()
    only.add_argument("--quality-only", action="store_true")
    only.add_argument("--speed-only", action="store_true")
    arguments = parser.parse_args()
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    os.environ.setdefault("CUDA_VISIBLE_DEVICES", "-1")
    sys.path.insert(0, str(EXAMPLE))
    from edgelm_runtimes.machine import machine_facts, package_versions

    machine = machine_facts()
    result = json.loads(arguments.output.read_text()) if arguments.output.exists() else {}
    packages = ("tensorflow", "keras", "ai-edge-litert", "onnxruntime", "openvino", "sacrebleu", "numpy")
    versions = ", ".join(f"{name} {version}" for name, version in package_versions(packages).items())
    result["facts"] = {
        "date": time.strftime("%Y-%m-%d"),
        "machine": f"{machine.cpu_model}, {machine.logical_cores} cores, {', '.join(machine.isa)}",
        "versions": versions,
        "keras": json.loads((EXAMPLE / "training.json").read_text())["test"],
    }
    with tempfile.TemporaryDirectory() as temporary:
        folder = arguments.folder or Path(temporary)
        folder.mkdir(parents=True, exist_ok=True)
        if not arguments.speed_only:
            result["quality"] = quality(folder)
        if not arguments.quality_only:
            result["speed"] = [
                row
                for threads in arguments.threads
                for row in speed(folder, threads, arguments.rounds, arguments.ctranslate2_python)
            ]
    arguments.output.write_text(json.dumps(result, indent=1) + "\n")
    arguments.output.with_suffix(".md").write_text(table(result))


if __name__ == "__main__":
    main()

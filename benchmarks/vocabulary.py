r"""What trimming the vocabulary of an assistant to English conversation saves, and whether its answers stay.

    python benchmarks/vocabulary.py --data FOLDER --work build/vocabulary -o benchmarks/results/vocabulary.json

FOLDER holds `tatoeba-spa-eng/spa-eng.zip`, `banking77/{train,test}.csv`, `tinystories-text/tinystories_sample.txt`,
`sst2/train.tsv`, `flores-en-pt/flores-test.en` and `multi30k/test_2016_flickr.en.gz`; build/assistant is made by
examples/assistant.

1. The corpus: English sentences, customers' questions, stories and reviews, and what the model itself answers to questions of
   `TOPICS` in its even places (greedy, int8). Its tokens are kept.
2. Held-out texts (news, captions, the customers' questions of the test split): how many read as before, and how much longer
   they all get, for the corpus's own size and for smaller limits; and `--questions-tokenizer`, an encoder's, trimmed to the
   questions of the training split.
3. Held-out questions, of the odd `TOPICS` and in other words: the greedy answer of the trimmed model beside that of the whole
   one, token by token: in float32 (NumPy, all questions at once), and in int8 in each runtime. The weights are rounded as they
   are: what prepares them for int8 depends on text, and nothing but the vocabulary shall differ.
4. Bytes of the file, and time a token: whole and trimmed take turns, in an order drawn anew each round; a ratio is taken round
   by round.

What takes long is kept in the folder `--work` and taken from there the next time.
"""

from __future__ import annotations

import argparse
import csv
import datetime
import gzip
import importlib.metadata
import json
import pickle
import platform
import random
import statistics
import sys
import time
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

HERE = Path(__file__).resolve().parent
ASSISTANT = HERE.parent / "build" / "assistant"
PACKAGES = ("ai-edge-litert", "onnxruntime", "tokenizers", "numpy")
NAME = "SmolLM2-135M-Instruct"
RECIPE = "dynamic_wi8_afp32"
RUNTIMES = ("onnx", "litert")
CONTEXT = 256
ANSWER = 64  # tokens
TOPICS = (
    "rain", "bread", "the moon", "bicycles", "honey bees", "earthquakes", "coffee", "the heart", "trees", "electricity",
    "sleep", "money", "volcanoes", "the internet", "dogs", "soap", "music", "the ocean", "vaccines", "batteries", "chess",
    "friendship", "airplanes", "salt", "dreams", "glass", "deserts", "running", "paper", "memory", "cheese", "bridges",
    "the stars", "gardens", "rainbows", "cats", "tea", "time zones", "libraries", "winter",
)  # fmt: skip
ASKED = ("What is special about {}?", "Write a short story about {}.", "Give me three tips about {}.")
HELD_OUT = "Explain {} to a child in a few sentences."


def sentences(data: Path) -> list[str]:
    """Return the English texts of the corpus, each once."""
    with zipfile.ZipFile(data / "tatoeba-spa-eng" / "spa-eng.zip") as archive:
        name = next(name for name in archive.namelist() if name.endswith(".txt"))
        texts = [line.split("\t")[0] for line in archive.read(name).decode().splitlines()]
    texts += questions(data, "train")
    texts += (data / "tinystories-text" / "tinystories_sample.txt").read_text(encoding="utf-8").split("<|endoftext|>")
    reviews = (data / "sst2" / "train.tsv").read_text(encoding="utf-8").splitlines()[1:]
    texts += [line.split("\t")[0] for line in reviews if line.count(" ") > 15]  # most others are parts of these
    return list(dict.fromkeys(text.strip() for text in texts if text.strip()))


def questions(data: Path, split: str) -> list[str]:
    with (data / "banking77" / f"{split}.csv").open(encoding="utf-8", newline="") as file:
        return [row["text"] for row in csv.DictReader(file)]


def held_out(data: Path) -> dict[str, list[str]]:
    """Return texts that are in no corpus, by their kind."""
    captions = gzip.decompress((data / "multi30k" / "test_2016_flickr.en.gz").read_bytes()).decode().splitlines()
    news = (data / "flores-en-pt" / "flores-test.en").read_text(encoding="utf-8").splitlines()
    return {"customers' questions": questions(data, "test"), "captions": captions, "news": news}


def cached(file: Path, make: Callable[[], Any]) -> Any:
    """Return what a file holds, made before where there is none. Only files that this script wrote are read."""
    if not file.is_file():
        file.parent.mkdir(parents=True, exist_ok=True)
        made = make()
        part = file.with_suffix(".part")
        with part.open("wb") as stream:
            pickle.dump(made, stream)
        part.replace(file)
        print(f"{file.name} made", file=sys.stderr, flush=True)
    with file.open("rb") as stream:
        return pickle.load(stream)  # noqa: S301 - written above


def read_spec() -> Any:
    """Return the spec of the assistant."""
    import keras
    import keras_hub  # noqa: F401 - registers its layers
    from edgelm_converters.families import recognise

    recognition = recognise(keras.models.load_model(ASSISTANT / "assistant.keras", compile=False), None)
    if recognition.spec is None:
        raise SystemExit(f"error: the assistant is not recognised: {recognition.reason}")
    return recognition.spec


def opened(spec: Any, runtime: str, folder: Path) -> tuple[Any, int]:
    """Write a model in int8 for a runtime and open it; return its bytes too."""
    from edgelm_converters.emit.onnx_decoder import emit_onnx_decoder
    from edgelm_converters.emit.tflite_decoder import emit_tflite_decoder
    from edgelm_runtimes.program import ProgramOptions
    from edgelm_runtimes.registry import open_causal

    folder.mkdir(parents=True, exist_ok=True)
    if runtime == "litert":
        path = folder / "model.tflite"
        signatures = emit_tflite_decoder(spec, path, recipe=RECIPE, caches=(CONTEXT,), prefill=(64,))
    else:
        path = folder / "model.onnx"
        signatures = emit_onnx_decoder(spec, path, recipe=RECIPE, context_length=CONTEXT)
    size = sum(file.stat().st_size for file in folder.iterdir())
    return open_causal(runtime, path, signatures, ProgramOptions(threads=2)), size


def written(program: Any, prompt: list[int], stops: set[int], tokens: int = ANSWER) -> Iterator[tuple[int, float]]:
    """Yield the likeliest tokens, and the seconds that each took; to the end of the answer, or `tokens` of them."""
    ids = np.asarray(prompt, np.int32)
    start = 0
    for _ in range(tokens):
        begin = time.perf_counter()
        token = int(np.argmax(program.forward(ids, start)))
        yield token, time.perf_counter() - begin
        if token in stops:
            return
        start += len(ids)
        ids = np.asarray([token], np.int32)


def prompts_of(tokenizer: Any, template: str, asked: list[str]) -> list[list[int]]:
    from edgelm_runtimes.chat_template import ChatTemplate

    rendered = ChatTemplate(template, start="", stop="")
    return [tokenizer.encode(rendered.render([{"role": "user", "content": text}])).ids for text in asked]


def answers_at_once(spec: Any, prompts: list[list[int]], stops: set[int]) -> list[list[int]]:
    """Return the greedy answers in float32; the weights are read once for a token of each."""
    from edgelm_converters.activations import add_attention, add_feed_forward, embed, hidden, scores_of, seen_by
    from edgelm_converters.own_text import _Cache

    rows, longest = [list(prompt) for prompt in prompts], max(map(len, prompts)) + ANSWER
    caches = [_Cache(layer.attention, len(rows), longest) for layer in spec.decoder.layers]
    for place in range(longest - 1):
        x = embed(spec, [np.asarray(row[place : place + 1], np.int32) for row in rows], start=place)
        for layer, cache in zip(spec.decoder.layers, caches, strict=True):
            x = add_attention(layer, x, cache.mix(seen_by(layer, layer.attention_norm, x), place))
            x = add_feed_forward(layer, x, hidden(layer.feed_forward, seen_by(layer, layer.feed_forward_norm, x)))
        if place + 1 < min(map(len, rows)):
            continue
        for row, token in zip(rows, scores_of(spec, x).argmax(axis=-1).tolist(), strict=True):
            if place + 1 == len(row):
                row.append(token)
    return [until_stop(row[len(prompt) :][:ANSWER], stops) for row, prompt in zip(rows, prompts, strict=True)]


def until_stop(answer: list[int], stops: set[int]) -> list[int]:
    end = next((place for place, token in enumerate(answer) if token in stops), len(answer))
    return answer[: end + 1]


def own_answers(spec: Any, tokenizer: Any, template: str, stops: set[int]) -> list[str]:
    """Return the questions that belong to the corpus, and what the model answers to them."""
    asked = [form.format(topic) for topic in TOPICS[::2] for form in ASKED]
    answers = answers_at_once(spec, prompts_of(tokenizer, template, asked), stops)
    return asked + [tokenizer.decode(answer) for answer in answers]


def compare_answers(
    before: Callable[[list[list[int]]], list[list[int]]],
    after: Callable[[list[list[int]]], list[list[int]]],
    prompts: list[list[int]],
    ids: Any,
) -> dict[str, Any]:
    """Count the answers that are the same, token by token; where one is not, after how many tokens."""
    kept = [prompt for prompt in prompts if all(token in ids for token in prompt)]
    wanted = [[ids.get(token) for token in answer] for answer in before(kept)]
    found = after([[ids[token] for token in prompt] for prompt in kept])
    first = [
        next((place for place, both in enumerate(zip(one, other, strict=False)) if both[0] != both[1]), len(one))
        for one, other in zip(wanted, found, strict=True)
        if one != other
    ]
    return {
        "prompts": len(prompts),
        "prompts_kept": len(kept),
        "same": len(kept) - len(first),
        "tokens": sum(map(len, wanted)),
        "first_different": first,
    }


def time_both(programs: dict[str, Any], prompts: dict[str, list[int]], rounds: int) -> dict[str, Any]:
    """Return the median time of a decoded token of each program, and the median ratio of the rounds."""
    times: dict[str, list[float]] = {name: [] for name in programs}
    for _ in range(rounds):
        for name in random.sample(sorted(programs), len(programs)):
            steps = [seconds for _, seconds in written(programs[name], prompts[name], set(), 17)]
            times[name].append(statistics.median(steps[1:]))
    ratios = [one / other for one, other in zip(times["whole"], times["trimmed"], strict=True)]
    return {
        "token_s": {name: statistics.median(values) for name, values in times.items()},
        "speedup": statistics.median(ratios),
        "speedup_rounds": ratios,
    }


def measure_float(spec: Any, trimmed: Any, prompts: list[list[int]], stops: set[int]) -> dict[str, Any]:
    """Return the row of the float32 models."""
    new_stops = {trimmed.ids[stop] for stop in stops}
    return {
        "recipe": "fp32",
        "runtime": "NumPy",
        **compare_answers(
            lambda asked: answers_at_once(spec, asked, stops),
            lambda asked: answers_at_once(trimmed.spec, asked, new_stops),
            prompts,
            trimmed.ids,
        ),
    }


def measure_runtime(
    runtime: str, spec: Any, trimmed: Any, prompts: list[list[int]], stops: set[int], arguments: argparse.Namespace
) -> dict[str, Any]:
    """Return the row of the int8 models in a runtime."""
    whole, before = opened(spec, runtime, arguments.work / f"whole-{runtime}")
    small, after = opened(trimmed.spec, runtime, arguments.work / f"trimmed-{runtime}")
    new_stops = {trimmed.ids[stop] for stop in stops}
    first = {"whole": prompts[0], "trimmed": [trimmed.ids[token] for token in prompts[0]]}
    try:
        return {
            "recipe": "int8",
            "runtime": runtime,
            "bytes_before": before,
            "bytes_after": after,
            **time_both({"whole": whole, "trimmed": small}, first, arguments.rounds),
            **compare_answers(
                lambda asked: [[token for token, _ in written(whole, prompt, stops)] for prompt in asked],
                lambda asked: [[token for token, _ in written(small, prompt, new_stops)] for prompt in asked],
                prompts[: arguments.questions],
                trimmed.ids,
            ),
        }
    finally:
        whole.close()
        small.close()


def measure_texts(name: str, tokenizer: Any, trimmed: Any, texts: dict[str, list[str]]) -> list[dict[str, Any]]:
    from edgelm_converters.compress.vocabulary_texts import compare_tokenizers

    whole = max(tokenizer.get_vocab().values()) + 1
    rows = []
    for kind, lines in texts.items():
        found = compare_tokenizers(tokenizer, trimmed.tokenizer, trimmed.ids, lines)
        rows.append(
            {
                "tokenizer": name, "whole": whole, "vocabulary": len(trimmed.ids), "texts": kind, "number": found.texts,
                "same": found.same / found.texts, "longer": found.tokens_after / found.tokens_before - 1,
            }
        )  # fmt: skip
    return rows


def table(result: dict[str, Any]) -> str:
    """Return the result as Markdown."""
    lines = [
        "# Trimming the vocabulary of an assistant to English conversation",
        "",
        f"{result['date']}, {result['machine']}; {', '.join(f'{k} {v}' for k, v in result['versions'].items())}.",
        f"{NAME}; a corpus of {result['corpus']:,} texts. How it is measured says `vocabulary.py`.",
        "",
        *(f"- {note}" for note in result["notes"]),
        "",
        "Held-out texts, beside the whole vocabulary:",
        "",
        "| tokenizer | tokens kept | texts | number | read as before | tokens in all |",
        "|---|---|---|---|---|---|",
    ]
    lines.extend(
        f"| {row['tokenizer']} | {row['vocabulary']:,} of {row['whole']:,} | "
        f"{row['texts']} | {row['number']:,} | {row['same']:.1%} | {row['longer']:+.2%} |"
        for row in result["texts"]
    )
    lines += [
        "",
        f"Held-out questions, greedy answers of up to {ANSWER} tokens; a token's time is a median, the ratio that of rounds in "
        "which both take turns:",
        "",
        "| recipe | runtime | same answers | MB before | MB after | ms a token before | after | times as fast |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for row in result["answers"]:
        cells = [row["recipe"], row["runtime"], f"{row['same']} of {row['prompts']}"]
        if "token_s" in row:
            cells += [f"{row[name] / 1e6:.1f}" for name in ("bytes_before", "bytes_after")]
            cells += [f"{row['token_s'][name] * 1e3:.1f}" for name in ("whole", "trimmed")]
            cells.append(f"{row['speedup']:.2f}")
        else:
            cells += [""] * 5
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def main() -> int:
    """Run the command line; return the exit status."""
    from edgelm_converters.compress.vocabulary import trim_vocabulary
    from tokenizers import Tokenizer

    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", 1)[0])
    parser.add_argument("-o", "--output", type=Path, required=True, help="the JSON file; the table goes beside it")
    parser.add_argument("--data", type=Path, required=True, help="folder of the texts")
    parser.add_argument("--work", type=Path, required=True, help="folder for what takes long")
    parser.add_argument(
        "--questions-tokenizer", type=Path, help="another one, trimmed to the customers' questions alone"
    )
    parser.add_argument("--limits", default="8192,16384", help="smaller vocabularies, for the held-out texts alone")
    parser.add_argument("--questions", type=int, default=20, help="held-out questions that a runtime answers")
    parser.add_argument("--rounds", type=int, default=9)
    arguments = parser.parse_args()
    tokenizer = Tokenizer.from_file(str(ASSISTANT / "tokenizer.json"))
    template = (ASSISTANT / "chat_template.jinja").read_text(encoding="utf-8")
    stops = {int(tokenizer.token_to_id("<|im_end|>"))}
    spec = cached(arguments.work / "spec.pkl", read_spec)
    own = cached(arguments.work / "own.pkl", lambda: own_answers(spec, tokenizer, template, stops))
    corpus = [*sentences(arguments.data), *own]
    settings = {"keep": stops, "chat_template": template}
    trimmed = cached(arguments.work / "trimmed.pkl", lambda: trim_vocabulary(spec, tokenizer, corpus, **settings))
    result: dict[str, Any] = {
        "date": datetime.datetime.now(datetime.UTC).date().isoformat(),
        "machine": f"{platform.machine()}, {platform.system()}",
        "versions": {package: importlib.metadata.version(package) for package in PACKAGES},
        "corpus": len(corpus),
        "notes": trimmed.step.notes,
        "texts": measure_texts(NAME, tokenizer, trimmed, held_out(arguments.data)),
        "answers": [],
    }
    if arguments.questions_tokenizer is not None:
        other = Tokenizer.from_file(str(arguments.questions_tokenizer))
        # Only its tokens count here: the rows may be any.
        small = trim_vocabulary(spec, other, questions(arguments.data, "train"))
        held = {"customers' questions": questions(arguments.data, "test")}
        result["texts"] += measure_texts(arguments.questions_tokenizer.parent.name, other, small, held)
    prompts = prompts_of(tokenizer, template, [HELD_OUT.format(topic) for topic in TOPICS[1::2]])
    write(result, arguments.output)
    measure: dict[str, Callable[[], dict[str, Any]]] = {
        runtime: lambda runtime=runtime: measure_runtime(runtime, spec, trimmed, prompts, stops, arguments)
        for runtime in RUNTIMES
    }
    measure["float"] = lambda: measure_float(spec, trimmed, prompts, stops)
    for name, make in measure.items():
        result["answers"].append(cached(arguments.work / f"{name}.pkl", make))
        write(result, arguments.output)
    for limit in map(int, filter(None, arguments.limits.split(","))):
        smaller = trim_vocabulary(spec, tokenizer, corpus, limit=limit, **settings)
        result["texts"] += measure_texts(NAME, tokenizer, smaller, held_out(arguments.data))
        write(result, arguments.output)
    return 0


def write(result: dict[str, Any], output: Path) -> None:
    output.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    output.with_suffix(".md").write_text(table(result), encoding="utf-8")


if __name__ == "__main__":
    sys.exit(main())

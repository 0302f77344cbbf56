"""What a user would take instead of edgelm to translate with the model of `examples/translation`, and whether it is right.

    python translation_peers.py --sentences 50 --ctranslate2-python ct2/bin/python

translates held-out sentences with every peer, one at a time, and prints a line of JSON for each: the seconds of each sentence,
and the share of them whose ids are exactly those of Keras.

| peer | how |
|---|---|
| keras | the loop of Keras's tutorial: the whole model for each token, as a traced function |
| openvino | OpenVINO on Keras's SavedModel, in the same loop: what it makes of the graph without a cache |
| ctranslate2-float32, -int8 | CTranslate2 on the same weights; in an interpreter of its own that has `ctranslate2` |
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

__all__ = ["Answer", "agreement", "ctranslate2_peer", "keras_peer", "load_example", "openvino_peer", "write_weights"]

HERE = Path(__file__).parent
EXAMPLE = HERE.parent / "examples" / "translation"
START, END, LONGEST = 1, 2, 64

Ids = NDArray[np.int32]


@dataclass(frozen=True)
class Answer:
    """The ids of a translation, without [START] and [END], and how long it took, tokenizing left out."""

    ids: list[int]
    seconds: float


Peer = Callable[[Sequence[int]], Answer]
"""Source ids with [END] behind -> the greedy answer."""


def load_example() -> tuple[Any, Any, list[str]]:
    """Return the example's model, its tokenizer, and the held-out English sentences."""
    sys.path.insert(0, str(EXAMPLE))
    import keras
    import model  # noqa: F401  # registers the layers
    from data import read_held_out
    from tokenizers import Tokenizer

    translator = keras.saving.load_model(EXAMPLE / "translator.keras")
    tokenizer = Tokenizer.from_file(str(EXAMPLE / "tokenizer.json"))
    return translator, tokenizer, list(read_held_out(EXAMPLE / "held_out.csv"))


def greedy(scores: Callable[[Ids, Ids], NDArray[np.float32]], source: Sequence[int]) -> Answer:
    """Return the answer of a model without a cache: `scores` gives ``(1, T, V)`` for a source and a target of T tokens."""
    given, target = np.asarray([source], np.int32), [START]
    started = time.perf_counter()
    while len(target) <= LONGEST and target[-1] != END:
        target.append(int(scores(given, np.asarray([target], np.int32))[0, -1].argmax()))
    seconds = time.perf_counter() - started
    return Answer([token for token in target[1:] if token != END], seconds)


def keras_peer(model: Any) -> Peer:
    """Return Keras, traced once for all lengths."""
    import tensorflow as tf

    ids = tf.TensorSpec((1, None), tf.int32)
    traced = tf.function(lambda source, target: model([source, target], training=False), input_signature=[ids, ids])
    return lambda source: greedy(lambda given, target: traced(given, target).numpy(), source)


def openvino_peer(model: Any, threads: int) -> Peer:
    """Return OpenVINO on the SavedModel that Keras exports, with float32 computation and shapes left open."""
    import openvino as ov

    with tempfile.TemporaryDirectory() as folder:
        model.export(folder, format="tf_saved_model", verbose=False)
        converted = ov.convert_model(folder)
    options = {"INFERENCE_NUM_THREADS": threads, "INFERENCE_PRECISION_HINT": "f32", "PERFORMANCE_HINT": "LATENCY"}
    compiled = ov.Core().compile_model(converted, "CPU", options)
    ports = {name: next(port for port in compiled.inputs if name in port.any_name) for name in ("encoder", "decoder")}

    def scores(source: Ids, target: Ids) -> NDArray[np.float32]:
        found = compiled({ports["encoder"]: source, ports["decoder"]: target})
        return np.asarray(found[compiled.output(0)], np.float32)

    return lambda source: greedy(scores, source)


def write_weights(model: Any, tokenizer: Any, path: Path) -> None:
    """Write every weight under Keras's path of it, with the vocabulary and the number of heads, for another interpreter."""
    weights = {variable.path: variable.numpy() for variable in model.trainable_variables}
    tokens = [tokenizer.id_to_token(number) for number in range(tokenizer.get_vocab_size())]
    np.savez(path, **weights, tokens=np.asarray(tokens), heads=np.asarray(model.get_layer("encoder_0").heads))


@contextmanager
def ctranslate2_peer(python: Path, model: Any, tokenizer: Any, kind: str, threads: int) -> Iterator[Peer]:
    """Give CTranslate2 on the same weights; `kind` is float32 or int8.

    Raises:
        RuntimeError: The worker ended: its reason is on stderr.
    """
    with tempfile.TemporaryDirectory() as folder:
        weights = Path(folder) / "weights.npz"
        write_weights(model, tokenizer, weights)
        command = [python, HERE / "translation_ctranslate2.py", weights, Path(folder) / "model", kind, threads]
        with subprocess.Popen(
            [str(part) for part in command], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        ) as worker:

            def ask(source: Sequence[int]) -> Answer:
                if worker.stdin is None or worker.stdout is None:
                    raise RuntimeError("CTranslate2's worker has no pipes.")
                worker.stdin.write(json.dumps([int(number) for number in source]) + "\n")
                worker.stdin.flush()
                line = worker.stdout.readline()
                if not line:
                    raise RuntimeError(f"CTranslate2's worker ended with status {worker.wait()}; see above.")
                return Answer(**json.loads(line))

            try:
                yield ask
            finally:
                if worker.stdin is not None:
                    worker.stdin.close()


def agreement(answers: Sequence[Answer], expected: Sequence[Answer]) -> float:
    """Return the share of answers whose ids are exactly the expected ones, in [0, 1]."""
    return float(np.mean([one.ids == other.ids for one, other in zip(answers, expected, strict=True)]))


def main() -> None:
    """Translate with every peer, one after another: for the answers. Times to compare need rounds in turns."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", 1)[0])
    parser.add_argument("--sentences", type=int, default=50, help="held-out sentences (default: 50)")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--ctranslate2-python", type=Path, help="an interpreter that has ctranslate2")
    parser.add_argument("--no-openvino", action="store_true", help="leave OpenVINO out")
    arguments = parser.parse_args()
    model, tokenizer, texts = load_example()
    sources = [[*tokenizer.encode(text).ids, END] for text in texts[: arguments.sentences]]
    expected: list[Answer] = []

    def report(name: str, peer: Peer) -> list[Answer]:
        peer(sources[0])  # the first call traces or allocates
        answers = [peer(source) for source in sources]
        seconds = [answer.seconds for answer in answers]
        row = {
            "peer": name,
            "agreement": agreement(answers, expected or answers),
            "median_s": float(np.median(seconds)),
        }
        print(json.dumps({**row, "tokens": sum(len(answer.ids) for answer in answers), "seconds": seconds}), flush=True)
        return answers

    expected = report("keras", keras_peer(model))
    if not arguments.no_openvino:
        report("openvino", openvino_peer(model, arguments.threads))
    if arguments.ctranslate2_python:
        for kind in ("float32", "int8"):
            with ctranslate2_peer(arguments.ctranslate2_python, model, tokenizer, kind, arguments.threads) as peer:
                report(f"ctranslate2-{kind}", peer)


if __name__ == "__main__":
    main()

"""Open one compressed file in its runtime, then answer what is asked on stdin: labels of all texts, or times of some.

    python compression_worker.py ENGINE FILE IDS.json THREADS

It runs in whatever interpreter has the engine, and needs nothing of this project but for edgelm's own engines. IDS.json holds
the ids of each text; edgelm's engines take the texts themselves, of IDS-texts.json: a bundle may have a tokenizer of its own.
Questions, one a line: ``labels`` is answered with a JSON list; ``time N`` with the seconds of the next N texts, ids to logits,
one at a time.
"""

from __future__ import annotations

import itertools
import json
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

__all__ = ["ENGINES", "OURS", "open_engine"]

Run = Callable[[list[int]], Any]
Encode = Callable[[str], list[int]]


def arrays(ids: list[int], length: int | None) -> dict[str, Any]:
    """Return one text under every name that an exported input may have, padded to `length`."""
    import numpy as np

    padded = np.zeros((1, length or len(ids)), np.int32)
    padded[0, : len(ids)] = ids
    mask = np.zeros_like(padded)
    mask[0, : len(ids)] = 1
    return {"token_ids": padded, "padding_mask": mask, "segment_ids": np.zeros_like(padded)}


def pick(inputs: dict[str, Any], name: str) -> Any:
    """Return the array of an exported input (``token_ids:0``, ``serving_default_token_ids:0``)."""
    found = [key for key in inputs if key in name]
    if len(found) != 1:
        raise KeyError(f"the exported input {name!r} is none of {', '.join(inputs)}")
    return inputs[found[0]]


def open_edgelm(path: Path, threads: int, runtime: str) -> tuple[Run, Encode]:
    """Return a bundle's run and its encoding, which a trimmed vocabulary changes."""
    import edgelm

    session = edgelm.load(path, runtime=runtime, threads=threads)
    names = [port.name for port in session.artifact.signatures[0].inputs]

    def run(ids: list[int]) -> Any:
        inputs = arrays(ids, None)
        return next(iter(session.run({name: pick(inputs, name) for name in names}).values()))

    return run, lambda text: list(session.encode(text).ids)


def open_litert(path: Path, threads: int) -> Run:
    from ai_edge_litert.interpreter import Interpreter

    interpreter = Interpreter(str(path), num_threads=threads)
    interpreter.allocate_tensors()
    ports = interpreter.get_input_details()
    length = int(ports[0]["shape"][1])
    output = interpreter.get_output_details()[0]["index"]

    def run(ids: list[int]) -> Any:
        inputs = arrays(ids, length)
        for port in ports:
            interpreter.set_tensor(port["index"], pick(inputs, port["name"]).astype(port["dtype"]))
        interpreter.invoke()
        return interpreter.get_tensor(output)

    return run


def open_onnx(path: Path, threads: int) -> Run:
    import numpy as np
    import onnxruntime as ort

    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    options.log_severity_level = 3
    session = ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    kinds = {"tensor(int32)": np.int32, "tensor(int64)": np.int64, "tensor(float)": np.float32}
    ports = [(port.name, kinds[port.type]) for port in session.get_inputs()]

    def run(ids: list[int]) -> Any:
        inputs = arrays(ids, None)
        return session.run(None, {name: pick(inputs, name).astype(kind) for name, kind in ports})[0]

    return run


def open_openvino(path: Path, threads: int) -> Run:
    import openvino as ov

    core = ov.Core()
    # Without the hint OpenVINO computes in bfloat16 where the processor has it: other numbers than float32.
    config = {"INFERENCE_NUM_THREADS": threads, "PERFORMANCE_HINT": "LATENCY", "INFERENCE_PRECISION_HINT": "f32"}
    compiled = core.compile_model(core.read_model(path), "CPU", config)
    names = [port.get_any_name() for port in compiled.inputs]
    request = compiled.create_infer_request()

    def run(ids: list[int]) -> Any:
        inputs = arrays(ids, None)
        return next(iter(request.infer({name: pick(inputs, name) for name in names}).values()))

    return run


OURS = {"edgelm-litert": "litert", "edgelm-onnx": "onnx"}
ENGINES: dict[str, Callable[[Path, int], Run]] = {
    "litert": open_litert,
    "onnxruntime": open_onnx,
    "openvino": open_openvino,
}


def open_engine(engine: str, path: Path, threads: int, ids: Path) -> tuple[Run, list[list[int]]]:
    """Return a function from the ids of one text to the logits of the file, and the ids of all texts."""
    if engine in OURS:
        run, encode = open_edgelm(path, threads, OURS[engine])
        return run, [encode(text) for text in json.loads(ids.with_name(f"{ids.stem}-texts.json").read_text())]
    return ENGINES[engine](path, threads), json.loads(ids.read_text())


def main() -> None:
    engine, path, texts, threads = sys.argv[1:]
    run, ids = open_engine(engine, Path(path), int(threads), Path(texts))
    run(ids[0])
    print(json.dumps("ready"), flush=True)
    following = itertools.cycle(ids)
    for line in sys.stdin:
        question, *count = line.split()
        if question == "labels":
            print(json.dumps([int(run(text).argmax()) for text in ids]), flush=True)
            continue
        times = []
        for text in itertools.islice(following, int(count[0])):
            start = time.perf_counter_ns()
            run(text)
            times.append((time.perf_counter_ns() - start) / 1e9)
        print(json.dumps(times), flush=True)


if __name__ == "__main__":
    main()

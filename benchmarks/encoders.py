"""Encoders side by side: what a user would pick instead, and edgelm, in one alternating run.

    python benchmarks/encoders.py -o benchmarks/results/encoders.json [--models intents,bert-mini] [--rounds 12]

For each model, token count and thread count, every contestant runs in a process of its own and all take turns, in an order
drawn anew each round, so that a slow moment of the machine hits them alike. A figure is the median over the rounds of each
round's median; its ratio to ours is taken round by round. Input: batch 1, token ids in, logits out. edgelm's contestants go
through the public `Session.run`, with its checks; the others through their runtime's own call. `edgelm-file` is our .tflite
file driven as bare as Keras's: what the file gives, apart from what our Python costs.

Conversions are timed as whole processes from a `.keras` file on disk, with their peak memory.

Needs: pip install -e '.[convert,keras-hub,litert,onnx,benchmarks]'
"""

from __future__ import annotations

import argparse
import json
import os
import random
import resource
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
INTENTS = HERE.parent / "examples" / "intents"
CLASSES = 77
SHORT = {"fp32": "fp32", "dynamic_wi8_afp32": "int8"}
# tf2onnx takes about 60 times the weights: some 26 GB for BERT-base.
TOO_LARGE_FOR_TF2ONNX = ("bert-base",)

# name -> layers, width, heads, feed-forward; the example is the shipped model.
SHAPES = {
    "intents": None,
    "bert-mini": (4, 256, 4, 1024),
    "minilm": (6, 384, 12, 1536),
    "bert-base": (12, 768, 12, 3072),
}
CONTESTANTS = (
    "edgelm-litert-fp32",
    "edgelm-onnx-fp32",
    "keras-predict",
    "keras-export-litert",
    "keras-export-onnx",
    "openvino-fp32",
    "edgelm-file-fp32",
    "edgelm-litert-int8",
    "edgelm-onnx-int8",
    "edgelm-file-int8",
    "keras-export-litert-int8",
    "onnxruntime-dynamic-int8",
    "openvino-int8",
)
CONVERSIONS = (
    "keras-export-litert",
    "keras-export-onnx",
    "edgelm-tflite-fp32",
    "edgelm-tflite-int8",
    "edgelm-onnx-fp32",
    "edgelm-onnx-int8",
)


# ---------------------------------------------------------------------------------------------------- models


def load_model(name: str, folder: Path) -> Any:
    """Return the Keras model of a name, built once into `folder` and read back from its `.keras` file."""
    import keras

    if name == "intents":
        sys.path.insert(0, str(INTENTS))
        import model as _  # noqa: F401 - registers the example's layers

        return keras.models.load_model(INTENTS / "intents.keras", compile=False)
    import keras_hub

    path = folder / f"{name}.keras"
    if not path.exists():
        layers, width, heads, feed_forward = SHAPES[name]  # type: ignore[misc]
        keras.utils.set_random_seed(7)
        backbone = keras_hub.models.BertBackbone(
            vocabulary_size=30522, num_layers=layers, num_heads=heads, hidden_dim=width,
            intermediate_dim=feed_forward, max_sequence_length=512,
        )  # fmt: skip
        keras_hub.models.BertTextClassifier(backbone, num_classes=CLASSES).save(path)
    return keras.models.load_model(path, compile=False)


def model_path(name: str, folder: Path) -> Path:
    return INTENTS / "intents.keras" if name == "intents" else folder / f"{name}.keras"


def arrays(name: str, tokens: int, seed: int = 3) -> dict[str, Any]:
    """Return one input of `tokens` real tokens."""
    import numpy as np

    ids = np.random.default_rng(seed).integers(5, 1000, (1, tokens)).astype(np.int32)
    if name == "intents":
        return {"token_ids": ids}
    return {"token_ids": ids, "segment_ids": np.zeros_like(ids), "padding_mask": np.ones_like(ids)}


def in_model_order(model: Any, inputs: dict[str, Any]) -> Any:
    names = [tensor.name for tensor in model.inputs]
    return inputs if len(names) > 1 else inputs[names[0]]


# ---------------------------------------------------------------------------------------------------- artifacts


def prepare(name: str, folder: Path, tokens: tuple[int, ...]) -> None:
    """Make every file that a contestant opens, unless it is there."""
    import tensorflow as tf

    model = load_model(name, folder)
    for count in tokens:
        signature = [
            {key: tf.TensorSpec((1, count), "int32", name=key) for key in arrays(name, count)}
            if len(model.inputs) > 1
            else tf.TensorSpec((1, count), "int32", name=model.inputs[0].name)
        ]
        for suffix, extra in (("", {}), ("-int8", {"optimizations": [tf.lite.Optimize.DEFAULT]})):
            path = folder / f"{name}-{count}{suffix}.tflite"
            if not path.exists():
                builtins = {"supported_ops": [tf.lite.OpsSet.TFLITE_BUILTINS]}
                model.export(
                    path, format="litert", input_signature=signature, target_spec=builtins, verbose=False, **extra
                )
    onnx_path = folder / f"{name}.onnx"
    if not onnx_path.exists() and name not in TOO_LARGE_FOR_TF2ONNX:
        model.export(onnx_path, format="onnx", verbose=False)
        from onnx import TensorProto
        from onnxruntime.quantization import QuantType, quantize_dynamic

        options = {"DefaultTensorType": TensorProto.FLOAT}
        quantize_dynamic(
            onnx_path,
            folder / f"{name}-int8.onnx",
            per_channel=True,
            weight_type=QuantType.QInt8,
            extra_options=options,
        )
    if not (folder / f"{name}-openvino.xml").exists():
        prepare_openvino(name, model, folder)
    from edgelm_converters.emit.tflite import emit_tflite
    from edgelm_converters.families import recognise

    import edgelm

    spec = recognise(model, None).spec
    for recipe in ("fp32", "dynamic_wi8_afp32"):
        for count in tokens:
            assert spec is not None
            emit_tflite(spec, folder / f"{name}-{count}-{SHORT[recipe]}-edgelm.tflite", recipe=recipe, lengths=(count,))
    for recipe in ("fp32", "int8"):
        bundle = folder / f"{name}-{recipe}.edgelm"
        if not bundle.exists():
            edgelm.convert(model, bundle, recipe=recipe, sequence_length=128)


def prepare_openvino(name: str, keras_model: Any, folder: Path) -> None:
    import numpy as np
    import openvino as ov

    with tempfile.TemporaryDirectory() as saved:
        keras_model.export(saved, verbose=False)
        model = ov.convert_model(saved)
    ov.save_model(model, folder / f"{name}-openvino.xml", compress_to_fp16=False)
    try:
        import nncf
    except ImportError:
        print("nncf is not installed: no openvino-int8 row", file=sys.stderr)
        return
    samples = [rename(model, arrays(name, int(np.clip(4 + seed, 4, 128)), seed)) for seed in range(100)]
    quantised = nncf.quantize(model, nncf.Dataset(samples), model_type=nncf.ModelType.TRANSFORMER)
    ov.save_model(quantised, folder / f"{name}-openvino-int8.xml")


def rename(model: Any, inputs: dict[str, Any]) -> dict[str, Any]:
    """Match our names to those of an exported graph (``token_ids`` and ``token_ids:0``)."""
    found = {}
    for port in model.inputs:
        name = port.get_any_name()
        key = name.split(":")[0]
        found[name] = inputs[key] if key in inputs else next(iter(inputs.values()))
    return found


# ---------------------------------------------------------------------------------------------------- contestants


def open_contestant(contestant: str, name: str, folder: Path, tokens: int, threads: int) -> Callable[[], Any]:
    """Return a function that runs one inference and returns the logits."""
    inputs = arrays(name, tokens)
    if contestant.startswith("edgelm-file-"):
        return open_litert(folder / f"{name}-{tokens}-{contestant[12:]}-edgelm.tflite", inputs, threads)
    if contestant.startswith("edgelm-"):
        return open_edgelm(contestant, name, folder, inputs, threads)
    if contestant == "keras-predict":
        import tensorflow as tf

        tf.config.threading.set_intra_op_parallelism_threads(threads)
        tf.config.threading.set_inter_op_parallelism_threads(1)
        model = load_model(name, folder)
        packed = in_model_order(model, inputs)
        import keras

        predict = keras.Model.predict  # a KerasHub task's own predict would tokenise
        return lambda: predict(model, packed, verbose=0)
    if contestant.startswith("keras-export-litert"):
        suffix = "-int8" if contestant.endswith("int8") else ""
        return open_litert(folder / f"{name}-{tokens}{suffix}.tflite", inputs, threads)
    if contestant in ("keras-export-onnx", "onnxruntime-dynamic-int8"):
        suffix = "-int8" if contestant.endswith("int8") else ""
        return open_onnx(folder / f"{name}{suffix}.onnx", inputs, threads)
    suffix = "-int8" if contestant.endswith("int8") else ""
    return open_openvino(folder / f"{name}-openvino{suffix}.xml", inputs, threads)


def open_edgelm(contestant: str, name: str, folder: Path, inputs: dict[str, Any], threads: int) -> Callable[[], Any]:
    import edgelm

    _, runtime, recipe = contestant.split("-")
    session = edgelm.load(folder / f"{name}-{recipe}.edgelm", runtime=runtime, threads=threads)
    return lambda: session.run(inputs)


def open_litert(path: Path, inputs: dict[str, Any], threads: int) -> Callable[[], Any]:
    from ai_edge_litert.interpreter import Interpreter

    interpreter = Interpreter(str(path), num_threads=threads)
    interpreter.allocate_tensors()
    by_name = {}
    for detail in interpreter.get_input_details():
        key = next((key for key in inputs if key in detail["name"]), next(iter(inputs)))
        by_name[detail["index"]] = inputs[key].astype(detail["dtype"])
    output = interpreter.get_output_details()[0]["index"]

    def run() -> Any:
        for index, value in by_name.items():
            interpreter.set_tensor(index, value)
        interpreter.invoke()
        return interpreter.get_tensor(output)

    return run


def open_onnx(path: Path, inputs: dict[str, Any], threads: int) -> Callable[[], Any]:
    import numpy as np
    import onnxruntime as ort

    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    session = ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    kinds = {"tensor(int32)": np.int32, "tensor(int64)": np.int64, "tensor(float)": np.float32}
    feed = {}
    for port in session.get_inputs():
        key = port.name.split(":")[0]
        feed[port.name] = (inputs[key] if key in inputs else next(iter(inputs.values()))).astype(kinds[port.type])
    return lambda: session.run(None, feed)


def open_openvino(path: Path, inputs: dict[str, Any], threads: int) -> Callable[[], Any]:
    import openvino as ov

    core = ov.Core()
    # Without the hint OpenVINO computes in bfloat16 where the processor has it: other numbers than float32.
    config = {"INFERENCE_NUM_THREADS": threads, "PERFORMANCE_HINT": "LATENCY", "INFERENCE_PRECISION_HINT": "f32"}
    compiled = core.compile_model(core.read_model(path), "CPU", config)
    feed = rename(compiled, inputs)
    request = compiled.create_infer_request()
    return lambda: request.infer(feed)


def first_array(result: Any) -> Any:
    import numpy as np

    if hasattr(result, "values"):
        result = next(iter(result.values()))
    return np.asarray(result[0] if isinstance(result, list) else result)


def serve(contestant: str, name: str, folder: Path, tokens: int, threads: int) -> None:
    """Worker: open the contestant, then answer each number on stdin with that many timed runs, in seconds."""
    run = open_contestant(contestant, name, folder, tokens, threads)
    logits = first_array(run()).ravel()[:CLASSES].astype(float).tolist()
    print(
        json.dumps({"logits": logits, "rss_bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024}),
        flush=True,
    )
    for line in sys.stdin:
        times = []
        for _ in range(int(line)):
            start = time.perf_counter_ns()
            run()
            times.append((time.perf_counter_ns() - start) / 1e9)
        print(json.dumps(times), flush=True)


# ---------------------------------------------------------------------------------------------------- driver


def measure(name: str, folder: Path, tokens: int, threads: int, rounds: int, budget_s: float) -> list[dict[str, Any]]:
    """Run all contestants in alternation; return a row for each."""
    workers, answers = {}, {}
    for contestant in CONTESTANTS:
        command = [sys.executable, __file__, "--serve", contestant, name, str(folder), str(tokens), str(threads)]
        worker = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
        )
        line = worker.stdout.readline()  # type: ignore[union-attr]
        if line.startswith("{"):
            workers[contestant], answers[contestant] = worker, json.loads(line)
        else:
            worker.kill()
            answers[contestant] = None
    ask = {contestant: lambda count, worker=worker: request(worker, count) for contestant, worker in workers.items()}
    counts = {contestant: max(3, int(budget_s / statistics.median(call(5)))) for contestant, call in ask.items()}
    medians: dict[str, list[float]] = {contestant: [] for contestant in ask}
    for _ in range(rounds):
        for contestant in random.sample(list(ask), len(ask)):
            medians[contestant].append(statistics.median(ask[contestant](min(counts[contestant], 400))))
    for worker in workers.values():
        worker.stdin.close()  # type: ignore[union-attr]
        worker.wait()
    return rows(name, tokens, threads, medians, answers)


def request(worker: Any, count: int) -> list[float]:
    worker.stdin.write(f"{count}\n")
    worker.stdin.flush()
    return list(json.loads(worker.stdout.readline()))


def rows(
    name: str, tokens: int, threads: int, medians: dict[str, list[float]], answers: dict[str, Any]
) -> list[dict[str, Any]]:
    reference = answers["keras-predict"]["logits"]
    out = []
    for contestant in CONTESTANTS:
        row: dict[str, Any] = {"model": name, "tokens": tokens, "threads": threads, "contestant": contestant}
        if contestant in medians:
            logits = answers[contestant]["logits"]
            row |= {
                "latency_s": statistics.median(medians[contestant]),
                "round_medians_s": medians[contestant],
                "max_error": max(abs(a - b) for a, b in zip(logits, reference, strict=True)),
                "max_logit": max(map(abs, reference)),
                "rss_bytes": answers[contestant]["rss_bytes"],
            }
        elif name in TOO_LARGE_FOR_TF2ONNX and contestant in ("keras-export-onnx", "onnxruntime-dynamic-int8"):
            row["failed"] = "not run: tf2onnx takes about 60 times the weights"
        else:
            row["failed"] = "does not load or run"
        out.append(row)
    return out


def measure_conversions(name: str, folder: Path) -> list[dict[str, Any]]:
    """Time each converter as a whole process, from the `.keras` file; peak memory of that process."""
    out = []
    for conversion in CONVERSIONS:
        if conversion == "keras-export-onnx" and name in TOO_LARGE_FOR_TF2ONNX:
            out.append({"model": name, "conversion": conversion, "not_run": "tf2onnx takes about 60 times the weights"})
            continue
        with tempfile.TemporaryDirectory() as scratch:
            start = time.perf_counter()
            worker = subprocess.Popen(
                [sys.executable, __file__, "--convert", conversion, name, str(folder), scratch],
                stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
            )  # fmt: skip
            _, status, usage = os.wait4(worker.pid, 0)
            out.append(
                {
                    "model": name, "conversion": conversion, "wall_s": time.perf_counter() - start,
                    "peak_bytes": usage.ru_maxrss * 1024, "ok": status == 0,
                    "output_bytes": sum(f.stat().st_size for f in Path(scratch).rglob("model*") if f.is_file()),
                }
            )  # fmt: skip
    return out


def convert_once(conversion: str, name: str, folder: Path, scratch: Path) -> None:
    """Worker: one conversion, as a user would run it."""
    if conversion.startswith("edgelm"):
        import edgelm

        _, target, recipe = conversion.split("-")
        objects = INTENTS / "model.py" if name == "intents" else None
        edgelm.convert(
            model_path(name, folder),
            scratch / "out.edgelm",
            to=[target],
            recipe=recipe,
            sequence_length=128,
            custom_objects=objects,
        )
        return
    model = load_model(name, folder)
    model(in_model_order(model, arrays(name, 128)))  # Keras exports no model to ONNX that was never called
    if conversion == "keras-export-onnx":
        model.export(scratch / "model.onnx", format="onnx", verbose=False)
        return
    import tensorflow as tf

    single = len(model.inputs) == 1
    specs = {key: tf.TensorSpec((1, 128), "int32", name=key) for key in arrays(name, 128)}
    signature = [tf.TensorSpec((1, 128), "int32", name=model.inputs[0].name)] if single else [specs]
    builtins = {"supported_ops": [tf.lite.OpsSet.TFLITE_BUILTINS]}
    model.export(
        scratch / "model.tflite", format="litert", input_signature=signature, target_spec=builtins, verbose=False
    )


def facts() -> dict[str, Any]:
    from dataclasses import asdict

    from edgelm_runtimes.machine import machine_facts, package_versions

    packages = (
        "tensorflow",
        "keras",
        "keras-hub",
        "ai-edge-litert",
        "onnxruntime",
        "openvino",
        "nncf",
        "numpy",
        "tf2onnx",
    )
    return {
        "date": time.strftime("%Y-%m-%d"),
        "machine": asdict(machine_facts()),
        "versions": package_versions(packages),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("-o", "--output", type=Path, default=HERE / "results" / "encoders.json")
    parser.add_argument("--models", default=",".join(SHAPES))
    parser.add_argument("--tokens", default="16,128")
    parser.add_argument("--threads", default="1,2")
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--budget", type=float, default=0.25, help="seconds a contestant gets in each round")
    parser.add_argument("--conversions", default=",".join(SHAPES), help="models whose conversions are timed")
    parser.add_argument("--cache", type=Path, help="keep the converted files here, for another run")
    parser.add_argument("--serve", nargs=5, help=argparse.SUPPRESS)
    parser.add_argument("--convert", nargs=4, help=argparse.SUPPRESS)
    parser.add_argument("--prepare", nargs=3, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    os.environ.setdefault("CUDA_VISIBLE_DEVICES", "-1")
    if arguments.serve:
        contestant, name, folder, tokens, threads = arguments.serve
        serve(contestant, name, Path(folder), int(tokens), int(threads))
        return
    if arguments.convert:
        conversion, name, folder, scratch = arguments.convert
        convert_once(conversion, name, Path(folder), Path(scratch))
        return
    if arguments.prepare:
        name, folder, tokens = arguments.prepare
        prepare(name, Path(folder), tuple(map(int, tokens.split(","))))
        return
    drive(arguments)


def drive(arguments: argparse.Namespace) -> None:
    folder = arguments.cache or Path(tempfile.mkdtemp(prefix="edgelm-benchmark-"))
    folder.mkdir(parents=True, exist_ok=True)
    result: dict[str, Any] = {"facts": facts(), "latency": [], "conversion": []}
    for name in arguments.models.split(","):
        subprocess.run([sys.executable, __file__, "--prepare", name, str(folder), arguments.tokens], check=True)
        for tokens in map(int, arguments.tokens.split(",")):
            for threads in map(int, arguments.threads.split(",")):
                result["latency"] += measure(name, folder, tokens, threads, arguments.rounds, arguments.budget)
                print(f"{name} {tokens} tokens, {threads} threads", file=sys.stderr)
                for row in result["latency"][-len(CONTESTANTS) :]:
                    shown = (
                        f"{row['latency_s'] * 1e3:9.3f} ms  error {row['max_error']:.2g}"
                        if "latency_s" in row
                        else row["failed"]
                    )
                    print(f"  {row['contestant']:28} {shown}", file=sys.stderr)
                arguments.output.write_text(json.dumps(result, indent=1) + "\n")
        if name in arguments.conversions.split(","):
            result["conversion"] += measure_conversions(name, folder)
        arguments.output.write_text(json.dumps(result, indent=1) + "\n")
    if arguments.cache is None:
        shutil.rmtree(folder)


if __name__ == "__main__":
    main()

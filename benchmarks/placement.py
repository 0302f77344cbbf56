"""What each target takes of a model: operators on the accelerator, and whether its answers are Keras's.

    python benchmarks/placement.py -o benchmarks/results/placement.json

Each model is converted with ``--for`` and run as its target runs it: on a GPU by LiteRT on SwiftShader, a Vulkan driver in
software; on the Hexagon NPU by Qualcomm's emulator, with the fallback to the processor disabled. That is *executed*: no time
comes from it. Of the Edge TPU there is only Coral's documentation (`edgelm.edgetpu.check_operators`): *analysed*, and the
answers are those of the same file on the processor.

Models are the two examples, and four of KerasHub with random weights and tiny sizes: it is the operators that count.

Needs: pip install -e '.[convert,keras-hub,litert,onnx]', and the lanes gpu and npu of tests/devices/setup.py
"""

from __future__ import annotations

import argparse
import datetime
import importlib.metadata
import json
import os
import platform
import re
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from edgelm_converters import convert
from edgelm_runtimes import feed
from numpy.typing import NDArray

from edgelm.bundle import Artifact, Port, open_bundle
from edgelm.bundle.golden import read_golden
from edgelm.edgetpu import check_operators
from edgelm.errors import EdgelmError

HERE = Path(__file__).resolve().parent
EXAMPLES, LANES = HERE.parent / "examples", HERE.parent / "tests" / "devices"
CACHE = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "edgelm-devices"
DRIVER = CACHE / "gpu/root/usr/lib/chromium"
TARGETS = ("gpu", "npu-qnn", "edgetpu")
LENGTH, CASES, CALIBRATION = 32, 3, 64
VOCABULARY, CLASSES, WIDTH = 500, 5, 64
HUB = ("Bert", "DistilBert", "Albert", "Roberta")


@dataclass(frozen=True)
class Placement:
    """A model on a target.

    Attributes:
        accelerated: Operators on the accelerator; None where nothing was made.
        operators: All of the graph.
        max_abs_error: Of any output, against Keras.
        reference_range: The largest of Keras's outputs.
        bound: What the bundle allows.
    """

    model: str
    target: str
    recipe: str | None
    evidence: str
    accelerated: int | None
    operators: int | None
    max_abs_error: float | None
    reference_range: float | None
    bound: float | None
    verdict: str


# ----------------------------------------------------------------------------------------------------- models


def hub_model(name: str) -> Any:
    """Return a tiny classifier of KerasHub with random weights."""
    import keras
    import keras_hub

    keras.utils.set_random_seed(0)
    sizes: dict[str, Any] = {
        "vocabulary_size": VOCABULARY, "num_layers": 2, "num_heads": 2, "hidden_dim": WIDTH, "intermediate_dim": 2 * WIDTH,
        "max_sequence_length": 2 * LENGTH,
    }  # fmt: skip
    if name == "Albert":
        sizes["embedding_dim"] = WIDTH // 2
    backbone = getattr(keras_hub.models, f"{name}Backbone")(**sizes)
    return getattr(keras_hub.models, f"{name}TextClassifier")(backbone, num_classes=CLASSES, preprocessor=None)


def made_for(model: str, target: str, folder: Path) -> Path:
    """Convert a model for a target, and return the bundle."""
    bundle = folder / f"{model}-{target}.edgelm"
    options: dict[str, Any] = {"target": target, "sequence_length": LENGTH}
    if model in HUB:
        source = hub_model(model)
        draw = np.random.default_rng(1)
        shape = (CALIBRATION, LENGTH)
        inputs = {"token_ids": draw.integers(5, VOCABULARY, shape), "padding_mask": np.ones(shape)}
        if any(port.name.startswith("segment_ids") for port in source.inputs):
            inputs["segment_ids"] = np.zeros(shape)
        options["calibration"] = folder / f"{model}.npz"
        np.savez(options["calibration"], **{name: array.astype(np.int32) for name, array in inputs.items()})
    else:
        source = EXAMPLES / model / f"{model}.keras"
        if model == "intents":
            options["custom_objects"] = EXAMPLES / model / "model.py"
            options["tokenizer"] = EXAMPLES / model / "tokenizer.json"
            lines = (EXAMPLES / model / "data" / "train.csv").read_text(encoding="utf-8").splitlines(keepends=True)
            options["calibration"] = folder / "some.csv"
            options["calibration"].write_text("".join(lines[: 1 + CALIBRATION]), encoding="utf-8")
            options["labels"] = EXAMPLES / model / "labels.txt"
    return convert(source, bundle, **options).path


# ---------------------------------------------------------------------------------------------------- running


def run(script: str, *arguments: str | Path, environment: Mapping[str, str]) -> subprocess.CompletedProcess[str]:
    """Run one of the lanes' programs: a process of its own, since a driver may end it."""
    command = [sys.executable, str(LANES / script), *map(str, arguments)]
    return subprocess.run(
        command, capture_output=True, text=True, check=False, env={**os.environ, **environment}, timeout=900
    )


def on_gpu(path: Path, artifact: Artifact, inputs: Path, outputs: Path) -> tuple[int | None, str]:
    """Run on the GPU; return how many operators it took, None where it stopped, and the last line of its log."""
    driver = str(DRIVER / "vk_swiftshader_icd.json")
    environment = {"LD_LIBRARY_PATH": str(DRIVER), "VK_ICD_FILENAMES": driver, "VK_DRIVER_FILES": driver}
    signature = artifact.signatures[-1].name
    done = run("on_gpu.py", path, signature, inputs, outputs, "gpu-only", environment=environment)
    if done.returncode == 0:
        return sum(artifact.operators.values()), ""
    shared = re.search(r"(\d+) operations will run on the GPU", done.stderr)
    done = run("on_gpu.py", path, signature, inputs, outputs, "gpu", environment=environment)
    if done.returncode != 0 or shared is None:
        return None, last_line(done.stderr)
    return int(shared[1]), ""


def on_npu(path: Path, artifact: Artifact, inputs: Path, outputs: Path) -> tuple[int | None, str]:
    """Run on the NPU's emulator, all or nothing; the rest as of `on_gpu`."""
    environment = {"PYTHONPATH": str(CACHE / "npu/site-packages")}
    # The context that it compiles is written beside the outputs, and one that is there is refused.
    done = run("on_provider.py", path, inputs, outputs, "qnn", environment=environment)
    if done.returncode == 0 and "QNNExecutionProvider" in done.stdout:
        return sum(artifact.operators.values()), ""
    return None, last_line(done.stderr)


def last_line(text: str) -> str:
    lines = [line for line in text.strip().splitlines() if not line.startswith("INFO")]
    return lines[-1] if lines else "it said nothing"


def place(model: str, target: str, folder: Path) -> Placement:
    """Convert, run, compare."""
    evidence = "analysed" if target == "edgetpu" else "executed"
    try:
        path = made_for(model, target, folder)
    except EdgelmError as error:
        return Placement(model, target, None, "none", None, None, None, None, None, f"refused: {error}")
    with open_bundle(path) as bundle:
        artifact = bundle.manifest.artifacts[0]
        file, parity, recipe = bundle.path(artifact.file), artifact.parity, bundle.manifest.recipe
        if target == "edgetpu":
            graph = check_operators(file).graphs[-1]
            first = graph.first_unmapped
            verdict = "maps whole" if first is None else f"ends at {first.name}: {first.reason}"
            error, reference = parity.max_abs_error, parity.reference_range
            return Placement(
                model, target, recipe, evidence, graph.mapped, graph.operators, error, reference, parity.bound, verdict
            )
        cases = read_golden(bundle.path(bundle.manifest.golden))
        tokenizer = bundle.manifest.tokenizer
        error, reference, total = 0.0, 0.0, sum(artifact.operators.values())
        taken: int | None = total
        for number in np.unique(np.linspace(0, len(cases) - 1, CASES).astype(int)):
            case, signature = cases[number], artifact.signatures[-1]
            work = Path(tempfile.mkdtemp(dir=folder))
            given: dict[str, Any] = feed.fill(signature, case.inputs, tokenizer.pad_id if tokenizer else 0)
            np.savez(work / "in.npz", **given)
            drive = on_gpu if target == "gpu" else on_npu
            taken, said = drive(file, artifact, work / "in.npz", work / "out.npz")
            if taken is None:
                verdict = f"stopped: {said}"
                return Placement(model, target, recipe, evidence, 0, None, None, None, parity.bound, verdict)
            with np.load(work / "out.npz") as found:
                for port in signature.outputs:
                    error = max(error, float(np.abs(real(found[port.name], port) - case.outputs[port.name]).max()))
                    reference = max(reference, float(np.abs(case.outputs[port.name]).max()))
    verdict = "whole" if taken == total else f"{total - taken} operators stay on the processor"
    verdict += "" if error <= parity.bound else ", and its answers leave the bound"
    return Placement(model, target, recipe, evidence, taken, total, error, reference, parity.bound, verdict)


def real(values: NDArray[Any], port: Port) -> NDArray[np.float64]:
    """Return an output as real numbers."""
    if port.scale is None or port.zero_point is None:
        return values.astype(np.float64)
    return (values.astype(np.float64) - port.zero_point) * port.scale


# ---------------------------------------------------------------------------------------------------- results


def table(result: dict[str, Any]) -> str:
    """Return the results in Markdown."""
    lines = [
        "# What each target takes of a model",
        "",
        f"{result['date']}, {result['machine']}; "
        + ", ".join(f"{name} {version}" for name, version in result["versions"].items())
        + ".",
        "How it is found says `placement.py`: executed on a driver in software or an emulator, or analysed; no times.",
        "",
        "| model | target | recipe | evidence | operators on it | largest error | bound | verdict |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for entry in result["placements"]:
        share = "" if entry["operators"] is None else f"{entry['accelerated']} of {entry['operators']}"
        measured = entry["max_abs_error"] is not None
        error = f"{entry['max_abs_error']:.2g} of {entry['reference_range']:.3g}" if measured else ""
        bound = "" if entry["bound"] is None else f"{entry['bound']:.2g}"
        cells = [entry["model"], entry["target"], entry["recipe"] or "", entry["evidence"], share, error, bound]
        lines.append(f"| {' | '.join(cells)} | {entry['verdict']} |")
    return "\n".join(lines) + "\n"


def versions() -> dict[str, str]:
    """Return what took part; the NPU's plugin lies outside of this environment."""
    found = {name: importlib.metadata.version(name) for name in ("ai-edge-litert", "onnxruntime", "keras", "keras-hub")}
    for plugin in importlib.metadata.distributions(path=[str(CACHE / "npu/site-packages")]):
        if plugin.name == "onnxruntime-qnn":
            found[plugin.name] = plugin.version
    return found


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("-o", "--output", type=Path, required=True)
    parser.add_argument("--models", default=",".join(("intents", "stories", *HUB)))
    parser.add_argument("--targets", default=",".join(TARGETS))
    arguments = parser.parse_args()
    result: dict[str, Any] = {
        "date": datetime.datetime.now(datetime.UTC).date().isoformat(),
        "machine": f"{platform.machine()}, {platform.system()}",
        "versions": versions(),
        "placements": [],
    }
    with tempfile.TemporaryDirectory(prefix="placement-") as folder:
        for model in arguments.models.split(","):
            for target in arguments.targets.split(","):
                result["placements"].append(asdict(place(model, target, Path(folder))))
                arguments.output.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
                arguments.output.with_suffix(".md").write_text(table(result), encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())

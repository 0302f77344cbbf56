"""What an import costs, and what must never be imported on a device."""

from __future__ import annotations

import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

import pytest
from bundle_factory import TEXTS, make_classifier_bundle

FRAMEWORKS = ("tensorflow", "keras", "keras_hub", "torch", "onnx", "tf2onnx", "tf_keras")


def _modules_after(code: str, *, blocked: tuple[str, ...] = ()) -> set[str]:
    """Run code in a fresh process, where the `blocked` packages are not installed; return the names of its modules."""
    block = f"import sys\nfor name in {blocked!r}: sys.modules[name] = None\n"
    show = "\nimport sys; print('\\n'.join(name for name, module in sys.modules.items() if module is not None))"
    result = subprocess.run([sys.executable, "-c", block + code + show], capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    return set(result.stdout.splitlines())


def test_importing_edgelm_loads_nothing_but_itself() -> None:
    """`import edgelm` has to stay under 100 ms on a Pi: it loads not even NumPy."""
    modules = _modules_after("import edgelm")
    assert {name for name in modules if name.startswith("edgelm")} == {"edgelm", "edgelm.errors"}
    assert not {"numpy", "click", "dacite", "tokenizers", *FRAMEWORKS} & modules


@pytest.mark.parametrize("runtime", ["litert", "onnx"])
def test_a_device_loads_no_framework_and_needs_no_conversion_tool(tmp_path: Path, runtime: str) -> None:
    bundle = make_classifier_bundle(tmp_path)
    code = (
        f"import edgelm\nwith edgelm.load({str(bundle)!r}, runtime={runtime!r}) as session:\n"
        f"    session.classify({TEXTS[0]!r})\nassert edgelm.verify({str(bundle)!r}, runtime={runtime!r}).passed\n"
        "import edgelm.bench, edgelm.meters, edgelm.report, edgelm_device_profiles"
    )
    blocked = (
        *FRAMEWORKS,
        "sentencepiece",
        "onnxruntime" if runtime == "litert" else "ai_edge_litert",
    )
    modules = _modules_after(code, blocked=blocked)
    assert not set(FRAMEWORKS) & modules
    assert not {name for name in modules if name.startswith("edgelm_converters")}


@pytest.mark.parametrize("package", ["onnx", "flatbuffers", "keras"])
def test_converting_without_the_tools_names_the_extra(tmp_path: Path, package: str) -> None:
    code = (
        "import edgelm\n"
        "try:\n"
        f"    edgelm.convert({str(tmp_path / 'm.keras')!r}, {str(tmp_path / 'm.edgelm')!r}, recipe='fp32')\n"
        "except edgelm.EdgelmError as error:\n"
        f"    assert \"needs the package '{package}'\" in str(error), error\n"
        "    assert \"pip install 'edgelm[convert]'\" in str(error), error\n"
        "else:\n"
        "    raise SystemExit('no error')"
    )
    with zipfile.ZipFile(tmp_path / "m.keras", "w") as archive:
        archive.writestr("config.json", "{}")
    _modules_after(code, blocked=(package,))


def test_a_device_install_pulls_no_framework() -> None:
    project = tomllib.loads((Path(__file__).parents[2] / "pyproject.toml").read_text())["project"]
    extras = project["optional-dependencies"]
    for wanted in (project["dependencies"], extras["litert"], extras["onnx"], extras["tflite"]):
        names = {requirement.split(">")[0].split("<")[0].split("[")[0].strip() for requirement in wanted}
        assert not {"tensorflow", "keras", "keras-hub", "torch", "onnx", "tf2onnx", "flatbuffers"} & names

"""What ``--for`` chooses and refuses, and what it finds in a file."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from edgelm_converters.chain import Chain
from edgelm_converters.emit.tflite import emit_tflite
from edgelm_converters.emit.tflite_file import Data, Model, Operator, Subgraph, Tensor, write_model
from edgelm_converters.lengths import Lengths
from edgelm_converters.recipes import find
from edgelm_converters.static.onnx import emit_static_onnx
from edgelm_converters.targets import TARGETS, aim_at, aim_note, check_file, default_recipe, find_target, refuse_model
from edgelm_converters.targets.checks import edgetpu_notes, gpu_faults, gpu_notes, runtime_lacks
from edgelm_device_profiles import names
from spec_factory import random_decoder, random_inputs, random_spec

from edgelm.errors import ConversionError, ProfileError, RecipeError

_WIDE: dict[str, Any] = {
    "width": 128,
    "feed_forward": 256,
    "vocabulary": 1000,
}  # wide enough for a recipe to store it in less


def _chain(recipe: str) -> Chain:
    return Chain((), find(recipe))


def _one_operator(path: Path, name: str, version: int, shapes: list[tuple[int, ...]], constant: np.ndarray) -> Path:
    tensors = [Tensor("float32", shapes[0], name="x"), Tensor("float32", constant.shape, 1)]
    tensors.append(Tensor("float32", shapes[1], name="y"))
    model = Model("one operator", [None, Data(constant.nbytes, lambda: constant)])
    model.subgraphs.append(Subgraph("serve", tensors, [Operator(name, version, (0, 1), (2,))], [0], [2]))
    write_model(model, path)
    return path


# The table


def test_every_device_profile_is_a_target() -> None:
    found = {name: find_target(name) for name in names()}
    assert found["coral-usb"] == replace(TARGETS["edgetpu"], name="coral-usb")
    assert found["coral-dev-board"].integer_io
    for board in ("raspberry-pi-5", "raspberry-pi-4b", "raspberry-pi-zero-2-w", "x86-64"):
        assert found[board].formats is None
        assert default_recipe(found[board]) == "dynamic_wi8_afp32"
    assert found["galaxy-s24"].formats == ("tflite",)  # there is no wheel of ONNX Runtime for Android


def test_short_names_are_known() -> None:
    assert find_target("raspberry-pi-4") == find_target("raspberry-pi-4b")
    assert find_target("raspberry-pi-32-bit").recipes == ("fp32", "fp16", "weight_only_wi8_afp32")


def test_an_unknown_target_names_the_nearest(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match=r"No target of --for is called 'npu-qn'\. Did you mean 'npu-qnn'\?"):
        find_target("npu-qn")
    with pytest.raises(ProfileError, match="does not exist"):
        find_target(str(tmp_path / "board.toml"))


_FACT = '{{ value = {}, unit = "text", source = "a test", kind = "vendor" }}'


@pytest.mark.parametrize(
    ("architecture", "runtimes", "outcome"),
    [
        ("armv7l", ["litert", "tflite"], ("fp32", "fp16", "weight_only_wi8_afp32")),
        ("aarch64", ["tflite"], ("fp32", "fp16", "weight_only_wi8_afp32")),
        ("aarch64", ["onnx"], None),
        ("armv7l", ["onnx"], "32-bit processor, for which onnx have no wheel"),
        ("aarch64", None, "names no runtimes"),
    ],
)
def test_a_profile_of_the_users_own_is_read(
    tmp_path: Path, architecture: str, runtimes: list[str] | None, outcome: Any
) -> None:
    text = f'name = "board"\ntitle = "A board"\ncategory = "board"\n[cpu]\narchitecture = {_FACT.format(repr(architecture))}\n'
    if runtimes is not None:
        text += f"[software]\nruntimes = {_FACT.format(runtimes)}\n"
    (tmp_path / "board.toml").write_text(text)
    if isinstance(outcome, str):
        with pytest.raises(RecipeError, match=outcome):
            find_target(str(tmp_path / "board.toml"))
        return
    target = find_target(str(tmp_path / "board.toml"))
    assert target.name == "board"
    assert target.recipes == outcome


# What is chosen, what is refused


def test_a_target_chooses_what_is_left_open() -> None:
    for name, recipe in {"gpu": "fp32", "npu-qnn": "static_wi8_ai8", "tflite-runtime": "fp32"}.items():
        target = TARGETS[name]
        assert default_recipe(target) == recipe
        aim = aim_at(target, _chain(recipe), None)
        assert aim.formats == target.formats
        assert aim.chain.integer_io == target.integer_io
    assert aim_at(find_target("raspberry-pi-5"), _chain("int4"), ("onnx",)).formats == ("onnx",)


@pytest.mark.parametrize(
    ("target", "recipe", "formats", "message"),
    [
        ("gpu", "int8", None, "--for gpu takes no dynamic_wi8_afp32: .* give fp32 or fp16"),
        ("gpu", "weight_only_wi8_afp32", None, "--for gpu takes no weight_only_wi8_afp32"),
        ("gpu", "fp32", ("onnx",), "--for gpu takes no onnx file: what runs there opens tflite"),
        ("npu-qnn", "fp32", None, "--for npu-qnn takes no fp32: .* in integers only"),
        ("edgetpu", "static_wi8_ai16", None, "--for edgetpu takes no static_wi8_ai16"),
        ("tflite-runtime", "int8", None, "tflite-runtime 2.14 computes int8 weights with a scale per channel wrongly"),
        ("galaxy-s24", "int8", ("tflite", "onnx"), "--for galaxy-s24 takes no onnx file"),
    ],
)
def test_what_contradicts_a_target_is_refused(target: str, recipe: str, formats: Any, message: str) -> None:
    with pytest.raises(RecipeError, match=message):
        aim_at(find_target(target), _chain(recipe), formats)


def test_models_that_were_not_tried_are_refused() -> None:
    refuse_model(TARGETS["gpu"], random_spec(), None)
    with pytest.raises(RecipeError, match="--for gpu is for encoders"):
        refuse_model(TARGETS["gpu"], random_decoder(), None)
    with pytest.raises(RecipeError, match=r"would be traced \(a convolution\)"):
        refuse_model(TARGETS["edgetpu"], None, "a convolution")
    refuse_model(TARGETS["tflite-runtime"], None, "a convolution")
    refuse_model(find_target("raspberry-pi-5"), random_decoder(), None)


def test_the_note_says_what_was_chosen() -> None:
    lengths = Lengths("masked", (16, 32), 32, ()).of_one_shape()
    assert lengths.buckets == (32,)
    assert lengths.fixed
    note = aim_note(TARGETS["npu-qnn"], _chain("static_wi8_ai8"), ("onnx",), lengths)
    assert note == (
        "Made for npu-qnn: onnx; static_wi8_ai8; integers at its outputs too; one fixed length of 32 tokens at batch 1."
    )


def test_the_npus_file_has_no_free_axis(tmp_path: Path) -> None:
    onnxruntime = pytest.importorskip("onnxruntime")
    # Of as many positions as the length: ranges reckon with the longest input.
    spec = random_spec(pooling="none", head=(), output="raw", positions=8)
    samples = [random_inputs(spec, 8, seed=seed) for seed in range(4)]
    options: dict[str, Any] = {
        "recipe": "static_wi8_ai8",
        "samples": samples,
        "ranges": "minmax",
        "integer_io": True,
    }
    fixed = emit_static_onnx(spec, tmp_path / "fixed.onnx", length=8, **options)
    emit_static_onnx(spec, tmp_path / "free.onnx", **options)
    (signature,) = fixed.signatures
    assert signature.sequence_length == 8
    sessions = [
        onnxruntime.InferenceSession(tmp_path / name, providers=["CPUExecutionProvider"])
        for name in ("fixed.onnx", "free.onnx")
    ]
    assert [port.shape for port in sessions[0].get_inputs()] == [[1, 8]]
    assert [port.shape for port in sessions[0].get_outputs()] == [[1, 8, 16]]
    answers = [session.run(None, samples[0])[0] for session in sessions]
    # Shapes change which kernels ONNX Runtime fuses, so a rounding that lies between two steps may go either way, once a sum.
    np.testing.assert_allclose(answers[0].astype(int), answers[1].astype(int), rtol=0, atol=1)


# What is found in a file


def test_a_file_for_a_gpu_holds_no_fault(tmp_path: Path) -> None:
    path = tmp_path / "model.tflite"
    emit_tflite(random_spec(**_WIDE), path, recipe="fp32", lengths=(16,))
    assert gpu_faults(path) == []
    assert check_file(TARGETS["gpu"], path) == ()
    emit_tflite(random_spec(**_WIDE), path, recipe="fp16", lengths=(16,))
    (note,) = gpu_notes(path)
    assert "DEQUANTIZE" in note


@pytest.mark.parametrize(
    ("shape", "constant", "fault"),
    [
        ((4, 8), (1, 4, 8), "different numbers of dimensions"),
        ((4, 8), (4, 8), "a constant of two dimensions"),
        ((-1, 8), (1, 8), "its shape is not fixed"),
        ((1, 4, 8), (1, 4, 8), None),
        ((4, 8), (1, 8), None),
    ],
)
def test_what_a_gpu_computes_wrongly_is_found(
    tmp_path: Path, shape: tuple[int, ...], constant: tuple[int, ...], fault: str | None
) -> None:
    path = _one_operator(tmp_path / "sum.tflite", "ADD", 1, [shape, shape], np.ones(constant, np.float32))
    found = gpu_faults(path)
    if fault is None:
        assert found == []
        return
    assert len(found) == 1
    assert fault in found[0]
    with pytest.raises(ConversionError, match="a GPU computes wrongly or stops at"):
        check_file(TARGETS["gpu"], path)


@pytest.mark.parametrize("recipe", TARGETS["tflite-runtime"].recipes or ())
def test_tflite_runtime_has_the_operators_of_its_recipes(tmp_path: Path, recipe: str) -> None:
    spec = random_spec(**_WIDE, pooling="first", mask="input", segments=2)
    emit_tflite(spec, tmp_path / "model.tflite", recipe=recipe, lengths=(8, 16))
    assert runtime_lacks(tmp_path / "model.tflite") == []
    assert check_file(TARGETS["tflite-runtime"], tmp_path / "model.tflite") == ()


def test_an_operator_that_tflite_runtime_lacks_is_named(tmp_path: Path) -> None:
    emit_tflite(random_spec(**_WIDE), tmp_path / "model.tflite", recipe="dynamic_wi8_afp32", lengths=(16,))
    # "Didn't find op for builtin opcode 'FULLY_CONNECTED' version '12'", says tflite-runtime 2.14.0 itself.
    assert "FULLY_CONNECTED 12" in runtime_lacks(tmp_path / "model.tflite")
    with pytest.raises(ConversionError, match=r"it lacks .*FULLY_CONNECTED 12.*: use ai-edge-litert"):
        check_file(TARGETS["tflite-runtime"], tmp_path / "model.tflite")


def test_the_edge_tpus_notes_name_the_first_operator_that_does_not_map(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))  # where no compiler is
    path = _one_operator(tmp_path / "sum.tflite", "ADD", 1, [(4, 8), (4, 8)], np.ones((4, 8), np.float32))
    mapped, room, compiled = edgetpu_notes(path)
    assert "0 of 1 operators of serve map; it ends at operator 0, ADD: it computes with float32, not int8" in mapped
    assert room == "Edge TPU: 128 bytes of weights fit the 8,000,000 bytes on the chip."
    assert "edgetpu_compiler is not installed" in compiled

"""The targets of ``--for``: what the runtime of each takes, as data.

A device profile is a target too (`edgelm_device_profiles`): its runtimes and its architecture say which row it is.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Literal

from edgelm_device_profiles import DeviceProfile, load, names

from edgelm.bundle.manifest import Format
from edgelm.errors import RecipeError, unknown_name

__all__ = ["DEFAULT_RECIPE", "TARGETS", "Target", "default_recipe", "find_target"]

DEFAULT_RECIPE = "dynamic_wi8_afp32"


@dataclass(frozen=True)
class Target:
    """What a conversion is for.

    Attributes:
        name: As ``--for`` has it.
        formats: Of the files that its runtime opens; None leaves it to the model.
        recipes: Those that it takes, the first of them where none is asked for; None: all.
        reason: Why no other recipe.
        one_length: Whether its graph is compiled for one shape: batch 1, and one number of tokens.
        integer_io: Whether the form for accelerators is needed: integers from the embeddings to the answer.
        encoders_only: Whether no language model or encoder-decoder was tried there.
        recognised_only: Whether only files that edgelm writes itself are known to fit, and no traced ones.
        check: What looks at the written file (`edgelm_converters.targets.checks`).
    """

    name: str
    formats: tuple[Format, ...] | None = None
    recipes: tuple[str, ...] | None = None
    reason: str = ""
    one_length: bool = False
    integer_io: bool = False
    encoders_only: bool = False
    recognised_only: bool = False
    check: Literal["gpu", "edgetpu", "tflite-runtime"] | None = None


TARGETS: Mapping[str, Target] = {
    target.name: target
    for target in (
        # Of float16 the accelerator takes all but the DEQUANTIZE of each weight. int8 weights are computed with wrongly there
        # (weight_only_wi8_afp32: off by the answer's own size) or leave the lookup to the processor (dynamic).
        Target(
            "gpu",
            formats=("tflite",),
            recipes=("fp32", "fp16"),
            reason="LiteRT's GPU accelerator computes wrongly with int8 weights, or leaves their lookup to the processor",
            one_length=True,
            encoders_only=True,
            recognised_only=True,
            check="gpu",
        ),
        Target(
            "npu-qnn",
            formats=("onnx",),
            recipes=("static_wi8_ai8",),
            reason="the Hexagon NPU takes a whole graph in integers only",
            one_length=True,
            integer_io=True,
            encoders_only=True,
            recognised_only=True,
        ),
        Target(
            "edgetpu",
            formats=("tflite",),
            recipes=("static_wi8_ai8",),
            reason="the Edge TPU computes in int8 only",
            one_length=True,
            integer_io=True,
            encoders_only=True,
            recognised_only=True,
            check="edgetpu",
        ),
        Target(
            "tflite-runtime",
            formats=("tflite",),
            recipes=("fp32", "fp16", "weight_only_wi8_afp32"),
            reason="tflite-runtime 2.14 computes int8 weights with a scale per channel wrongly, or lacks the operator",
            encoders_only=True,
            check="tflite-runtime",
        ),
    )
}

# Names that people use. No other runtime than tflite-runtime has a wheel for 32-bit Arm.
_ALIASES = {"raspberry-pi-4": "raspberry-pi-4b", "raspberry-pi-32-bit": "tflite-runtime"}
_FORMATS: dict[str, Format] = {"litert": "tflite", "tflite": "tflite", "onnx": "onnx"}
_32_BIT = ("armv6l", "armv7l", "armv8l")


def find_target(name: str) -> Target:
    """Return the target of that name: one of `TARGETS`, a device profile, or a profile's own TOML file.

    Raises:
        RecipeError: There is none, or the profile names no runtime.
        ProfileError: The file is missing, or no profile.
    """
    name = _ALIASES.get(name, name)
    if name in TARGETS:
        return TARGETS[name]
    if name not in names() and not name.endswith(".toml"):
        raise RecipeError(unknown_name("target of --for", name, [*TARGETS, *_ALIASES, *names()]))
    return _of_profile(load(name))


def default_recipe(target: Target | None) -> str:
    """Return the recipe where none is asked for."""
    return DEFAULT_RECIPE if target is None or target.recipes is None else target.recipes[0]


def _of_profile(profile: DeviceProfile) -> Target:
    """Return the row of a device: its Edge TPU where that is what it is bought for, else its processor."""
    software, architecture = profile.software, profile.cpu.architecture
    if software.targets is not None and "edgetpu" in software.targets.value:
        return replace(TARGETS["edgetpu"], name=profile.name)
    if software.runtimes is None:
        raise RecipeError(
            f"The device profile '{profile.name}' names no runtimes, so nothing is known of what it takes: add "
            "software.runtimes to it, or give --to and --recipe."
        )
    runtimes = software.runtimes.value
    narrow = architecture is not None and architecture.value in _32_BIT
    if runtimes == ("tflite",) or (narrow and "tflite" in runtimes):
        return replace(TARGETS["tflite-runtime"], name=profile.name)
    if narrow:
        raise RecipeError(
            f"The device profile '{profile.name}' is of a 32-bit processor, for which {' and '.join(runtimes)} have no wheel: "
            "use tflite-runtime there, and --for tflite-runtime here."
        )
    formats: tuple[Format, ...] = tuple(dict.fromkeys(_FORMATS[runtime] for runtime in runtimes))
    return Target(profile.name, formats=None if len(formats) > 1 else formats)

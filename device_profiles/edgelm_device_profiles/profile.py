"""A device profile: what is known of one device, every value with unit, source and kind.

A fact that nobody is sure of is absent, and reads as None. It is never 0 and never a guess.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import Annotated, Any, Literal, TypeVar, get_args, get_type_hints

from edgelm.errors import ProfileError, unknown_name
from edgelm_device_profiles.cpuinfo import ISA_FEATURES
from edgelm_device_profiles.fact import Fact, FactSpec, fact_to_dict, read_fact

__all__ = [
    "Accelerator",
    "Cpu",
    "DeviceProfile",
    "Energy",
    "MatchRules",
    "Memory",
    "Power",
    "Software",
    "parse_profile",
]

Category = Literal["board", "accelerator", "phone", "generic"]
AcceleratorType = Literal["gpu", "edgetpu", "npu"]

_NAME = re.compile(r"[a-z0-9]+(-[a-z0-9]+)*")
_NOTE = FactSpec("text", "text")


# The kinds of fact that a profile has: the type for the reader of a profile, the spec for its parser.
_Text = Annotated[Fact[str] | None, FactSpec("text", "text")]
_Texts = Annotated[Fact[tuple[str, ...]] | None, FactSpec("text", "texts")]
_Count = Annotated[Fact[int] | None, FactSpec("count", "count")]
_Bytes = Annotated[Fact[int] | None, FactSpec("B", "count")]
_ByteSizes = Annotated[Fact[tuple[int, ...]] | None, FactSpec("B", "counts")]
_BytesPerSecond = Annotated[Fact[float] | None, FactSpec("B/s", "number")]
_Hertz = Annotated[Fact[float] | None, FactSpec("Hz", "number")]
_FlopsPerSecond = Annotated[Fact[float] | None, FactSpec("FLOP/s", "number")]
_OpsPerSecond = Annotated[Fact[float] | None, FactSpec("OP/s", "number")]
_Watts = Annotated[Fact[float] | None, FactSpec("W", "number")]
_WattModes = Annotated[Fact[tuple[float, ...]] | None, FactSpec("W", "numbers")]
_MilliampereHours = Annotated[Fact[float] | None, FactSpec("mAh", "number")]
_Isa = Annotated[Fact[tuple[str, ...]] | None, FactSpec("text", "texts", ISA_FEATURES)]
_EnergySensor = Annotated[
    Fact[str] | None,
    FactSpec("text", "text", ("android-battery", "hwmon-ina2xx", "ina3221", "none", "pi5-pmic", "rapl")),
]
_EnergyScope = Annotated[Fact[str] | None, FactSpec("text", "text", ("board", "device", "package", "wall"))]
_Runtimes = Annotated[Fact[tuple[str, ...]] | None, FactSpec("text", "texts", ("litert", "onnx", "tflite"))]
_Targets = Annotated[Fact[tuple[str, ...]] | None, FactSpec("text", "texts", ("cpu", "edgetpu", "gpu", "npu"))]


@dataclass(frozen=True, kw_only=True)
class Cpu:
    """The processor.

    Attributes:
        description: Its cores in words.
        architecture: As ``uname -m`` prints it, such as ``aarch64``.
        cores: Physical cores, of all kinds together.
        clock_max_hz: Of the fastest core.
        isa: Names in `ISA_FEATURES` that every core has.
        peak_fp32_flops_per_s: Of all cores; a fused multiply-add counts as two.
        peak_int8_ops_per_s: Of all cores with their widest int8 dot product; a multiply-accumulate counts as two.
        qemu_cpu: The ``-cpu`` under which QEMU shows the same instructions, to check correctness without the device.
    """

    description: _Text = None
    architecture: _Text = None
    cores: _Count = None
    clock_max_hz: _Hertz = None
    isa: _Isa = None
    peak_fp32_flops_per_s: _FlopsPerSecond = None
    peak_int8_ops_per_s: _OpsPerSecond = None
    qemu_cpu: _Text = None


@dataclass(frozen=True, kw_only=True)
class Memory:
    """The main memory.

    Attributes:
        description: Its technology, such as ``LPDDR4X-4267``.
        sizes_bytes: The sizes that the device is sold with.
        peak_bandwidth_bytes_per_s: Of the bus; no program reaches it.
        copy_bytes_per_s: What one core copies, each byte counted once, though it is read and written.
    """

    description: _Text = None
    sizes_bytes: _ByteSizes = None
    peak_bandwidth_bytes_per_s: _BytesPerSecond = None
    copy_bytes_per_s: _BytesPerSecond = None


@dataclass(frozen=True, kw_only=True)
class Power:
    """What the device draws.

    Attributes:
        idle_w: Booted, with nothing to do.
        load_w: With every core busy.
        modes_w: The power modes that its maker offers.
        battery_capacity_mah: Of a full battery, as its maker states it.
    """

    idle_w: _Watts = None
    load_w: _Watts = None
    modes_w: _WattModes = None
    battery_capacity_mah: _MilliampereHours = None


@dataclass(frozen=True, kw_only=True)
class Energy:
    """How its energy can be measured without an external meter.

    Attributes:
        sensor: Which sensor it has; ``none`` is known to be none, and None is not known.
        scope: What the sensor sees: ``package``, ``board``, ``device`` or ``wall``.
    """

    sensor: _EnergySensor = None
    scope: _EnergyScope = None


@dataclass(frozen=True, kw_only=True)
class Software:
    """What can run a model there.

    Attributes:
        runtimes: Recommended ones, the best first.
        targets: Where a runtime can place a model: ``cpu``, ``gpu``, ``edgetpu``, ``npu``.
    """

    runtimes: _Runtimes = None
    targets: _Targets = None


@dataclass(frozen=True, kw_only=True)
class MatchRules:
    """How the device is recognised. Any one rule suffices, apart from `device_nodes`.

    Attributes:
        device_tree_models: Shell patterns for the device tree's model.
        android_devices: Shell patterns for Android's ``ro.product.device``.
        android_models: Shell patterns for Android's ``ro.product.model``.
        usb_ids: ``vendor:product`` in lower-case hexadecimal.
        architectures: As ``uname -m`` prints them; for generic profiles only.
        device_nodes: Nodes in ``/dev`` that its driver makes. They decide nothing, because other devices have them too:
            without them a driver is missing.
    """

    device_tree_models: _Texts = None
    android_devices: _Texts = None
    android_models: _Texts = None
    usb_ids: _Texts = None
    architectures: _Texts = None
    device_nodes: _Texts = None


@dataclass(frozen=True, kw_only=True)
class Accelerator:
    """A processor beside the CPU.

    Attributes:
        name: Such as ``Edge TPU``.
        type: ``gpu``, ``edgetpu`` or ``npu``.
        description: What it is, in words.
        connection: How it is reached, such as ``USB 3.0``.
        clock_hz: Its clock.
        peak_int8_ops_per_s: Dense; a multiply-accumulate counts as two.
        peak_sparse_int8_ops_per_s: With structured sparsity, which most models do not have.
        on_chip_bytes: Memory on the chip, which a model must fit to run fast.
        power_w: At full load.
    """

    name: str
    type: AcceleratorType
    description: _Text = None
    connection: _Text = None
    clock_hz: _Hertz = None
    peak_int8_ops_per_s: _OpsPerSecond = None
    peak_sparse_int8_ops_per_s: _OpsPerSecond = None
    on_chip_bytes: _Bytes = None
    power_w: _Watts = None


@dataclass(frozen=True, kw_only=True)
class DeviceProfile:
    """What is known of one device.

    Attributes:
        name: Its identifier, such as ``raspberry-pi-5``.
        title: Its name for people.
        category: ``board``, ``phone``, ``accelerator`` (works on a host only) or ``generic`` (a class of machines).
        cpu: The processor; without facts where it is the host's.
        memory: The main memory; without facts where it is the host's.
        power: What it draws.
        energy: How its energy can be measured.
        software: What can run a model there.
        match: How it is recognised.
        accelerators: Processors beside the CPU.
        notes: What a user must know before measuring on it.
    """

    name: str
    title: str
    category: Category
    cpu: Cpu = field(default_factory=Cpu)
    memory: Memory = field(default_factory=Memory)
    power: Power = field(default_factory=Power)
    energy: Energy = field(default_factory=Energy)
    software: Software = field(default_factory=Software)
    match: MatchRules = field(default_factory=MatchRules)
    accelerators: tuple[Accelerator, ...] = ()
    notes: tuple[Fact[str], ...] = ()

    def to_dict(self) -> dict[str, Any]:
        """Return the profile as JSON-able values that `parse_profile` takes back; an unknown fact is None."""
        table: dict[str, Any] = {"name": self.name, "title": self.title, "category": self.category}
        table |= {key: _section_to_dict(getattr(self, key)) for key in _SECTIONS}
        table["accelerators"] = [_section_to_dict(accelerator) for accelerator in self.accelerators]
        table["notes"] = [fact_to_dict(note) for note in self.notes]
        return table


_SECTIONS: dict[str, type[Any]] = {
    "cpu": Cpu,
    "memory": Memory,
    "power": Power,
    "energy": Energy,
    "software": Software,
    "match": MatchRules,
}

S = TypeVar("S")


def parse_profile(table: Mapping[str, object], origin: str) -> DeviceProfile:
    """Return the profile that a table holds, as TOML or JSON reads it.

    Args:
        table: The whole profile. A key that is None counts as absent.
        origin: Where it comes from, for messages.

    Raises:
        ProfileError: A key is unknown or missing, or a value does not fit; the message names the place.
    """
    known = [item.name for item in fields(DeviceProfile)]
    for key in table:
        if key not in known:
            raise ProfileError(f"{origin}: {unknown_name('key of a profile', str(key), known)}")
    name = _read_word(table, "name", origin)
    if not _NAME.fullmatch(name):
        raise ProfileError(f"{origin}: name is '{name}', and may hold only a-z, 0-9 and single hyphens between them.")
    sections = {key: _read_section(cls, table.get(key), f"{origin}: {key}") for key, cls in _SECTIONS.items()}
    return DeviceProfile(
        name=name,
        title=_read_word(table, "title", origin),
        category=_read_word(table, "category", origin, get_args(Category)),  # type: ignore[arg-type]
        accelerators=tuple(
            _read_accelerator(item, f"{origin}: accelerators[{index}]")
            for index, item in enumerate(_read_list(table, "accelerators", origin))
        ),
        notes=tuple(
            read_fact(item, _NOTE, f"{origin}: notes[{index}]")
            for index, item in enumerate(_read_list(table, "notes", origin))
        ),
        **sections,
    )


def _read_section(cls: type[S], table: object, where: str) -> S:
    return cls(**_read_facts(cls, _as_table({} if table is None else table, where), where))


def _read_accelerator(item: object, where: str) -> Accelerator:
    table = _as_table(item, where)
    facts = _read_facts(Accelerator, table, where)
    name = _read_word(table, "name", where)
    kind = _read_word(table, "type", where, get_args(AcceleratorType))
    return Accelerator(name=name, type=kind, **facts)  # type: ignore[arg-type]


def _read_facts(cls: type[Any], table: Mapping[str, object], where: str) -> dict[str, Any]:
    specs = _specs(cls)
    facts = {}
    for key, value in table.items():
        if key not in specs:
            raise ProfileError(f"{where}: {unknown_name('fact', str(key), specs)}")
        spec = specs[key]
        if spec is not None and value is not None:
            facts[key] = read_fact(value, spec, f"{where}.{key}")
    return facts


def _as_table(value: object, where: str) -> Mapping[str, object]:
    if not isinstance(value, Mapping):
        raise ProfileError(f"{where} must be a table of facts, and is {value!r}.")
    return value


def _read_word(table: Mapping[str, object], key: str, where: str, choices: tuple[str, ...] = ()) -> str:
    value = table.get(key)
    if not isinstance(value, str) or not value.strip():
        raise ProfileError(f"{where} has no {key}, which must be a text that is not empty.")
    if choices and value not in choices:
        raise ProfileError(f"{where}: {unknown_name(key, value, choices)}")
    return value


def _read_list(table: Mapping[str, object], key: str, where: str) -> list[object]:
    value = table.get(key)
    if value is None:
        return []
    if not isinstance(value, list):
        raise ProfileError(f"{where}: {key} must be a list of tables ([[{key}]] in TOML), and is {value!r}.")
    return value


def _section_to_dict(section: object) -> dict[str, Any]:
    values = {key: (getattr(section, key), spec) for key, spec in _specs(type(section)).items()}
    return {key: fact_to_dict(value) if spec else value for key, (value, spec) in values.items()}


def _specs(cls: type[Any]) -> dict[str, FactSpec | None]:
    """Return the spec of every field of a section; None where the field is no fact."""
    hints = get_type_hints(cls, include_extras=True)
    return {key: next(iter(getattr(hint, "__metadata__", ())), None) for key, hint in hints.items()}

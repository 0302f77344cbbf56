"""Which meters this machine has, which of them this user may read, and what to do about the others."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from edgelm.errors import MeterError
from edgelm.meters.android import ADB_SHELL, AndroidMeter
from edgelm.meters.hwmon import InaMeter, find_ina
from edgelm.meters.jetson import JetsonMeter, find_rails, input_rail
from edgelm.meters.meter import Meter
from edgelm.meters.pmic import COMMAND, PmicMeter
from edgelm.meters.rapl import POWERCAP, RaplMeter, find_packages
from edgelm.meters.readers import ReadText, RunProgram, read_text, run_program

__all__ = ["Found", "MeterState", "find_meters"]

MeterState = Literal["usable", "missing", "denied"]

_ROOT = Path("/")
_ALLOW_RAPL = (
    f"sudo chmod a+r /{POWERCAP}/intel-rapl:*/energy_uj (until the next start), or for good a udev rule: "
    'SUBSYSTEM=="powercap", RUN+="/bin/chmod a+r %S%p/energy_uj"'
)
_ALLOW_VCGENCMD = "sudo usermod -aG video $USER, then log in anew"
_EXTERNAL = "a USB or wall meter's CSV file, or its lines on a serial port or stdin; see docs/energy.md"


@dataclass(frozen=True)
class Found:
    """A meter that this machine has or could have.

    Attributes:
        name: Of the meter, or of its kind where there is none.
        state: ``usable``, ``missing``, or ``denied`` to this user.
        meter: Not open; None unless it is usable.
        why: What it sees, where it is usable; what was looked for in vain, or refused, where it is not.
        fix: What to do; None where it is usable or nothing can be done.
    """

    name: str
    state: MeterState
    meter: Meter | None
    why: str
    fix: str | None


def find_meters(
    *,
    root: Path = _ROOT,
    read: ReadText = read_text,
    run: RunProgram = run_program,
    which: Callable[[str], str | None] = shutil.which,
) -> tuple[Found, ...]:
    """Return every kind of built-in meter, each as found or as missing. Each is opened, read where that is needed, and closed.

    ``adb`` is asked for its devices where it is installed, which starts its server.

    Args:
        root: The root of the file system.
        read: Returns the text of a file.
        run: Runs a program and returns what it printed.
        which: Returns where a program is, None where it is not installed.
    """
    return (
        *_rapl(root, read),
        *_ina(root, read),
        *_jetson(root, read),
        *_pmic(run, which),
        *_android(root, run, which),
        Found("external meter", "missing", None, "edgelm cannot see one by itself", _EXTERNAL),
    )


def _rapl(root: Path, read: ReadText) -> list[Found]:
    try:
        zones = find_packages(root, read)
    except MeterError as error:
        return [_refused("RAPL", error, _ALLOW_RAPL)]
    if not zones:
        why = f"/{POWERCAP} has no package: no x86 processor, a virtual machine, or a driver that is not loaded"
        return [Found("RAPL", "missing", None, why, "on an x86 machine: sudo modprobe intel_rapl_msr")]
    return [_tried(RaplMeter(zones, read=read), _ALLOW_RAPL)]


def _ina(root: Path, read: ReadText) -> list[Found]:
    try:
        sensors = find_ina(root, read)
    except MeterError as error:
        return [_refused("INA2xx", error, "sudo chmod a+r on the files of the monitor")]
    if not sensors:
        why = "no hwmon device is called ina219, ina220, ina226, ina230, ina231 or ina260"
        return [
            Found("INA2xx", "missing", None, why, "wire one to I2C and add its device tree overlay, if you have one")
        ]
    return [_tried(InaMeter(sensor, read=read), "sudo chmod a+r on the files of the monitor") for sensor in sensors]


def _jetson(root: Path, read: ReadText) -> list[Found]:
    try:
        rails = find_rails(root, read)
        if not rails:
            return [Found("INA3221 (Jetson)", "missing", None, "no ina3221 with labelled rails", None)]
        return [_tried(JetsonMeter(input_rail(rails), read=read), "sudo chmod a+r on the files of the monitor")]
    except MeterError as error:
        return [_refused("INA3221 (Jetson)", error, None)]


def _pmic(run: RunProgram, which: Callable[[str], str | None]) -> list[Found]:
    if which(COMMAND[0]) is None:
        why = f"'{COMMAND[0]}' is not installed: no Raspberry Pi, or another system on it"
        return [Found("Raspberry Pi 5 PMIC", "missing", None, why, None)]
    found = _tried(PmicMeter(run=run), _ALLOW_VCGENCMD)
    if found.state == "missing" and any(word in found.why for word in ("vcio", "VCHI", "ermission")):
        return [Found(found.name, "denied", None, found.why, _ALLOW_VCGENCMD)]
    return [found]


def _android(root: Path, run: RunProgram, which: Callable[[str], str | None]) -> list[Found]:
    if (root / "system/bin/getprop").exists():
        return [_tried(AndroidMeter(shell=(), run=run), None)]
    if which(ADB_SHELL[0]) is None:
        return [Found("Android battery", "missing", None, "'adb' is not installed", "install Android's platform tools")]
    try:
        listed = [line.split() for line in run((ADB_SHELL[0], "devices")).splitlines()[1:]]
    except MeterError as error:
        return [_refused("Android battery", error, None)]
    devices = [(words[0], words[1]) for words in listed if len(words) == 2]
    if not devices:
        fix = "allow debugging on the device, then: adb tcpip 5555, adb connect ADDRESS, and take the cable out"
        return [Found("Android battery", "missing", None, "adb lists no device", fix)]
    found = []
    for serial, state in devices:
        if state == "device":
            shell = (ADB_SHELL[0], "-s", serial, ADB_SHELL[1])
            found.append(_tried(AndroidMeter(shell=shell, run=run), None))
        else:
            denied = state == "unauthorized"
            allow = "confirm this computer's key on the device" if denied else None
            why = f"adb says that the device is {state}"
            found.append(Found("Android battery", "denied" if denied else "missing", None, why, allow))
    return found


def _tried(meter: Meter, allow: str | None) -> Found:
    """Open a meter and close it; tell what it sees, or why it cannot be read."""
    try:
        meter.open()
    except MeterError as error:
        return _refused(meter.facts.name, error, allow)
    meter.close()
    facts = meter.facts
    unseen = f"; not seen: {', '.join(facts.unseen)}" if facts.unseen else ""
    return Found(facts.name, "usable", meter, f"{facts.scope}, {facts.method}, {facts.rate_hz:.3g} Hz{unseen}", None)


def _refused(name: str, error: MeterError, allow: str | None) -> Found:
    if isinstance(error.__cause__, PermissionError):
        return Found(name, "denied", None, str(error), allow)
    return Found(name, "missing", None, str(error), None)

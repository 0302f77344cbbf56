"""What a meter is: three methods, and facts that tell what its figures mean.

A meter is made of two parts: a pure parser (text in, value out), which is tested on what real devices printed, and a
reader that is passed in (a file, a program, a serial port), which is not. `FakeMeter` is one for tests of applications.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, Protocol

__all__ = ["Meter", "MeterFacts", "Method", "Quantity", "Reading", "Scope"]

Scope = Literal["package", "board", "device", "wall"]
Method = Literal["measured", "modelled"]
Quantity = Literal["joules", "watts"]


@dataclass(frozen=True, kw_only=True)
class MeterFacts:
    """What must be known of a meter to use its figures.

    Attributes:
        name: Of this one meter, such as ``ina226 (hwmon2)``.
        sensor: Of its kind, by the names of the device profiles: ``rapl``, ``hwmon-ina2xx``, ``ina3221``, ``pi5-pmic``,
            ``android-battery``; and ``external``, ``fake``.
        scope: What it sees: the processor's ``package``, the ``board``, the whole ``device``, or all at the ``wall``.
        method: ``measured``, or ``modelled`` where a formula stands between the sensor and the figure.
        quantity: What a reading is: ``joules`` since some moment in the past, or ``watts`` now.
        rate_hz: How often the sensor has a new value, at most.
        resolution: The step between two values that it can tell apart, in its quantity's unit; a reading is within half
            a step of what the sensor saw.
        lag_s: How old a value can be when it is read. 0 where the converter starts when it is asked.
        range_j: The most that may be drawn between two readings without being lost, where a counter starts again at 0 after
            so much. None where nothing can be lost.
        pushed: Whether the meter sends when it likes, and `Meter.read` waits for it, rather than answers when asked.
        unseen: What draws power and is not in its figures.
    """

    name: str
    sensor: str
    scope: Scope
    method: Method
    quantity: Quantity
    rate_hz: float
    resolution: float
    lag_s: float = 0.0
    range_j: float | None = None
    pushed: bool = False
    unseen: tuple[str, ...] = ()


@dataclass(frozen=True)
class Reading:
    """One value of a meter.

    Attributes:
        time_s: When it was read, by `time.monotonic`: the middle between asking and having the answer.
        value: Joules or watts, as `MeterFacts.quantity` says.
    """

    time_s: float
    value: float


class Meter(Protocol):
    """A source of readings. `open` comes first and `close` last; neither `read` nor `close` is called beside another `read`."""

    @property
    def facts(self) -> MeterFacts:
        """What its figures mean. It may be asked before `open`, and does not change."""
        ...

    def open(self) -> None:
        """Get hold of the sensor.

        Raises:
            MeterError: The sensor is missing, or this user may not read it.
        """
        ...

    def read(self) -> Reading:
        """Return a reading; a meter that is ``pushed`` waits for it.

        Raises:
            MeterError: The sensor gave nothing, or what is no reading.
        """
        ...

    def close(self) -> None:
        """Let go of the sensor. Closing twice is harmless."""
        ...

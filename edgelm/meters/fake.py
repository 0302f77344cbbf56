"""A meter without a sensor, for tests of applications and of edgelm itself."""

from __future__ import annotations

from collections.abc import Callable

from edgelm.errors import MeterError
from edgelm.meters.meter import MeterFacts, Quantity, Reading, Scope
from edgelm.meters.readers import Clock, clock

__all__ = ["FakeMeter"]


class FakeMeter:
    """A meter that reads what a function of time says.

    >>> meter = FakeMeter(lambda time_s: 5.0)
    >>> meter.open()
    >>> meter.read().value
    5.0

    Args:
        value: Joules or watts at a moment of `now`. It may raise `MeterError`, as a sensor that is unplugged would.
        quantity: What it returns.
        rate_hz: As a real one states it.
        resolution: Likewise.
        lag_s: Likewise.
        scope: Likewise.
        now: The clock.
    """

    def __init__(
        self,
        value: Callable[[float], float],
        *,
        quantity: Quantity = "watts",
        rate_hz: float = 100.0,
        resolution: float = 0.0,
        lag_s: float = 0.0,
        scope: Scope = "board",
        now: Clock = clock,
    ) -> None:
        self.facts = MeterFacts(
            name="fake",
            sensor="fake",
            scope=scope,
            method="modelled",
            quantity=quantity,
            rate_hz=rate_hz,
            resolution=resolution,
            lag_s=lag_s,
            unseen=("everything: it is a function of time",),
        )
        self._value = value
        self._now: Clock = now
        self._is_open = False

    def open(self) -> None:
        """Begin."""
        self._is_open = True

    def read(self) -> Reading:
        """Return the function's value now.

        Raises:
            MeterError: The meter is not open, or the function raised it.
        """
        if not self._is_open:
            raise MeterError("The fake meter was read before it was opened. Call open() first.")
        time_s = self._now()
        return Reading(time_s, self._value(time_s))

    def close(self) -> None:
        """End."""
        self._is_open = False

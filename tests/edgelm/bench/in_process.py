"""Targets without a process of their own: what a test of the benchmark's arithmetic needs, at a hundredth of the time."""

from __future__ import annotations

import gc
import os
from dataclasses import asdict
from typing import Any

import pytest

from edgelm.bench import generation_lanes, measure, session
from edgelm.bench.generation_worker import _Worker
from edgelm.bench.protocol import Attend, Load, Loaded, Measure, Measured, Spin, Spun, WarmedUp, WarmUp
from edgelm.bench.worker import Worker

__all__ = ["InProcess", "InProcessModel", "without_processes"]


class InProcess:
    """A `Target` that answers in this process."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.pid = os.getpid()
        self._worker = Worker()

    def load(self, request: Load) -> Loaded:
        return self._ask(request)

    def warm_up(self, request: WarmUp) -> WarmedUp:
        return self._ask(request)

    def measure(self, request: Measure) -> Measured:
        return self._ask(request)

    def attend(self, request: Attend) -> Measured:
        return self._ask(request)

    def spin(self, request: Spin) -> Spun:
        return self._ask(request)

    def close(self) -> None:
        self._worker.__exit__()

    def _ask(self, request: Any) -> Any:
        return self._worker.handle(asdict(request))


class InProcessModel:
    """The same for a language model."""

    def __init__(self, name: str, *, module: str) -> None:
        self.name = name
        self.pid = os.getpid()
        self._worker = _Worker()

    def ask(self, request: Any, reply: type[Any]) -> Any:
        told = self._worker.handle(asdict(request))
        assert isinstance(told, reply)
        return told

    def close(self) -> None:
        self._worker.__exit__()


def without_processes(
    patch: pytest.MonkeyPatch, encoder: type[InProcess] = InProcess, model: type[InProcessModel] = InProcessModel
) -> None:
    """Let the benchmark measure in this process, and warm up for a tenth of a second."""
    patch.setattr(measure, "ProcessTarget", encoder)
    patch.setattr(generation_lanes, "ProcessTarget", model)
    # Before each turn: a hundredth of a second in a worker, and a third of one in a process with all that tests import.
    patch.setattr(gc, "collect", lambda: 0)
    patch.setattr(session, "_WARM_UP_S", 0.1)  # a fake has no caches to warm

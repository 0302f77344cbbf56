"""The benchmark's side of a process that is measured."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
import tempfile
from dataclasses import asdict
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

import dacite

from edgelm import errors
from edgelm.bench.protocol import Attend, Load, Loaded, Measure, Measured, Spin, Spun, WarmedUp, WarmUp
from edgelm.bench.run import Samples
from edgelm.errors import EdgelmError, ExecutionError

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

__all__ = ["ProcessTarget", "Target"]

_Reply = TypeVar("_Reply")

_CONFIG = dacite.Config(strict=True, cast=[tuple])
_EXIT_SECONDS = 5.0
_TAIL_BYTES = 4096


class Target(Protocol):
    """One bundle in one runtime, which can be measured a turn at a time."""

    @property
    def pid(self) -> int:
        """The process that it runs in."""
        ...

    def load(self, request: Load) -> Loaded:
        """Open the bundle and answer a first query."""
        ...

    def warm_up(self, request: WarmUp) -> WarmedUp:
        """Answer queries until the times settle."""
        ...

    def measure(self, request: Measure) -> Measured:
        """Answer queries and report their times."""
        ...

    def attend(self, request: Attend) -> Measured:
        """Answer queries as they arrive and report their times."""
        ...

    def spin(self, request: Spin) -> Spun:
        """Answer queries for a time."""
        ...

    def close(self) -> None:
        """End it, whatever it is doing."""
        ...


class ProcessTarget:
    """A `Target` in a process of its own.

    Args:
        name: What it measures, for messages.
        module: What the process runs: it answers requests, a line of JSON each, as `edgelm.bench.worker` does.
    """

    def __init__(self, name: str, *, module: str = "edgelm.bench.worker") -> None:
        self._name = name
        self._errors = tempfile.TemporaryFile()  # noqa: SIM115 - closed by `close`
        # -P keeps the current folder off its path; what this process can import, it can import too.
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}
        self._process = subprocess.Popen(
            [sys.executable, "-P", "-m", module],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._errors,
            text=True,
            encoding="utf-8",
            env=environment,
        )

    def load(self, request: Load) -> Loaded:
        """Open the bundle and answer a first query."""
        return self.ask(request, Loaded)

    def warm_up(self, request: WarmUp) -> WarmedUp:
        """Answer queries until the times settle."""
        return self.ask(request, WarmedUp)

    def measure(self, request: Measure) -> Measured:
        """Answer queries and report their times."""
        return _measured(self._tell(request))

    def attend(self, request: Attend) -> Measured:
        """Answer queries as they arrive and report their times."""
        return _measured(self._tell(request))

    def spin(self, request: Spin) -> Spun:
        """Answer queries for a time."""
        return self.ask(request, Spun)

    @property
    def pid(self) -> int:
        """The process."""
        return self._process.pid

    def close(self) -> None:
        """End the process: it leaves by itself when its pipes close, and is killed if it is still at work."""
        # stdout first: a process that is interrupted in its turn has a reply to write, which nobody will read, and would
        # wait for ever to be rid of it.
        for pipe in (self._process.stdout, self._process.stdin):
            with contextlib.suppress(OSError):
                if pipe:
                    pipe.close()
        try:
            self._process.wait(_EXIT_SECONDS)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        finally:
            self._errors.close()

    def ask(self, request: DataclassInstance, reply: type[_Reply]) -> _Reply:
        """Send a request, and return the reply.

        Raises:
            EdgelmError: What the process reports, or that it died.
        """
        return dacite.from_dict(reply, self._tell(request), _CONFIG)

    def _tell(self, request: DataclassInstance) -> dict[str, Any]:
        stdin, stdout = self._process.stdin, self._process.stdout
        try:
            if stdin is None or stdout is None:
                raise BrokenPipeError
            stdin.write(json.dumps(asdict(request)) + "\n")
            stdin.flush()
            line = stdout.readline()
        except BrokenPipeError:
            line = ""
        if not line.endswith("\n"):
            raise ExecutionError(self._obituary())
        data: dict[str, Any] = json.loads(line)
        if "error" in data:
            raise _error(data["error"], f"{self._name}: {data['message']}")
        return data

    def _obituary(self) -> str:
        """Return why the process is gone, from its exit status and the last that it said."""
        status = self._process.wait()
        how = f"signal {-status}" if status < 0 else f"exit status {status}"
        self._errors.seek(0, os.SEEK_END)
        self._errors.seek(max(0, self._errors.tell() - _TAIL_BYTES))
        lines = self._errors.read().decode(errors="replace").split("\n")
        last = next((line.strip() for line in reversed(lines) if line.strip()), "it said nothing")
        return (
            f"{self._name}: the process that ran it died ({how}; {last}). "
            "Check the bundle on this device with: edgelm verify BUNDLE"
        )


def _measured(data: dict[str, Any]) -> Measured:
    """Return a turn's reply. Not by dacite, which looks at each of a hundred thousand numbers for some microseconds."""
    columns: dict[str, Any] = {
        name: None if values is None else tuple(values) for name, values in data["samples"].items()
    }
    return Measured(
        samples=Samples(**columns), truncated=tuple(data["truncated"]), peak_memory_bytes=data["peak_memory_bytes"]
    )


def _error(name: str, message: str) -> EdgelmError:
    """Return an error of the class that was raised in the process; the constructor of some takes more than a message."""
    kind = getattr(errors, name, EdgelmError) if name in errors.__all__ else EdgelmError
    if kind is errors.MissingPackageError:
        kind = errors.RuntimeUnavailableError
    error: EdgelmError = kind(message)
    return error

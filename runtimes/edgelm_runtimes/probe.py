"""A device is tried in a process of its own before it answers: drivers end the process that they fail in.

``python -m edgelm_runtimes.probe BUNDLE RUNTIME DEVICE THREADS`` opens a bundle there, runs its golden vectors, holds the
answers against the bound in its manifest, and prints what `verify` found as JSON.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from dataclasses import asdict
from pathlib import Path

from edgelm.errors import EdgelmError, RuntimeUnavailableError

__all__ = ["main", "probe"]

_SECONDS = 600.0  # a shader compiler takes minutes at worst


def probe(path: Path, *, runtime: str, device: str, threads: int | None) -> None:
    """Try a bundle on a device in another process.

    Args:
        path: The bundle.
        runtime: That is to run it.
        device: As `edgelm_runtimes.device.parse_device` reads it.
        threads: Of the runtime.

    Raises:
        RuntimeUnavailableError: The device does not take it, ends the process, or answers wrongly; the message says which.
    """
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(entry for entry in sys.path if entry)}
    command = [sys.executable, "-P", "-m", "edgelm_runtimes.probe", str(path), runtime, device, str(threads or 0)]
    try:
        done = subprocess.run(
            command,
            env=environment,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=_SECONDS,
            check=False,
        )
    except subprocess.TimeoutExpired as error:
        raise RuntimeUnavailableError(f"{device} did not answer within {_SECONDS:.0f} s.") from error
    if done.returncode < 0:
        name = signal.Signals(-done.returncode).name
        raise RuntimeUnavailableError(
            f"{device} ended the process that tried it ({name}): its driver cannot run this file."
        )
    lines = done.stdout.splitlines()
    if done.returncode != 0 or not lines:
        said = next((line for line in reversed(done.stderr.splitlines()) if line.strip()), f"status {done.returncode}")
        raise RuntimeUnavailableError(f"{device} could not be tried: {said.strip()}")
    found = json.loads(lines[-1])
    if "error" in found:
        raise RuntimeUnavailableError(found["error"])
    if found["status"] != "passed":
        how = "fails" if found["max_abs_error"] is None else "answers wrongly"
        raise RuntimeUnavailableError(f"{device} {how}: {found['reason']}. Nothing runs there.")


def main() -> None:
    """Run one probe."""
    from edgelm_runtimes.verify import verify

    path, runtime, device, threads = sys.argv[1:]
    try:
        report = verify(path, runtime=runtime, device=device, threads=int(threads) or None)
        found = asdict(report.runtimes[0])
    except EdgelmError as error:
        found = {"error": str(error)}
    sys.stdout.write(json.dumps(found) + "\n")


if __name__ == "__main__":
    main()

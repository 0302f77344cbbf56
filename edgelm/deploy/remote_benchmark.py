"""Measuring a bundle on the device, and bringing the runs back."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from edgelm.bundle import open_bundle
from edgelm.bundle.checks import MANIFEST
from edgelm.deploy import scripts
from edgelm.deploy.address import parse_address
from edgelm.deploy.connection import Progress, last_line
from edgelm.deploy.deployment import answer_of, connect, deploy
from edgelm.errors import DeviceError

__all__ = ["benchmark_on"]


def benchmark_on(
    bundle: str | Path,
    host: str,
    *,
    arguments: Sequence[str] = (),
    force: bool = False,
    verify: bool = True,
    edgelm: str | None = None,
    ssh_config: Path | None = None,
    progress: Progress | None = None,
) -> list[dict[str, Any]]:
    """Put a bundle onto a device, where it is not yet, and return what ``edgelm benchmark`` measured there.

    If this process ends or the line is lost, the benchmark there ends too.

    Args:
        bundle: A folder or a zip file.
        host: See `parse_address`.
        arguments: More of ``edgelm benchmark``, such as ``("--seconds", "10")``; it writes no file there.
        force: Replace another bundle of that name there.
        verify: Whether the device has to check the bundle first.
        edgelm: The program there; looked for otherwise.
        ssh_config: A file instead of ``~/.ssh/config``.
        progress: Told the bytes that were sent, and then that it measures.

    Returns:
        The runs as the values of their JSON, for `edgelm.bench.Run.from_dict` or `edgelm.bench.GenerationRun`.

    Raises:
        DeviceError: edgelm is not installed there, the benchmark failed, or it measured other bytes.
        EdgelmError: As `deploy`.
    """
    address = parse_address(host)
    deployed = deploy(bundle, host, force=force, verify=verify, edgelm=edgelm, ssh_config=ssh_config, progress=progress)
    if deployed.edgelm is None:
        reason = deployed.unverified or f"edgelm is not installed on {deployed.device}."
        raise DeviceError(f"Nothing was measured: {reason}")
    if progress is not None:
        progress(f"measuring on {deployed.device}", 0, 1)
    folder, _, name = deployed.path.rpartition("/")
    connection = connect(address, ssh_config=ssh_config)
    answer = connection.run(scripts.BENCHMARK, [folder or ".", name, deployed.edgelm, "benchmark", *arguments])
    if answer.status != 0:
        said = last_line(answer.errors).removeprefix("edgelm: ") or f"status {answer.status}"
        raise DeviceError(f"edgelm benchmark failed on {deployed.device}: {said}")
    runs: list[dict[str, Any]] = answer_of(answer)
    with open_bundle(bundle) as opened:
        sha256 = hashlib.sha256((opened.folder / MANIFEST).read_bytes()).hexdigest()
    for run in runs:
        if run["bundle"]["manifest_sha256"] != sha256:
            raise DeviceError(
                f"{deployed.path} on {deployed.device} was replaced while it was measured: run the benchmark again."
            )
    if progress is not None:
        progress(f"measuring on {deployed.device}", 1, 1)
    return runs

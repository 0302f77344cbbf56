"""What the commands share: options, progress on a terminal, and printing."""

from __future__ import annotations

import contextlib
import json
import sys
from collections.abc import Callable, Iterator, Sequence
from typing import Any, TypeVar

import click

__all__ = ["complain", "json_option", "print_json", "progress_bar", "runtime_options", "size", "table"]

_Command = TypeVar("_Command", bound=Callable[..., Any])


def complain(message: str) -> None:
    """Print one line to stderr."""
    click.echo(f"edgelm: {message}", err=True)


def json_option(command: _Command) -> _Command:
    """Add ``--json``."""
    return click.option("--json", "as_json", is_flag=True, help="Print the result as JSON.")(command)


def runtime_options(command: _Command) -> _Command:
    """Add ``--runtime``, ``--device``, ``--fallback``, ``--no-verify`` and ``--threads``."""
    command = click.option("--threads", type=click.IntRange(1, 64), help="Threads of the runtime.")(command)
    command = click.option(
        "--no-verify", is_flag=True, help="Do not try the device before, against the golden vectors."
    )(command)
    command = click.option(
        "--fallback", type=click.Choice(["error", "cpu"]), default="error", show_default=True,
        help="What to do where the device does not take it.",
    )(command)  # fmt: skip
    command = click.option(
        "--device", default="cpu", show_default=True, help="cpu, gpu, edgetpu, edgetpu:usb:0 or delegate:LIBRARY."
    )(command)
    return click.option("--runtime", help="litert, tflite or onnx; the first that is installed otherwise.")(command)


def print_json(value: Any) -> None:
    """Print a value as indented JSON to stdout."""
    click.echo(json.dumps(value, indent=2, ensure_ascii=False))


def size(count: int) -> str:
    """Return a number of bytes for people.

    >>> size(1_234_567)
    '1.23 MB'
    """
    for unit, divisor in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if count >= divisor:
            return f"{count / divisor:.3g} {unit}"
    return f"{count} B"


def table(rows: Sequence[tuple[str, ...]], header: tuple[str, ...] | None = None) -> None:
    """Print rows in columns, to stdout; the figures of a column line up at the left."""
    lines = [header, *rows] if header else rows
    widths = [max(len(line[column]) for line in lines) for column in range(len(lines[0]))]
    for line in lines:
        click.echo("  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip())


@contextlib.contextmanager
def progress_bar(*, quiet: bool = False) -> Iterator[Callable[[str, int, int], None]]:
    """Give a function that shows how far a step is: a bar on a terminal, one line a step elsewhere."""
    if quiet:
        yield lambda step, done, total: None
        return
    if not sys.stderr.isatty():
        yield _plain_progress()
        return
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

    columns = (
        SpinnerColumn(),
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
    )
    with Progress(*columns, console=Console(stderr=True), transient=False) as progress:
        tasks: dict[str, Any] = {}

        def show(step: str, done: int, total: int) -> None:
            if step not in tasks:
                tasks[step] = progress.add_task(step, total=total)
            progress.update(tasks[step], completed=done, total=total)

        yield show


def _plain_progress() -> Callable[[str, int, int], None]:
    seen: set[str] = set()

    def show(step: str, done: int, total: int) -> None:
        if step not in seen:
            seen.add(step)
            click.echo(f"{step} …", err=True)

    return show

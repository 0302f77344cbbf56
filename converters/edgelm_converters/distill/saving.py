"""Writes a student and the record of its training, whole or not at all."""

from __future__ import annotations

import dataclasses
import json
import shutil
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgelm.errors import OutputError

if TYPE_CHECKING:
    from edgelm_converters.distill.record import Distillation

__all__ = ["check_output", "record_of", "save_student"]


def record_of(output: Path) -> Path:
    """Return where the record of a training lies that writes `output`."""
    return output.with_suffix(".json")


def check_output(output: Path, *, force: bool) -> None:
    """Raise where a student cannot be written.

    Raises:
        OutputError: It is no ``.keras`` file, its folder is missing, or it exists and `force` is not set.
    """
    if output.suffix != ".keras":
        raise OutputError(f"The student is written as a .keras file; {output.name} has another suffix.")
    if not output.parent.is_dir():
        raise OutputError(f"There is no folder {output.parent} to write {output.name} into: make it first.")
    for path in (output, record_of(output)):
        if path.exists() and not force:
            raise OutputError(f"{path} exists already: give another name, or --force to replace it.")


def save_student(model: Any, record: Distillation, output: Path, checkpoint: Path) -> None:
    """Write a model and its record, and remove the checkpoint, which is of no use any more.

    Raises:
        OutputError: They cannot be written; the checkpoint stays.
    """
    try:
        with tempfile.TemporaryDirectory(prefix=f".{output.name}.", dir=output.parent) as folder:
            staged = Path(folder) / output.name
            model.save(staged)
            text = json.dumps(dataclasses.asdict(record), indent=2, ensure_ascii=False)
            (Path(folder) / "record.json").write_text(text + "\n", encoding="utf-8")
            staged.replace(output)
            (Path(folder) / "record.json").replace(record_of(output))
    except OSError as error:
        raise OutputError(f"The student cannot be written to {output}: {error.strerror}.") from error
    shutil.rmtree(checkpoint, ignore_errors=True)

"""``edgelm distill``."""

from __future__ import annotations

import contextlib
import signal
from collections.abc import Callable, Iterator
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from edgelm.cli.output import complain, json_option, print_json, progress_bar, table

if TYPE_CHECKING:
    from edgelm_converters.distill import Distillation

__all__ = ["distill"]

_FILE = click.Path(path_type=Path)


@click.command()
@click.argument("teacher")
@click.option(
    "--student", required=True, help="A .keras file, such as a pruned model; or layers=2,width=128,heads=4,ffn=512."
)
@click.option("--data", type=_FILE, required=True, help="What it is taught with: csv, tsv, jsonl, txt or npz.")
@click.option("-o", "--output", type=_FILE, required=True, help="The student to write: NAME.keras.")
@click.option("--validation", type=_FILE, help="Data that teacher and student are measured on.")
@click.option("--tokenizer", type=_FILE, help="tokenizer.json, vocab.txt, SentencePiece .model or a preset folder.")
@click.option("--labels", type=_FILE, help="Class names in order, where the data name them.")
@click.option("--sequence-length", type=click.IntRange(1, 1 << 20), help="The most tokens of a sample or sequence.")
@click.option("--epochs", type=int, help="Passes over the data (3).")
@click.option("--batch-size", type=int, help="Samples a step (32).")
@click.option("--learning-rate", type=float, help="The highest, after a warm-up (1e-4).")
@click.option("--temperature", type=float, help="Softens the scores that are compared (2).")
@click.option("--soft", type=float, help="Weight of the teacher's answers (1).")
@click.option("--hard", type=float, help="Weight of the data's labels, or of the next token (0.5).")
@click.option("--hidden", type=float, help="Weight of the states after each layer (0).")
@click.option("--relations", type=float, help="Weight of how the last layer's tokens relate (0).")
@click.option("--recipe", help="Train for this recipe's rounding, such as int4: quantisation-aware.")
@click.option("--seed", type=click.IntRange(0), help="Of the order of the samples (0).")
@click.option("--checkpoint-minutes", type=float, help="Time between checkpoints, in NAME.keras.checkpoint (10).")
@click.option("--resume", is_flag=True, help="Go on from the checkpoint.")
@click.option("--custom-objects", type=_FILE, help="Python file that defines the teacher's own layers. It is run.")
@click.option("--force", is_flag=True, help="Replace a student that exists.")
@json_option
def distill(
    teacher: str,
    student: str,
    data: Path,
    output: Path,
    validation: Path | None,
    tokenizer: Path | None,
    labels: Path | None,
    sequence_length: int | None,
    resume: bool,
    custom_objects: Path | None,
    force: bool,
    as_json: bool,
    **settings: Any,
) -> None:
    """Train a smaller or pruned model to answer as TEACHER does, or one for its recipe's rounding.

    TEACHER is a .keras file, a SavedModel, a KerasHub preset folder, or a handle. The student is written as a .keras file that
    'edgelm convert' takes, with a record of its training beside it. Ctrl-C keeps a checkpoint; --resume goes on from it.
    """
    from edgelm_converters.distill import Training, distil

    training = Training(**{name: value for name, value in settings.items() if value is not None})
    with progress_bar(quiet=as_json) as progress, _interruptible(output) as stop:
        record = distil(
            teacher,
            student,
            data,
            output,
            validation=validation,
            tokenizer=tokenizer,
            labels=labels,
            sequence_length=sequence_length,
            training=training,
            custom_objects=custom_objects,
            resume=resume,
            force=force,
            stop=stop,
            progress=progress,
        )
    if as_json:
        print_json({"path": str(output), "record": asdict(record)})
        return
    _print_record(output, record)


@contextlib.contextmanager
def _interruptible(output: Path) -> Iterator[Callable[[], bool]]:
    """Give a function that says whether Ctrl-C was pressed; a second one ends at once."""
    pressed = False

    def press(*_: object) -> None:
        nonlocal pressed
        pressed = True
        signal.signal(signal.SIGINT, signal.default_int_handler)

    before = signal.signal(signal.SIGINT, press)
    try:
        yield lambda: pressed
    except KeyboardInterrupt:
        if output.with_name(f"{output.name}.checkpoint").is_dir():
            complain("Interrupted: the same command with --resume goes on from the last checkpoint.")
        else:
            complain("Interrupted before the first step: nothing was kept.")
        raise click.exceptions.Exit(130) from None
    finally:
        signal.signal(signal.SIGINT, before)


def _print_record(output: Path, record: Distillation) -> None:
    click.echo(
        f"{output}: {record.student_parameters:,} parameters, {record.steps:,} steps on {record.samples:,} samples of "
        f"{record.data} in {record.seconds:.0f} s, loss {record.losses[0]:.4g} to {record.losses[-1]:.4g}"
    )
    before, after = record.before, record.after
    if before is not None and after is not None:
        rows = [
            ("teacher", f"{after.teacher:.4f}"),
            ("student before", f"{before.student:.4f}"),
            ("student after", f"{after.student:.4f}"),
        ]
        table(rows, (f"on {after.data}", after.metric))
    for note in record.notes:
        click.echo(f"note: {note}")

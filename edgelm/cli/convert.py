"""``edgelm convert``."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path

import click

from edgelm.bundle import Manifest
from edgelm.cli.describe import summary_row
from edgelm.cli.output import json_option, print_json, progress_bar, table

__all__ = ["convert"]

_FILE = click.Path(path_type=Path)


@click.command()
@click.argument("model")
@click.option("-o", "--output", type=_FILE, required=True, help="The bundle to write: NAME.edgelm.")
@click.option(
    "--to", "targets", multiple=True, help="tflite, onnx or litertlm; several may be given. All that fit without it."
)
@click.option("--recipe", default="int8", show_default=True, help="fp32, fp16, int8, or int4 for a language model.")
@click.option("--tokenizer", type=_FILE, help="tokenizer.json, vocab.txt, SentencePiece .model or a preset folder.")
@click.option("--labels", type=_FILE, help="Class names in order: a line each, or a JSON list.")
@click.option("--calibration", type=_FILE, help="Real inputs to compare with Keras on: csv, tsv, jsonl, txt or npz.")
@click.option(
    "--validation", type=_FILE, help="Labelled data, or text for a language model: accuracy or perplexity is measured."
)
@click.option("--sequence-length", type=click.IntRange(1, 1 << 20), help="The most tokens; prompt and answer together.")
@click.option("--chat-template", type=_FILE, help="Language models: the Jinja template of a conversation.")
@click.option(
    "--cache-length", "caches", multiple=True, type=int, help="Language models, tflite: positions of a cache; several."
)
@click.option(
    "--prefill-length",
    "prefill",
    multiple=True,
    type=int,
    help="Language models, tflite: prompt tokens a call; several.",
)
@click.option("--custom-objects", type=_FILE, help="Python file that defines the model's own layers. It is run.")
@click.option("--force", is_flag=True, help="Replace a bundle that exists.")
@json_option
def convert(
    model: str,
    output: Path,
    targets: tuple[str, ...],
    recipe: str,
    tokenizer: Path | None,
    labels: Path | None,
    calibration: Path | None,
    validation: Path | None,
    sequence_length: int | None,
    chat_template: Path | None,
    caches: tuple[int, ...],
    prefill: tuple[int, ...],
    custom_objects: Path | None,
    force: bool,
    as_json: bool,
) -> None:
    """Turn a Keras MODEL into a verified bundle for devices.

    MODEL is a .keras file, a SavedModel, a KerasHub preset folder, or a handle such as hf://user/model. The artifact's outputs
    are compared with Keras's, in the runtime that the device will use; beyond the recipe's bound nothing is written.
    """
    from edgelm_converters import convert as convert_model

    with progress_bar(quiet=as_json) as progress:
        result = convert_model(
            model,
            output,
            to=targets or None,
            recipe=recipe,
            tokenizer=tokenizer,
            labels=labels,
            calibration=calibration,
            validation=validation,
            sequence_length=sequence_length,
            chat_template=chat_template,
            cache_lengths=caches or None,
            prefill_lengths=prefill or None,
            custom_objects=custom_objects,
            force=force,
            progress=progress,
        )
    if as_json:
        print_json({"path": str(result.path), "manifest": asdict(result.manifest)})
        return
    _print_summary(result.path, result.manifest)


def _print_summary(path: Path, manifest: Manifest) -> None:
    model = manifest.model
    how = f"recognised as {model.family}" if model.family else f"traced ({model.reason})"
    click.echo(f"{path}: {model.source}, {model.parameters:,} parameters, {how}, recipe {manifest.recipe}")
    language = manifest.task == "generate"
    last = ("same token", "perplexity") if language else ("same label", "accuracy")
    table(
        [summary_row(artifact) for artifact in manifest.artifacts],
        ("format", "size", "checked on", "largest error", *last),
    )
    for note in manifest.notes:
        click.echo(f"note: {note}")

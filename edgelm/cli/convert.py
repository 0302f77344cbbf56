"""``edgelm convert``."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path

import click

from edgelm.bundle import Manifest
from edgelm.cli.describe import compression_line, gate_line, summary_row
from edgelm.cli.output import json_option, print_json, progress_bar, table

__all__ = ["convert"]

_FILE = click.Path(path_type=Path)


@click.command()
@click.argument("model")
@click.option("-o", "--output", type=_FILE, required=True, help="The bundle to write: NAME.edgelm.")
@click.option(
    "--to", "targets", multiple=True, help="tflite, onnx or litertlm; several may be given. All that fit without it."
)
@click.option(
    "--for",
    "target",
    metavar="TARGET",
    help="What it is for: gpu, npu-qnn, edgetpu, tflite-runtime, or a device that 'edgelm profiles' lists. It chooses "
    "formats, recipe and lengths, and refuses what contradicts it.",
)
@click.option(
    "--recipe",
    help="How weights are stored: fp32, fp16, int8, int4, full-int8, a longer name, or a TOML file with a whole chain. "
    "Without: int8, or what --for takes.",
)
@click.option("--prune", help="What to remove first: heads=0.25,ffn=0.3,layers=2.")
@click.option("--trim-vocabulary", type=_FILE, help="Keep the tokens that these texts need: txt, csv, tsv or jsonl.")
@click.option("--metric", help="accuracy, perplexity, bleu or parity: what --max-drop is about, on --validation.")
@click.option(
    "--max-drop",
    type=float,
    help="The most that may be lost: points of accuracy (0.01 is one of a hundred) or BLEU, a share of a perplexity or range. "
    "The worst parts are kept in more bits until it holds, or nothing is written.",
)
@click.option("--sensitivity", is_flag=True, help="With --metric: rank the parts by what each costs, in any case.")
@click.option("--ranges", help="full-int8: how activations' ranges are chosen: minmax, percentile or mse.")
@click.option("--integer-io", is_flag=True, help="full-int8: integers at inputs and outputs too, as an Edge TPU wants.")
@click.option("--tokenizer", type=_FILE, help="tokenizer.json, vocab.txt, SentencePiece .model or a preset folder.")
@click.option("--target-tokenizer", type=_FILE, help="Translation: the tokenizer of the answers, where it is another.")
@click.option("--labels", type=_FILE, help="Class names in order: a line each, or a JSON list.")
@click.option(
    "--calibration",
    type=_FILE,
    help="Real inputs to compare with Keras on, and to fit what is fitted: csv, tsv, jsonl, txt or npz.",
)
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
    target: str | None,
    recipe: str | None,
    prune: str | None,
    trim_vocabulary: Path | None,
    metric: str | None,
    max_drop: float | None,
    sensitivity: bool,
    ranges: str | None,
    integer_io: bool,
    tokenizer: Path | None,
    target_tokenizer: Path | None,
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
            target=target,
            recipe=recipe,
            prune=prune,
            trim_vocabulary=trim_vocabulary,
            metric=metric,
            max_drop=max_drop,
            sensitivity=sensitivity,
            ranges=ranges,
            integer_io=integer_io,
            tokenizer=tokenizer,
            target_tokenizer=target_tokenizer,
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
    language = manifest.task in ("generate", "translate", "transcribe")
    last = ("same token", "perplexity") if language else ("same label", "accuracy")
    table(
        [summary_row(artifact) for artifact in manifest.artifacts],
        ("format", "size", "checked on", "largest error", *last),
    )
    for step in manifest.compression:
        click.echo(compression_line(step))
    for artifact in manifest.artifacts:
        if artifact.gate is not None:
            click.echo(f"{artifact.format}: {gate_line(artifact.gate)}")
    for note in manifest.notes:
        click.echo(f"note: {note}")

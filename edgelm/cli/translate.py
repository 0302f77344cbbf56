"""Translations on the terminal: streamed, or as JSON."""

from __future__ import annotations

import sys
from collections.abc import Iterable
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import click

from edgelm.cli.generate import CONTROL
from edgelm.cli.output import complain, print_json

if TYPE_CHECKING:
    from edgelm_runtimes import Session, TranslationResult

__all__ = ["TRANSLATION_OPTIONS", "print_transcripts", "print_translations"]

TRANSLATION_OPTIONS = frozenset(("beams", "max_new_tokens", "temperature", "top_k", "top_p", "seed", "deadline_ms"))


def print_translations(
    session: Session, texts: Iterable[str], options: dict[str, Any], *, beams: int | None, as_json: bool
) -> None:
    """Print the translation of each text, as it comes where there is one beam."""
    if beams is not None:
        options = {**options, "beams": beams}
    for text in texts:
        if as_json:
            result = session.translate(text, **options)
            print_json({"text": text, "translation": result.text, **asdict(result)})
            continue
        if beams is None or beams == 1:
            answer = session.translate(text, stream=True, **options)
            for piece in answer:
                click.echo(_shown(piece), nl=False)
            click.echo()
            result = answer.result
        else:
            result = session.translate(text, **options)
            click.echo(_shown(result.text))
        complain(_summary(result))


def print_transcripts(
    session: Session, files: Iterable[str], options: dict[str, Any], *, beams: int | None, as_json: bool
) -> None:
    """Print what is said in each WAV file."""
    if beams is not None:
        options = {**options, "beams": beams}
    for file in files:
        result = session.transcribe(file, **options)
        if as_json:
            print_json({"file": file, "transcript": result.text, **asdict(result)})
        else:
            click.echo(_shown(result.text))
            complain(_summary(result))


def _shown(text: str) -> str:
    return text.translate(CONTROL) if sys.stdout.isatty() else text


def _summary(result: TranslationResult) -> str:
    first = "" if result.ttft_s is None else f", the first token after {result.ttft_s * 1e3:.3g} ms"
    return (
        f"{len(result.ids)} tokens in {result.total_s * 1e3:.3g} ms{first}; source: {result.source_tokens} tokens; "
        f"ended: {result.finish_reason.replace('_', ' ')}"
    )

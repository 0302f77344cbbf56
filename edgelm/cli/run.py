"""``edgelm run``."""

from __future__ import annotations

import sys
from collections.abc import Iterable
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import click
from click.core import ParameterSource

from edgelm.cli.generate import (
    GENERATION_OPTIONS,
    answer_prompts,
    generation_options,
    hold_conversation,
    prompt_lines,
    speculating,
)
from edgelm.cli.output import complain, json_option, print_json, runtime_options
from edgelm.cli.translate import TRANSLATION_OPTIONS, print_transcripts, print_translations
from edgelm.errors import InputError

if TYPE_CHECKING:
    from edgelm_runtimes import Session

__all__ = ["run"]


@click.command()
@click.argument("bundle", type=click.Path(path_type=Path))
@click.argument("texts", nargs=-1)
@click.option("--top", default=1, show_default=True, type=click.IntRange(1, 1000), help="Labels to show.")
@click.option("--arrays", type=click.Path(path_type=Path), help="An .npz with the raw inputs, instead of texts.")
@click.option("--chat", is_flag=True, help="Hold a conversation with a language model: a message a line.")
@click.option("--beams", type=click.IntRange(1, 32), help="Translation: answers that are looked for side by side.")
@generation_options
@runtime_options
@json_option
def run(
    bundle: Path,
    texts: tuple[str, ...],
    top: int,
    arrays: Path | None,
    chat: bool,
    beams: int | None,
    generation: dict[str, Any],
    runtime: str | None,
    device: str,
    fallback: Literal["error", "cpu"],
    no_verify: bool,
    threads: int | None,
    as_json: bool,
) -> None:
    """Run BUNDLE on each TEXT, or on each line of stdin. A language model goes on with it, an encoder-decoder translates it.

    A model that hears takes the names of WAV files instead of texts.
    """
    from edgelm_runtimes import load

    with load(
        bundle, runtime=runtime, device=device, threads=threads, fallback=fallback, verify=not no_verify
    ) as session:
        _check_options(session.manifest.task)
        if session.manifest.task == "generate":
            with speculating(generation, runtime, threads) as options:
                answer = hold_conversation if chat else answer_prompts
                answer(session, texts or (prompt_lines() if chat else _lines()), options, as_json=as_json)
        elif session.manifest.task == "translate":
            print_translations(session, texts or _lines(), generation, beams=beams, as_json=as_json)
        elif session.manifest.task == "transcribe":
            print_transcripts(session, texts or _lines(), generation, beams=beams, as_json=as_json)
        elif arrays is not None:
            _run_arrays(session, arrays)
        elif session.manifest.task == "classify":
            for text in texts or _lines():
                _print_answer(session, text, top, as_json=as_json)
        elif session.manifest.task == "embed":
            for text in texts or _lines():
                print_json(session.embed(text).tolist())
        else:
            raise InputError("This bundle takes arrays and gives arrays: name an .npz of its inputs with --arrays.")


def _check_options(task: str) -> None:
    """Refuse the options that were given and that say nothing to a bundle of this task.

    Raises:
        InputError: There is one.
    """
    context = click.get_current_context()
    given = {name for name in context.params if context.get_parameter_source(name) is ParameterSource.COMMANDLINE}
    others = {
        "generate": {"top", "arrays", "beams"},
        "translate": {"top", "arrays", "chat", *(GENERATION_OPTIONS - TRANSLATION_OPTIONS)},
        "transcribe": {"top", "arrays", "chat", *(GENERATION_OPTIONS - TRANSLATION_OPTIONS)},
    }
    unfit = given & others.get(task, {"chat", "beams", *GENERATION_OPTIONS})
    if unfit:
        names = ", ".join(f"--{name.replace('_', '-')}" for name in sorted(unfit))
        raise InputError(f"The bundle's task is '{task}', to which {names} does not apply: leave it out.")


def _lines() -> Iterable[str]:
    if sys.stdin.isatty():
        complain("reading a text a line; end with Ctrl-D")
    for line in sys.stdin:
        if line.strip():
            yield line.rstrip("\n")


def _print_answer(session: Session, text: str, top: int, *, as_json: bool) -> None:
    answer = session.classify(text, top=top)
    if answer.truncated:
        complain(f"the text was cut to its first {answer.tokens} tokens, the most that this model takes")
    if as_json:
        print_json({"text": text, **asdict(answer)})
        return
    ranking = "  ".join(f"{label} {score:.3f}" for label, score in answer.ranking)
    click.echo(f"{ranking}  ({answer.timing.total_s * 1e3:.2f} ms, {answer.tokens} tokens)")


def _run_arrays(session: Session, path: Path) -> None:
    import zipfile

    import numpy as np

    try:
        with np.load(path, allow_pickle=False) as archive:
            inputs = {name: archive[name] for name in archive.files}
    except (OSError, ValueError, zipfile.BadZipFile) as error:
        raise InputError(f"{path} is not a plain .npz of arrays ({error}).") from error
    print_json({name: value.tolist() for name, value in session.run(inputs).items()})

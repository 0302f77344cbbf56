"""Answers of a language model on the terminal: streamed, as JSON, or as a conversation."""

from __future__ import annotations

import contextlib
import functools
import signal
import sys
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Any

import click

from edgelm.cli.output import complain, print_json
from edgelm.errors import InputError

if TYPE_CHECKING:
    from edgelm_runtimes import GenerateOptions, Generation, GenerationResult, Session

__all__ = [
    "CONTROL",
    "GENERATION_OPTIONS",
    "answer_prompts",
    "generation_options",
    "hold_conversation",
    "prompt_lines",
    "speculating",
]


# What a terminal takes for a command: nothing that a model says, and no bundle from anywhere, may move its cursor.
CONTROL = {code: None for code in (*range(0x20), *range(0x7F, 0xA0)) if chr(code) not in "\n\t"}


def _window(value: str) -> str | int:
    """Return ``keep_start``, ``keep_end`` or a number of tokens, as the library takes it."""
    return value if value in ("keep_start", "keep_end") else int(value)


_OPTIONS = {
    "max_new_tokens": click.option("--max-new-tokens", type=click.IntRange(1), help="Tokens of an answer, at most; 256."),
    "temperature": click.option("--temperature", type=float, help="0 takes the likeliest token; the bundle's advice."),
    "top_k": click.option("--top-k", type=int, help="Choose among so many of the likeliest tokens; 0 for all."),
    "top_p": click.option("--top-p", type=float, help="Choose among the fewest that are so likely together."),
    "min_p": click.option("--min-p", type=float, help="Choose among those at least so likely, against the likeliest."),
    "repetition_penalty": click.option("--repetition-penalty", type=float, help="Above 1: say less again."),
    "stop": click.option("--stop", multiple=True, help="End an answer before this text. May be given several times."),
    "seed": click.option("--seed", type=int, help="Of the random numbers."),
    "deadline_ms": click.option("--deadline-ms", type=float, help="End an answer after so many milliseconds."),
    "window": click.option(
        "--window", type=_window, metavar="keep_start|keep_end|N", help="What to keep of what is too long, beside its end."
    ),
    "inexact": click.option(
        "--inexact", is_flag=True, default=None, help="Guess also where near ties may go otherwise (int8, int4 in ONNX)."
    ),
    "speculate": click.option(
        "--speculate", metavar="off|prompt-lookup|BUNDLE", help="Guess tokens ahead, from the text or a smaller model."
    ),
}  # fmt: skip


GENERATION_OPTIONS = frozenset(_OPTIONS)


def generation_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Add the options of language models, which the command gets as one mapping, `generation`: those that were given."""

    @functools.wraps(command)
    def gathered(**arguments: Any) -> Any:
        values = {name: arguments.pop(name) for name in _OPTIONS}
        given = {name: value for name, value in values.items() if value not in (None, ())}
        return command(**arguments, generation=given)

    for option in reversed(_OPTIONS.values()):
        gathered = option(gathered)
    return gathered


@contextlib.contextmanager
def speculating(generation: dict[str, Any], runtime: str | None, threads: int | None) -> Iterator[GenerateOptions]:
    """Give the options with a bundle that is to guess opened, and close it afterwards."""
    from edgelm_runtimes import load

    options: GenerateOptions = {**generation}  # type: ignore[typeddict-item]
    name = generation.get("speculate")
    if name in (None, "off", "prompt-lookup"):
        yield options
        return
    if not Path(name).exists():
        raise InputError(f"--speculate is '{name}', and has to be off, prompt-lookup, or the path of a smaller bundle.")
    with load(name, runtime=runtime, threads=threads) as draft:
        yield {**options, "speculate": draft}


def answer_prompts(session: Session, prompts: Iterable[str], options: GenerateOptions, *, as_json: bool) -> None:
    """Print the answer to each prompt."""
    for prompt in prompts:
        _print_answer(prompt, session.generate(prompt, **options), as_json=as_json)


def hold_conversation(session: Session, lines: Iterable[str], options: GenerateOptions, *, as_json: bool) -> None:
    """Print the answer to each line, in the light of those before. Ctrl-C ends an answer, and pressed again the command."""
    from edgelm_runtimes import Conversation

    conversation = Conversation(session, **options)
    for line in lines:
        answer = conversation.say(line)
        with _interrupting(answer):
            _print_answer(line, answer, as_json=as_json)


@contextlib.contextmanager
def _interrupting(answer: Generation) -> Iterator[None]:
    """Let the first Ctrl-C end the answer, and the second one do what it did before."""
    before = signal.getsignal(signal.SIGINT)

    def stop(number: int, frame: FrameType | None) -> None:
        signal.signal(signal.SIGINT, before)
        answer.cancel()

    signal.signal(signal.SIGINT, stop)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


def _print_answer(prompt: str, answer: Generation, *, as_json: bool) -> None:
    if as_json:
        result = answer.finish()
        print_json({"prompt": prompt, **asdict(result), "tokens_per_s": result.tokens_per_s})
        return
    for piece in answer:
        click.echo(piece.translate(CONTROL) if sys.stdout.isatty() else piece, nl=False)  # which flushes
    click.echo()
    complain(_summary(answer.result))


def _summary(result: GenerationResult) -> str:
    """Return how long an answer took and why it ended.

    For example ``24 tokens, the first after 0.12 s, then 35.1 a second; prompt: 18 tokens, 12 of them from the cache; ended:
    length``.
    """
    parts = [f"{len(result.ids)} tokens"]
    if result.ttft_s is not None:
        parts[0] += f", the first after {result.ttft_s:.3g} s"
    if result.tokens_per_s is not None:
        parts[0] += f", then {result.tokens_per_s:.3g} a second"
    parts.append(f"prompt: {result.prompt_tokens} tokens")
    if result.cached_tokens:
        parts[-1] += f", {result.cached_tokens} of them from the cache"
    if result.left_out_tokens:
        parts.append(f"left out by the window: {result.left_out_tokens} tokens")
    if result.speculation is not None:
        parts.append(f"guessed right: {result.speculation.accepted} of {result.speculation.proposed}")
    return "; ".join([*parts, f"ended: {result.finish_reason.replace('_', ' ')}"])


def prompt_lines() -> Iterator[str]:
    """Yield the lines of stdin that are not empty, each asked for on a terminal."""
    if sys.stdin.isatty():
        complain("type a message; Ctrl-C ends an answer, Ctrl-D the conversation")
    while True:
        if sys.stdin.isatty():
            click.echo("> ", nl=False, err=True)
        line = sys.stdin.readline()
        if not line:
            return
        if line.strip():
            yield line.rstrip("\n")

"""Messages into a prompt, by the Jinja template that a model was trained with.

Templates are written for Hugging Face's ``apply_chat_template``, so the environment is the same: sandboxed and immutable,
with ``trim_blocks`` and ``lstrip_blocks``, ``break`` and ``continue``, the ``generation`` tag, ``raise_exception``,
``strftime_now`` and its own ``tojson``.

A bundle is data from anywhere. Its template reaches no file, module or attribute that begins with ``_``, changes nothing
that it is given, and is stopped once it has written more than a prompt can need. It can still waste time and memory, as a
model that is too large can.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any, NoReturn

from jinja2 import TemplateError, nodes
from jinja2.exceptions import SecurityError
from jinja2.ext import Extension, LoopControlExtension
from jinja2.parser import Parser
from jinja2.sandbox import ImmutableSandboxedEnvironment

from edgelm.errors import BundleError, InputError

__all__ = ["ChatTemplate", "Message", "check_messages"]

# ``{"role": …, "content": …}``, and whatever else the template knows.
Message = Mapping[str, Any]

# The longest context of the models that this is for is 131,072 tokens of four to five characters.
_MAX_CHARACTERS = 2**20
# Beyond what a loop or a formatted text of a template needs.
_MAX_POWER = 64

# What Python raises where a template adds a text to nothing, divides by zero, or calls itself for ever.
_FAILURES = (
    TemplateError,
    ArithmeticError,
    AttributeError,
    LookupError,
    MemoryError,
    RecursionError,
    TypeError,
    ValueError,
)


class _RefusalError(TemplateError):
    """What a template says about messages that it does not take."""


class _GenerationTag(Extension):
    """Reads ``{% generation %}``, which marks the assistant's words for training: here it is only what it holds."""

    tags = {"generation"}  # noqa: RUF012 - as Jinja declares it

    def parse(self, parser: Parser) -> nodes.Node:
        """Return a node of the tag's content."""
        line = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        return nodes.Scope(body, lineno=line)


class _Environment(ImmutableSandboxedEnvironment):
    """Refuses the operators with which one short expression fills the memory."""

    intercepted_binops = frozenset(("*", "**"))

    def call_binop(self, context: Any, operator: str, left: Any, right: Any) -> Any:
        """Compute ``left operator right`` where its result is of a sane size."""
        if operator == "*":
            for one, other in ((left, right), (right, left)):
                if isinstance(one, (str, list, tuple)) and isinstance(other, int):
                    _check_size(len(one) * other)
        if operator == "**" and not (abs(left) <= _MAX_CHARACTERS and abs(right) <= _MAX_POWER):
            raise SecurityError(f"it asks for {left} to the power of {right}")
        return super().call_binop(context, operator, left, right)


def _check_size(size: int) -> None:
    if size > _MAX_CHARACTERS:
        raise SecurityError(f"it makes a text of more than {_MAX_CHARACTERS:,} characters")


def _refuse(message: str) -> NoReturn:
    raise _RefusalError(message)


def _to_json(
    value: Any,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    """Return JSON as it stands in a prompt: Jinja's own filter writes it for a web page, with escapes for ``<`` and ``'``."""
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)


def _now(pattern: str) -> str:
    return datetime.now().astimezone().strftime(pattern)


class ChatTemplate:
    """A template that is ready to be filled.

    Args:
        source: Jinja.
        start: The text of the token that begins a text, the template's ``bos_token``; empty where there is none.
        stop: The text of the token that ends an answer, its ``eos_token``.

    Raises:
        BundleError: It is no valid Jinja.
    """

    def __init__(self, source: str, *, start: str, stop: str) -> None:
        environment = _Environment(
            trim_blocks=True, lstrip_blocks=True, extensions=[LoopControlExtension, _GenerationTag]
        )
        environment.filters["tojson"] = _to_json
        environment.globals.update({"raise_exception": _refuse, "strftime_now": _now})
        try:
            self._template = environment.from_string(source)
        except (TemplateError, RecursionError) as error:
            raise BundleError(
                f"The bundle's chat template is no valid Jinja ({error}): use generate() with a prompt of your own."
            ) from error
        self._tokens = {"bos_token": start, "eos_token": stop}

    def render(self, messages: Sequence[Message]) -> str:
        """Return the prompt for a conversation, up to where the assistant's next words begin.

        Args:
            messages: From the first to the last.

        Raises:
            InputError: They are no messages, the template refuses them, fails on them, or writes without end.
        """
        check_messages(messages)
        parts: list[str] = []
        size = 0
        values = {"messages": list(messages), "add_generation_prompt": True, **self._tokens}
        try:
            for part in self._template.generate(values):
                size += len(part)
                _check_size(size)
                parts.append(part)
        except _RefusalError as error:
            raise InputError(f"The bundle's chat template does not take these messages: {error}") from error
        except _FAILURES as error:
            raise InputError(
                f"The bundle's chat template fails on these messages ({type(error).__name__}: {error}): "
                "check their roles and contents, or use generate() with a prompt of your own."
            ) from error
        return "".join(parts)


def check_messages(messages: Sequence[Message]) -> None:
    """Check that messages are what templates take.

    Raises:
        InputError: There is none, or one is no mapping with a role and a content that are texts.
    """
    if isinstance(messages, (str, bytes, Mapping)) or not isinstance(messages, Sequence) or not messages:
        raise InputError(
            "A conversation is a list of messages such as {'role': 'user', 'content': 'Hello'}, at least one of them, "
            f"and {messages if isinstance(messages, (str, bytes)) else type(messages).__name__!r} was given."
        )
    for place, message in enumerate(messages):
        texts = [message.get(name) for name in ("role", "content")] if isinstance(message, Mapping) else [None]
        if not all(isinstance(text, str) for text in texts):
            raise InputError(f"Message {place} is {message!r:.100}, and needs a 'role' and a 'content' that are texts.")

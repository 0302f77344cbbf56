"""The language of ``edgelm report --check``: comparisons of figures, joined by words.

::

    expression := expression "or" expression | expression "and" expression | "not" expression
                | "(" expression ")" | comparison
    comparison := figure operator amount | amount operator figure
    operator   := "<" | "<=" | ">" | ">=" | "==" | "!="
    amount     := number [unit]

``not`` binds tightest, ``or`` loosest. The parser is Pratt's ("Top down operator precedence", POPL 1973).

>>> parse("p90 < 20ms and accuracy > 0.85").text
'p90 < 20ms and accuracy > 0.85'
"""

from __future__ import annotations

import operator
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Literal

from edgelm.errors import InputError, unknown_name
from edgelm.report.figures import FIELDS
from edgelm.report.quantities import to_si

__all__ = ["OPERATORS", "Comparison", "Expression", "Join", "Node", "Not", "parse"]

Operator = Literal["<", "<=", ">", ">=", "==", "!="]

OPERATORS: Mapping[str, Callable[[float, float], bool]] = {
    "<": operator.lt,
    "<=": operator.le,
    ">": operator.gt,
    ">=": operator.ge,
    "==": operator.eq,
    "!=": operator.ne,
}
"""What each sign asks."""

_TURNED = {"<": ">", "<=": ">=", ">": "<", ">=": "<=", "==": "==", "!=": "!="}
_TOKEN = re.compile(
    r"\s*(?:(?P<number>\d+(?:\.\d*)?(?:[eE][+-]?\d+)?|\.\d+)\s*(?P<unit>%|/s\b|[munµk]?[sJ]\b|[kKMG]i?B\b|B\b|(?=[^A-Za-zµ%]|$))"
    r"|(?P<word>[A-Za-z_][A-Za-z0-9_.]*)|(?P<sign><=|>=|==|!=|[<>()]))"
)
_BINDING = {"or": 1, "and": 2}
_NOT_BINDING = 3
_DEEPEST = 100
_LONGEST_QUOTE = 200


@dataclass(frozen=True)
class Comparison:
    """A figure against an amount in SI units; `text` is as it was written."""

    name: str
    sign: str
    amount: float
    text: str


@dataclass(frozen=True)
class Not:
    """The contrary."""

    part: Node


@dataclass(frozen=True)
class Join:
    """Both of two (``and``), or at least one (``or``)."""

    word: str
    left: Node
    right: Node


Node = Comparison | Not | Join


@dataclass(frozen=True)
class Expression:
    """A whole expression.

    Attributes:
        text: As it was written.
        root: Its outermost part.
    """

    text: str
    root: Node


@dataclass(frozen=True)
class _Token:
    kind: Literal["number", "word", "sign", "end"]
    text: str
    begin: int
    end: int
    unit: str = ""


def parse(text: str) -> Expression:
    """Read an expression.

    Raises:
        InputError: It does not follow the grammar, names a figure that there is none of, or a unit that does not fit.
    """
    reader = _Reader(text)
    root = reader.expression(0, 0)
    left = reader.next
    if left.kind != "end":
        hint = " Join comparisons with 'and' or 'or'." if left.kind == "sign" and left.text != ")" else ""
        raise reader.wrong(f"'{left.text}' is not expected there.{hint}", left)
    return Expression(text.strip(), root)


class _Reader:
    """Goes through the tokens of one text."""

    def __init__(self, text: str) -> None:
        self._text = text
        self._tokens = list(_tokens(text))
        self._index = 0

    @property
    def next(self) -> _Token:
        return self._tokens[self._index]

    def wrong(self, what: str, token: _Token) -> InputError:
        return InputError(f"'{_short(self._text)}' cannot be read at character {token.begin + 1}: {what}")

    def expression(self, least: int, depth: int) -> Node:
        if depth > _DEEPEST:
            raise self.wrong(f"it is nested more than {_DEEPEST} deep.", self.next)
        left = self._first(depth)
        while (binding := _BINDING.get(self.next.text.lower(), 0) if self.next.kind == "word" else 0) > least:
            word = self._take().text.lower()
            left = Join(word, left, self.expression(binding, depth + 1))
        return left

    def _first(self, depth: int) -> Node:
        token = self.next
        if token.kind == "word" and token.text.lower() == "not":
            self._take()
            return Not(self.expression(_NOT_BINDING, depth + 1))
        if token.text == "(" and token.kind == "sign":
            self._take()
            inner = self.expression(0, depth + 1)
            if self.next.text != ")":
                raise self.wrong("a ')' is missing.", self.next)
            self._take()
            return inner
        return self._comparison()

    def _comparison(self) -> Comparison:
        first, sign, second = self._operand(), self._sign(), self._operand()
        if {first.kind, second.kind} != {"word", "number"}:
            raise self.wrong("a figure is compared with an amount, as in 'p90 < 20ms'.", first)
        name, amount = (first, second) if first.kind == "word" else (second, first)
        if name.text not in FIELDS:
            raise InputError(unknown_name("figure", name.text, FIELDS))
        turned = sign if name is first else _TURNED[sign]
        value = to_si(float(amount.text), amount.unit, FIELDS[name.text].dimension, name.text)
        return Comparison(name.text, turned, value, self._text[first.begin : second.end].strip())

    def _operand(self) -> _Token:
        token = self.next
        if token.kind not in ("word", "number") or token.text.lower() in ("and", "or", "not"):
            found = "the text ends" if token.kind == "end" else f"there is '{token.text}'"
            raise self.wrong(f"a figure or an amount belongs there, and {found}.", token)
        return self._take()

    def _sign(self) -> str:
        token = self.next
        if token.text not in OPERATORS:
            raise self.wrong(f"one of {' '.join(OPERATORS)} belongs there.", token)
        return self._take().text

    def _take(self) -> _Token:
        self._index += 1
        return self._tokens[self._index - 1]


def _short(text: str) -> str:
    one_line = " ".join(text.split())
    return one_line if len(one_line) <= _LONGEST_QUOTE else f"{one_line[:_LONGEST_QUOTE]} …"


def _tokens(text: str) -> list[_Token]:
    tokens: list[_Token] = []
    place = 0
    while text[place:].strip():
        found = _TOKEN.match(text, place)
        if found is None:
            begin = place + len(text[place:]) - len(text[place:].lstrip())
            raise InputError(
                f"'{_short(text)}' cannot be read at character {begin + 1}: '{text[begin : begin + 12]}' is nothing known."
            )
        begin = found.end() - len(found.group().lstrip())
        if found["number"] is not None:
            tokens.append(_Token("number", found["number"], begin, found.end(), found["unit"]))
        elif found["word"] is not None:
            tokens.append(_Token("word", found["word"], begin, found.end()))
        else:
            tokens.append(_Token("sign", found["sign"], begin, found.end()))
        place = found.end()
    return [*tokens, _Token("end", "", len(text), len(text))]

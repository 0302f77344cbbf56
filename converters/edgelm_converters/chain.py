"""A chain of compression: what is done to the model before its weights are stored, and how they are stored.

It comes from options of the command line, or from a TOML file::

    [[step]]
    do = "trim-vocabulary"
    corpus = "questions.txt"

    [[step]]
    do = "prune"
    heads = 0.25
    ffn = 0.3

    [[step]]
    do = "distil"
    data = "train.csv"
    epochs = 2

    [quantize]
    recipe = "static_wi8_ai8"
    ranges = "percentile"

    [gate]
    metric = "accuracy"
    max-drop = 0.01

Paths in it are relative to the file. What it does not know, it refuses.
"""

from __future__ import annotations

import dataclasses
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeVar, get_type_hints

import dacite

from edgelm.errors import InputError, RecipeError, unknown_name
from edgelm_converters import recipes
from edgelm_converters.distill.settings import Training
from edgelm_converters.gate import Gate, make_gate
from edgelm_converters.recipes import Recipe

if TYPE_CHECKING:
    from edgelm_converters.compress.pruning import Pruning

__all__ = ["DEFAULT_RANGES", "Chain", "Distil", "Prune", "Ranges", "Step", "Trim", "chain_of_options", "read_chain"]

Ranges = Literal["minmax", "percentile", "mse"]
DEFAULT_RANGES: Ranges = "percentile"


@dataclass(frozen=True)
class Trim:
    """Keep the tokens that a corpus needs.

    Attributes:
        corpus: Texts of the kind that the model is for (txt, csv, tsv, jsonl).
        limit: The most tokens to keep, by how often they come; None keeps all that come.
    """

    corpus: Path
    limit: int | None = None


@dataclass(frozen=True)
class Prune:
    """Remove heads, neurons, layers or single weights."""

    pruning: Pruning


@dataclass(frozen=True)
class Distil:
    """Train the model, as the steps before left it, to answer as the model that was given.

    Attributes:
        data: What it is trained on (csv, tsv, jsonl, txt).
        training: At what pace, and by what.
    """

    data: Path
    training: Training = field(default_factory=Training)


Step = Trim | Prune | Distil
_Kind = TypeVar("_Kind", Trim, Training)


@dataclass(frozen=True)
class Chain:
    """What is done, in order.

    Attributes:
        steps: From a smaller vocabulary to a trained student.
        recipe: How the weights are stored.
        ranges: How a static recipe chooses ranges; None leaves it to edgelm.
        integer_io: Whether a static recipe's inputs and outputs are integers too.
        gate: What must be kept; None leaves the recipe's own bounds.
    """

    steps: tuple[Step, ...]
    recipe: Recipe
    ranges: Ranges | None = None
    integer_io: bool = False
    gate: Gate | None = None

    @property
    def chosen_ranges(self) -> Ranges | None:
        """How ranges are chosen; None where the recipe has none."""
        return (self.ranges or DEFAULT_RANGES) if self.recipe.static else None

    @property
    def fits(self) -> bool:
        """Whether something is fitted on calibration data."""
        return self.recipe.static or any(isinstance(step, Prune) for step in self.steps)


def chain_of_options(
    recipe: str,
    *,
    trim_vocabulary: str | Path | None,
    prune: str | None,
    ranges: str | None,
    integer_io: bool,
    gate: Gate | None,
) -> Chain:
    """Return the chain of a command line: the vocabulary first, whose rows nothing else touches, then the layers.

    Raises:
        RecipeError: A name is unknown, a number makes no sense, or two options do not go together.
    """
    steps: list[Step] = []
    if trim_vocabulary is not None:
        steps.append(Trim(Path(trim_vocabulary)))
    if prune is not None:
        from edgelm_converters.compress.pruning import Pruning

        steps.append(Prune(Pruning.parse(prune)))
    return _checked(Chain(tuple(steps), recipes.find(recipe), _ranges(ranges), integer_io, gate))


def read_chain(path: Path) -> Chain:
    """Read a TOML recipe.

    Raises:
        RecipeError: It is missing, not TOML, has a key or a value that is not known, or steps that make no sense together.
    """
    try:
        data = tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise RecipeError(f"The recipe {path} cannot be read: {error.strerror}.") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise RecipeError(f"The recipe {path} is not valid TOML: {error}.") from error
    _known(path, "the file", data, ("step", "quantize", "gate"))
    listed = data.get("step", [])
    if not isinstance(listed, list) or not all(isinstance(entry, dict) for entry in listed):
        raise RecipeError(f"The recipe {path}: steps are written as [[step]], in double brackets.")
    steps = tuple(_step(path, number, dict(entry)) for number, entry in enumerate(listed, 1))
    stored = _table(path, data, "quantize", ("recipe", "ranges", "integer-io"))
    gate = _table(path, data, "gate", ("metric", "max-drop", "sensitivity"))
    try:
        chain = Chain(
            steps,
            recipes.find(_typed(path, stored, "recipe", str, "dynamic_wi8_afp32")),
            _ranges(_typed(path, stored, "ranges", str, None)),
            _typed(path, stored, "integer-io", bool, False),
            make_gate(
                _typed(path, gate, "metric", str, None),
                _typed(path, gate, "max-drop", float, None),
                sensitivity=_typed(path, gate, "sensitivity", bool, False),
            ),
        )
        return _checked(chain)
    except RecipeError as error:
        raise RecipeError(f"The recipe {path}: {error}") from error


def _step(path: Path, number: int, entry: dict[str, Any]) -> Step:
    where = f"The recipe {path}, step {number}"
    do = entry.pop("do", None)
    if do == "prune":
        from edgelm_converters.compress.pruning import Pruning

        settings = ",".join(f"{key}={value}" for key, value in entry.items())
        try:
            return Prune(Pruning.parse(settings))
        except (RecipeError, InputError) as error:
            raise RecipeError(f"{where}: {error}") from error
    kinds: dict[str, tuple[type[Trim | Training], str]] = {
        "trim-vocabulary": (Trim, "corpus"),
        "distil": (Training, "data"),
    }
    if do not in kinds:
        raise RecipeError(f"{where}: {unknown_name('step', str(do), [*kinds, 'prune'])}")
    kind, file = kinds[do]
    names = {field.name.replace("_", "-") for field in dataclasses.fields(kind)} | {file}
    _known(path, f"step {number} ('{do}')", entry, sorted(names))
    if not isinstance(entry.get(file), str):
        raise RecipeError(f"{where} ('{do}'): '{file}' names a file, and {entry.get(file)!r} was given.")
    values = {key.replace("-", "_"): value for key, value in entry.items()}
    values[file] = path.parent / entry[file]
    if kind is Trim:
        return _read(kind, values, where, do)
    data = values.pop(file)
    training = _read(Training, values, where, do)
    try:
        training.check()
    except RecipeError as error:
        raise RecipeError(f"{where} ('{do}'): {error}") from error
    return Distil(data, training)


def _read(kind: type[_Kind], values: dict[str, Any], where: str, do: str) -> _Kind:
    floats = {name for name, hint in get_type_hints(kind).items() if hint is float}
    values = {name: float(value) if name in floats and type(value) is int else value for name, value in values.items()}
    try:
        return dacite.from_dict(kind, values, dacite.Config(strict=True))
    except dacite.DaciteError as error:
        raise RecipeError(f"{where} ('{do}'): {error}.") from error


def _known(path: Path, where: str, found: Mapping[str, Any], names: Any) -> None:
    for key in found:
        if key not in names:
            raise RecipeError(f"The recipe {path}, in {where}: {unknown_name('key', key, names)}")


def _table(path: Path, data: Mapping[str, Any], name: str, keys: tuple[str, ...]) -> dict[str, Any]:
    table = data.get(name, {})
    if not isinstance(table, dict):
        raise RecipeError(f"The recipe {path}: [{name}] is a table, and {table!r} was given.")
    _known(path, f"[{name}]", table, keys)
    return table


def _typed(path: Path, table: Mapping[str, Any], key: str, kind: type, default: Any) -> Any:
    value = table.get(key, default)
    if kind is float and isinstance(value, int) and not isinstance(value, bool):
        value = float(value)
    if value is not default and type(value) is not kind:
        raise RecipeError(f"The recipe {path}: '{key}' is a {kind.__name__}, and {value!r} was given.")
    return value


def _ranges(name: str | None) -> Ranges | None:
    known: dict[str, Ranges] = {"minmax": "minmax", "percentile": "percentile", "mse": "mse"}
    if name is not None and name not in known:
        raise RecipeError(unknown_name("way to choose ranges", name, known))
    return None if name is None else known[name]


def _checked(chain: Chain) -> Chain:
    """Refuse what makes no sense together.

    Raises:
        RecipeError: It says why.
    """
    smaller = False
    for number, step in enumerate(chain.steps, 1):
        if isinstance(step, Distil):
            aware = step.training.recipe
            if aware is None and not smaller:
                raise RecipeError(
                    f"step {number} distils a model into itself: prune it before, train a smaller one with 'edgelm distill', "
                    "or give the step a recipe, whose rounding it is to be trained for."
                )
            if aware is not None and recipes.find(aware) != chain.recipe:
                raise RecipeError(
                    f"step {number} trains for the rounding of {recipes.find(aware).name}, and {chain.recipe.name} is what the "
                    "weights are stored with: give both the same."
                )
            continue
        if isinstance(step, Prune):
            smaller = True
        if number > 1 and isinstance(chain.steps[number - 2], type(step)):
            raise RecipeError(f"steps {number - 1} and {number} do the same one after the other: make one of them.")
    if not chain.recipe.static:
        for value, option in ((chain.ranges, "ranges"), (chain.integer_io or None, "integer-io")):
            if value is not None:
                raise RecipeError(
                    f"'{option}' is for static recipes, whose ranges are calibrated, and {chain.recipe.name} has none."
                )
    return chain

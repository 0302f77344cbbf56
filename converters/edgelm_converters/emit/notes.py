"""What a file stores in more bits than its recipe's name says: told in the manifest.

Vectors, and matrices so small that no recipe touches them (`edgelm_converters.emit.quantize.worth_quantizing`), are not.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from edgelm.bundle.manifest import Format
from edgelm_converters.emit.quantize import Form, stored_form, weight_recipe
from edgelm_converters.recipes import Recipe
from edgelm_converters.spec import Float32, Layer, Linear, TransformerSpec

__all__ = ["decoder_notes", "encoder_notes"]

_COSTLY = "fewer bits were ruled out"  # `least_bits`
_NAMED = 3  # kernels that a note names; of the others it tells the number


def encoder_notes(spec: TransformerSpec, recipe: str, target: Format) -> tuple[str, ...]:
    """Return what of an encoder is not stored as the recipe's name says, one line each.

    Args:
        spec: The model.
        recipe: One without calibrated ranges.
        target: The file's format: all but ONNX join the projections of an attention, and judge their size together.

    Raises:
        RecipeError: There is no such recipe.
    """
    chosen = weight_recipe(recipe)
    parts = spec.embeddings
    tables = [table for table in (parts.token, parts.position, parts.segment) if table is not None]
    products = [*_products(spec, spec.encoder.layers, joined=target != "onnx")]
    products += [(layer.linear,) for layer in spec.head.layers]
    return (*_table_note(chosen, "embeddings", tables, parts.least_bits), *_kernel_notes(chosen, products))


def decoder_notes(spec: TransformerSpec, recipe: str) -> tuple[str, ...]:
    """Return what of a language model, or of an encoder-decoder, is not stored as the recipe's name says, one line each.

    Raises:
        RecipeError: There is no such recipe.
    """
    chosen = weight_recipe(recipe)
    parts, head = spec.embeddings, spec.head.tokens
    least_bits = parts.least_bits if head is None else max(parts.least_bits, head.least_bits)
    tables = [parts.token]
    if spec.source is not None and spec.source.embeddings is not None:
        tables.append(spec.source.embeddings.token)
        least_bits = max(least_bits, spec.source.embeddings.least_bits)
    return (
        *_table_note(chosen, "embedding and head", tables, least_bits),
        *_kernel_notes(chosen, _products(spec, (*spec.encoder.layers, *spec.decoder.layers), joined=True)),
    )


def _products(spec: TransformerSpec, layers: Iterable[Layer], *, joined: bool) -> Iterator[tuple[Linear, ...]]:
    """Yield the linear layers of a model; those together that are one product."""
    if spec.embeddings.projection is not None:
        yield (spec.embeddings.projection,)
    for layer in layers:
        attention, cross, block = layer.attention, layer.cross_attention, layer.feed_forward
        projections = (attention.query, attention.key, attention.value)
        yield from [projections] if joined else [(linear,) for linear in projections]
        yield from ((attention.output,), (block.up,), (block.down,))
        if cross is not None:
            of_source = (cross.key, cross.value)
            yield from [of_source] if joined else [(linear,) for linear in of_source]
            yield from ((cross.query,), (cross.output,))
        if block.gate is not None:
            yield (block.gate,)


def _table_note(recipe: Recipe, what: str, tables: Iterable[Float32], least_bits: int) -> list[str]:
    forms = {stored_form(recipe, table.shape, least_bits) for table in tables} - {"float32"}
    if "float16" in forms and recipe.weights != "float16":
        return [f"{what} are float16, not {recipe.weights}: {_COSTLY}"]
    if "int8" in forms and recipe.weights == "int4":
        return [f"{what} are int8, not int4: they lose too much in 4 bits"]
    return []


def _kernel_notes(recipe: Recipe, products: Iterable[tuple[Linear, ...]]) -> list[str]:
    found: dict[str, dict[int, str]] = {}  # by reason: kernels' ids, which layers may share, with their names
    for product in products:
        inputs = product[0].kernel.shape[0]
        shape = (inputs, sum(linear.kernel.shape[1] for linear in product))
        for linear in product:
            form = stored_form(recipe, shape, linear.least_bits)
            if form not in ("float32", recipe.weights):
                reason = _reason(recipe, form, inputs)
                found.setdefault(reason, {})[id(linear.kernel)] = linear.name
    return [_counted([*names.values()], reason) for reason, names in found.items()]


def _reason(recipe: Recipe, form: Form, inputs: int) -> str:
    uneven = form == "int8" and recipe.block is not None and inputs % recipe.block
    return f"{form}, not {recipe.weights}: " + (f"inputs are no multiple of {recipe.block}" if uneven else _COSTLY)


def _counted(names: list[str], reason: str) -> str:
    named = ", ".join(names[:_NAMED]) + (", …" if len(names) > _NAMED else "")
    return f"{len(names)} kernel{'s are' if len(names) > 1 else ' is'} {reason} ({named})"

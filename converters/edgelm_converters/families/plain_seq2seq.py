"""Encoder-decoders of plain Keras 3 layers: two stacks, of which one attends to what comes out of the other.

The captured graph (`edgelm_converters.keras_graph`) falls into two: everything that leads to the tensor that cross-attention
attends to is the encoder, the rest is the decoder. Each is walked as `families.plain` walks a model of one stack::

    source   embeddings -> N x (attention, feed-forward) [-> norm]
    target   embeddings -> N x (causal attention, cross-attention, feed-forward) [-> norm] -> scores [-> softmax]

Masks. The source's padding is hidden from the encoder and from cross-attention alike, or from neither; anything between is
refused. Masks over the target's own padding are left out of the spec, as a language model's are: the decoder is causal, and
padding stands behind the text, so nothing that has a meaning changes with them. Keras may mask the rows of padding as a
whole, too: what such a row holds has no meaning.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Collection
from typing import Any

import numpy as np

from edgelm_converters.families import NotRecognised
from edgelm_converters.families.plain_blocks import Blocks
from edgelm_converters.families.plain_inputs import find_lookups, read_embeddings, token_lookup
from edgelm_converters.families.plain_language import main_output, token_head
from edgelm_converters.families.plain_lengths import read_pair_at_every_length
from edgelm_converters.families.plain_masks import padding_of
from edgelm_converters.families.plain_walk import Walk, reached_from, refuse
from edgelm_converters.keras_attention_masks import trace_attention_mask, trace_cross_mask
from edgelm_converters.keras_graph import Graph, Node, Tensor, capture, model_inputs
from edgelm_converters.keras_masks import Mask
from edgelm_converters.keras_pieces import ATTENTIONS, Pieces
from edgelm_converters.spec import Embeddings, Head, Source, Stack, TokenHead, TransformerSpec

__all__ = ["find_sides", "read"]

_PROBE = 4  # tokens on both sides, to see which input belongs to which
_MEMORY = "memory"

_Masks = list[tuple[Node, Mask | None]]


def find_sides(model: Any) -> frozenset[str] | None:
    """Return the names of the inputs on the encoder's side; None for a model that is no encoder-decoder."""
    if len(model_inputs(model)) < 2:
        return None
    try:
        graph = capture(model, _PROBE)
    except NotRecognised:
        return None  # whatever reads it as another kind of model gives the reason
    walk = _walk(graph)
    memory = None if walk is None else _memory(walk)
    if memory is None:
        return None
    reached = reached_from(graph, memory)
    sides = frozenset(str(tensor.node.operation.name) for tensor in graph.inputs if tensor.node in reached)
    return sides if 0 < len(sides) < len(graph.inputs) else None


def read(model: Any, sides: frozenset[str], sequence_length: int | None) -> TransformerSpec:
    """Return an encoder-decoder of plain Keras layers as a spec.

    Args:
        model: A built ``keras.Model``. It is not changed.
        sides: The names of the encoder's inputs, as `find_sides` gives them.
        sequence_length: The most tokens that the user wants on either side, or None. It only counts where the model states
            no length.

    Raises:
        NotRecognised: The model is not exactly such a one.
    """
    pieces = Pieces()  # one for all lengths: the same layer is the same piece
    names = [entry.name for entry in model_inputs(model)]

    def at(source: int, target: int) -> TransformerSpec:
        lengths = {name: source if name in sides else target for name in names}
        return _spec(capture(model, lengths), pieces, model.name, sides)

    return _sharing_positions(read_pair_at_every_length(model, at, sides, sequence_length))


def _walk(graph: Graph) -> Walk | None:
    main = main_output(graph)
    return None if main is None else Walk(graph, main)


def _memory(walk: Walk) -> Tensor | None:
    """Return the one tensor that attentions attend to and do not ask from; None where there is none, or several."""
    attentions = [node for node in walk.nodes if node.kind in ATTENTIONS]
    ends = [(walk.root(node.arguments["query"]), walk.root(node.arguments["value"])) for node in attentions]
    found = {value for query, value in ends if value is not query}
    memory = next(iter(found)) if len(found) == 1 else None
    return memory if isinstance(memory, Tensor) else None


def _spec(graph: Graph, pieces: Pieces, name: str, sides: frozenset[str]) -> TransformerSpec:
    whole = _walk(graph)
    memory = None if whole is None else _memory(whole)
    if whole is None or memory is None:
        raise NotRecognised("its attentions do not all attend to one encoder's output, at each length")
    reached = reached_from(graph, memory)
    sorted_inputs = [
        tuple(tensor for tensor in graph.inputs if (tensor.node in reached) is side) for side in (True, False)
    ]
    source, encoder, masks = _encoder(
        dataclasses.replace(graph, inputs=sorted_inputs[0], outputs={_MEMORY: memory}), pieces
    )
    rest = tuple(node for node in graph.nodes if node not in reached)
    walk = Walk(dataclasses.replace(graph, inputs=sorted_inputs[1], nodes=rest), whole.output_name)
    token, embeddings, decoder, scores, cross = _decoder(walk, pieces, memory, sides)
    lookups = find_lookups(Walk(dataclasses.replace(graph, outputs={_MEMORY: memory}), _MEMORY))
    _check_one_mask(masks, cross)
    mask, mask_input = padding_of([*masks, *cross], source.input, lookups)
    return TransformerSpec(
        family="plain",
        name=name,
        embeddings=embeddings,
        encoder=encoder,
        decoder=decoder,
        head=Head("none", (), "logits", tokens=scores),
        mask="none",
        token_input=token,
        output_name="logits",
        max_length=None,
        source=dataclasses.replace(source, mask=mask, mask_input=mask_input),
    )


def _encoder(graph: Graph, pieces: Pieces) -> tuple[Source, Stack, _Masks]:
    """Return what the encoder reads, without its mask; its layers; and the padding that each hides from itself."""
    walk = Walk(graph, _MEMORY)
    masks = [(node, trace_attention_mask(node)) for node in walk.nodes if node.kind in ATTENTIONS]
    for node, mask in masks:
        if mask.causal:
            raise NotRecognised(f"{node.describe()} is causal, in an encoder")
    lookups = find_lookups(walk)
    token = _single(lookups, "encoder")
    embeddings, tensor = read_embeddings(walk, pieces, token, lookups)
    stack, tensor = Blocks(walk, pieces, masks).stack(tensor)
    if not walk.is_output(tensor):
        refuse(tensor, "the encoder's end", walk.users(tensor))
    return Source(embeddings, None, "none", token), stack, [(node, mask.mask) for node, mask in masks]


def _decoder(
    walk: Walk, pieces: Pieces, memory: Tensor, sides: Collection[str]
) -> tuple[str, Embeddings, Stack, TokenHead, _Masks]:
    """Return the input of the target's tokens, the decoder's pieces, and what each cross-attention hides of the source."""
    attentions = [node for node in walk.nodes if node.kind in ATTENTIONS]
    crossing = [node for node in attentions if walk.root(node.arguments["value"]) is memory]
    masks = [(node, trace_attention_mask(node)) for node in attentions if node not in crossing]
    cross = [(node, trace_cross_mask(node)) for node in crossing]
    for node, mask in masks:
        if not mask.causal:
            raise NotRecognised(f"{node.describe()} is not causal, in a decoder")
        if mask.mask is not None and mask.mask.source in sides:
            raise NotRecognised(f"{node.describe()} hides the source's padding from the target")
    for node, crossed in cross:
        if not crossed.queries.isdisjoint(sides):
            raise NotRecognised(f"{node.describe()} hides target tokens where the source has padding")
    lookups = find_lookups(walk)
    token = _single(lookups, "decoder")
    embeddings, tensor = read_embeddings(walk, pieces, token, lookups)
    stack, tensor = Blocks(walk, pieces, masks, memory).stack(tensor)
    scores = token_head(walk, pieces, tensor, embeddings.token)
    if scores is None:
        refuse(tensor, f"one layer that scores each of {len(embeddings.token)} tokens", walk.users(tensor))
    return token, embeddings, stack, scores, [(node, crossed.keys) for node, crossed in cross]


def _check_one_mask(masks: _Masks, cross: _Masks) -> None:
    """Refuse a model that sees its source's padding in one place, and not in another."""
    found = [*masks, *cross]
    blind = next((node for node, mask in found if mask is None), None)
    hiding = next((node for node, mask in found if mask is not None), None)
    if blind is not None and hiding is not None:
        raise NotRecognised(
            f"{hiding.describe()} hides the source's padding, and {blind.describe()} does not: give each of them the mask as "
            "an argument (Keras's MultiHeadAttention takes a mask that hangs on a tensor off what it attends to, so that "
            "whatever attends to it next sees the padding)"
        )


def _single(lookups: dict[str, Node], stack: str) -> str:
    if len(lookups) > 1:
        raise NotRecognised(f"the {stack} looks up {len(lookups)} inputs ({', '.join(lookups)}), and one is known")
    return token_lookup(lookups, ())


def _sharing_positions(spec: TransformerSpec) -> TransformerSpec:
    """Return the spec with one table of positions where both sides have the same: the artifact then holds it once."""
    source = spec.source
    if source is None or source.embeddings is None or source.embeddings.position is None:
        return spec
    own, other = spec.embeddings.position, source.embeddings.position
    if own is None or own is other or not np.array_equal(own, other):
        return spec
    shared = dataclasses.replace(source.embeddings, position=own)
    return dataclasses.replace(spec, source=dataclasses.replace(source, embeddings=shared))

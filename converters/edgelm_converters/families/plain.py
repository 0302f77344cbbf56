"""Models of plain Keras 3 layers: functional, sequential or subclassed, with custom layers around the built-in ones.

The model is captured as a graph of built-in layers and operations (`edgelm_converters.keras_graph`), which is then walked
from the embeddings to the output. Each step accepts exactly what a `TransformerSpec` can say::

    token [* scale] [+ positions] [+ segments] [-> norm] [-> projection]
    N x  attention and feed-forward, each with its residual and its norm, before ("pre") or after ("post")
    [-> norm] [-> pooling] [-> dense layers with activations] [-> softmax or sigmoid]

Where every layer is causal, nothing is pooled, and one layer scores all tokens of the vocabulary, it is a language model.
A model whose attention attends to another stack is an encoder-decoder, and read by `families.plain_seq2seq`.

No name that the user gave counts, and nothing is tried out on numbers: whatever differs is refused, with the layer that
was met and what was expected in its place.
"""

from __future__ import annotations

from typing import Any, Literal

from edgelm_converters.families import NotRecognised, plain_seq2seq
from edgelm_converters.families.plain_blocks import Blocks
from edgelm_converters.families.plain_inputs import find_lookups, read_embeddings, token_lookup
from edgelm_converters.families.plain_language import main_output, token_head
from edgelm_converters.families.plain_lengths import read_at_every_length
from edgelm_converters.families.plain_masks import padding_of
from edgelm_converters.families.plain_walk import Walk, activation, refuse
from edgelm_converters.frameworks import import_keras
from edgelm_converters.keras_attention_masks import trace_attention_mask
from edgelm_converters.keras_graph import Graph, Node, Tensor, capture
from edgelm_converters.keras_masks import Mask, trace_mask
from edgelm_converters.keras_pieces import ATTENTIONS, Pieces
from edgelm_converters.spec import Embeddings, Head, HeadLayer, Output, Stack, TokenHead, TransformerSpec

__all__ = ["read"]

_POOLINGS: dict[str, Literal["mean", "max"]] = {
    "GlobalAveragePooling1D": "mean",
    "GlobalMaxPooling1D": "max",
    "Mean": "mean",
    "Max": "max",
}
_ALL = slice(None)
_FIRST_TOKEN = ((_ALL, 0), (_ALL, 0, _ALL), (..., 0, _ALL))


def read(model: Any, sequence_length: int | None) -> TransformerSpec:
    """Return an encoder, a language model or an encoder-decoder of plain Keras layers as a spec.

    A model whose input has a free length is captured at several lengths, which must differ in nothing but the rows of the
    position table. Where the table is a variable, `max_length` is its rows; where it is computed, `sequence_length`, or 512.

    What a masked model gives for padding has no meaning in Keras, and none in the spec. A language model's spec has no mask: it
    is given tokens only, and sees nothing behind them. Its output is the scores, even where the model ends in a softmax.

    Args:
        model: A built ``keras.Model``. It is not changed.
        sequence_length: The most tokens that the user wants, or None. It only counts where the model states no length.

    Raises:
        NotRecognised: The model is not exactly such a one.
    """
    if not isinstance(model, import_keras().Model):
        raise NotRecognised(f"{type(model).__name__} is no keras.Model")
    sides = plain_seq2seq.find_sides(model)
    if sides is not None:
        return plain_seq2seq.read(model, sides, sequence_length)
    pieces = Pieces()  # one for all lengths: the same layer is the same piece
    return read_at_every_length(
        model, lambda length: _spec(capture(model, length), pieces, model.name), sequence_length
    )


def _spec(graph: Graph, pieces: Pieces, name: str) -> TransformerSpec:
    """Return a captured model; of several outputs, a language model's scores are taken."""
    main = main_output(graph)
    spec = None if main is None else _Reader(graph, main, pieces).spec(name)
    if spec is None or (len(graph.outputs) > 1 and not spec.generates):
        raise NotRecognised(
            f"the model has {len(graph.outputs)} outputs ({', '.join(graph.outputs)}), and a spec has one"
        )
    return spec


class _Reader:
    """Reads one captured graph, from the embeddings to the output."""

    def __init__(self, graph: Graph, output_name: str, pieces: Pieces) -> None:
        self._walk = Walk(graph, output_name)
        self._pieces = pieces
        attentions = [node for node in self._walk.nodes if node.kind in ATTENTIONS]
        self._masks = [(node, trace_attention_mask(node)) for node in attentions]

    def spec(self, name: str) -> TransformerSpec:
        """Return the whole model."""
        lookups = find_lookups(self._walk)
        compared = {mask.mask.source for _, mask in self._masks if mask.mask and mask.mask.compared}
        token = token_lookup(lookups, compared)
        embeddings, tensor = read_embeddings(self._walk, self._pieces, token, lookups)
        stack, tensor = Blocks(self._walk, self._pieces, self._masks).stack(tensor)
        if all(mask.causal for _, mask in self._masks) and len(lookups) == 1:
            scores = token_head(self._walk, self._pieces, tensor, embeddings.token)
            if scores is not None:
                return self._language_model(name, token, embeddings, stack, scores)
        head, pooling_mask = self._head(tensor)
        mask, mask_input = self._mask(token, lookups, head, pooling_mask)
        segment = next((source for source in lookups if source != token), None)
        return TransformerSpec(
            family="plain",
            name=name,
            embeddings=embeddings,
            encoder=stack,
            head=head,
            mask=mask,
            token_input=token,
            output_name=self._walk.output_name,
            max_length=None,
            mask_input=mask_input,
            segment_input=segment,
        )

    def _language_model(
        self, name: str, token: str, embeddings: Embeddings, decoder: Stack, scores: TokenHead
    ) -> TransformerSpec:
        head = Head("none", (), "logits", tokens=scores)
        self._mask(token, {}, head, None)  # all layers have one mask, or this is no padding
        return TransformerSpec(
            family="plain",
            name=name,
            embeddings=embeddings,
            encoder=Stack(()),
            decoder=decoder,
            head=head,
            mask="none",
            token_input=token,
            output_name="logits",
            max_length=None,
        )

    def _head(self, tensor: Tensor) -> tuple[Head, Mask | None]:
        pooling, mask, tensor = self._pooled(tensor)
        layers: list[HeadLayer] = []
        output: Output | None = None
        while not self._walk.is_output(tensor):
            node = self._walk.single_user(tensor)
            function = activation(node)
            if node is not None and node.kind == "Dense" and output is None:
                layers.append(HeadLayer(self._pieces.linear(node), "linear"))
            elif node is not None and function and layers and layers[-1].activation == "linear" and output is None:
                if function == "softmax":
                    output = "probabilities"
                else:
                    layers[-1] = HeadLayer(layers[-1].linear, function)
            else:
                refuse(tensor, "pooling, or a Dense layer of the head and its activation,", self._walk.users(tensor))
            tensor = self._walk.made_by(node)
        if layers and layers[-1].activation == "sigmoid":
            layers[-1] = HeadLayer(layers[-1].linear, "linear")
            output = "sigmoid"
        if output is None:
            classes = layers and layers[-1].activation == "linear"
            output = "logits" if classes else "raw" if pooling == "none" else "embedding"
        averages = pooling in ("mean", "max")
        return Head(pooling, tuple(layers), output, pooling_masked=mask is not None or not averages), mask

    def _pooled(self, tensor: Tensor) -> tuple[Literal["first", "mean", "max", "none"], Mask | None, Tensor]:
        node = self._walk.single_user(tensor)
        if node is None or node.kind not in (*_POOLINGS, "GetItem"):
            return "none", None, tensor
        operation = node.operation
        if node.kind == "GetItem":
            if node.arguments["key"] not in _FIRST_TOKEN:
                refuse(tensor, "the first token, x[:, 0],", (node,))
            return "first", None, self._walk.made_by(node)
        over_tokens = (
            operation.data_format == "channels_last" if node.is_layer else operation.axis in (1, -2, (1,), [1])
        )
        if not over_tokens or operation.keepdims:
            refuse(tensor, "pooling over the tokens (axis 1) without keepdims", (node,))
        mask = None
        if node.arguments.get("mask") is not None:
            mask = trace_mask(node.arguments["mask"])
            if mask.axes != ("b", "s") or mask.inverted:
                raise NotRecognised(f"the mask of {node.describe()} is not 1 for each token and 0 for padding")
        return _POOLINGS[node.kind], mask, self._walk.made_by(node)

    def _mask(
        self, token: str, lookups: dict[str, Node], head: Head, pooling: Mask | None
    ) -> tuple[Literal["input", "nonzero", "none"], str | None]:
        """Return what kind of mask the model has: one for all layers, and the pooling has that one or none."""
        mask, name = padding_of([(node, found.mask) for node, found in self._masks], token, lookups, pooling)
        if (
            mask != "none"
            and head.pooling in ("mean", "max")
            and pooling is None
            and any(found.queries for _, found in self._masks)
        ):
            raise NotRecognised(
                f"the {head.pooling} pooling takes in padding, which {self._masks[0][0].describe()} leaves without "
                "meaning: set supports_masking = True on the custom layers between, and pool with GlobalAveragePooling1D"
            )
        return mask, name

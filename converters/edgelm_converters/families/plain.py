"""Models of plain Keras 3 layers: functional, sequential or subclassed, with custom layers around the built-in ones.

The model is captured as a graph of built-in layers and operations (`edgelm_converters.keras_graph`), which is then walked
from the embeddings to the output. Each step accepts exactly what a `TransformerSpec` can say::

    token [* scale] [+ positions] [+ segments] [-> norm] [-> projection]
    N x  attention and feed-forward, each with its residual and its norm, before ("pre") or after ("post")
    [-> norm] [-> pooling] [-> dense layers with activations] [-> softmax or sigmoid]

Where every layer is causal, nothing is pooled, and one layer scores all tokens of the vocabulary, it is a language model.

No name that the user gave counts, and nothing is tried out on numbers: whatever differs is refused, with the layer that
was met and what was expected in its place.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import numpy as np

from edgelm_converters.families import NotRecognised
from edgelm_converters.families.plain_language import is_reversed, main_output, token_head
from edgelm_converters.families.plain_lengths import read_at_every_length
from edgelm_converters.families.plain_walk import Walk, activation, operands, refuse, scalar
from edgelm_converters.frameworks import import_keras
from edgelm_converters.keras_graph import Argument, Constant, Graph, Node, Tensor, capture
from edgelm_converters.keras_masks import Mask, ids_source, trace_attention_mask, trace_mask
from edgelm_converters.keras_pieces import ATTENTIONS, NORMS, Pieces
from edgelm_converters.spec import (
    Activation,
    Attention,
    Embeddings,
    FeedForward,
    Float32,
    Head,
    HeadLayer,
    Layer,
    Linear,
    Norm,
    Output,
    Stack,
    TokenHead,
    TransformerSpec,
)

__all__ = ["read"]

_EMBEDDINGS = ("Embedding", "ReversibleEmbedding")
_POOLINGS: dict[str, Literal["mean", "max"]] = {
    "GlobalAveragePooling1D": "mean",
    "GlobalMaxPooling1D": "max",
    "Mean": "mean",
    "Max": "max",
}
_ALL = slice(None)
_FIRST_TOKEN = ((_ALL, 0), (_ALL, 0, _ALL), (..., 0, _ALL))


def read(model: Any, sequence_length: int | None) -> TransformerSpec:
    """Return an encoder or a language model of plain Keras layers as a spec.

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
        self._graph = graph
        self._walk = Walk(graph, output_name)
        self._pieces = pieces
        attentions = [node for node in self._walk.nodes if node.kind in ATTENTIONS]
        self._masks = [(node, trace_attention_mask(node)) for node in attentions]
        self._causal = {node for node, mask in self._masks if mask.causal}

    def spec(self, name: str) -> TransformerSpec:
        """Return the whole model."""
        lookups = self._lookups()
        token = self._token_lookup(lookups)
        embeddings, tensor = self._embeddings(token, lookups)
        layers: list[Layer] = []
        while len(self._walk.users(tensor)) > 1:
            layer, tensor = self._layer(tensor)
            layers.append(layer)
        if not layers:
            refuse(tensor, "a self-attention with its residual", self._walk.users(tensor))
        final_norm = None
        if user := self._user_of(tensor, NORMS):
            final_norm, tensor = self._pieces.norm(user), self._walk.made_by(user)
        if len(self._causal) == len(self._masks) and len(lookups) == 1:
            scores = token_head(self._walk, self._pieces, tensor, embeddings.token)
            if scores is not None:
                return self._language_model(name, token, embeddings, Stack(tuple(layers), final_norm), scores)
        head, pooling_mask = self._head(tensor)
        mask, mask_input = self._mask(token, lookups, head, pooling_mask)
        segment = next((source for source in lookups if source != token), None)
        return TransformerSpec(
            family="plain",
            name=name,
            embeddings=embeddings,
            encoder=Stack(tuple(layers), final_norm),
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

    # Embeddings

    def _lookups(self) -> dict[str, Node]:
        """Return the embeddings of inputs, by the input's name."""
        lookups: dict[str, Node] = {}
        for node in self._walk.nodes:
            if node.kind not in _EMBEDDINGS or is_reversed(node):
                continue
            source = ids_source(node.arguments["inputs"])
            if source is None:
                raise NotRecognised(f"{node.describe()} looks up something that is no input of the model as it is")
            if source in lookups:
                raise NotRecognised(
                    f"{node.describe()} and {lookups[source].describe()} both look up the input '{source}'"
                )
            lookups[source] = node
        if not lookups:
            first = self._graph.inputs[0]
            refuse(first, "an Embedding of the token ids", self._walk.users(first))
        return lookups

    def _token_lookup(self, lookups: dict[str, Node]) -> str:
        """Return which input holds the tokens: the one that the mask compares with 0, or else the one with more rows.

        In the sum they are equals, so any answer gives the right numbers; it only says which input is called what.
        """
        compared = {mask.mask.source for _, mask in self._masks if mask.mask and mask.mask.compared} & set(lookups)
        if len(lookups) == 1 or len(compared) == 1:
            return next(iter(compared or lookups))
        rows = sorted((int(node.operation.embeddings.shape[0]), source) for source, node in lookups.items())
        if len(rows) > 2 or rows[0][0] == rows[1][0]:
            raise NotRecognised(f"the model looks up {len(rows)} inputs, and which one holds the tokens is not known")
        return rows[-1][1]

    def _embeddings(self, source: str, lookups: dict[str, Node]) -> tuple[Embeddings, Tensor]:
        token = lookups[source]
        tensor, scale = self._scaled(self._walk.made_by(token))
        total = tensor
        while user := self._user_of(total, ("Add",)):
            total = self._walk.made_by(user)
        segment: Node | None = None
        position: Float32 | None = None
        seen_token = False
        for term in self._terms(total, total.shape):
            if term is tensor and not seen_token:
                seen_token = True
            elif (
                isinstance(term, Tensor)
                and term.node in lookups.values()
                and term.node is not token
                and segment is None
            ):
                segment = term.node
            elif not isinstance(term, Tensor):
                rows = _rows(term, total)
                position = rows if position is None else position + rows
            else:
                raise NotRecognised(
                    f"the embeddings are the sum of tokens, positions and segments, and also of {term.node.describe()}"
                )
        norm, projection, total = self._after_embeddings(total)
        table = self._pieces.table
        segments = table(segment) if segment is not None else None
        return Embeddings(table(token), position, segments, norm, projection, scale), total

    def _scaled(self, tensor: Tensor) -> tuple[Tensor, float]:
        user = self._user_of(tensor, ("Multiply", "Divide", "TrueDivide"))
        if user is None:
            return tensor, 1.0
        left, right = operands(user)
        if user.kind == "Multiply" and self._walk.root(left) is not tensor:
            left, right = right, left
        factor = scalar(right)
        if factor is None or self._walk.root(left) is not tensor:
            refuse(tensor, "a factor that is one constant number", (user,))
        return self._walk.made_by(user), factor if user.kind == "Multiply" else 1.0 / factor

    def _terms(self, tensor: Tensor, shape: tuple[int | None, ...]) -> list[Argument]:
        """Return what is summed up, through any number of Adds."""
        if tensor.node.kind != "Add":
            return [tensor]
        terms: list[Argument] = []
        for operand in map(self._walk.root, operands(tensor.node)):
            if isinstance(operand, Tensor) and operand.shape != shape:
                raise NotRecognised(f"{tensor.node.describe()} adds tensors of the shapes {operand.shape} and {shape}")
            terms += self._terms(operand, shape) if isinstance(operand, Tensor) else [operand]
        return terms

    def _after_embeddings(self, tensor: Tensor) -> tuple[Norm | None, Linear | None, Tensor]:
        norm, projection = None, None
        if user := self._user_of(tensor, NORMS):
            norm, tensor = self._pieces.norm(user), self._walk.made_by(user)
        if user := self._user_of(tensor, ("Dense",)):
            projection, tensor = self._pieces.linear(user), self._walk.made_by(user)
        return norm, projection, tensor

    # One layer

    def _layer(self, tensor: Tensor) -> tuple[Layer, Tensor]:
        branch, add = self._branches(tensor, (*ATTENTIONS, *NORMS), "a self-attention (or its norm) and a residual Add")
        if len(branch) != 1:
            refuse(tensor, "one self-attention (or its norm) and a residual Add", self._walk.users(tensor))
        first = branch[0]
        placement: Literal["pre", "post"] = "pre" if first.kind in NORMS else "post"
        if placement == "pre":
            attention_norm, source = self._pieces.norm(first), self._walk.made_by(first)
            attention, result = self._attention(self._walk.expect(source, ATTENTIONS, "a self-attention"), source)
            middle = self._residual(result, tensor, add)
        else:
            attention, result = self._attention(first, tensor)
            attention_norm, middle = self._normalised(self._residual(result, tensor, add))
        feed_forward, feed_forward_norm, end = self._feed_forward_block(middle, placement)
        return Layer(attention, attention_norm, feed_forward, feed_forward_norm, placement), end

    def _attention(self, node: Node, tensor: Tensor) -> tuple[Attention, Tensor]:
        query, key, value = (self._walk.root(node.arguments[name]) for name in ("query", "key", "value"))
        if query is not tensor or value is not tensor or key not in (None, tensor):
            raise NotRecognised(f"{node.describe()} attends to another tensor than its query (cross-attention)")
        if node.arguments.get("training") and getattr(
            node.operation, "_dropout", getattr(node.operation, "dropout", 0)
        ):
            raise NotRecognised(f"{node.describe()} is called with training=True, so the model is random")
        return self._pieces.attention(node, causal=node in self._causal), self._walk.made_by(node)

    def _feed_forward_block(
        self, tensor: Tensor, placement: Literal["pre", "post"]
    ) -> tuple[FeedForward, Norm, Tensor]:
        if placement == "post":
            first, add = self._branches(tensor, ("Dense",), "a feed-forward's Dense layer and a residual Add")
            feed_forward, result = self._feed_forward(tensor, first)
            norm, end = self._normalised(self._residual(result, tensor, add))
            return feed_forward, norm, end
        before, add = self._branches(tensor, NORMS, "a feed-forward's norm and a residual Add")
        if len(before) != 1:
            refuse(tensor, "one norm and a residual Add", self._walk.users(tensor))
        norm, source = self._pieces.norm(before[0]), self._walk.made_by(before[0])
        first = self._walk.users(source)
        if not first or any(node.kind != "Dense" for node in first):
            refuse(source, "a feed-forward's Dense layer", first)
        feed_forward, result = self._feed_forward(source, first)
        return feed_forward, norm, self._residual(result, tensor, add)

    def _feed_forward(self, source: Tensor, first: Sequence[Node]) -> tuple[FeedForward, Tensor]:
        """Read ``down(activation(up(x)))``, or the gated form, where two Dense layers share the input."""
        if len(first) > 2:
            refuse(source, "one Dense layer, or two of a gated feed-forward,", tuple(first))
        gate: Linear | None = None
        up = self._pieces.linear(first[0])
        function, hidden = self._activated(self._walk.made_by(first[0]))
        if len(first) == 2:
            other, other_hidden = self._activated(self._walk.made_by(first[1]))
            product = self._walk.expect(hidden, ("Multiply",), "the product of a gated feed-forward")
            if {self._walk.root(operand) for operand in operands(product)} != {hidden, other_hidden}:
                refuse(hidden, "the product of a gated feed-forward", (product,))
            if "linear" not in (function, other):
                raise NotRecognised(f"both Dense layers before {product.describe()} have an activation; one may")
            gate, up = up, self._pieces.linear(first[1])
            if function == "linear":
                function, gate, up = other, up, gate
            hidden = self._walk.made_by(product)
        down = self._walk.expect(hidden, ("Dense",), "the second Dense layer of the feed-forward")
        return FeedForward(function, up, self._pieces.linear(down), gate), self._walk.made_by(down)

    def _activated(self, tensor: Tensor) -> tuple[Activation, Tensor]:
        """Return the activation that follows a tensor ("linear" where none does), and what comes out of it."""
        user = self._walk.single_user(tensor)
        function = activation(user)
        if user is None or function is None or function == "softmax":
            return "linear", tensor
        return function, self._walk.made_by(user)

    def _branches(self, tensor: Tensor, kinds: tuple[str, ...], expected: str) -> tuple[tuple[Node, ...], Node]:
        """Return the users of a tensor that begin a branch, and the Add that closes it."""
        users = self._walk.users(tensor)
        adds = [node for node in users if node.kind == "Add"]
        branch = tuple(node for node in users if node.kind in kinds)
        if len(adds) != 1 or not branch or len(branch) + 1 != len(users):
            refuse(tensor, expected, users)
        return branch, adds[0]

    def _residual(self, result: Tensor, tensor: Tensor, add: Node) -> Tensor:
        """Return ``tensor + result``."""
        user = self._walk.expect(result, ("Add",), "a residual Add")
        terms = [self._walk.root(operand) for operand in operands(user)]
        if user is not add or len(terms) != 2 or set(terms) != {tensor, result} or tensor.shape != result.shape:
            refuse(result, f"the Add of it to {tensor.node.describe()} alone", (user,))
        return self._walk.made_by(user)

    def _normalised(self, tensor: Tensor) -> tuple[Norm, Tensor]:
        node = self._walk.expect(tensor, NORMS, "a LayerNormalization")
        return self._pieces.norm(node), self._walk.made_by(node)

    def _user_of(self, tensor: Tensor, kinds: tuple[str, ...]) -> Node | None:
        """Return the only user of a tensor if it is of one of these kinds."""
        user = self._walk.single_user(tensor)
        return user if user is not None and user.kind in kinds else None

    # The head, and the masks of all

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
        node, first = self._masks[0]
        source = first.mask.source if first.mask else None
        for other, attention in self._masks[1:]:
            if (attention.mask.source if attention.mask else None) != source:
                raise NotRecognised(f"{node.describe()} and {other.describe()} do not have the same mask")
        if pooling is not None and pooling.source != source:
            raise NotRecognised(f"the pooling has the mask of '{pooling.source}', and {node.describe()} has not")
        if source is None:
            return "none", None
        masks = [attention.mask for _, attention in self._masks] + ([pooling] if pooling else [])
        if (
            head.pooling in ("mean", "max")
            and pooling is None
            and any(attention.queries for _, attention in self._masks)
        ):
            raise NotRecognised(
                f"the {head.pooling} pooling takes in padding, which {node.describe()} leaves without meaning: set "
                "supports_masking = True on the custom layers between, and pool with GlobalAveragePooling1D"
            )
        if source != token:
            if source in lookups:
                raise NotRecognised(
                    f"the mask is made of '{source}', which {lookups[source].describe()} looks up as segments"
                )
            return "input", source
        if not all(mask.compared for mask in masks if mask):
            raise NotRecognised(f"the ids '{token}' themselves are the mask of {node.describe()}, and not ids != 0")
        return "nonzero", None


def _rows(term: Argument, total: Tensor) -> Float32:
    """Return a constant term of the embeddings as rows ``(S, E)``, the same for every text of a batch."""
    value = term.value if isinstance(term, Constant) else term
    rows = np.broadcast_to(np.asarray(value, dtype=np.float32), tuple(extent or 1 for extent in total.shape))
    if not (rows == rows[:1]).all():
        raise NotRecognised("a constant that is added to the embeddings differs between the texts of a batch")
    return np.ascontiguousarray(rows[0])

"""The layers of a plain model: attention, cross-attention and feed-forward, each with its residual and its norm."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from edgelm_converters.families import NotRecognised
from edgelm_converters.families.plain_walk import Walk, activation, operands, refuse
from edgelm_converters.keras_attention_masks import AttentionMask
from edgelm_converters.keras_graph import Node, Tensor
from edgelm_converters.keras_pieces import ATTENTIONS, NORMS, Pieces
from edgelm_converters.spec import Activation, Attention, FeedForward, Layer, Linear, Norm, Stack

__all__ = ["Blocks"]


class Blocks:
    """Reads the layers of one stack, from its first tensor on.

    Args:
        walk: The graph of the stack.
        pieces: Reads layers.
        masks: What the masks of each self-attention come to.
        memory: What a decoder's cross-attention attends to; None in a stack without.
    """

    def __init__(
        self, walk: Walk, pieces: Pieces, masks: Sequence[tuple[Node, AttentionMask]], memory: Tensor | None = None
    ) -> None:
        self._walk = walk
        self._pieces = pieces
        self._causal = {node for node, mask in masks if mask.causal}
        self._memory = memory

    def stack(self, tensor: Tensor) -> tuple[Stack, Tensor]:
        """Return the layers, at least one, and the norm behind the last; and the tensor that comes out.

        Raises:
            NotRecognised: Something in them is not exactly such a layer.
        """
        layers: list[Layer] = []
        while len(self._walk.users(tensor)) > 1:
            layer, tensor = self._layer(tensor)
            layers.append(layer)
        if not layers:
            refuse(tensor, "a self-attention with its residual", self._walk.users(tensor))
        final_norm = None
        if user := self._walk.user_of(tensor, NORMS):
            final_norm, tensor = self._pieces.norm(user), self._walk.made_by(user)
        return Stack(tuple(layers), final_norm), tensor

    def _layer(self, tensor: Tensor) -> tuple[Layer, Tensor]:
        first, _ = self._branches(tensor, (*ATTENTIONS, *NORMS), "a self-attention (or its norm) and a residual Add")
        placement: Literal["pre", "post"] = "pre" if first[0].kind in NORMS else "post"
        attention, attention_norm, middle = self._attention_block(tensor, placement, None)
        cross, cross_norm = None, None
        if self._memory is not None:
            cross, cross_norm, middle = self._attention_block(middle, placement, self._memory)
        feed_forward, feed_forward_norm, end = self._feed_forward_block(middle, placement)
        layer = Layer(
            attention,
            attention_norm,
            feed_forward,
            feed_forward_norm,
            placement,
            cross_attention=cross,
            cross_attention_norm=cross_norm,
        )
        return layer, end

    def _attention_block(
        self, tensor: Tensor, placement: Literal["pre", "post"], memory: Tensor | None
    ) -> tuple[Attention, Norm, Tensor]:
        """Return attention, to `memory` or, where that is None, to its own input; its norm; and what comes out."""
        words = "self-attention" if memory is None else "cross-attention"
        kinds = NORMS if placement == "pre" else ATTENTIONS
        expected = f"one {words}{' behind its norm' if placement == 'pre' else ''} and a residual Add"
        branch, add = self._branches(tensor, kinds, expected)
        if len(branch) != 1:
            refuse(tensor, expected, self._walk.users(tensor))
        if placement == "post":
            attention, result = self._attention(branch[0], tensor, memory)
            norm, end = self._normalised(self._residual(result, tensor, add))
            return attention, norm, end
        norm, source = self._pieces.norm(branch[0]), self._walk.made_by(branch[0])
        attention, result = self._attention(self._walk.expect(source, ATTENTIONS, f"a {words}"), source, memory)
        return attention, norm, self._residual(result, tensor, add)

    def _attention(self, node: Node, tensor: Tensor, memory: Tensor | None) -> tuple[Attention, Tensor]:
        attended = tensor if memory is None else memory
        query, key, value = (self._walk.root(node.arguments[name]) for name in ("query", "key", "value"))
        if query is not tensor or value is not attended or key not in (None, attended):
            other = "another tensor than its query (cross-attention)" if memory is None else "something else"
            raise NotRecognised(f"{node.describe()} attends to {other}{'' if memory is None else ' than the encoder'}")
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

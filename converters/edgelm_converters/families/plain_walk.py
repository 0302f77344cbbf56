"""Walking a captured graph from a tensor to the nodes that use it, and refusing what is not as expected."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Literal, NoReturn

from edgelm_converters.families import NotRecognised
from edgelm_converters.keras_graph import Argument, Constant, Graph, Node, Tensor
from edgelm_converters.spec import Activation

__all__ = ["Walk", "activation", "operands", "reached_from", "refuse", "scalar"]

_ACTIVATIONS: dict[str, Activation] = {"Relu": "relu", "Silu": "silu", "Tanh": "tanh", "Sigmoid": "sigmoid"}


class Walk:
    """Who uses what in a graph. Only nodes that lead to its output count, and casts between float types do not.

    Args:
        graph: The captured model.
        output_name: Which output to walk to; the others do not count.
    """

    def __init__(self, graph: Graph, output_name: str) -> None:
        self.output_name = output_name
        self.inputs = graph.inputs
        output = graph.outputs[output_name]
        self._output = self.root(output)
        reached = reached_from(graph, output)
        self.nodes = tuple(node for node in graph.nodes if node in reached)
        self._users: dict[Tensor, list[Node]] = {}
        self._made: dict[Node, dict[int, Tensor]] = {output.node: {output.index: output}}
        for node in self.nodes:
            for tensor in _tensors(node.arguments):
                self._made.setdefault(tensor.node, {})[tensor.index] = tensor
                if not _is_float_cast(node):
                    users = self._users.setdefault(self.root(tensor), [])
                    users += [node] if node not in users else []

    def root(self, tensor: Any) -> Any:
        """Return the tensor before any casts between float types: precision is no part of a spec."""
        while isinstance(tensor, Tensor) and _is_float_cast(tensor.node):
            tensor = tensor.node.arguments["x"]
        return tensor

    def made_by(self, node: Node) -> Tensor:
        """Return a node's output; refuse a second one, such as an attention's scores."""
        tensors = self._made[node]
        if set(tensors) != {0}:
            raise NotRecognised(f"the model uses a second output of {node.describe()}")
        return tensors[0]

    def users(self, tensor: Tensor) -> tuple[Node, ...]:
        """Return the nodes that use a tensor, in order."""
        return tuple(self._users.get(tensor, ()))

    def single_user(self, tensor: Tensor) -> Node | None:
        """Return the only node that uses a tensor; None where there are several, or where it is the model's output."""
        users = self.users(tensor)
        return users[0] if len(users) == 1 and not self.is_output(tensor) else None

    def user_of(self, tensor: Tensor, kinds: tuple[str, ...]) -> Node | None:
        """Return the only user of a tensor if it is of one of these kinds."""
        user = self.single_user(tensor)
        return user if user is not None and user.kind in kinds else None

    def is_output(self, tensor: Tensor) -> bool:
        """Whether a tensor is the model's output."""
        return tensor is self._output

    def expect(self, tensor: Tensor, kinds: tuple[str, ...], words: str) -> Node:
        """Return the only user of a tensor; refuse one of another kind."""
        node = self.single_user(tensor)
        if node is None or node.kind not in kinds:
            refuse(tensor, words, self.users(tensor))
        return node


def reached_from(graph: Graph, tensor: Tensor) -> set[Node]:
    """Return the nodes that lead to a tensor, its own among them."""
    reached = {tensor.node}
    for node in reversed(graph.nodes):  # they stand in the order in which they were called
        if node in reached:
            reached.update(source.node for source in _tensors(node.arguments))
    return reached


def refuse(after: Tensor, expected: str, found: tuple[Node, ...]) -> NoReturn:
    """Raise the message for something else than was expected."""
    names = " and ".join(node.describe() for node in found) or "the output of the model"
    raise NotRecognised(f"after {after.node.describe()}, {expected} was expected, found {names}")


def activation(node: Node | None) -> Activation | Literal["softmax"] | None:
    """Return which activation a node is; None where it is none that a spec has."""
    if node is None or node.is_layer:
        return None
    operation = node.operation
    if node.kind == "ReLU":
        plain = operation.negative_slope == 0 and operation.max_value is None and operation.threshold == 0
        return "relu" if plain else None
    if node.kind == "Gelu":
        return "gelu_tanh" if operation.approximate else "gelu"
    if node.kind == "Softmax":
        tensor = node.arguments["x"]
        last = len(tensor.shape) - 1 if isinstance(tensor, Tensor) else -1
        return "softmax" if operation.axis in (-1, last) else None
    return _ACTIVATIONS.get(node.kind)


def operands(node: Node) -> tuple[Argument, ...]:
    """Return what an Add or a Multiply takes, as a layer (any number) or as an operation (two)."""
    if "inputs" in node.arguments:
        inputs = node.arguments["inputs"]
        return inputs if isinstance(inputs, tuple) else (inputs,)
    return (node.arguments["x1"], node.arguments["x2"])


def scalar(value: Argument) -> float | None:
    """Return a constant number; None for anything else."""
    if isinstance(value, Constant):
        return float(value.value.reshape(())) if value.value.size == 1 else None
    return float(value) if isinstance(value, (int, float)) and not isinstance(value, bool) else None


def _is_float_cast(node: Node) -> bool:
    if node.kind not in ("Cast", "ConvertToTensor"):
        return False
    tensor = node.arguments["x"]
    return isinstance(tensor, Tensor) and "float" in tensor.dtype and "float" in str(node.operation.dtype)


def _tensors(argument: Argument) -> Iterator[Tensor]:
    if isinstance(argument, Tensor):
        yield argument
    elif isinstance(argument, tuple):
        for entry in argument:
            yield from _tensors(entry)
    elif isinstance(argument, dict):
        for entry in argument.values():
            yield from _tensors(entry)

"""An ONNX graph under construction: nodes and tensors by name, each written once.

A node that stands already (same operator, inputs and attributes) is not written again, and neither is an array that is
the same object: layers that share their weights share their initializers, and what two layers need is computed once.
"""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from edgelm.bundle.manifest import Port
from edgelm_converters.emit.onnx_file import LazyArray, write_model

if TYPE_CHECKING:
    from onnx import ModelProto

__all__ = ["Graph"]

# Opset 20 brought Gelu. ONNX Runtime reads opset 20 and format 9 from 1.17 on; edgelm asks for 1.22.
_OPSET = 20
_IR_VERSION = 9
_CONTRIB = "com.microsoft"
_AXES = ("batch", "sequence", "width")

Attribute = int | float | str | tuple[int, ...]


class Graph:
    """Nodes in order, and the tensors that they use.

    Args:
        beside: A graph that shares its tensors with this one: what both use is stored once, if `write_together` writes them.
    """

    def __init__(self, beside: Graph | None = None) -> None:
        self._nodes: list[tuple[str, str, tuple[str, ...], tuple[str, ...], dict[str, Any]]] = []
        self._written: dict[Hashable, tuple[str, ...]] = {}
        self._used: set[str] = set()  # of the tensors, which may be another graph's
        self._tensors: dict[str, NDArray[Any] | LazyArray] = {} if beside is None else beside._tensors
        self._sources: dict[Hashable, tuple[str, tuple[object, ...]]] = {} if beside is None else beside._sources

    @property
    def size(self) -> int:
        """Nodes so far."""
        return len(self._nodes)

    @property
    def tensors(self) -> dict[str, NDArray[Any] | LazyArray]:
        """Its tensors by name."""
        return {name: array for name, array in self._tensors.items() if name in self._used}

    def node(self, operator: str, *inputs: str, contrib: bool = False, **attributes: Attribute) -> str:
        """Add a node of one output, unless it stands already.

        Args:
            operator: Its type, such as ``"Gemm"``.
            inputs: Names of its inputs; "" leaves out an optional one.
            contrib: Whether it is one of ONNX Runtime's own operators.
            attributes: As the operator has them.

        Returns:
            The name of its output.
        """
        return self.nodes(operator, *inputs, outputs=1, contrib=contrib, **attributes)[0]

    def nodes(
        self, operator: str, *inputs: str, outputs: int, contrib: bool = False, **attributes: Attribute
    ) -> tuple[str, ...]:
        """Add a node of several outputs, unless it stands already; return the outputs' names."""
        key = (operator, inputs, outputs, contrib, tuple(sorted(attributes.items())))
        if key not in self._written:
            # Short: in a small int8 file, long names were 1 % of the bytes.
            name = f"n{len(self._nodes)}"
            names = (name,) if outputs == 1 else tuple(f"{name}.{index}" for index in range(outputs))
            self._nodes.append((operator, _CONTRIB if contrib else "", inputs, names, attributes))
            self._written[key] = names
        return self._written[key]

    def rename(self, name: str, new_name: str) -> None:
        """Give the tensor that the last node makes another name: that of the model's output."""
        operator, domain, inputs, outputs, attributes = self._nodes.pop()
        renamed = tuple(new_name if output == name else output for output in outputs)
        self._nodes.append((operator, domain, inputs, renamed, attributes))

    def constant(self, values: float | Sequence[int] | NDArray[Any]) -> str:
        """Return the name of a small constant: a float becomes a float32 scalar, a list of integers int64."""
        array = np.asarray(values, np.float32 if isinstance(values, float) else None)
        key = ("constant", array.dtype.str, array.shape, array.tobytes())
        if key not in self._sources:
            self._sources[key] = self._add(f"c{len(self._tensors)}", array), ()
        return self._use(self._sources[key][0])

    def find(self, *sources: object, form: str) -> str | None:
        """Return the tensor that was made of these very objects in that form, or None."""
        found = self._sources.get((form, *(id(source) for source in sources)))
        return self._use(found[0]) if found else None

    def tensor(self, array: NDArray[Any] | LazyArray, name: str, *sources: object, form: str = "as is") -> str:
        """Return the name of a weight; the same objects in the same form are one initializer.

        Args:
            array: Its values.
            name: What it is called in the file, a number added where the name is taken.
            sources: The spec's objects that it was made of; the array itself where there are none.
            form: How it was made of them, such as ``"int8"``.
        """
        sources = sources or (array,)
        key = (form, *(id(source) for source in sources))
        if key not in self._sources:
            # The sources are kept, so that no other object gets their id meanwhile.
            self._sources[key] = self._add(name, array), sources
        return self._use(self._sources[key][0])

    def is_half(self, name: str) -> bool:
        """Return whether that tensor is float16."""
        return self._tensors[name].dtype == np.float16

    def write(
        self,
        path: Path,
        name: str,
        inputs: Sequence[Port],
        outputs: Sequence[Port],
        *,
        axes: Mapping[str, tuple[str, ...]] | None = None,
        metadata: Mapping[str, str] | None = None,
        external_above: int | None = None,
    ) -> None:
        """Write the graph as an ONNX file.

        Args:
            path: The file.
            name: The graph's.
            inputs: In order. One that is called like a tensor of the graph need not be given: the tensor is its default.
            outputs: In order.
            axes: By port, what its axes are called where they are free; usually ``batch``, ``sequence`` and ``width``.
            metadata: Kept in the file, as ``metadata_props``.
            external_above: See `write_model`.
        """
        model = self.model(name, inputs, outputs, axes=axes, metadata=metadata)
        write_model(model, self.tensors, path, external_above=external_above)

    def model(
        self,
        name: str,
        inputs: Sequence[Port],
        outputs: Sequence[Port],
        *,
        axes: Mapping[str, tuple[str, ...]] | None = None,
        metadata: Mapping[str, str] | None = None,
    ) -> ModelProto:
        """Return the graph as a model without its tensors; arguments as of `write`."""
        from onnx import helper

        axes = axes or {}

        nodes = [
            helper.make_node(operator, names_in, names_out, name=names_out[0], domain=domain, **attributes)
            for operator, domain, names_in, names_out, attributes in self._nodes
        ]
        values_in, values_out = (
            [_value(port, axes.get(port.name, _AXES)) for port in ports] for ports in (inputs, outputs)
        )
        graph = helper.make_graph(nodes, name, values_in, values_out)
        opsets = [helper.make_opsetid("", _OPSET), helper.make_opsetid(_CONTRIB, 1)]
        model = helper.make_model(graph, opset_imports=opsets, ir_version=_IR_VERSION, producer_name="edgelm")
        if metadata:
            helper.set_model_props(model, dict(metadata))
        return model

    def _use(self, name: str) -> str:
        self._used.add(name)
        return name

    def _add(self, name: str, array: NDArray[Any] | LazyArray) -> str:
        unique, number = name, 1
        while unique in self._tensors:
            number += 1
            unique = f"{name}_{number}"
        self._tensors[unique] = array
        return unique


def _value(port: Port, axes: tuple[str, ...]) -> Any:
    from onnx import helper

    dims = [free if size is None else size for size, free in zip(port.shape, axes, strict=False)]
    return helper.make_tensor_value_info(port.name, helper.np_dtype_to_tensor_dtype(np.dtype(port.dtype)), dims)

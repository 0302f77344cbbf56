"""What the compiler would take of files that we write, and the tables that this rests on."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from edgelm_converters.emit.tflite_file import Data, Model, Operator, Quantization, Subgraph, Tensor, write_model

from edgelm.edgetpu import check_operators
from edgelm.edgetpu.check import documented_operators
from edgelm.edgetpu.tflite import builtin_codes, read_graphs

_SCALE = Quantization(np.array([0.1], np.float32), 0)


def _write(path: Path, tensors: list[Tensor], operators: list[Operator], buffers: list[Data | None]) -> Path:
    model = Model("test", [None, *buffers])
    model.subgraphs.append(Subgraph("serve", tensors, operators, [0], [len(tensors) - 1]))
    write_model(model, path)
    return path


def _dense(path: Path, *, rows: int, dtype: str = "int8", width: int = 4) -> Path:
    """Two dense layers around a GELU."""
    weights = np.ones((width, width), np.int8)
    scale = _SCALE if dtype == "int8" else None
    tensors = [
        Tensor(dtype, (rows, width), 0, scale, "x"),
        Tensor("int8", (width, width), 1, _SCALE),
        Tensor(dtype, (rows, width), 0, scale, "dense"),
        Tensor(dtype, (rows, width), 0, scale, "gelu"),
        Tensor("int8", (width, width), 1, _SCALE),
        Tensor(dtype, (rows, width), 0, scale, "y"),
    ]
    operators = [
        Operator("FULLY_CONNECTED", 4, (0, 1, -1), (2,), ("FullyConnectedOptions", {})),
        Operator("GELU", 2, (2,), (3,), ("GeluOptions", {})),
        Operator("FULLY_CONNECTED", 4, (3, 4, -1), (5,), ("FullyConnectedOptions", {})),
    ]
    return _write(path, tensors, operators, [Data(weights.nbytes, lambda: weights)])


def test_the_first_operator_that_is_not_known_ends_the_mapping(tmp_path: Path) -> None:
    check = check_operators(_dense(tmp_path / "m.tflite", rows=1))
    (graph,) = check.graphs
    assert (graph.name, graph.operators, graph.mapped) == ("serve", 3, 1)
    assert graph.first_unmapped is not None
    assert (graph.first_unmapped.index, graph.first_unmapped.name) == (1, "GELU")
    assert graph.first_unmapped.reason == "the Edge TPU has no such operator"
    # Both layers share one buffer, which counts once.
    assert check.weight_bytes == graph.weight_bytes == 16
    assert check.spare_bytes == 8_000_000 - 16


def test_a_model_that_does_not_fit_says_by_how_much(tmp_path: Path) -> None:
    check = check_operators(_dense(tmp_path / "m.tflite", rows=1, width=3000))
    assert check.spare_bytes == 8_000_000 - 9_000_000


@pytest.mark.parametrize(
    ("rows", "dtype", "reason"),
    [(1, "float32", "computes with float32, not int8"), (7, "int8", r"its output \[7, 4\] is not one-dimensional")],
)
def test_reasons(tmp_path: Path, rows: int, dtype: str, reason: str) -> None:
    (graph,) = check_operators(_dense(tmp_path / "m.tflite", rows=rows, dtype=dtype)).graphs
    assert graph.mapped == 0
    assert graph.first_unmapped is not None
    with pytest.raises(ValueError, match=reason):
        raise ValueError(graph.first_unmapped.reason)


def test_the_numbers_of_operators_are_those_of_litert() -> None:
    schema = pytest.importorskip("ai_edge_litert.schema_py_generated")
    theirs = {
        number: name
        for name, number in vars(schema.BuiltinOperator).items()
        if isinstance(number, int) and not name.startswith("_")
    }
    ours = builtin_codes()
    assert {number: theirs.get(number) for number in ours} == ours
    assert set(documented_operators()) - {"LSTM", "UNIDIRECTIONAL_SEQUENCE_LSTM"} <= set(ours.values())


def test_a_file_is_read_as_litert_reads_it(tmp_path: Path) -> None:
    interpreter = pytest.importorskip("ai_edge_litert.interpreter")
    path = _dense(tmp_path / "m.tflite", rows=1, dtype="float32")
    loaded = interpreter.Interpreter(str(path), experimental_op_resolver_type=interpreter.OpResolverType.BUILTIN_REF)
    details = {tensor["index"]: tensor for tensor in loaded.get_tensor_details()}
    (graph,) = read_graphs(path)
    for operation, theirs in zip(graph.operations, loaded._get_ops_details(), strict=True):
        assert operation.name == theirs["op_name"]
        for tensor, index in zip(operation.outputs, theirs["outputs"], strict=True):
            assert tensor.shape == tuple(details[index]["shape"])
            assert tensor.dtype == details[index]["dtype"].__name__

"""A tiny classifier as TFLite and ONNX files, written without a converter, with its answers computed by NumPy.

``logits = sum over tokens of (mask * embedding[ids]) @ kernel + bias``: padding never changes it. With ``pool=False`` the
output is ``(1, S, C)``, one row for each token.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from edgelm.bundle import Port, Signature
from edgelm.bundle.manifest import Role

VOCABULARY = 40
WIDTH = 8


@dataclass(frozen=True, eq=False)
class Weights:
    embedding: NDArray[np.float32]
    kernel: NDArray[np.float32]
    bias: NDArray[np.float32]

    @classmethod
    def random(cls, classes: int = 3, seed: int = 0) -> Weights:
        generator = np.random.default_rng(seed)
        return cls(
            generator.normal(size=(VOCABULARY, WIDTH)).astype(np.float32),
            generator.normal(size=(WIDTH, classes)).astype(np.float32),
            generator.normal(size=classes).astype(np.float32),
        )

    def logits(self, ids: NDArray[Any], mask: NDArray[Any], *, pool: bool = True) -> NDArray[np.float32]:
        rows = self.embedding[ids] * mask[..., None]
        values = (rows.sum(axis=1) if pool else rows) @ self.kernel + self.bias
        return np.asarray(values, np.float32)


def signatures(
    kind: Literal["tflite", "onnx"], lengths: tuple[int, ...], classes: int, role: Role, *, pool: bool = True
) -> tuple[Signature, ...]:
    def one(name: str, batch: int | None, length: int | None) -> Signature:
        output = (batch, classes) if pool else (batch, length, classes)
        return Signature(
            name,
            length,
            (
                Port("token_ids", "int32", (batch, length), "token_ids"),
                Port("padding_mask", "int32", (batch, length), "padding_mask"),
            ),
            (Port("answer", "float32", output, role),),
        )

    if kind == "onnx":
        return (one("main", None, None),)
    return tuple(one(f"serve_{length}", 1, length) for length in lengths)


def write_tflite(path: Path, weights: Weights, lengths: tuple[int, ...], *, pool: bool = True) -> None:
    import flatbuffers
    from ai_edge_litert import schema_py_generated as schema

    codes = ("GATHER", "CAST", "RESHAPE", "MUL", "SUM", "FULLY_CONNECTED")
    versions = {"FULLY_CONNECTED": 1}
    model = schema.ModelT()
    model.version = 3
    model.description = "tiny"
    model.buffers = [schema.BufferT()]
    model.operatorCodes = []
    for name in codes:
        code = schema.OperatorCodeT()
        code.builtinCode = getattr(schema.BuiltinOperator, name)
        code.deprecatedBuiltinCode = code.builtinCode
        code.version = versions.get(name, 1)
        model.operatorCodes.append(code)
    model.subgraphs, model.signatureDefs = [], []

    def buffer(array: NDArray[Any]) -> int:
        entry = schema.BufferT()
        entry.data = np.frombuffer(array.tobytes(), np.uint8)
        model.buffers.append(entry)
        return len(model.buffers) - 1

    classes = weights.bias.size
    shared = {
        "embedding": (weights.embedding, schema.TensorType.FLOAT32),
        "kernel": (np.ascontiguousarray(weights.kernel.T), schema.TensorType.FLOAT32),
        "bias": (weights.bias, schema.TensorType.FLOAT32),
        "axis": (np.array([1], np.int32), schema.TensorType.INT32),
    }
    buffers = {name: buffer(array) for name, (array, _) in shared.items()}
    for number, length in enumerate(lengths):
        graph = schema.SubGraphT()
        graph.name, graph.tensors, graph.operators = f"serve_{length}", [], []

        def tensor(name: str, shape: tuple[int, ...], kind: int, at: int = 0, graph: Any = graph) -> int:
            entry = schema.TensorT()
            entry.name, entry.shape, entry.type, entry.buffer = name, list(shape), kind, at
            graph.tensors.append(entry)
            return len(graph.tensors) - 1

        def operator(
            name: str, inputs: list[int], output: int, options: Any = None, kind: str = "", graph: Any = graph
        ) -> None:
            entry = schema.OperatorT()
            entry.opcodeIndex, entry.inputs, entry.outputs = codes.index(name), inputs, [output]
            if options is not None:
                entry.builtinOptionsType = getattr(schema.BuiltinOptions, kind)
                entry.builtinOptions = options
            graph.operators.append(entry)

        float32, int32 = schema.TensorType.FLOAT32, schema.TensorType.INT32
        constants = {name: tensor(name, array.shape, kind, buffers[name]) for name, (array, kind) in shared.items()}
        wide = tensor("wide", (3,), int32, buffer(np.array([1, length, 1], np.int32)))
        ids = tensor("token_ids", (1, length), int32)
        mask = tensor("padding_mask", (1, length), int32)
        rows = tensor("rows", (1, length, WIDTH), float32)
        real = tensor("real", (1, length), float32)
        column = tensor("column", (1, length, 1), float32)
        masked = tensor("masked", (1, length, WIDTH), float32)
        pooled = tensor("pooled", (1, WIDTH), float32)
        answer = tensor("answer", (1, classes) if pool else (1, length, classes), float32)

        gather, cast, reshape = schema.GatherOptionsT(), schema.CastOptionsT(), schema.ReshapeOptionsT()
        cast.inDataType, cast.outDataType = int32, float32
        reshape.newShape = [1, length, 1]
        dense, total = schema.FullyConnectedOptionsT(), schema.ReducerOptionsT()
        dense.keepNumDims = not pool
        operator("GATHER", [constants["embedding"], ids], rows, gather, "GatherOptions")
        operator("CAST", [mask], real, cast, "CastOptions")
        operator("RESHAPE", [real, wide], column, reshape, "ReshapeOptions")
        operator("MUL", [rows, column], masked, schema.MulOptionsT(), "MulOptions")
        if pool:
            operator("SUM", [masked, constants["axis"]], pooled, total, "ReducerOptions")
        features = pooled if pool else masked
        operator(
            "FULLY_CONNECTED",
            [features, constants["kernel"], constants["bias"]],
            answer,
            dense,
            "FullyConnectedOptions",
        )
        graph.inputs, graph.outputs = [ids, mask], [answer]
        model.subgraphs.append(graph)
        signature = schema.SignatureDefT()
        signature.signatureKey, signature.subgraphIndex = graph.name, number
        signature.inputs = [_named(schema, "token_ids", ids), _named(schema, "padding_mask", mask)]
        signature.outputs = [_named(schema, "answer", answer)]
        model.signatureDefs.append(signature)
    builder = flatbuffers.Builder(4096)
    builder.Finish(model.Pack(builder), b"TFL3")
    path.write_bytes(bytes(builder.Output()))


def _named(schema: Any, name: str, index: int) -> Any:
    entry = schema.TensorMapT()
    entry.name, entry.tensorIndex = name, index
    return entry


def write_onnx(path: Path, weights: Weights, *, pool: bool = True) -> None:
    import onnx
    from onnx import TensorProto, helper, numpy_helper

    nodes = [
        helper.make_node("Gather", ["embedding", "token_ids"], ["rows"]),
        helper.make_node("Cast", ["padding_mask"], ["real"], to=TensorProto.FLOAT),
        helper.make_node("Unsqueeze", ["real", "last"], ["column"]),
        helper.make_node("Mul", ["rows", "column"], ["masked"]),
    ]
    if pool:
        nodes.append(helper.make_node("ReduceSum", ["masked", "one"], ["pooled"], keepdims=0))
    nodes.append(helper.make_node("MatMul", ["pooled" if pool else "masked", "kernel"], ["product"]))
    nodes.append(helper.make_node("Add", ["product", "bias"], ["answer"]))
    classes = weights.bias.size
    graph = helper.make_graph(
        nodes,
        "tiny",
        [
            helper.make_tensor_value_info("token_ids", TensorProto.INT32, ["batch", "length"]),
            helper.make_tensor_value_info("padding_mask", TensorProto.INT32, ["batch", "length"]),
        ],
        [
            helper.make_tensor_value_info(
                "answer", TensorProto.FLOAT, ["batch", classes] if pool else ["batch", "length", classes]
            )
        ],
        [
            numpy_helper.from_array(weights.embedding, "embedding"),
            numpy_helper.from_array(weights.kernel, "kernel"),
            numpy_helper.from_array(weights.bias, "bias"),
            numpy_helper.from_array(np.array([-1], np.int64), "last"),
            numpy_helper.from_array(np.array([1], np.int64), "one"),
        ],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=10)
    onnx.checker.check_model(model, full_check=True)
    path.write_bytes(model.SerializeToString())

"""The way for models that are not recognised: TensorFlow traces them, its converters write them.

The graph is opaque: it runs and quantises, but nothing in it is known to be a head or a layer. `recognise` first; the
manifest says which way was taken, and why. Failures of the converters that pass in silence are caught here: TensorFlow
operators inside a TFLite file, operators that do not exist inside an ONNX file, a constant that became an input.
"""

from __future__ import annotations

import contextlib
import io
import logging
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from edgelm.bundle import Port, Signature
from edgelm.bundle.manifest import Role
from edgelm.errors import ConversionError
from edgelm_converters.emit.onnx import operator_histogram as onnx_histogram
from edgelm_converters.emit.tflite import operator_histogram as tflite_histogram
from edgelm_converters.frameworks import import_tensorflow
from edgelm_converters.reference import Reference
from edgelm_converters.source import Source

__all__ = ["trace_onnx", "trace_tflite"]

_OPSET = 18


def trace_tflite(
    source: Source, reference: Reference, path: Path, *, recipe: str, lengths: Sequence[int | None], role: Role
) -> tuple[Signature, ...]:
    """Write a TFLite file with one signature for each length, sharing their weights.

    Args:
        source: The model.
        reference: Its inputs.
        path: The file to write.
        recipe: ``fp32``, ``fp16`` or ``dynamic_wi8_afp32``.
        lengths: Ascending; ``(None,)`` for a model without a sequence.
        role: What the first output means.

    Raises:
        ConversionError: TensorFlow cannot convert it, or only into operators that no device has.
    """
    tf = import_tensorflow()
    module = tf.Module()
    module.held = getattr(source.model, "edgelm_keepalive", None) or [v.value for v in source.model.variables]
    functions = {}
    for length in lengths:
        name = f"serve_{length}" if length else "serve"
        specs = [tf.TensorSpec(_shape(port, 1, length), _wire_dtype(port), name=port.name) for port in reference.inputs]
        function = tf.function(_by_name(reference), autograph=False)
        setattr(module, name, function)
        try:
            functions[name] = function.get_concrete_function(**{spec.name: spec for spec in specs})
        except (ValueError, TypeError, AttributeError, NotImplementedError, tf.errors.OpError) as error:
            raise ConversionError(f"TensorFlow cannot trace the model: {_first_line(error)}") from error
    with tempfile.TemporaryDirectory(prefix="edgelm-") as folder, _quiet():
        tf.saved_model.save(module, folder, signatures=functions)
        converter = tf.lite.TFLiteConverter.from_saved_model(folder, signature_keys=list(functions))
        converter.target_spec.supported_ops = [tf.lite.OpsSet.TFLITE_BUILTINS]
        if recipe != "fp32":
            converter.optimizations = [tf.lite.Optimize.DEFAULT]
        if recipe == "fp16":
            converter.target_spec.supported_types = [tf.float16]
        from tensorflow.lite.python.convert_phase import ConverterError

        try:
            path.write_bytes(converter.convert())
        except (ValueError, RuntimeError, tf.errors.OpError, ConverterError) as error:
            raise ConversionError(f"TensorFlow's converter fails on the model: {_first_line(error)}") from error
    foreign = [name for name in tflite_histogram(path) if name.startswith("CUSTOM:")]
    if foreign:
        raise ConversionError(
            f"The converted file needs {', '.join(foreign)}, which no device has: the model uses an operation outside of "
            "TFLite's own. Give a fixed --sequence-length, or replace that operation."
        )
    return tuple(
        _signature(name, reference, function, length, role)
        for (name, function), length in zip(functions.items(), lengths, strict=True)
    )


def trace_onnx(
    source: Source, reference: Reference, path: Path, *, recipe: str, length: int | None, role: Role
) -> tuple[Signature, ...]:
    """Write an ONNX file with a free batch axis, and a free sequence axis where `length` is None.

    Raises:
        ConversionError: tf2onnx cannot convert it, or writes a file that is not valid.
    """
    tf = import_tensorflow()
    import onnx

    with _quiet():
        import tf2onnx

        specs = [
            tf.TensorSpec(_shape(port, None, length), _wire_dtype(port), name=port.name) for port in reference.inputs
        ]
        call = _by_name(reference)
        names = [port.name for port in reference.inputs]
        function = tf.function(
            lambda *values: call(**dict(zip(names, values, strict=True))), input_signature=specs, autograph=False
        )
        try:
            outputs = function.get_concrete_function().structured_outputs
            model, _ = tf2onnx.convert.from_function(function, input_signature=specs, opset=_OPSET)
        except (
            ValueError,
            TypeError,
            AttributeError,
            RuntimeError,
            KeyError,
            NotImplementedError,
            tf.errors.OpError,
        ) as error:
            raise ConversionError(f"tf2onnx fails on the model: {_first_line(error)}") from error
    _mend(model, names, list(outputs))
    try:
        onnx.checker.check_model(model, full_check=True)
    except (onnx.checker.ValidationError, onnx.shape_inference.InferenceError) as error:
        raise ConversionError(f"tf2onnx wrote a file that is not valid ONNX: {_first_line(error)}") from error
    if recipe == "fp16":
        _halve_weights(model)
    onnx.save(model, str(path))
    if recipe == "dynamic_wi8_afp32":
        _quantise(path)
    strange = [name for name in onnx_histogram(path) if name.startswith("ai.onnx.contrib") or "Flex" in name]
    if strange:
        raise ConversionError(f"The converted file needs {', '.join(strange)}, which ONNX Runtime does not have.")
    ports = tuple(
        Port(port.name, _wire_dtype(port), _shape(port, None, length), port.role) for port in reference.inputs
    )
    return (Signature("main", length, ports, _output_ports(outputs, None, length, role)),)


def _by_name(reference: Reference) -> Callable[..., dict[str, Any]]:
    """Return the model as a function from inputs to outputs, both by name, with inputs of a device's types."""
    import tensorflow as tf

    def call(**inputs: Any) -> dict[str, Any]:
        cast = {port.name: tf.cast(inputs[port.name], port.dtype) for port in reference.inputs}
        result = reference.call(reference.pack(cast))
        if isinstance(result, Mapping):
            return {str(name): tf.cast(value, tf.float32) for name, value in result.items()}
        values = result if isinstance(result, (list, tuple)) else [result]
        names = [f"output_{index}" for index in range(len(values))] if isinstance(result, (list, tuple)) else ["output"]
        return {name: tf.cast(value, tf.float32) for name, value in zip(names, values, strict=True)}

    return call


def _wire_dtype(port: Port) -> str:
    """Return the type that a device feeds: int32 for every integer (LiteRT's buffers know no int64), else float32."""
    return "int32" if port.dtype.startswith(("int", "uint", "bool")) else "float32"


def _shape(port: Port, batch: int | None, length: int | None) -> tuple[int | None, ...]:
    return (batch, *(length if extent is None else extent for extent in port.shape[1:]))


def _signature(name: str, reference: Reference, function: Any, length: int | None, role: Role) -> Signature:
    ports = tuple(Port(port.name, _wire_dtype(port), _shape(port, 1, length), port.role) for port in reference.inputs)
    return Signature(name, length, ports, _output_ports(function.structured_outputs, 1, length, role))


def _output_ports(outputs: Mapping[str, Any], batch: int | None, length: int | None, role: Role) -> tuple[Port, ...]:
    """Return the output ports in the order of the file: sorted by name, as TensorFlow flattens a dict."""
    ports = []
    for index, (name, tensor) in enumerate(sorted(outputs.items())):
        shape = (batch, *tensor.shape[1:])
        ports.append(Port(name, "float32", tuple(shape), role if index == 0 else "raw"))
    return tuple(ports)


def _mend(model: Any, inputs: Sequence[str], outputs: Sequence[str]) -> None:
    """Mend what tf2onnx is known to write wrongly, in place.

    - ``Erfc``, which ONNX does not have (exact GELU since TensorFlow 2.19): ``1 - Erf(x)``.
    - Outputs are called ``Identity…``: they get their names back.

    Raises:
        ConversionError: A constant of the model became an input, so that no caller could feed it.
    """
    import numpy as np
    from onnx import helper, numpy_helper

    graph = model.graph
    extra = [value.name for value in graph.input if value.name.split(":")[0] not in inputs]
    if extra:
        raise ConversionError(
            f"tf2onnx turned constants of the model into the inputs {', '.join(extra)}: it cannot be converted."
        )
    one = "edgelm_one"
    nodes = []
    for node in graph.node:
        if node.op_type == "Erfc":
            nodes.append(helper.make_node("Erf", list(node.input), [f"{node.output[0]}_erf"]))
            nodes.append(helper.make_node("Sub", [one, f"{node.output[0]}_erf"], list(node.output), name=node.name))
        else:
            nodes.append(node)
    if len(nodes) > len(graph.node):
        graph.initializer.append(numpy_helper.from_array(np.asarray(1.0, np.float32), one))
        del graph.node[:]
        graph.node.extend(nodes)
    renames = {value.name: name for value, name in zip(graph.output, sorted(outputs), strict=True)}
    renames |= {value.name: value.name.split(":")[0] for value in graph.input}
    for node in graph.node:
        node.input[:] = [renames.get(name, name) for name in node.input]
        node.output[:] = [renames.get(name, name) for name in node.output]
    for value in [*graph.input, *graph.output]:
        value.name = renames[value.name]


def _halve_weights(model: Any) -> None:
    """Store float32 weights as float16, cast back where they are used: ONNX Runtime folds the cast when it loads."""
    import numpy as np
    from onnx import TensorProto, helper, numpy_helper

    casts = []
    for tensor in model.graph.initializer:
        if tensor.data_type == TensorProto.FLOAT and np.prod(tensor.dims, dtype=np.int64) >= 1024:
            name = tensor.name
            half = numpy_helper.from_array(numpy_helper.to_array(tensor).astype(np.float16), f"{name}_fp16")
            tensor.CopyFrom(half)
            casts.append(helper.make_node("Cast", [f"{name}_fp16"], [name], to=TensorProto.FLOAT))
    nodes = list(model.graph.node)
    del model.graph.node[:]
    model.graph.node.extend([*casts, *nodes])


def _quantise(path: Path) -> None:
    from onnx import TensorProto
    from onnxruntime.quantization import QuantType, quantize_dynamic

    with tempfile.TemporaryDirectory(prefix="edgelm-") as folder, _quiet():
        made = Path(folder) / "model.onnx"
        try:
            quantize_dynamic(
                path,
                made,
                per_channel=True,
                weight_type=QuantType.QInt8,
                extra_options={"DefaultTensorType": TensorProto.FLOAT},
            )
        except (ValueError, RuntimeError, KeyError) as error:
            raise ConversionError(f"ONNX Runtime cannot quantise the model: {_first_line(error)}") from error
        path.write_bytes(made.read_bytes())


def _first_line(error: BaseException) -> str:
    return next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)[:300]


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Keep the converters' progress chatter off the terminal; their errors come as exceptions."""
    loggers = [logging.getLogger(name) for name in ("tensorflow", "tf2onnx", "absl", "root")]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    try:
        with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)

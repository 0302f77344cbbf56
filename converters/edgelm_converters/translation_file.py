"""The files of an encoder-decoder: TFLite with its caches, ONNX as two graphs over one file of weights."""

from __future__ import annotations

from pathlib import Path

from edgelm.bundle.manifest import Format
from edgelm.errors import RecipeError
from edgelm_converters.translation import TranslationModel, source_buckets
from edgelm_converters.written import Written

__all__ = ["TRANSLATION_TARGETS", "write_translation_file"]

TRANSLATION_TARGETS: dict[Format, str] = {"tflite": "litert", "onnx": "onnx"}  # format -> the runtime that verifies it


def write_translation_file(target: Format, model: TranslationModel, folder: Path) -> Written:
    """Write an encoder-decoder in one format.

    Raises:
        RecipeError: The format has no such recipe, or is none of an encoder-decoder.
    """
    if target not in TRANSLATION_TARGETS:
        raise RecipeError(f"An encoder-decoder is written as {' and '.join(TRANSLATION_TARGETS)}, not as {target}.")
    return _tflite(model, folder) if target == "tflite" else _onnx(model, folder)


def _tflite(model: TranslationModel, folder: Path) -> Written:
    from edgelm_converters.emit.notes import decoder_notes
    from edgelm_converters.emit.tflite import operator_histogram
    from edgelm_converters.emit.tflite_seq2seq import emit_tflite_seq2seq

    path = folder / "model.tflite"
    signatures = emit_tflite_seq2seq(
        model.spec,
        path,
        recipe=model.recipe.name,
        source_lengths=source_buckets(model),
        target_length=model.record.target_length,
    )
    return Written(path, path, signatures, operator_histogram(path), decoder_notes(model.spec, model.recipe.name))


def _onnx(model: TranslationModel, folder: Path) -> Written:
    from edgelm_converters.emit.notes import decoder_notes
    from edgelm_converters.emit.onnx_file import operator_histogram
    from edgelm_converters.emit.onnx_seq2seq import emit_onnx_seq2seq

    signatures = emit_onnx_seq2seq(
        model.spec, folder, recipe=model.recipe.name, target_length=model.record.target_length
    )
    files = dict.fromkeys(signature.file for signature in signatures if signature.file is not None)
    path = folder / next(signature.file or "model.onnx" for signature in signatures if signature.kind == "decode")
    companions = [name for name in files if name != path.name]
    companions += sorted(file.name for file in folder.glob("*.onnx.data"))
    operators: dict[str, int] = {}
    for name in files:
        for operator, count in operator_histogram(folder / name).items():
            operators[operator] = operators.get(operator, 0) + count
    notes = decoder_notes(model.spec, model.recipe.name)
    return Written(path, path, signatures, operators, notes, tuple(dict.fromkeys(companions)))

"""The files of a language model: TFLite with its caches, LiteRT-LM's container, ONNX with GenAI's settings."""

from __future__ import annotations

from pathlib import Path

from edgelm.bundle.manifest import Format
from edgelm.errors import ConversionError
from edgelm_converters.language import LanguageModel
from edgelm_converters.written import Written

__all__ = ["write_file"]


def write_file(target: Format, model: LanguageModel, folder: Path) -> Written:
    """Write a language model, whose weights were fitted to its recipe, in one format.

    Raises:
        ConversionError: ``litertlm`` has no tokenizer, or the file would be too large for its format.
        RecipeError: The format has no such recipe.
    """
    return {"tflite": _tflite, "onnx": _onnx, "litertlm": _litertlm}[target](model, folder)


def _tflite(model: LanguageModel, folder: Path) -> Written:
    from edgelm_converters.emit.tflite_decoder import default_caches, default_verify

    context = model.generation.context_length
    return _caching(model, folder / "model.tflite", model.caches or default_caches(context), default_verify(context))


def _litertlm(model: LanguageModel, folder: Path) -> Written:
    """Write LiteRT-LM's container, around a TFLite file that has nothing but the signatures which LiteRT-LM calls.

    With the others, the shorter caches and the scores of several tokens, it took 9 MB more memory (15 million weights, int8).
    """
    from edgelm_converters.emit.litertlm import write_litertlm

    if model.tokenizer is None:
        raise ConversionError(
            "A .litertlm file holds its tokenizer, and this model has none: give one with --tokenizer, or convert with "
            "--to tflite --to onnx."
        )
    path = folder / "model.litertlm"
    inside = _caching(model, folder / "litertlm.tflite", (model.generation.context_length,), ())
    write_litertlm(
        path,
        tflite=inside.path,
        tokenizer=folder / "tokenizer.json",
        generation=model.generation,
        chat_template=model.chat_template,
    )
    return Written(path, inside.path, inside.signatures, inside.operators, inside.notes)


def _caching(model: LanguageModel, path: Path, caches: tuple[int, ...], verify: tuple[int, ...]) -> Written:
    from edgelm_converters.emit.notes import decoder_notes
    from edgelm_converters.emit.tflite import operator_histogram
    from edgelm_converters.emit.tflite_decoder import default_prefill, emit_tflite_decoder

    signatures = emit_tflite_decoder(
        model.spec,
        path,
        recipe=model.recipe.name,
        caches=caches,
        prefill=model.prefill or default_prefill(model.generation.context_length),
        verify=verify,
    )
    return Written(path, path, signatures, operator_histogram(path), decoder_notes(model.spec, model.recipe.name))


def _onnx(model: LanguageModel, folder: Path) -> Written:
    from edgelm_converters.emit.genai import write_genai
    from edgelm_converters.emit.notes import decoder_notes
    from edgelm_converters.emit.onnx_decoder import emit_onnx_decoder
    from edgelm_converters.emit.onnx_file import operator_histogram

    context = model.generation.context_length
    path = folder / "model.onnx"
    signatures = emit_onnx_decoder(model.spec, path, recipe=model.recipe.name, context_length=context)
    notes = decoder_notes(model.spec, model.recipe.name)  # a prepared model has the same widths in both formats
    if model.tokenizer is not None:
        notes += write_genai(folder, model.spec, model.generation, context_length=context)
    return Written(path, path, signatures, operator_histogram(path), notes)

"""The manifest of a bundle: typed, versioned, strict.

``manifest.json`` is the first file that a device reads. It says what the bundle is, what was done to the model and what
that cost, which files belong to it (with their SHA-256), how to call each of them, and which runtimes were seen to run
them. Its JSON schema is ``manifest.schema.json`` beside this file, made from these classes and checked by a test.

The schema version is one integer. A reader opens every version up to its own, and refuses a newer one: a field that it
does not know could change what the others mean. Version 2 brought models that generate: the task ``generate``, the kinds and
caches of signatures, `GenerationRecord`. Version 3 brought compression: `CompressionStep`, `CalibrationRecord`, `GateRecord`.
Version 4 brought models that read a source and answer to it: the tasks ``translate`` and ``transcribe``, `TranslationRecord`,
signatures that encode, and that read what was encoded.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

import dacite

from edgelm.errors import BundleError

__all__ = [
    "FORMAT",
    "SCHEMA_VERSION",
    "Accuracy",
    "Artifact",
    "AudioRecord",
    "CacheRecord",
    "CalibrationRecord",
    "CompressionStep",
    "FileRecord",
    "GateRecord",
    "GateStep",
    "GenerationRecord",
    "Manifest",
    "ModelRecord",
    "Parity",
    "Perplexity",
    "Port",
    "RuntimeRecord",
    "Signature",
    "TokenizerRecord",
    "TranslationRecord",
]

FORMAT = "edgelm-bundle"
SCHEMA_VERSION = 4

Task = Literal["classify", "embed", "raw", "generate", "translate", "transcribe"]
Format = Literal["tflite", "onnx", "litertlm"]
Role = Literal[
    "token_ids",
    "padding_mask",
    "segment_ids",
    "positions",
    "source_ids",
    "source_mask",
    "frames",
    "features",
    "logits",
    "probabilities",
    "sigmoid",
    "embedding",
    "raw",
]
Padding = Literal["masked", "full", "none"]


@dataclass(frozen=True)
class Port:
    """One input or output of a signature.

    Attributes:
        name: The name inside the model file.
        dtype: NumPy's name, such as ``"int32"``.
        shape: One entry a dimension; None where it is free.
        role: What the values are. ``logits`` want a softmax, ``probabilities`` are one distribution, ``sigmoid`` holds an
            independent probability per label.
        scale: Of integers that stand for numbers, what a step is worth; None where the values are what they are.
        zero_point: The integer that stands for 0; a number is ``scale * (value - zero_point)``.
    """

    name: str
    dtype: str
    shape: tuple[int | None, ...]
    role: Role
    scale: float | None = None
    zero_point: int | None = None


@dataclass(frozen=True)
class CacheRecord:
    """The key/value cache that a signature takes and gives: one tensor of keys and one of values for each layer.

    Attributes:
        layers: Number of layers.
        inputs: Names of the keys and of the values before the call; ``{i}`` stands for the layer, from 0.
        outputs: Their names after it.
        shape: Of each tensor; None where it is free.
        dtype: NumPy's name.
        length: Positions that it holds; None where that is free.
    """

    layers: int
    inputs: tuple[str, str]
    outputs: tuple[str, str]
    shape: tuple[int | None, ...]
    dtype: str
    length: int | None


@dataclass(frozen=True)
class Signature:
    """One way to call a model file.

    Attributes:
        name: The signature's name in a TFLite file; ``"main"`` in an ONNX file.
        sequence_length: Tokens that it takes; None where that is free, or where the model has no sequence.
        inputs: In the order of the file, without the cache.
        outputs: In the order of the file, without the cache.
        kind: ``run``: one call is the whole answer; ``prefill``: fills the cache, gives nothing else; ``decode``: fills it,
            and gives the scores of the token after the last one; ``verify``: gives those after each of its tokens; ``encode``:
            reads a source, and gives what the decoder attends to; ``reorder``: takes the numbers of rows, and one tensor of a
            cache, and gives that tensor with these rows, which is what beam search does with its beams.
        cache: Of a model that generates.
        source: Of an encoder-decoder, the keys and values of the source: `encode` gives them under the names of ``outputs``,
            the others take them under those of ``inputs``.
        rows: Sequences that go on side by side, such as beams, in a file of fixed shapes; all read the same source. None where
            that is free.
        file: The file of the artifact that has it, relative to the bundle; None: `Artifact.file`.
    """

    name: str
    sequence_length: int | None
    inputs: tuple[Port, ...]
    outputs: tuple[Port, ...]
    kind: Literal["run", "prefill", "decode", "verify", "encode", "reorder"] = "run"
    cache: CacheRecord | None = None
    source: CacheRecord | None = None
    rows: int | None = 1
    file: str | None = None


@dataclass(frozen=True)
class Parity:
    """How far an artifact's numbers are from Keras's, in one runtime.

    Attributes:
        samples: Inputs compared.
        inputs: ``"real"`` (the user's data) or ``"random"`` (valid ids drawn at random).
        max_abs_error: The largest difference of any output element, in the output's unit.
        reference_range: The largest absolute value among the reference's outputs: what the error is to be held against.
        bound: What `max_abs_error` had to stay under.
        agreement: Share of the samples with the same top label; None where the output is not a choice.
        agreement_bound: What `agreement` had to reach.
        reason: Why these bounds.
    """

    samples: int
    inputs: Literal["real", "random"]
    max_abs_error: float
    reference_range: float
    bound: float
    agreement: float | None
    agreement_bound: float | None
    reason: str


@dataclass(frozen=True)
class Accuracy:
    """Top-1 accuracy on the user's labelled data, of Keras and of the artifact."""

    data: str
    samples: int
    keras: float
    artifact: float


@dataclass(frozen=True)
class Perplexity:
    """How unlikely Keras and the artifact find a text: the exponential of the mean negative log-likelihood of a token.

    Attributes:
        data: The text's file.
        tokens: Tokens that were predicted.
        keras: Of the Keras model.
        artifact: Of the artifact, in the first verified runtime.
    """

    data: str
    tokens: int
    keras: float
    artifact: float


@dataclass(frozen=True)
class CompressionStep:
    """A step that made the model smaller before it was stored: what the artifacts are held against is the model after it.

    Attributes:
        step: What was done.
        settings: As they were asked for.
        parameters_before: Weights of the model before.
        parameters_after: Likewise after.
        notes: What it took and what it cost, a line each.
    """

    step: Literal["trim-vocabulary", "prune", "distil"]
    settings: dict[str, int | float | str | bool | None]
    parameters_before: int
    parameters_after: int
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class CalibrationRecord:
    """The data that ranges, roundings and corrections were fitted on.

    Attributes:
        data: The file's name, or what stood in for one.
        samples: Samples that were used.
        tokens: Tokens of them; None where there are none.
        sha256: Of the file, hex; None where there is none.
        ranges: How the range of an activation was chosen; None where none was.
    """

    data: str
    samples: int
    tokens: int | None
    sha256: str | None
    ranges: Literal["minmax", "percentile", "mse"] | None


@dataclass(frozen=True)
class GateStep:
    """One artifact that was tried on the way through the gate.

    Attributes:
        kept: Parts of the model that were kept in more bits than the recipe's.
        value: The metric.
        size_bytes: Of the artifact.
    """

    kept: tuple[str, ...]
    value: float
    size_bytes: int


@dataclass(frozen=True)
class GateRecord:
    """What an artifact had to keep of a metric, and how it came to.

    Attributes:
        metric: ``accuracy`` (a share), ``perplexity``, ``bleu``, or ``parity`` (the largest error as a share of the range).
        data: The validation file.
        samples: Samples of it, or tokens that were predicted.
        keras: The metric of the Keras model as it was given, before any compression.
        allowed: The most that may be lost of it: points of a share, a share of a perplexity, points of BLEU.
        value: The artifact's.
        steps: Every artifact that was tried, in order; the last one was written.
        ranking: How much each part of the model costs where it alone is compressed, worst first; empty where none was kept.
    """

    metric: Literal["accuracy", "perplexity", "bleu", "parity"]
    data: str
    samples: int
    keras: float
    allowed: float
    value: float
    steps: tuple[GateStep, ...]
    ranking: dict[str, float]


@dataclass(frozen=True)
class RuntimeRecord:
    """A runtime, and whether it may open the artifact.

    Attributes:
        runtime: ``litert``, ``tflite``, ``onnx``, ``litert-lm`` or ``onnxruntime-genai``.
        status: ``verified`` (ran here, inside the bound), ``untested``, or ``refused`` (known to fail or to be wrong).
        version: Of the runtime that verified it.
        reason: Why it is refused or untested.
    """

    runtime: str
    status: Literal["verified", "untested", "refused"]
    version: str | None = None
    reason: str | None = None


@dataclass(frozen=True)
class Artifact:
    """One model file of the bundle, in one format.

    Attributes:
        format: ``tflite``, ``onnx``, or ``litertlm`` (the TFLite file with tokenizer and settings, as LiteRT-LM opens it).
        file: The file to open, relative to the bundle.
        data_files: Further files that it reads (external weights).
        size_bytes: All of them together.
        signatures: Ordered by sequence length; of a language model by the cache's length, then by the tokens that they take.
        runtimes: Which runtimes may open it.
        parity: Against Keras, in the first verified runtime.
        accuracy: Where labelled data was given.
        operators: Count of each operator in one pass through the model.
        notes: What was skipped, kept in float, or done otherwise than asked.
        perplexity: Of a language model, where text was given.
        gate: Where a metric was asked for that must be kept.
    """

    format: Format
    file: str
    data_files: tuple[str, ...]
    size_bytes: int
    signatures: tuple[Signature, ...]
    runtimes: tuple[RuntimeRecord, ...]
    parity: Parity
    accuracy: Accuracy | None
    operators: dict[str, int]
    notes: tuple[str, ...] = ()
    perplexity: Perplexity | None = None
    gate: GateRecord | None = None


@dataclass(frozen=True)
class ModelRecord:
    """The Keras model that this came from.

    Attributes:
        source: File name or class of the model.
        name: The Keras model's name.
        path: ``recognised`` (turned into a TransformerSpec) or ``traced`` (taken as an opaque graph).
        family: The family reader, or None where traced.
        reason: Why it was traced.
        parameters: Number of weights.
        architecture: Layers, width, heads and so on, as the family reader saw them.
    """

    source: str
    name: str
    path: Literal["recognised", "traced"]
    family: str | None
    reason: str | None
    parameters: int
    architecture: dict[str, int | float | str | bool | None]


@dataclass(frozen=True)
class TokenizerRecord:
    """The tokenizer in the bundle, and how a session uses it.

    Attributes:
        file: A Hugging Face ``tokenizer.json``.
        pad_id: The id that fills up a bucket.
        max_length: Tokens after which a text is cut; the cut is reported, never silent.
        vocabulary_size: Ids are below this.
    """

    file: str
    pad_id: int
    max_length: int
    vocabulary_size: int


@dataclass(frozen=True)
class GenerationRecord:
    """How a language model is driven.

    Attributes:
        context_length: The most positions, prompt and answer together.
        vocabulary_size: Scores of a step.
        start_id: The token that begins a text, which the tokenizer adds by itself; None where there is none.
        stop_ids: Tokens that end an answer.
        chat_template: The file of a Jinja template that turns messages into a prompt; None where the model has none.
        temperature: Recommended for sampling; None where nothing is: then the likeliest token is taken.
        top_k: Likewise.
        top_p: Likewise.
    """

    context_length: int
    vocabulary_size: int
    start_id: int | None
    stop_ids: tuple[int, ...]
    chat_template: str | None = None
    temperature: float | None = None
    top_k: int | None = None
    top_p: float | None = None


@dataclass(frozen=True)
class AudioRecord:
    """Log-mel frames as Whisper takes them (Radford et al. 2022, https://arxiv.org/abs/2212.04356, section 2.2).

    Attributes:
        sampling_rate: Samples a second, mono.
        window: Samples of a frame's Fourier transform, under a periodic Hann window.
        hop: Samples from one frame to the next.
        bands: Mel bands, on Slaney's scale.
        seconds: Length that every input is cut or padded to.
    """

    sampling_rate: int
    window: int
    hop: int
    bands: int
    seconds: int


@dataclass(frozen=True)
class TranslationRecord:
    """How an encoder-decoder is driven.

    Attributes:
        source_length: The most source tokens, with prefix and suffix; of audio, the most frames.
        target_length: The most positions of an answer, with its prefix.
        vocabulary_size: Scores of a step.
        source_prefix: Tokens before those of the source's text, such as a start or a language.
        source_suffix: Tokens after it.
        target_prefix: What the decoder starts with: at least one token.
        stop_ids: Tokens that end an answer.
        padding_id: Fills up a source that is shorter than its signature, hidden from attention.
        suppressed_ids: Tokens that never stand in an answer.
        audio: Of a model that hears: how its frames are made; None where it reads text.
        target_tokenizer: Of the answers, where it is another than the source's.
    """

    source_length: int
    target_length: int
    vocabulary_size: int
    source_prefix: tuple[int, ...]
    source_suffix: tuple[int, ...]
    target_prefix: tuple[int, ...]
    stop_ids: tuple[int, ...]
    padding_id: int = 0
    suppressed_ids: tuple[int, ...] = ()
    audio: AudioRecord | None = None
    target_tokenizer: TokenizerRecord | None = None


@dataclass(frozen=True)
class FileRecord:
    """Size and SHA-256 (hex) of one file."""

    size_bytes: int
    sha256: str


@dataclass(frozen=True)
class Manifest:
    """All that is known about a bundle.

    Attributes:
        task: What a session does with it. ``raw`` takes and gives arrays.
        padding: ``masked``: padding never changes the answer, so the smallest bucket is used; ``full``: the model sees its
            padding, so every input is filled up to its one length; ``none``: there is no sequence.
        recipe: As ai-edge-quantizer names it, such as ``dynamic_wi8_afp32``.
        labels: In the order of the output; None where the model has none.
        golden: The file of golden vectors: inputs, with Keras's outputs.
        files: Every file of the bundle but the manifest itself.
        tool_versions: Packages that made it.
        generation: Where the task is ``generate``.
        translation: Where the task is ``translate`` or ``transcribe``.
        compression: What made the model smaller before its weights were stored, in order.
        calibration: What the weights and ranges were fitted on, where something was.
    """

    format: str
    schema_version: int
    name: str
    created: str
    task: Task
    padding: Padding
    recipe: str
    model: ModelRecord
    artifacts: tuple[Artifact, ...]
    tokenizer: TokenizerRecord | None
    labels: tuple[str, ...] | None
    golden: str
    files: dict[str, FileRecord]
    tool_versions: dict[str, str]
    notes: tuple[str, ...] = field(default=())
    generation: GenerationRecord | None = None
    compression: tuple[CompressionStep, ...] = ()
    calibration: CalibrationRecord | None = None
    translation: TranslationRecord | None = None

    def to_json(self) -> str:
        """Return the manifest as it stands in ``manifest.json``."""
        return json.dumps(asdict(self), indent=2, ensure_ascii=False) + "\n"

    @classmethod
    def from_json(cls, text: str) -> Manifest:
        """Read a manifest, strictly.

        Raises:
            BundleError: It is not a manifest, is of a newer schema, lacks a field, or has one too many.
        """
        try:
            data: Any = json.loads(text)
        except (ValueError, RecursionError) as error:
            raise BundleError(
                f"manifest.json is not valid JSON ({error}): the bundle is damaged; copy it again."
            ) from error
        if not isinstance(data, dict) or data.get("format") != FORMAT:
            raise BundleError("manifest.json is not an edgelm manifest: this folder is not an edgelm bundle.")
        version = data.get("schema_version")
        if not isinstance(version, int) or isinstance(version, bool) or version < 1:
            raise BundleError(f"manifest.json has the schema version {version!r}, which no edgelm ever wrote.")
        if version > SCHEMA_VERSION:
            raise BundleError(
                f"This bundle has schema version {version}, and this edgelm reads up to {SCHEMA_VERSION}. "
                "Update edgelm on this device, or convert again with the older version."
            )
        try:
            return dacite.from_dict(cls, data, _STRICT)
        except (dacite.DaciteError, TypeError, ValueError, RecursionError) as error:
            raise BundleError(f"manifest.json does not follow its schema ({error}): the bundle is damaged.") from error


_STRICT = dacite.Config(strict=True, cast=[tuple])

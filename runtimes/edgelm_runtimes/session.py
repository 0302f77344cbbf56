"""What an application calls: a bundle, opened in one runtime, that answers texts or arrays, generates, or translates."""

from __future__ import annotations

import dataclasses
import threading
import warnings
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from time import perf_counter
from types import TracebackType
from typing import TYPE_CHECKING, Any, Literal, Unpack, cast, overload

import numpy as np
from numpy.typing import NDArray

from edgelm.bundle import Artifact, Bundle, Manifest, Port, Signature, open_bundle
from edgelm.errors import ExecutionError, InputError, RuntimeUnavailableError
from edgelm_runtimes import feed
from edgelm_runtimes.classification import Classification, Timing, probabilities, rank
from edgelm_runtimes.device import parse_device
from edgelm_runtimes.generation import Generation, Translation
from edgelm_runtimes.generation_settings import GenerateOptions
from edgelm_runtimes.language_model import LanguageModel
from edgelm_runtimes.live_translation import LiveTranslation
from edgelm_runtimes.probe import probe
from edgelm_runtimes.program import Arrays, CausalProgram, Program, ProgramFacts, ProgramOptions
from edgelm_runtimes.registry import (
    choose_artifact,
    default_runtime,
    default_threads,
    open_causal,
    open_program,
    open_seq2seq,
)
from edgelm_runtimes.seq2seq_program import Seq2SeqProgram
from edgelm_runtimes.text import Encoded, Encoder, open_encoder
from edgelm_runtimes.translation_result import TranslationResult
from edgelm_runtimes.translation_settings import TranslateOptions
from edgelm_runtimes.translator import Readable, Translator

if TYPE_CHECKING:
    from edgelm_runtimes.chat_template import Message

__all__ = ["Session", "load"]

Clock = Callable[[], float]

AnyProgram = Program | CausalProgram | Seq2SeqProgram

_CHOICES = ("logits", "probabilities", "sigmoid")
_TRANSLATING = ("translate", "transcribe")


class Session:
    """A bundle in a runtime. A context manager: `close` gives back the memory.

    Safe to use from several threads: they tokenize side by side and run one after the other. For parallel runs, load
    the bundle several times.

    A session of a language model remembers what it computed last: a prompt that begins as the one before did is not
    computed anew up to where they part.

    Args:
        bundle: Opened; the session closes it.
        artifact: One of the bundle's.
        program: The artifact, opened in a runtime; the session closes it. A `CausalProgram` where the bundle's task is
            ``generate``, a `Seq2SeqProgram` where it is ``translate`` or ``transcribe``, a `Program` otherwise.
        clock: Gives seconds; for tests.
        note: What of it is otherwise than was asked; it stands among the notes of `facts`.

    Attributes:
        artifact: The model file that is used.
        load_s: Seconds that `load` took, None where the session was put together by hand.
    """

    def __init__(
        self,
        bundle: Bundle,
        artifact: Artifact,
        program: AnyProgram,
        *,
        clock: Clock = perf_counter,
        note: str | None = None,
    ) -> None:
        self._note = note
        self.artifact = artifact
        self.load_s: float | None = None
        self._bundle = bundle
        self._program = program
        self._clock = clock
        self._lock = threading.Lock()
        self._closed = False
        record = bundle.manifest.tokenizer
        self._language: LanguageModel | None = None
        self._translator: Translator | None = None
        self._encoder: Encoder | None = None
        if bundle.manifest.task == "generate":
            self._language = LanguageModel(bundle, artifact, cast(CausalProgram, program), clock)
        elif bundle.manifest.task in _TRANSLATING:
            self._translator = Translator(bundle, artifact, cast(Seq2SeqProgram, program), clock)
        elif record is not None:
            self._encoder = open_encoder(bundle.path(record.file), record)
        self._pad_id = record.pad_id if record else 0
        self._vocabulary = _vocabulary(bundle.manifest)

    @property
    def manifest(self) -> Manifest:
        """What the bundle says about itself."""
        return self._bundle.manifest

    @property
    def facts(self) -> ProgramFacts:
        """What really runs it."""
        facts = self._program.facts
        return facts if self._note is None else dataclasses.replace(facts, notes=(*facts.notes, self._note))

    def encode(self, text: str) -> Encoded:
        """Return the token ids of a text: cut to the length that the model takes, but of models that generate or translate all.

        Raises:
            InputError: The text is empty or no text, or the bundle has no tokenizer.
        """
        self._check_open()
        if self._language is not None:
            ids = self._language.prompter.encode(text)
            return Encoded(ids, [0] * len(ids), False)
        if self._translator is not None:
            ids = self._translator.source_ids(text)
            return Encoded(ids, [0] * len(ids), False)
        if self._encoder is None:
            raise InputError(f"The bundle '{self.manifest.name}' has no tokenizer: give token ids to run() instead.")
        return self._encoder.encode(text)

    @overload
    def classify(self, texts: str, *, top: int = 1) -> Classification: ...
    @overload
    def classify(self, texts: list[str] | tuple[str, ...], *, top: int = 1) -> list[Classification]: ...
    def classify(
        self, texts: str | list[str] | tuple[str, ...], *, top: int = 1
    ) -> Classification | list[Classification]:
        """Return the best labels of a text, or of each of several.

        Several texts are run one after the other: a batch needs every text at the length of the longest, and on the CPUs
        that this is for it is no faster.

        Args:
            texts: One text, or several.
            top: Labels in `Classification.ranking`.

        Raises:
            InputError: A text is empty, or the model does not classify texts.
            ExecutionError: The runtime failed, or the session is closed.
        """
        self._check_open()
        self._check_no_language()
        port = self.artifact.signatures[0].outputs[0]
        if port.role not in _CHOICES:
            raise InputError(
                f"The model does not classify: its output '{port.name}' is '{port.role}'. Use embed() or run()."
            )
        if top < 1:
            raise InputError(f"top is the number of labels to return, at least 1, and {top} was given.")
        if isinstance(texts, str):
            return self._classify(texts, port, top)
        return [self._classify(text, port, top) for text in _several(texts)]

    @overload
    def embed(self, texts: str) -> NDArray[np.float32]: ...
    @overload
    def embed(self, texts: list[str] | tuple[str, ...]) -> list[NDArray[np.float32]]: ...
    def embed(self, texts: str | list[str] | tuple[str, ...]) -> NDArray[np.float32] | list[NDArray[np.float32]]:
        """Return the model's output for a text, or for each of several, as the model gives it.

        Args:
            texts: One text, or several.

        Returns:
            float32: ``(D,)`` where the model pools, ``(T, D)`` with a row for each token (special ones included, padding
            not) where it does not.

        Raises:
            InputError: A text is empty, or the model classifies.
            ExecutionError: The runtime failed, or the session is closed.
        """
        self._check_open()
        self._check_no_language()
        port = self.artifact.signatures[0].outputs[0]
        if port.role in _CHOICES:
            raise InputError("The model classifies, it gives no embedding. Use classify().")
        if isinstance(texts, str):
            return self._embed(texts, port)
        return [self._embed(text, port) for text in _several(texts)]

    def run(self, inputs: Mapping[str, Any]) -> Arrays:
        """Run the model on arrays.

        Token ids need no padding: the shortest signature that takes them is used, and what is padded is cut off again.

        Args:
            inputs: Every input by the name that the manifest gives it, with its batch axis: ids are ``(1, T)``. Dtypes are
                converted where nothing is lost.

        Returns:
            Every output by name, with its batch axis.

        Raises:
            InputError: A name, dtype, shape or token id does not fit.
            ExecutionError: The runtime failed, or the session is closed.
        """
        self._check_open()
        self._check_no_language()
        signatures = self.artifact.signatures
        arrays = feed.check_arrays(signatures, inputs, self._vocabulary)
        tokens = feed.token_port(signatures[0])
        if tokens is None:
            return self._run(signatures[0], arrays)
        count = arrays[tokens.name].shape[1]
        signature = feed.smallest(signatures, count)
        outputs = self._run(signature, feed.fill(signature, arrays, self._pad_id))
        return feed.cut(outputs, signature.sequence_length, count)

    def generate(self, prompt: str | Sequence[int], **options: Unpack[GenerateOptions]) -> Generation:
        """Return what the model says after a prompt, as an iterator over pieces of text.

        >>> answer = session.generate("Once upon a time", max_new_tokens=100)
        >>> for piece in answer:
        ...     print(piece, end="", flush=True)
        >>> answer.result.finish_reason

        Nothing is computed before the first piece is asked for. One answer is made at a time: another thread's waits for
        its end, and one that the same thread left half read is ended.

        Args:
            prompt: A text, or token ids. The tokenizer begins a text with its start token, where it has one.
            options: See `GenerateOptions`.

        Raises:
            InputError: The prompt or an option cannot be used, or the bundle does not generate.
            ExecutionError: The session is closed; while reading also: the runtime failed.
        """
        language, guess, others = self._for(options)
        return language.generate(prompt, guess, **others)

    def chat(self, messages: Sequence[Message], **options: Unpack[GenerateOptions]) -> Generation:
        """Return the model's answer to a conversation, as `generate` does. `Conversation` keeps the messages by itself.

        The bundle's chat template makes the prompt. With the answer and a new message added to the list, the next call
        computes little more than these.

        Args:
            messages: Such as ``{"role": "user", "content": "Hello"}``, from the first to the last.
            options: See `GenerateOptions`.

        Raises:
            InputError: The messages or an option cannot be used, or the bundle does not generate or has no template.
            BundleError: Its template is not valid.
            ExecutionError: The session is closed; while reading also: the runtime failed.
        """
        language, guess, others = self._for(options)
        return language.chat(messages, guess, **others)

    @overload
    def translate(
        self, sources: Readable, *, stream: Literal[False] = False, **options: Unpack[TranslateOptions]
    ) -> TranslationResult: ...
    @overload
    def translate(
        self,
        sources: list[str] | tuple[str, ...],
        *,
        stream: Literal[False] = False,
        **options: Unpack[TranslateOptions],
    ) -> list[TranslationResult]: ...
    @overload
    def translate(
        self, sources: Readable, *, stream: Literal[True], **options: Unpack[TranslateOptions]
    ) -> Translation: ...
    def translate(
        self,
        sources: Readable | list[str] | tuple[str, ...],
        *,
        stream: bool = False,
        **options: Unpack[TranslateOptions],
    ) -> TranslationResult | list[TranslationResult] | Translation:
        """Return the translation of a text, or of each of several.

        >>> session.translate("Where is the station?", beams=4).text
        >>> for piece in session.translate("Where is the station?", stream=True):
        ...     print(piece, end="", flush=True)

        Several texts are read and answered side by side, those of about the same length together, where the file takes any
        number (ONNX).

        Args:
            sources: A text, or several; token ids without those that the bundle puts before and after them; or, where the model
                hears, float32 frames ``(n, M)``.
            stream: Return an iterator over pieces of the text instead, which computes nothing before the first is asked for. Of
                one text, with one beam.
            options: See `TranslateOptions`.

        Raises:
            InputError: A source or an option cannot be used, or the bundle does not translate.
            ExecutionError: The runtime failed, or the session is closed.
        """
        translator = self._for_translation()
        several = isinstance(sources, (list, tuple)) and (
            not sources or not all(isinstance(part, (int, np.integer)) for part in sources)
        )
        if stream:
            if several:
                raise InputError("stream=True is for one text: its pieces come one after the other.")
            return translator.stream(cast(Readable, sources), **options)
        if several:
            return translator.translate(cast(Sequence[Readable], sources), **options)
        return translator.translate([cast(Readable, sources)], **options)[0]

    def transcribe(
        self, audio: str | Path | NDArray[np.float32], **options: Unpack[TranslateOptions]
    ) -> TranslationResult:
        """Return what is said in a recording.

        Args:
            audio: A WAV file of 16-bit PCM at the model's rate, or float32 samples ``(n,)`` in [-1, 1] at it; no longer than
                the model hears at once.
            options: See `TranslateOptions`.

        Raises:
            InputError: The audio or an option cannot be used, or the bundle does not hear.
            ExecutionError: The runtime failed, or the session is closed.
        """
        from edgelm_runtimes.audio import log_mel, read_wave

        translator = self._for_translation()
        record = self.manifest.translation
        if record is None or record.audio is None:
            raise InputError(f"The bundle '{self.manifest.name}' does not hear: its task is '{self.manifest.task}'.")
        samples = audio if isinstance(audio, np.ndarray) else read_wave(audio, record.audio)
        return translator.translate([log_mel(samples, record.audio)], **options)[0]

    def live_translation(self, *, hold: int | None = None, **options: Unpack[TranslateOptions]) -> LiveTranslation:
        """Return a translation of a text that grows, such as what a speech recogniser has heard so far.

        Args:
            hold: Tokens at the end of each translation that are not promised yet; None promises what two updates agree on.
            options: See `TranslateOptions`; each update is a call.

        Raises:
            InputError: An option cannot be used, or the bundle does not translate text.
            ExecutionError: The session is closed.
        """
        return self._for_translation().live(hold=hold, **options)

    def close(self) -> None:
        """Give back the memory, and remove what was unpacked. Closing twice does nothing.

        An answer that is being made ends before its next step.
        """
        with self._lock:
            if not self._closed:
                self._closed = True
                if self._language is not None:
                    self._language.close()
                elif self._translator is not None:
                    self._translator.close()
                else:
                    self._program.close()
                self._bundle.close()

    def __enter__(self) -> Session:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def _check_open(self) -> None:
        if self._closed:
            raise ExecutionError("This session was closed: load the bundle again.")

    def _check_no_language(self) -> None:
        if self._language is not None:
            raise InputError(f"The bundle '{self.manifest.name}' holds a language model. Use generate() or chat().")
        if self._translator is not None:
            raise InputError(f"The bundle '{self.manifest.name}' holds an encoder-decoder. Use translate().")

    def _for_translation(self) -> Translator:
        self._check_open()
        if self._translator is None:
            raise InputError(
                f"The bundle '{self.manifest.name}' does not translate: its task is '{self.manifest.task}'. "
                f"Use {'generate() or chat()' if self._language else 'classify(), embed() or run()'}."
            )
        return self._translator

    def _for(self, options: GenerateOptions) -> tuple[LanguageModel, str | LanguageModel | None, dict[str, Any]]:
        """Return the language model, who guesses for it, and the other options."""
        self._check_open()
        if self._language is None:
            raise InputError(
                f"The bundle '{self.manifest.name}' does not generate: its task is '{self.manifest.task}'. "
                f"Use {'translate()' if self._translator else 'classify(), embed() or run()'}."
            )
        others = {name: value for name, value in options.items() if name != "speculate"}
        guess = options.get("speculate")
        if guess is None or isinstance(guess, str):
            return self._language, guess, others
        if not isinstance(guess, Session):
            raise InputError(
                f"speculate is {guess!r}, and has to be 'off', 'prompt-lookup', or a session of a smaller model."
            )
        guess._check_open()
        if guess._language is None:
            raise InputError(f"speculate is a session of '{guess.manifest.name}', which does not generate.")
        return self._language, guess._language, others

    def _run(self, signature: Signature, inputs: Mapping[str, NDArray[Any]]) -> Arrays:
        with self._lock:
            self._check_open()
            return cast(Program, self._program).run(signature, inputs)

    def _run_text(self, encoded: Encoded) -> tuple[Arrays, Signature]:
        signature = feed.smallest(self.artifact.signatures, len(encoded.ids))
        inputs = feed.fill_text(signature, encoded.ids, encoded.segments, self._pad_id)
        return self._run(signature, inputs), signature

    def _classify(self, text: str, port: Port, top: int) -> Classification:
        start = self._clock()
        encoded = self.encode(text)
        tokenized = self._clock()
        outputs, signature = self._run_text(encoded)
        ran = self._clock()
        ranking = rank(probabilities(outputs[port.name], port.role), self.manifest.labels, top)
        return Classification(
            label=ranking[0][0],
            score=ranking[0][1],
            ranking=ranking,
            tokens=len(encoded.ids),
            truncated=encoded.truncated,
            sequence_length=signature.sequence_length or len(encoded.ids),
            timing=Timing(tokenized - start, ran - tokenized, self._clock() - start),
        )

    def _embed(self, text: str, port: Port) -> NDArray[np.float32]:
        encoded = self.encode(text)
        outputs, signature = self._run_text(encoded)
        values = feed.cut(outputs, signature.sequence_length, len(encoded.ids))[port.name]
        return np.asarray(values[0], np.float32)


def load(
    path: str | Path,
    *,
    runtime: str | None = None,
    device: str = "cpu",
    threads: int | None = None,
    fallback: Literal["error", "cpu"] = "error",
    verify: bool = True,
) -> Session:
    """Open a bundle and get it ready to answer.

    Args:
        path: A bundle: a folder or a file ``NAME.edgelm``.
        runtime: ``litert``, ``onnx`` or ``tflite``; None takes an installed one that the bundle was verified in.
        device: ``cpu``, ``gpu``, ``edgetpu``, ``edgetpu:usb:1`` or ``delegate:LIBRARY`` (`edgelm_runtimes.device`).
        threads: Of the runtime; None takes the cores that this process may use, at most 4, and 1 for a small model.
        fallback: What to do where the device does not take the bundle: ``error``, or ``cpu``, with a warning and a note in
            `Session.facts`.
        verify: Whether a device but the CPU is first tried in a process of its own, and its answers are held against the
            bundle's golden vectors: a driver may end the process, or answer wrongly.

    Raises:
        InputError: There is no such device.
        BundleError: The bundle is missing, damaged, or too new.
        RuntimeUnavailableError: No runtime is installed that can run it, or the one asked for cannot.
        MissingPackageError: The runtime asked for is not installed.
    """
    start = perf_counter()
    bundle = open_bundle(path)
    try:
        name = default_runtime(bundle.manifest) if runtime is None else runtime
        artifact = choose_artifact(bundle.manifest, name)
        options = ProgramOptions(device, default_threads(bundle.manifest) if threads is None else threads)
        program, note = _open_on(bundle, artifact, name, options, fallback=fallback, verify=verify)
        try:
            session = Session(bundle, artifact, program, note=note)
        except BaseException:
            program.close()
            raise
    except BaseException:
        bundle.close()
        raise
    session.load_s = perf_counter() - start
    return session


def _open_on(
    bundle: Bundle, artifact: Artifact, runtime: str, options: ProgramOptions, *, fallback: str, verify: bool
) -> tuple[AnyProgram, str | None]:
    """Open a model file on its device, tried before; or on the CPU where it may, with a note that says so."""
    if fallback not in ("error", "cpu"):
        raise InputError(f"fallback is {fallback!r}, and has to be 'error' or 'cpu'.")
    if options.device == "cpu":
        return _open(bundle, artifact, runtime, options), None
    parse_device(options.device)
    try:
        if verify:
            probe(bundle.folder, runtime=runtime, device=options.device, threads=options.threads)
        return _open(bundle, artifact, runtime, options), None
    except (RuntimeUnavailableError, ExecutionError) as error:
        if fallback == "error":
            raise
        note = f"asked for {options.device}, runs on the CPU: {error}"
        warnings.warn(note, UserWarning, stacklevel=3)
        return _open(bundle, artifact, runtime, dataclasses.replace(options, device="cpu")), note


def _open(bundle: Bundle, artifact: Artifact, runtime: str, options: ProgramOptions) -> AnyProgram:
    """Open a model file as what the bundle's task takes."""
    task = bundle.manifest.task
    open_file: Callable[..., AnyProgram] = open_program
    if task == "generate":
        open_file = open_causal
    elif task in _TRANSLATING:
        open_file = open_seq2seq
    return open_file(runtime, bundle.path(artifact.file), artifact.signatures, options)


def _vocabulary(manifest: Manifest) -> int | None:
    """Return what token ids have to be below, where anything in the manifest says so."""
    if manifest.tokenizer is not None:
        return manifest.tokenizer.vocabulary_size
    known = manifest.model.architecture.get("vocabulary")
    return known if isinstance(known, int) else None


def _several(texts: list[str] | tuple[str, ...]) -> list[str]:
    if not isinstance(texts, (list, tuple)):
        raise InputError(f"A text or a list of texts was expected, and {type(texts).__name__} was given.")
    return list(texts)

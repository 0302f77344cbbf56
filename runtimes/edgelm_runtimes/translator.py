"""An encoder-decoder of a bundle: its program, tokenizers and settings, ready to translate."""

from __future__ import annotations

import operator
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgelm.bundle import Artifact, Bundle
from edgelm.errors import BundleError, InputError
from edgelm_runtimes.detokenize import Detokenizer
from edgelm_runtimes.generation import Translation
from edgelm_runtimes.live_translation import LiveTranslation
from edgelm_runtimes.prompt import Prompter
from edgelm_runtimes.row_decoding import Target
from edgelm_runtimes.seq2seq_program import Seq2SeqProgram
from edgelm_runtimes.text import read_tokenizer
from edgelm_runtimes.translation_result import TranslationResult
from edgelm_runtimes.translation_run import ReadSource, Request, TranslationEngine, TranslationRun
from edgelm_runtimes.translation_settings import TranslationSettings, resolve_translation
from edgelm_runtimes.turns import Ticket, Turns

__all__ = ["Readable", "Translator"]

# What can be read: a text, its token ids without those before and after it, or of a model that hears float32 frames (n, M).
Readable = str | Sequence[int] | NDArray[np.float32]


class Translator:
    """What `Session.translate` asks. Safe to use from several threads, which are answered one after the other.

    Args:
        bundle: With the task ``translate`` or ``transcribe``.
        artifact: The model file that is used.
        program: The artifact, opened in a runtime; `close` closes it.
        clock: Gives seconds.

    Raises:
        BundleError: The bundle's settings or files do not belong together.
        TokenizerError: A tokenizer cannot be read.
    """

    def __init__(self, bundle: Bundle, artifact: Artifact, program: Seq2SeqProgram, clock: Callable[[], float]) -> None:
        record, tokenizer = bundle.manifest.translation, bundle.manifest.tokenizer
        if record is None:
            raise BundleError(f"The bundle '{bundle.manifest.name}' translates, and has no settings for it.")
        if record.vocabulary_size != program.vocabulary_size:
            raise BundleError(
                f"{artifact.file} gives {program.vocabulary_size:,} scores a step, and manifest.json says "
                f"{record.vocabulary_size:,}: they do not belong together; convert the model again."
            )
        self._record = record
        self._clock = clock
        self._engine = TranslationEngine(program, Turns(), clock)
        self._source_length = min(record.source_length, program.source_length)
        self._target_length = min(record.target_length, program.target_length)
        if not 1 <= len(record.target_prefix) <= self._target_length:
            raise BundleError(
                f"Answers of the bundle '{bundle.manifest.name}' begin with {len(record.target_prefix)} tokens, and have "
                f"{self._target_length} positions: convert the model again."
            )
        read = None if tokenizer is None else read_tokenizer(bundle.path(tokenizer.file))
        self._reader = Prompter(read, record.vocabulary_size if tokenizer is None else tokenizer.vocabulary_size)
        written = record.target_tokenizer
        self._writer = self._reader
        if written is not None:
            self._writer = Prompter(read_tokenizer(bundle.path(written.file)), written.vocabulary_size)
        self._forbidden = np.array(record.suppressed_ids, np.int64)

    @property
    def source_length(self) -> int:
        """The most source tokens, with those before and after the text; of audio, the most frames."""
        return self._source_length

    def translate(self, sources: Sequence[Readable], **options: Any) -> list[TranslationResult]:
        """Return the translation of each source; see `Session.translate`.

        Raises:
            InputError: A source or an option cannot be used.
            ExecutionError: The runtime failed, or the session was closed.
        """
        if not sources:
            return []
        run = self._run(sources, options)
        run.ticket.running = True
        for _ in run.pieces():
            pass
        return list(run.results)

    def stream(self, source: Readable, **options: Any) -> Translation:
        """Return the translation of a source, piece by piece; see `Session.translate`.

        Raises:
            InputError: The source or an option cannot be used.
        """
        run = self._run([source], options)
        if run.beams > 1:
            raise InputError(
                "A beam search knows its answer at its end alone: take stream=True or several beams, not both."
            )
        return Translation(run)

    def live(self, *, hold: int | None, **options: Any) -> LiveTranslation:
        """Return a translation of a source that grows; see `Session.live_translation`.

        Raises:
            InputError: An option cannot be used, or the model does not read text.
        """
        self._settings(options)
        if self._record.audio is not None:
            raise InputError("The model hears: a live translation is of text that grows.")

        def translate(text: str, given: Sequence[int]) -> TranslationResult:
            run = self._run([text], options, given=tuple(given))
            run.ticket.running = True
            for _ in run.pieces():
                pass
            return run.results[0]

        return LiveTranslation(translate, self._detokenizer, self._clock, hold=hold)

    def source_ids(self, text: str | Sequence[int]) -> list[int]:
        """Return the ids of a source, all of them, with those before and after the text.

        Raises:
            InputError: It is no text and no list of ids, gives no token, or the bundle has no tokenizer.
        """
        if isinstance(text, str):
            if not text or text.isspace():
                raise InputError("The text is empty: there is nothing to translate.")
            ids = self._reader.encode(text, special=False)
        else:
            ids = self._ids(text)
        return [*self._record.source_prefix, *ids, *self._record.source_suffix]

    def close(self) -> None:
        """End the answer at hand, and give back the memory."""
        self._engine.closed = True
        ticket = Ticket()
        self._engine.turns.take(ticket, lambda: True, at_once=True)
        try:
            self._engine.program.close()
        finally:
            self._engine.turns.give_back(ticket)

    def _run(self, sources: Sequence[Readable], options: dict[str, Any], given: tuple[int, ...] = ()) -> TranslationRun:
        began = self._clock()
        settings = self._settings(options)
        read = tuple(self._read(source, settings) for source in sources)
        prefix = (*self._record.target_prefix, *given)
        room = self._target_length - len(prefix) + 1
        target = Target(
            prefix=prefix[: self._target_length],
            stop_ids=frozenset(self._record.stop_ids),
            forbidden=self._forbidden,
            max_new_tokens=max(1, min(settings.max_new_tokens - len(given), room)),
            length_penalty=settings.length_penalty,
        )
        given_count = len(target.prefix) - len(self._record.target_prefix)
        request = Request(
            read, target, given_count, settings, self._detokenizer, self._clock() - began, self._record.padding_id
        )
        return TranslationRun(self._engine, request)

    def _settings(self, options: dict[str, Any]) -> TranslationSettings:
        room = self._target_length - len(self._record.target_prefix) + 1
        return resolve_translation(room, self._engine.program.row_counts, **options)

    def _detokenizer(self) -> Detokenizer | None:
        return self._writer.stream()

    def _read(self, source: Readable, settings: TranslationSettings) -> ReadSource:
        """Return a source as the program takes it.

        Raises:
            InputError: It cannot be read, or is too long and may not be cut.
        """
        if self._record.audio is not None:
            return self._frames(source)
        ids = self.source_ids(source.tolist() if isinstance(source, np.ndarray) else source)
        over = len(ids) - self._source_length
        if over > 0:
            if not settings.cut:
                raise InputError(
                    f"The source has {len(ids):,} tokens, and the model reads {self._source_length:,}: translate it in "
                    "parts, or let its end be left out with cut=True."
                )
            suffix = self._record.source_suffix
            kept = self._source_length - len(suffix)
            ids = [*ids[:kept], *suffix]
        return ReadSource(np.array(ids, np.int32), max(over, 0))

    def _frames(self, source: Readable) -> ReadSource:
        audio = self._record.audio
        bands = 0 if audio is None else audio.bands
        if not isinstance(source, np.ndarray) or source.ndim != 2 or source.shape[1] != bands or not len(source):
            raise InputError(f"The model hears: give it frames, float32 (n, {bands}), instead of a text.")
        if len(source) > self._source_length:
            raise InputError(
                f"The source has {len(source):,} frames, and the model hears {self._source_length:,} at once."
            )
        return ReadSource(np.ascontiguousarray(source, np.float32), 0)

    def _ids(self, source: Sequence[int]) -> list[int]:
        try:
            ids = [operator.index(token) for token in source]
        except TypeError as error:
            raise InputError(
                f"A source is a text or a list of token ids, and {type(source).__name__} was given ({error})."
            ) from error
        size = self._reader.size
        if not ids or min(ids) < 0 or max(ids) >= size:
            raise InputError(
                f"A source has at least one token, with the ids 0 to {size - 1:,}, and {ids[:8]} was given."
            )
        return ids

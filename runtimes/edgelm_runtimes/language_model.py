"""A language model of a bundle: its program, tokenizer, chat template and settings, ready to answer."""

from __future__ import annotations

import operator
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from edgelm.bundle import Artifact, Bundle, GenerationRecord
from edgelm.errors import BundleError, InputError
from edgelm_runtimes.decoding import Decoding, Engine, Request
from edgelm_runtimes.generation import Generation
from edgelm_runtimes.generation_settings import GenerationSettings, resolve
from edgelm_runtimes.program import CausalProgram
from edgelm_runtimes.prompt import Prompter, check_ids, fit, open_prompter
from edgelm_runtimes.sequence import CachedSequence
from edgelm_runtimes.speculation import DRAFT_TOKENS, PromptLookup
from edgelm_runtimes.turns import Ticket, Turns

if TYPE_CHECKING:
    from edgelm_runtimes.chat_template import ChatTemplate, Message

__all__ = ["LanguageModel"]

# Tokens of a prompt in one call, where the file takes any number; where there is a deadline; and at most. A call is not
# interrupted: what is asked for in one is what a cancelled answer still computes.
_CHUNK, _SHORT_CHUNK, _LONGEST_CHUNK = 128, 32, 256
_MAX_TEMPLATE_BYTES = 2**20


class LanguageModel:
    """What `Session.generate` and `Session.chat` ask. Safe to use from several threads, which answer one after the other.

    Args:
        bundle: With the task ``generate``.
        artifact: The model file that is used.
        program: The artifact, opened in a runtime; `close` closes it.
        clock: Gives seconds.

    Raises:
        BundleError: The bundle's settings or files do not belong together.
        TokenizerError: The tokenizer cannot be read.
    """

    def __init__(self, bundle: Bundle, artifact: Artifact, program: CausalProgram, clock: Callable[[], float]) -> None:
        record, tokenizer = bundle.manifest.generation, bundle.manifest.tokenizer
        if record is None:
            raise BundleError(f"The bundle '{bundle.manifest.name}' generates, and has no settings for it.")
        if record.vocabulary_size != program.vocabulary_size:
            raise BundleError(
                f"{artifact.file} gives {program.vocabulary_size:,} scores a step, and manifest.json says "
                f"{record.vocabulary_size:,}: they do not belong together; convert the model again."
            )
        self.prompter: Prompter = open_prompter(
            None if tokenizer is None else bundle.path(tokenizer.file), tokenizer, record
        )
        self._bundle = bundle
        self._record: GenerationRecord = record
        self._clock = clock
        self._template: ChatTemplate | None = None
        lengths = [
            signature.sequence_length
            for signature in artifact.signatures
            if signature.kind == "prefill" and signature.sequence_length is not None
        ]
        self._keeps_tokens = not (program.facts.runtime == "onnx" and bundle.manifest.recipe.startswith("dynamic_"))
        self.engine = Engine(
            sequence=CachedSequence(program, clock),
            turns=Turns(),
            clock=clock,
            context_length=min(program.context_length, record.context_length),
            vocabulary_size=program.vocabulary_size,
            chunk=max((length for length in lengths if length <= _LONGEST_CHUNK), default=min(lengths, default=_CHUNK)),
            short_chunk=min(lengths, default=_SHORT_CHUNK),
            draft_tokens=_draft_tokens(artifact),
        )

    @property
    def context_length(self) -> int:
        """The most tokens that the model sees, prompt and answer together."""
        return self.engine.context_length

    def generate(
        self, prompt: str | Sequence[int], speculate: str | LanguageModel | None = None, **options: Any
    ) -> Generation:
        """Return an answer that goes on from a prompt; see `Session.generate`.

        Raises:
            InputError: The prompt or an option cannot be used.
        """
        began = self._clock()
        settings = resolve(self._record, self.context_length, **options)
        ids = self.prompter.encode(prompt) if isinstance(prompt, str) else self._ids(prompt)
        return self._start(ids, ids, settings, speculate, began)

    def chat(
        self, messages: Sequence[Message], speculate: str | LanguageModel | None = None, **options: Any
    ) -> Generation:
        """Return the answer to a conversation; see `Session.chat`.

        Raises:
            InputError: The messages or an option cannot be used, or the model has no chat template.
            BundleError: The template is no valid Jinja.
        """
        began = self._clock()
        settings = resolve(self._record, self.context_length, **options)
        ids = self.prompter.encode(self._chat_template().render(messages), special=False)
        # An answer to a message is a text of its own: it does not begin with the space before its first word.
        return self._start(ids, (), settings, speculate, began)

    def close(self) -> None:
        """End the answer at hand, and give back the memory."""
        self.engine.closed = True
        ticket = Ticket()
        self.engine.turns.take(ticket, lambda: True, at_once=True)
        try:
            self.engine.sequence.program.close()
        finally:
            self.engine.turns.give_back(ticket)

    def _ids(self, prompt: Sequence[int]) -> list[int]:
        try:
            ids = [operator.index(token) for token in prompt]
        except TypeError as error:
            raise InputError(
                f"A prompt is a text or a list of token ids, and {type(prompt).__name__} was given ({error})."
            ) from error
        check_ids(ids, self.engine.vocabulary_size)
        return ids

    def _start(
        self,
        ids: list[int],
        context: Sequence[int],
        settings: GenerationSettings,
        speculate: str | LanguageModel | None,
        began: float,
    ) -> Generation:
        text = self.prompter.stream(context)
        if text is None and settings.stops:
            raise InputError("The bundle has no tokenizer: its answers have no text, and stop can never be met.")
        request = Request(
            ids=self._fit(ids, settings),
            prompt_tokens=len(ids),
            settings=settings,
            stop_ids=frozenset(self._record.stop_ids),
            text=text,
            tokenize_s=self._clock() - began,
            guess=self._guess(speculate, settings),
        )
        return Generation(Decoding(self.engine, request))

    def _fit(self, ids: list[int], settings: GenerationSettings) -> list[int]:
        """Return a prompt that fits into the context, with room for some of the answer where a part is left out."""
        length = self.context_length
        if len(ids) <= length:
            return ids
        if settings.kept is None:
            raise InputError(
                f"The prompt has {len(ids):,} tokens, and the model takes {length:,}: make it shorter, or let a part of it "
                "be left out with window='keep_start' or window='keep_end'."
            )
        return fit(ids, length - min(settings.max_new_tokens - 1, length // 4), settings.kept)

    def _guess(
        self, speculate: str | LanguageModel | None, settings: GenerationSettings
    ) -> PromptLookup | Engine | None:
        if speculate is None or speculate == "off":
            return None
        if not (self._keeps_tokens or settings.inexact) and settings.sampling.certain:
            raise InputError(
                "Guessing may change the likeliest tokens here: integers in ONNX Runtime are rounded otherwise where several "
                "tokens are computed at once. Use runtime='litert', or allow it with inexact=True (--inexact)."
            )
        if speculate == "prompt-lookup":
            return PromptLookup()
        if not isinstance(speculate, LanguageModel):
            raise InputError(
                f"speculate is {speculate!r}, and has to be 'off', 'prompt-lookup', or a session of a smaller model."
            )
        if speculate is self:
            raise InputError("speculate is the session itself: a model has nothing to gain from its own guesses.")
        if not speculate.prompter.same_tokens(self.prompter):
            raise InputError(
                "The session given as speculate has another tokenizer: only a model with the same tokens can guess them."
            )
        return speculate.engine

    def _chat_template(self) -> ChatTemplate:
        if self._template is None:
            # Jinja takes 30 ms to import: only who chats waits for it.
            from edgelm_runtimes.chat_template import ChatTemplate

            name = self._record.chat_template
            if name is None:
                raise InputError(
                    f"The bundle '{self._bundle.manifest.name}' has no chat template: use generate() with a prompt."
                )
            path = self._bundle.path(name)
            if path.stat().st_size > _MAX_TEMPLATE_BYTES:
                raise BundleError(f"{name} has {path.stat().st_size:,} bytes: no chat template is that large.")
            try:
                source = path.read_text(encoding="utf-8")
            except (OSError, UnicodeDecodeError) as error:
                raise BundleError(f"The chat template {name} cannot be read ({error}).") from error
            stop = next(iter(self._record.stop_ids), None)
            self._template = ChatTemplate(
                source, start=self.prompter.token(self._record.start_id), stop=self.prompter.token(stop)
            )
        return self._template


def _draft_tokens(artifact: Artifact) -> int:
    """Return how many guesses one call checks: with the token before them, as many as the file takes at once."""
    lengths = [
        signature.sequence_length - 1
        for signature in artifact.signatures
        if signature.kind == "verify" and signature.sequence_length is not None and signature.sequence_length > 1
    ]
    return min(lengths, default=DRAFT_TOKENS)

"""A conversation: what was said so far, and the next answer."""

from __future__ import annotations

from typing import TYPE_CHECKING, Unpack

from edgelm_runtimes.generation import Generation
from edgelm_runtimes.generation_settings import GenerateOptions

if TYPE_CHECKING:
    from edgelm_runtimes.session import Session

__all__ = ["Conversation"]


class Conversation:
    """Keeps the messages of a conversation, so that each answer knows those before it. For one thread.

    What the session computed for the earlier messages is used again, as long as it is asked nothing else between.

    >>> conversation = Conversation(session, system="Answer in one sentence.")
    >>> for piece in conversation.say("What is a delegate?"):
    ...     show(piece)

    Args:
        session: With a chat template.
        system: A message that stands before all others; None for what the template puts there.
        options: As of `Session.chat`, for each answer.
    """

    def __init__(self, session: Session, *, system: str | None = None, **options: Unpack[GenerateOptions]) -> None:
        self._session = session
        self._options = options
        self._messages = [] if system is None else [{"role": "system", "content": system}]
        self._open: tuple[str, Generation] | None = None

    @property
    def messages(self) -> list[dict[str, str]]:
        """What was said so far, as `Session.chat` takes it. An answer that is not read to its end is ended for that."""
        self._settle()
        return [dict(message) for message in self._messages]

    def say(self, text: str) -> Generation:
        """Say something and return the answer, which comes piece by piece.

        An answer that was cancelled, or left half read, counts as far as it came.

        Raises:
            InputError: The conversation has grown longer than the model's context, or the text cannot be used; nothing was
                said then.
        """
        messages = [*self.messages, {"role": "user", "content": text}]
        answer = self._session.chat(messages, **self._options)
        self._open = (text, answer)
        return answer

    def _settle(self) -> None:
        """Put the last answer among the messages; one that failed is forgotten, with what it was an answer to."""
        if self._open is None:
            return
        (text, answer), self._open = self._open, None
        answer.close()
        if answer.ended:
            self._messages.append({"role": "user", "content": text})
            self._messages.append({"role": "assistant", "content": answer.result.text})

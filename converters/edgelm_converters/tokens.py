"""The tokenizer of a conversion: the user's file, the one that a KerasHub model carries, or none."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgelm.bundle import TokenizerRecord
from edgelm.errors import TokenizerError
from edgelm_converters.keras_model import carried_tokenizer
from edgelm_converters.source import Source
from edgelm_converters.spec import TransformerSpec

if TYPE_CHECKING:
    from tokenizers import Tokenizer

__all__ = ["Tokens", "find_tokens"]

_UNBOUNDED = 1 << 20


@dataclass(frozen=True)
class Tokens:
    """A tokenizer and what is known of the ids.

    Attributes:
        tokenizer: None where the artifact takes ids.
        pad_id: The id that fills up.
        max_length: Where texts are cut; None where nothing says.
        vocabulary_size: Ids are below this: rows of the model's embedding, or ids of the tokenizer; 2 where neither is known.
        notes: For the manifest.
    """

    tokenizer: Tokenizer | None
    pad_id: int
    max_length: int | None
    vocabulary_size: int
    notes: tuple[str, ...]

    def cut_at(self, maximum: int | None) -> Tokens:
        """Return the same with a tokenizer that cuts texts at `maximum` tokens and never pads.

        Raises:
            TokenizerError: `maximum` leaves no room for the tokenizer's own special tokens.
        """
        if self.tokenizer is None or maximum is None:
            return self
        from tokenizers import Tokenizer

        special = self.tokenizer.num_special_tokens_to_add(is_pair=False)
        if maximum <= special:
            raise TokenizerError(
                f"A length of {maximum} tokens leaves no room for a text beside the tokenizer's {special} special tokens."
            )
        tokenizer = Tokenizer.from_str(self.tokenizer.to_str())
        tokenizer.enable_truncation(maximum)
        tokenizer.no_padding()
        return dataclasses.replace(self, tokenizer=tokenizer, max_length=maximum)

    def with_tokenizer(self, tokenizer: Tokenizer | None, vocabulary_size: int) -> Tokens:
        """Return the same with another tokenizer, of a model whose vocabulary was trimmed; texts are cut where they were.

        Raises:
            TokenizerError: The tokenizer has ids beyond the vocabulary.
        """
        if tokenizer is None or tokenizer is self.tokenizer:
            return dataclasses.replace(self, vocabulary_size=vocabulary_size)
        from edgelm_converters.tokenizer import check_fits, describe

        check_fits(tokenizer, vocabulary_size)
        record = describe(tokenizer, max_length=self.max_length or _UNBOUNDED)
        return dataclasses.replace(self, tokenizer=tokenizer, pad_id=record.pad_id, vocabulary_size=vocabulary_size)

    def bounded_by(self, context: int) -> Tokens:
        """Return the same with a tokenizer that neither cuts nor pads: a language model refuses what is too long."""
        if self.tokenizer is None:
            return self
        from tokenizers import Tokenizer

        tokenizer = Tokenizer.from_str(self.tokenizer.to_str())
        tokenizer.no_truncation()
        tokenizer.no_padding()
        return dataclasses.replace(self, tokenizer=tokenizer, max_length=context)

    def record(self) -> TokenizerRecord | None:
        """Return the manifest's entry; None where there is no tokenizer."""
        if self.tokenizer is None or self.max_length is None:
            return None
        return TokenizerRecord("tokenizer.json", self.pad_id, self.max_length, self.vocabulary_size)


def find_tokens(
    given: str | Path | Tokenizer | None, source: Source, spec: TransformerSpec | None, *, rows: int | None = None
) -> Tokens:
    """Find the tokenizer: the one that is given, else the one that a KerasHub model carries.

    Args:
        given: What the user gives.
        source: The model.
        spec: The same; None where it was not recognised.
        rows: Of the embedding that the ids are for, where it is not `TransformerSpec.embeddings`.

    Raises:
        TokenizerError: It cannot be read, reads texts otherwise than the one that it was made from, or has ids beyond the
            rows of the model's embedding.
    """
    from edgelm_converters.tokenizer import check_fits, describe, read_tokenizer

    rows = rows or (spec.vocabulary_size if spec else _embedding_rows(source.model))
    notes: tuple[str, ...] = ()
    if given is None and source.preprocessor is None:
        given = _carried(source.model)
    if given is None and source.preprocessor is not None:
        tokenizer, notes = _from_preprocessor(source.preprocessor)
        length = getattr(source.preprocessor, "sequence_length", None)
    elif given is None:
        note = "The model's vocabulary is not known, so the check used the ids 0 and 1 alone: give --calibration data."
        return Tokens(None, 0, None, rows or 2, () if rows or source.kind == "keras" else (note,))
    else:
        tokenizer = read_tokenizer(Path(given)) if isinstance(given, (str, Path)) else given
        length = tokenizer.truncation["max_length"] if tokenizer.truncation else None
    record = describe(tokenizer, max_length=length or _UNBOUNDED)
    if rows is not None:
        check_fits(tokenizer, rows)
    return Tokens(tokenizer, record.pad_id, length, rows or record.vocabulary_size, notes)


def _carried(model: Any) -> Tokenizer | None:
    """Return the tokenizer that travels with a model which edgelm itself saved."""
    text = carried_tokenizer(model)
    if text is None:
        return None
    from tokenizers import Tokenizer

    tokenizer: Tokenizer = Tokenizer.from_str(text)
    return tokenizer


def _from_preprocessor(preprocessor: Any) -> tuple[Tokenizer, tuple[str, ...]]:
    """Convert KerasHub's tokenizer, and check it token by token on texts that are hard to read.

    Raises:
        TokenizerError: The two differ on plain text.
    """
    from edgelm_converters.tokenizer import PROBE_TEXTS, check_tokenizer, to_hugging_face

    length = getattr(preprocessor, "sequence_length", None) or _UNBOUNDED
    tokenizer = to_hugging_face(preprocessor, max_length=length)
    mismatches = check_tokenizer(preprocessor, tokenizer, PROBE_TEXTS)
    if len(mismatches) > len(PROBE_TEXTS) // 4:
        first = mismatches[0]
        raise TokenizerError(
            f"The converted tokenizer reads {len(mismatches)} of {len(PROBE_TEXTS)} probe texts otherwise than KerasHub's: "
            f"{first.text!r} gives {list(first.found)[:12]}, not {list(first.expected)[:12]}. Give a tokenizer.json with "
            "--tokenizer instead."
        )
    notes = tuple(f"The tokenizer reads {mismatch.text!r} otherwise than KerasHub's." for mismatch in mismatches)
    return tokenizer, notes


def _embedding_rows(model: Any) -> int | None:
    """Return the rows of a model's largest embedding; None where it has none, or where its layers are not known."""
    layers = model._flatten_layers() if hasattr(model, "_flatten_layers") else ()
    rows = [int(layer.input_dim) for layer in layers if isinstance(getattr(layer, "input_dim", None), int)]
    return max(rows, default=None)

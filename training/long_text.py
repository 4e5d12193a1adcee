"""Texts of more tokens than the model reads at once: what is read of them, and in which chunks (`data.long_text`).

head is the tokenizer's own truncation. For the rest texts are tokenized whole and cut here; what the tokenizer puts
around a text (<s> ...) is put around each chunk.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from training.errors import UserError
from training.spec import DataSpec

HEAD_SHARE = (128, 510)
"""Of the tokens that head+tail keeps: 128 of 510 in Sun et al. 2019, section 5.3.1."""


@dataclass(frozen=True, kw_only=True)
class Cutter:
    """Cuts tokenized texts as `data.long_text` says, where that is not head."""

    data: DataSpec
    before: list[int]
    """Tokens the tokenizer puts before each text."""
    after: list[int]

    @staticmethod
    def of(tokenizer: Any, data: DataSpec) -> Cutter:
        """Return the cutter for a tokenizer's texts. Raises UserError where no token of a text would have room."""
        before, after = tokens_around(tokenizer)
        cutter = Cutter(data=data, before=before, after=after)
        if cutter.room < 1:
            raise UserError(
                f"data.max_seq_length is {data.max_seq_length}, and the tokenizer puts {len(before) + len(after)} of "
                "its own around a text. Raise it."
            )
        if data.long_text == "chunk" and data.chunk_overlap >= cutter.room:
            raise UserError(
                f"data.chunk_overlap is {data.chunk_overlap}, and a chunk holds {cutter.room} tokens of a text. "
                "Lower it, or raise data.max_seq_length."
            )
        return cutter

    @property
    def room(self) -> int:
        """Tokens of a text that are read at once."""
        return self.data.max_seq_length - len(self.before) - len(self.after)

    def cut(self, row: list[int]) -> list[list[int]]:
        """Return the chunks of a tokenized text, each with the tokens around it; a text that fits comes as it is."""
        if len(row) <= self.data.max_seq_length:
            return [row]
        text, room = row[len(self.before) : len(row) - len(self.after)], self.room
        parts = [text[:room]]
        if self.data.long_text == "tail":
            parts = [text[-room:]]
        elif self.data.long_text == "head+tail":
            head = room * HEAD_SHARE[0] // HEAD_SHARE[1]
            parts = [text[:head] + text[head - room :]]
        elif self.data.long_text == "chunk":
            overlap = self.data.chunk_overlap
            starts = range(0, len(text) - overlap, room - overlap)[: self.data.max_chunks]
            parts = [text[start : start + room] for start in starts]
        return [[*self.before, *part, *self.after] for part in parts]


def tokens_around(tokenizer: Any) -> tuple[list[int], list[int]]:
    """Return the tokens a tokenizer puts before and after each text."""
    whole, text = (tokenizer("a", add_special_tokens=special)["input_ids"] for special in (True, False))
    places = range(len(whole) - len(text) + 1) if text else ()
    start = next((place for place in places if whole[place : place + len(text)] == text), None)
    if start is None:
        raise UserError(
            "the tokenizer does not say which tokens it puts around a text. Only data.long_text: head works with it."
        )
    return list(whole[:start]), list(whole[start + len(text) :])


def longest_whole(tokenizer: Any, data: DataSpec) -> int:
    """Return the tokens of the longest text of which nothing is cut."""
    if data.long_text != "chunk":
        return data.max_seq_length
    return data.max_seq_length + (data.max_chunks - 1) * (Cutter.of(tokenizer, data).room - data.chunk_overlap)


def what_is_read(data: DataSpec) -> str:
    """Return in words what is read of a long text."""
    number = f"{data.max_seq_length:,}"
    if data.long_text == "head+tail":
        return f"{number} tokens, a quarter of them the first and the rest the last ones"
    if data.long_text == "chunk":
        return (
            f"up to {data.max_chunks} chunks of {number} tokens that overlap by {data.chunk_overlap}, whose logits are "
            "averaged"
        )
    return f"the {'last' if data.long_text == 'tail' else 'first'} {number} tokens"

"""Texts to token ids, once a machine: the first rank tokenizes, the others and later jobs read the cache."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from training.cache import cached
from training.corpus.load import Split

FORMAT = 1
"""Raise it when what is cached changes."""


@dataclass(frozen=True, kw_only=True)
class TokenizedSplit:
    """The token ids of a split, end to end."""

    ids: list[str]
    """The id of each text, as in Split."""
    tokens: npt.NDArray[np.int32]
    """[total tokens]"""
    offsets: npt.NDArray[np.int64]
    """[texts + 1]: text i is tokens[offsets[i]:offsets[i + 1]]."""
    labels: list[Any]
    """As in Split."""

    @cached_property
    def lengths(self) -> list[int]:
        """Tokens of each text."""
        return np.diff(self.offsets).tolist()  # type: ignore[no-any-return]

    def __len__(self) -> int:
        return len(self.labels)

    def pack(self, indices: Sequence[int]) -> npt.NDArray[np.int64]:
        """Return the tokens of these texts end to end."""
        return np.concatenate([self.tokens[self.offsets[i] : self.offsets[i + 1]] for i in indices]).astype(np.int64)


def join_splits(splits: Sequence[TokenizedSplit]) -> TokenizedSplit:
    """Return the texts of several splits as one, in their order."""
    lengths = [length for split in splits for length in split.lengths]
    return TokenizedSplit(
        ids=[text_id for split in splits for text_id in split.ids],
        tokens=np.concatenate([split.tokens for split in splits]),
        offsets=np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64),
        labels=[label for split in splits for label in split.labels],
    )


def tokenize_split(split: Split, tokenizer: Any, max_seq_length: int) -> TokenizedSplit:
    """Return the split's token ids, each text cut to `max_seq_length` tokens."""
    key = hashlib.sha256(f"{FORMAT} {max_seq_length} {_identity(tokenizer)}".encode())
    for text in split.texts:
        key.update(text.encode())
        key.update(b"\0")

    def make(target: Path) -> None:
        with target.open("wb") as file:
            tokens, offsets = encode_texts(split.texts, tokenizer, max_seq_length)
            np.savez(file, tokens=tokens, offsets=offsets)

    path = cached(f"tokens/{key.hexdigest()[:32]}.npz", make)
    with np.load(path) as stored:
        return TokenizedSplit(ids=split.ids, tokens=stored["tokens"], offsets=stored["offsets"], labels=split.labels)


def _identity(tokenizer: Any) -> str:
    """Return what a tokenizer is made of, without the truncation and padding of its last call."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None:  # written in Python
        return f"{type(tokenizer).__name__} {sorted(tokenizer.get_vocab().items())}"
    return json.dumps({**json.loads(backend.to_str()), "truncation": None, "padding": None}, sort_keys=True)


def encode_texts(
    texts: list[str], tokenizer: Any, max_seq_length: int
) -> tuple[npt.NDArray[np.int32], npt.NDArray[np.int64]]:
    """Return tokens and offsets as in TokenizedSplit; a thousand texts are tokenized at a time."""
    rows: list[npt.NDArray[np.int32]] = []
    for start in range(0, len(texts), 1000):
        batch = tokenizer(texts[start : start + 1000], truncation=True, max_length=max_seq_length)
        rows += [np.asarray(row or [tokenizer.pad_token_id], dtype=np.int32) for row in batch["input_ids"]]
    lengths = np.asarray([len(row) for row in rows], dtype=np.int64)
    return np.concatenate(rows), np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)

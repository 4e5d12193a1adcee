"""Texts to token ids, once a machine: the first rank tokenizes, the others and later jobs read the cache."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from training.cache import cached
from training.corpus.load import Split
from training.long_text import Cutter
from training.spec import DataSpec

FORMAT = 2
"""Raise it when what is cached changes."""


@dataclass(frozen=True, kw_only=True)
class TokenizedSplit:
    """The token ids of a split, end to end."""

    ids: list[str]
    """The id of each text, as in Split."""
    tokens: npt.NDArray[np.int32]
    """[total tokens]"""
    offsets: npt.NDArray[np.int64]
    """[chunks + 1]: chunk c is tokens[offsets[c]:offsets[c + 1]]."""
    first_chunks: npt.NDArray[np.int64]
    """[texts + 1]: text i has the chunks from first_chunks[i] up to first_chunks[i + 1]."""
    labels: list[Any]
    """As in Split."""

    @staticmethod
    def of_texts(
        ids: list[str], labels: list[int], tokens: npt.NDArray[np.int32], offsets: npt.NDArray[np.int64]
    ) -> TokenizedSplit:
        """Return a split of texts that are one chunk each."""
        return TokenizedSplit(
            ids=ids, labels=labels, tokens=tokens, offsets=offsets, first_chunks=np.arange(len(labels) + 1)
        )

    @cached_property
    def lengths(self) -> list[tuple[int, ...]]:
        """Tokens of each chunk of each text."""
        lengths = np.diff(self.offsets).tolist()
        return [tuple(lengths[first:end]) for first, end in pairwise(self.first_chunks.tolist())]

    def __len__(self) -> int:
        return len(self.labels)

    def pack(self, indices: Sequence[int]) -> npt.NDArray[np.int64]:
        """Return the tokens of these texts end to end."""
        ends = self.offsets[self.first_chunks]
        return np.concatenate([self.tokens[ends[i] : ends[i + 1]] for i in indices]).astype(np.int64)


def join_splits(splits: Sequence[TokenizedSplit]) -> TokenizedSplit:
    """Return the texts of several splits as one, in their order."""
    return TokenizedSplit(
        ids=[text_id for split in splits for text_id in split.ids],
        tokens=np.concatenate([split.tokens for split in splits]),
        offsets=_ends(np.concatenate([np.diff(split.offsets) for split in splits])),
        first_chunks=_ends(np.concatenate([np.diff(split.first_chunks) for split in splits])),
        labels=[label for split in splits for label in split.labels],
    )


def tokenize_split(split: Split, tokenizer: Any, data: DataSpec) -> TokenizedSplit:
    """Return the split's token ids, cut as `data` says."""
    cut = (data.max_seq_length, data.long_text, data.chunk_overlap, data.max_chunks)
    key = hashlib.sha256(f"{FORMAT} {cut} {_identity(tokenizer)}".encode())
    for text in split.texts:
        key.update(text.encode())
        key.update(b"\0")

    def make(target: Path) -> None:
        with target.open("wb") as file:
            arrays: dict[str, Any] = encode_texts(split.texts, tokenizer, data)
            np.savez(file, **arrays)

    path = cached(f"tokens/{key.hexdigest()[:32]}.npz", make)
    with np.load(path) as stored:
        return TokenizedSplit(ids=split.ids, labels=split.labels, **stored)


def _identity(tokenizer: Any) -> str:
    """Return what a tokenizer is made of, without the truncation and padding of its last call."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None:  # written in Python
        return f"{type(tokenizer).__name__} {sorted(tokenizer.get_vocab().items())}"
    return json.dumps({**json.loads(backend.to_str()), "truncation": None, "padding": None}, sort_keys=True)


def encode_texts(texts: list[str], tokenizer: Any, data: DataSpec) -> dict[str, npt.NDArray[Any]]:
    """Return the arrays of a TokenizedSplit by their names; a thousand texts are tokenized at a time."""
    cutter = Cutter.of(tokenizer, data) if data.long_text != "head" else None
    rows: list[npt.NDArray[np.int32]] = []
    num_chunks: list[int] = []
    for start in range(0, len(texts), 1000):
        batch = texts[start : start + 1000]
        if cutter is None:
            encoded = tokenizer(batch, truncation=True, max_length=data.max_seq_length)["input_ids"]
            cut = [[row] for row in encoded]
        else:
            encoded = tokenizer(batch, truncation=False, verbose=False)["input_ids"]
            cut = [cutter.cut(row) for row in encoded]
        rows += [np.asarray(row or [tokenizer.pad_token_id], dtype=np.int32) for chunks in cut for row in chunks]
        num_chunks += [len(chunks) for chunks in cut]
    return {
        "tokens": np.concatenate(rows),
        "offsets": _ends(np.asarray([len(row) for row in rows])),
        "first_chunks": _ends(np.asarray(num_chunks)),
    }


def _ends(sizes: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
    """Return 0 and where each of these ends, laid end to end."""
    return np.concatenate([[0], np.cumsum(sizes)]).astype(np.int64)

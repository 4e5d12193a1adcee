"""What a job is made of: texts that cannot be pooled rightly are refused."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest

from training.errors import UserError
from training.material import refuse_pad_at_the_end
from training.tokens import TokenizedSplit

TOKENIZER = SimpleNamespace(pad_token="<unk>", pad_token_id=3)


def split_of(*texts: list[int]) -> TokenizedSplit:
    offsets = np.cumsum([0, *map(len, texts)])
    ids = [f"test:{row}" for row in range(1, len(texts) + 1)]
    return TokenizedSplit.of_texts(ids, [0] * len(texts), np.concatenate(texts), offsets)


def test_a_text_that_ends_in_the_pad_token_is_named() -> None:
    with pytest.raises(UserError, match=r"row test:2 ends in '<unk>'.*2 such rows"):
        refuse_pad_at_the_end(split_of([1, 5], [1, 5, 3], [3]), TOKENIZER)


def test_so_is_one_of_which_a_chunk_does() -> None:
    split = replace(split_of([1, 5], [1, 5], [1, 3], [1, 3]), first_chunks=np.array([0, 1, 4]))
    with pytest.raises(UserError, match=r"row test:2 ends in '<unk>'.*1 such rows"):
        refuse_pad_at_the_end(split, TOKENIZER)


def test_the_pad_token_within_a_text_does_no_harm() -> None:
    refuse_pad_at_the_end(split_of([1, 3, 5], [3, 7]), TOKENIZER)

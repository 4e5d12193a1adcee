"""Whether a model can read what the tokenizer makes of a job's texts: its vocabulary and its positions.

Where it cannot, torch says "index out of range" in the middle of training.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from training.errors import UserError
from training.spec import DataSpec, ModelSpec
from training.tokens import TokenizedSplit

FIXED_POSITIONS = {"biogpt", "gpt-sw3", "gpt2", "gpt_bigcode", "gpt_neo", "gptj", "openai-gpt", "opt"}
"""Model types that hold a table of so many positions, learned or computed beforehand; others take any length."""


def require_positions(config: Any, data: DataSpec) -> None:
    """Raise UserError where texts may be longer than a model's table of positions."""
    positions = _positions(config)
    if config.model_type in FIXED_POSITIONS and positions is not None and data.max_seq_length > positions:
        raise UserError(
            f"data.max_seq_length is {data.max_seq_length} and this {config.model_type} has {positions} positions. Set "
            f"it to {positions}; with data.long_text: chunk more of a long text is read."
        )


def require_vocabulary(size: int, model: ModelSpec, splits: Mapping[str, TokenizedSplit]) -> None:
    """Raise UserError for a token that is none of the `size` that the model has embeddings of."""
    for split in splits.values():
        place = int(np.argmax(split.tokens))
        if split.tokens[place] >= size:
            chunk = int(np.searchsorted(split.offsets, place, side="right")) - 1
            row = split.ids[int(np.searchsorted(split.first_chunks, chunk, side="right")) - 1]
            raise UserError(
                f"the tokenizer of {model.model_name_or_path!r} makes token {split.tokens[place]} of row {row}, and "
                f"the model's tokens end at {size - 1} (vocab_size in config.json). Put the tokenizer that the model "
                "was trained with beside it."
            )


def beyond_trained(config: Any, splits: Mapping[str, TokenizedSplit]) -> str | None:
    """Return what to say of texts longer than the model was trained with, if there are any."""
    positions = _positions(config)
    longest = max(int(np.diff(split.offsets).max()) for split in splits.values())
    if positions is None or longest <= positions:
        return None
    return (
        f"texts have up to {longest} tokens and the model was trained with {positions} (max_position_embeddings): it "
        f"may read the longer ones badly. data.max_seq_length: {positions} avoids that."
    )


def vocabulary_size(config: Any) -> int:
    """Return how many tokens a model has embeddings of."""
    return int(config.get_text_config().vocab_size)


def _positions(config: Any) -> int | None:
    positions = getattr(config.get_text_config(), "max_position_embeddings", None)
    return None if positions is None else int(positions)

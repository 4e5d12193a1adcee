"""What a job is made of: data, tokens, tokenizer, model configuration, precision."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.distributed as dist

from training.corpus.load import Corpus, load_corpus
from training.errors import UserError
from training.loss import require_fitting
from training.pretrained import load_config, load_tokenizer, resolve_checkpoint, resolve_dtype
from training.readable import beyond_trained, require_positions, require_vocabulary, vocabulary_size
from training.spec import JobSpec
from training.tokens import TokenizedSplit, tokenize_split

EVER_FEWER = (torch.float32, torch.float16, torch.bfloat16)
"""Types in the order of ever fewer cards that have them: a card that has one has those before it."""


@dataclass(frozen=True, kw_only=True)
class Material:
    """What a job is made of, loaded: data, tokenizer, model configuration, precision."""

    corpus: Corpus
    splits: dict[str, TokenizedSplit]
    tokenizer: Any
    checkpoint: str
    """Folder or hub name of the base."""
    config: Any
    dtype: torch.dtype


def load_material(spec: JobSpec, device: torch.device, report: Callable[[str], None]) -> Material:
    """Load data, tokenizer and configuration."""
    corpus = load_corpus(spec.data)
    require_fitting(spec.training, corpus.label_names, corpus.problem_type)
    checkpoint = resolve_checkpoint(spec.model, report)
    config = load_config(spec.model, checkpoint, corpus.label_names, corpus.problem_type)
    require_positions(config, spec.data)
    tokenizer = load_tokenizer(spec.model, checkpoint)
    config.pad_token_id = tokenizer.pad_token_id
    named = {"train": corpus.train, "validation": corpus.validation, "test": corpus.test}
    splits = {name: tokenize_split(split, tokenizer, spec.data) for name, split in named.items() if split is not None}
    require_vocabulary(vocabulary_size(config), spec.model, splits)
    for split in splits.values():
        refuse_pad_at_the_end(split, tokenizer)
    if warning := beyond_trained(config, splits):
        report(warning)
    return Material(
        corpus=corpus,
        splits=splits,
        tokenizer=tokenizer,
        checkpoint=checkpoint,
        config=config,
        dtype=agreed_dtype(spec, device),
    )


def refuse_pad_at_the_end(split: TokenizedSplit, tokenizer: Any) -> None:
    """Raise UserError for a text whose last token is the pad token: transformers would read the one before it."""
    chunks = np.flatnonzero(split.tokens[split.offsets[1:] - 1] == tokenizer.pad_token_id)
    rows = np.unique(np.searchsorted(split.first_chunks, chunks, side="right") - 1)
    if len(rows):
        raise UserError(
            f"row {split.ids[rows[0]]} ends in {tokenizer.pad_token!r}, the token this tokenizer must be padded with"
            f" ({len(rows)} such rows): whoever uses the adapter would get another prediction. Remove the word from "
            "the texts, or give the tokenizer a pad_token that no text holds."
        )


def agreed_dtype(spec: JobSpec, device: torch.device) -> torch.dtype:
    """Return the compute type of all ranks: with `auto`, one that every rank's card has."""
    least = torch.tensor(EVER_FEWER.index(resolve_dtype(spec.model.dtype, device)), device=device)
    dist.all_reduce(least, op=dist.ReduceOp.MIN)
    return EVER_FEWER[int(least.item())]

"""Batches without padding: texts laid end to end in one row, attention kept within each text.

A LLaMA layer treats tokens one by one except in attention, so all but attention runs on the packed row. Attention
folds the row into one padded row a text. Right padding needs no mask there: under causal attention no token of a text
sees what comes after it, and the padded positions' outputs are dropped again.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import AttentionInterface

PACKED_ATTENTION = "shoal_packed"
CPU_BF16_TOKENS = 256
"""Length of a text from which bf16 attention is the faster one on a CPU (AVX512-bf16, torch 2.13)."""


@dataclass(frozen=True, kw_only=True)
class Packing:
    """Where each token of a packed row belongs. T tokens in all, B texts, the longest of L tokens."""

    num_texts: int
    max_length: int
    fold_index: Tensor
    """[B * L]: the packed position of each padded position; padding points at the text's last token."""
    unfold_index: Tensor
    """[T]: the padded position of each packed position."""
    position_ids: Tensor
    """[1, T]: 0, 1, 2, ... within each text."""
    last_index: Tensor
    """[B]: packed position of each text's last token, the one a causal classifier reads."""

    @staticmethod
    def of(lengths: Sequence[int], device: torch.device) -> Packing:
        """Lay out texts of these many tokens."""
        length = torch.tensor(lengths)
        ends = torch.cumsum(length, 0)
        starts = ends - length
        longest = int(length.max())
        column = torch.arange(longest)
        fold = starts[:, None] + torch.minimum(column[None, :], (length - 1)[:, None])
        text_of_token = torch.repeat_interleave(torch.arange(len(lengths)), length)
        position = torch.arange(int(ends[-1])) - starts[text_of_token]
        return Packing(
            num_texts=len(lengths),
            max_length=longest,
            fold_index=fold.reshape(-1).to(device, non_blocking=True),
            unfold_index=(text_of_token * longest + position).to(device, non_blocking=True),
            position_ids=position[None].to(device, non_blocking=True),
            last_index=(ends - 1).to(device, non_blocking=True),
        )


def packed_attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    *,
    packing: Packing,
    scaling: float | None = None,
    dropout: float = 0.0,
    **_: Any,
) -> tuple[Tensor, None]:
    """Causal attention of a packed row, text by text.

    query [1, H, T, D], key and value [1, H_kv, T, D] -> [1, T, H, D]; an attention function in the sense of
    transformers' AttentionInterface.
    """

    def fold(states: Tensor) -> Tensor:
        heads, _, size = states.shape[1:]
        rows = states[0].index_select(1, packing.fold_index)
        return rows.view(heads, packing.num_texts, packing.max_length, size).transpose(0, 1)

    # PyTorch's bf16 attention is two to four times slower than its fp32 one on a CPU while texts are short.
    in_fp32 = query.device.type == "cpu" and packing.max_length < CPU_BF16_TOKENS
    dtype = torch.float32 if in_fp32 else query.dtype
    output = F.scaled_dot_product_attention(
        fold(query).to(dtype),
        fold(key).to(dtype),
        fold(value).to(dtype),
        dropout_p=dropout,
        is_causal=True,
        scale=scaling,
        enable_gqa=query.shape[1] != key.shape[1],
    )
    rows = output.to(query.dtype).transpose(1, 2).reshape(-1, output.shape[1], output.shape[3])
    return rows.index_select(0, packing.unfold_index)[None], None


AttentionInterface.register(PACKED_ATTENTION, packed_attention)


class PackedClassifier(nn.Module):
    """A sequence classifier that takes packed texts and applies its head to one position a text.

    `classifier` is a Hugging Face `*ForSequenceClassification`, plain or wrapped by PEFT.
    """

    def __init__(self, classifier: Any, *, packed: bool) -> None:
        super().__init__()
        self.classifier = classifier
        self.packed = packed
        """False for models whose attention cannot be packed: they get one padded row a text."""

    def forward(self, input_ids: Tensor, lengths: Sequence[int]) -> Tensor:
        """Return logits [B, num_labels] in fp32 of B texts given end to end as token ids [T]."""
        inner = self.classifier.get_base_model() if hasattr(self.classifier, "get_base_model") else self.classifier
        backbone = getattr(inner, inner.base_model_prefix)
        packing = Packing.of(lengths, input_ids.device)
        if self.packed:
            states = backbone(
                input_ids=input_ids[None], position_ids=packing.position_ids, packing=packing, use_cache=False
            ).last_hidden_state[0]
        else:
            rows = input_ids[packing.fold_index].view(packing.num_texts, packing.max_length)
            column = torch.arange(packing.max_length, device=input_ids.device)
            mask = (column[None] < torch.tensor(lengths, device=input_ids.device)[:, None]).long()
            padded = backbone(input_ids=rows, attention_mask=mask, use_cache=False).last_hidden_state
            states = padded.flatten(0, 1)[packing.unfold_index]
        return inner.score(states[packing.last_index]).float()  # type: ignore[no-any-return]

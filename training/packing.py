"""Batches without padding: texts laid end to end in one row, attention kept within each text.

A LLaMA layer treats tokens one by one except in attention, so all but attention runs on the packed row. Attention
folds texts of about the same length into padded rows. Right padding needs no mask there: under causal attention no
token of a text sees what comes after it, and the padded positions' outputs are dropped again. On CUDA, PyTorch's
variable-length kernel attends to the packed row itself. The last layer only has to know each text's last token.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import AttentionInterface

from training.batches import group_lengths
from training.cpu_attention import is_short, last_attention, short_attention
from training.host_copies import to_device_together
from training.sdpa import causal_attention
from training.varlen import Heads, varlen_attention, varlen_obstacle

PACKED_ATTENTION = "shoal_packed"
ROW_MULTIPLE = 64
"""A packed row is filled up to a multiple of this many tokens. Matrix products are faster on shapes seen before: oneDNN
compiles each new one, and a card's allocator finds a freed block that fits."""


@dataclass(frozen=True, kw_only=True)
class Packing:
    """Where each token of a packed row belongs. B texts of T tokens in all, then a tail up to P tokens that no text has
    and nothing reads; R padded positions in attention."""

    lengths: list[int]
    """Tokens of each text."""
    groups: list[tuple[int, int]]
    """(texts, tokens each is filled up to) of each group of neighbours that are folded together; they make up R."""
    fold_index: Tensor
    """[R]: the packed position of each padded position; padding points at the text's last token."""
    unfold_index: Tensor
    """[T]: the padded position of each packed position."""
    position_ids: Tensor
    """[1, P]: 0, 1, 2, ... within each text; 0 in the tail."""
    last_index: Tensor
    """[B]: packed position of each text's last token, the one a causal classifier reads."""
    ends: Tensor
    """[B + 1] int32: 0 and the end of each text in the packed row; [B + 2] where there is a tail."""

    @staticmethod
    def of(lengths: Sequence[int], device: torch.device) -> Packing:
        """Lay out texts of these many tokens."""
        return Packing.beside(lengths, device)[0]

    @staticmethod
    def beside(
        lengths: Sequence[int], device: torch.device, *others: np.ndarray[Any, Any]
    ) -> tuple[Packing, list[Tensor]]:
        """Lay out texts of these many tokens; return the layout and `others` on `device`, all of it in one copy."""
        groups = group_lengths(lengths)
        length = np.asarray(lengths)
        ends = np.concatenate([[0], np.cumsum(length)])
        width = np.repeat([size for _, size in groups], [number for number, _ in groups])
        row_starts = np.cumsum(width) - width
        text_of_row = np.repeat(np.arange(len(length)), width)
        column = np.arange(width.sum()) - row_starts[text_of_row]
        fold = ends[:-1][text_of_row] + np.minimum(column, (length - 1)[text_of_row])
        text_of_token = np.repeat(np.arange(len(length)), length)
        num_tokens = int(ends[-1])
        position = np.arange(num_tokens) - ends[:-1][text_of_token]
        tail = -num_tokens % ROW_MULTIPLE
        all_ends = np.append(ends, num_tokens + tail) if tail else ends
        indices = {
            "fold_index": fold,
            "unfold_index": row_starts[text_of_token] + position,
            "position_ids": np.pad(position, (0, tail))[None],
            "last_index": ends[1:] - 1,
            "ends": all_ends.astype(np.int32),
        }
        tensors = to_device_together([*indices.values(), *others], device)
        packing = Packing(lengths=list(lengths), groups=groups, **dict(zip(indices, tensors, strict=False)))
        return packing, tensors[len(indices) :]

    def lengths_there(self, first: int = 0, number: int | None = None) -> Tensor:
        """Return the lengths [number] of the texts from the `first` on, on the device and without a copy to it."""
        end = len(self.lengths) if number is None else first + number
        return self.ends[first + 1 : end + 1] - self.ends[first:end]

    @property
    def num_tokens(self) -> int:
        """P, the tokens of the packed row with its tail."""
        return self.position_ids.shape[1]

    def fold(self, states: Tensor) -> list[Tensor]:
        """Return [1, heads, P, D] as one [texts, heads, tokens, D] a group."""
        rows: Tensor = _Fold.apply(states[0].transpose(0, 1), self)  # type: ignore[no-untyped-call]
        parts = torch.split(rows, [num_texts * longest for num_texts, longest in self.groups])
        return [
            part.view(*group, *part.shape[1:]).transpose(1, 2) for part, group in zip(parts, self.groups, strict=True)
        ]


class _Fold(torch.autograd.Function):
    """Packed rows [P, ...] to padded ones [R, ...].

    Nothing that is kept depends on padding, so its gradient is zero and backward need not add it up.
    """

    @staticmethod
    def forward(ctx: Any, rows: Tensor, packing: Packing) -> Tensor:
        ctx.packing = packing
        return rows.index_select(0, packing.fold_index)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        return _with_tail(gradient, ctx.packing), None


class _Unfold(torch.autograd.Function):
    """Padded rows [R, ...] to packed ones [P, ...], zeros in the tail."""

    @staticmethod
    def forward(ctx: Any, rows: Tensor, packing: Packing) -> Tensor:
        ctx.packing, ctx.num_rows = packing, len(rows)
        return _with_tail(rows, packing)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        index = ctx.packing.unfold_index
        rows = gradient.new_zeros(ctx.num_rows, *gradient.shape[1:])
        return rows.index_copy_(0, index, gradient[: len(index)]), None


def _with_tail(rows: Tensor, packing: Packing) -> Tensor:
    """Pick the texts' tokens out of padded rows [R, ...] -> [P, ...], zeros in the tail."""
    num_tokens = len(packing.unfold_index)
    packed = rows.new_empty(packing.num_tokens, *rows.shape[1:])
    torch.index_select(rows, 0, packing.unfold_index, out=packed[:num_tokens])
    packed[num_tokens:] = 0
    return packed


def packed_attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    *,
    packing: Packing,
    varlen: bool = False,
    scaling: float | None = None,
    dropout: float = 0.0,
    **_: Any,
) -> tuple[Tensor, None]:
    """Causal attention of a packed row, text by text.

    query [1, H, P, D], key and value [1, H_kv, P, D] -> [1, P, H, D]; an attention function in the sense of
    transformers' AttentionInterface. In the last layer only the rows of `packing.last_index` are right, the others 0.
    `varlen` says that PyTorch's variable-length kernel is to be used, if there is no dropout.
    """
    last_only = getattr(module, "shoal_last_only", False)
    if varlen and not dropout:
        last_index = packing.last_index if last_only else None
        return varlen_attention(query, key, value, packing.ends, packing.lengths, last_index, scaling), None
    grouped = query.shape[1] != key.shape[1]
    options: dict[str, Any] = {"scale": scaling, "enable_gqa": grouped, "dropout_p": dropout}
    if last_only:
        return _last_attention(query, key, value, packing, options), None
    outputs = []
    for q, k, v in zip(packing.fold(query), packing.fold(key), packing.fold(value), strict=True):
        if is_short(q, k) and not dropout:
            output = short_attention(q, k, v, scaling)
        else:
            output = causal_attention(q, k, v, scaling, dropout)
        outputs.append(output.transpose(1, 2).flatten(0, 1))
    return _Unfold.apply(torch.cat(outputs), packing)[None], None  # type: ignore[no-untyped-call]


def _last_attention(query: Tensor, key: Tensor, value: Tensor, packing: Packing, options: dict[str, Any]) -> Tensor:
    """Attention of each text's last token alone, as [1, P, H, D] with zeros elsewhere."""
    queries = query[0].transpose(0, 1).index_select(0, packing.last_index)[:, :, None]
    outputs = []
    first = 0
    for k, v in zip(packing.fold(key), packing.fold(value), strict=True):
        num_texts, longest = len(k), k.shape[2]
        lengths = packing.lengths[first : first + num_texts]
        q = queries[first : first + num_texts]
        if is_short(q, k) and not options["dropout_p"]:
            output = last_attention(q, k, v, lengths, options["scale"])
        else:
            length = packing.lengths_there(first, num_texts)
            mask = (torch.arange(longest, device=k.device) < length[:, None])[:, None, None]
            output = F.scaled_dot_product_attention(q, k, v, attn_mask=mask, **options)
        outputs.append(output[:, :, 0])
        first += num_texts
    rows = query.new_zeros(query.shape[2], query.shape[1], value.shape[3])
    return rows.index_copy(0, packing.last_index, torch.cat(outputs))[None]


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
        self.packing: Packing | None = None
        if packed:
            self._last_layer_for_last_tokens()

    @property
    def inner(self) -> Any:
        """The Hugging Face model."""
        wrapped = hasattr(self.classifier, "get_base_model")
        return self.classifier.get_base_model() if wrapped else self.classifier

    def varlen_obstacle(self, device: torch.device) -> str | None:
        """Return why attention is not PyTorch's variable-length kernel on this device; None where it is."""
        if not self.packed:
            return "texts of this model are padded"
        inner = self.inner
        return varlen_obstacle(device, inner.dtype, Heads.of(inner.config))

    def _last_layer_for_last_tokens(self) -> None:
        """Have the last layer work on each text's last token alone where only that one is needed.

        Keys and values come from all tokens. Behind attention each of the layer's parts gets the last tokens' rows and
        has its output put back among zeros: no other row of it is ever read.
        """
        last = getattr(self.inner, self.inner.base_model_prefix).layers[-1]
        last.self_attn.shoal_last_only = True
        for part in (last.self_attn.o_proj, last.mlp):
            part.register_forward_pre_hook(self._select)
            part.register_forward_hook(self._put_back)

    def _select(self, _: nn.Module, inputs: tuple[Tensor]) -> tuple[Tensor]:
        assert self.packing is not None
        return (inputs[0].index_select(1, self.packing.last_index),)

    def _put_back(self, _: nn.Module, __: tuple[Tensor], output: Tensor) -> Tensor:
        assert self.packing is not None
        rows = output.new_zeros(1, self.packing.num_tokens, output.shape[2])
        return rows.index_copy(1, self.packing.last_index, output)

    def forward(
        self, input_ids: Tensor, lengths: Sequence[int] | Packing, num_chunks: Sequence[int] | None = None
    ) -> Tensor:
        """Return logits [B, num_labels] in fp32 of B texts given end to end as token ids [T].

        `lengths`, or the layout made of them, are of their chunks, which all but the pooling takes for texts, and
        `num_chunks` those a text has.
        """
        inner = self.inner
        backbone = getattr(inner, inner.base_model_prefix)
        packing = lengths if isinstance(lengths, Packing) else Packing.of(lengths, input_ids.device)
        if self.packed:
            self.packing = packing  # kept for backward, which may compute layers again
            row = F.pad(input_ids, (0, packing.num_tokens - len(input_ids)))
            varlen = self.varlen_obstacle(input_ids.device) is None  # asked here, not within a layer
            states = backbone(
                input_ids=row[None], position_ids=packing.position_ids, packing=packing, varlen=varlen, use_cache=False
            ).last_hidden_state[0]
            last = states[packing.last_index]
        else:
            rows = torch.nn.utils.rnn.pad_sequence(list(torch.split(input_ids, packing.lengths)), batch_first=True)
            length = packing.lengths_there()
            mask = (torch.arange(rows.shape[1], device=input_ids.device) < length[:, None]).long()
            padded = backbone(input_ids=rows, attention_mask=mask, use_cache=False).last_hidden_state
            last = padded[torch.arange(len(length), device=input_ids.device), length.long() - 1]
        logits: Tensor = inner.score(last).float()
        return logits if num_chunks is None else pool_chunks(logits, num_chunks)


def pool_chunks(logits: Tensor, num_chunks: Sequence[int]) -> Tensor:
    """Return the mean logits [B, num_labels] of each text's chunks, whose logits [C, num_labels] are given."""
    if len(num_chunks) == len(logits):
        return logits
    return torch.stack([chunks.mean(dim=0) for chunks in torch.split(logits, list(num_chunks))])

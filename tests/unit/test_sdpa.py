"""Attention on cards whose kernels want a key head for each query head."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch

from training import sdpa
from training.sdpa import causal_attention, shares_keys


@pytest.mark.parametrize(
    ("capability", "dtype", "shares"),
    [
        ((7, 5), torch.float16, False),
        ((7, 0), torch.float16, False),
        ((8, 6), torch.float16, True),
        ((8, 6), torch.bfloat16, True),
        ((8, 6), torch.float32, False),
    ],
)
def test_which_cards_share_keys(
    capability: tuple[int, int], dtype: torch.dtype, shares: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _: capability)
    query: Any = SimpleNamespace(device=torch.device("cuda", 0), dtype=dtype)
    assert shares_keys(query) is shares


@pytest.mark.parametrize("heads", [(4, 2), (4, 1), (4, 4)])
def test_repeated_keys_give_what_shared_ones_give(heads: tuple[int, int], monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[bool] = []
    plain = torch.nn.functional.scaled_dot_product_attention

    def attend(*states: Any, **options: Any) -> Any:
        asked.append(options["enable_gqa"])
        return plain(*states, **options)

    torch.manual_seed(0)
    states = [torch.randn(2, number, 5, 8, requires_grad=True) for number in (heads[0], heads[1], heads[1])]
    monkeypatch.setattr(sdpa.F, "scaled_dot_product_attention", attend)
    found = []
    for shares in (True, False):
        monkeypatch.setattr(sdpa, "shares_keys", lambda _, shares=shares: shares)
        output = causal_attention(*states, None, 0.0)
        found.append([output, *torch.autograd.grad(output.square().sum(), states)])
    assert asked == [heads[0] != heads[1], False]
    for shared, repeated in zip(*found, strict=True):
        torch.testing.assert_close(repeated, shared)

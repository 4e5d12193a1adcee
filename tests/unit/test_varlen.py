"""The variable-length kernel of each torch release, stood in for: called as the release wants it, tried outside of
layers, and not used where it is absent or wrong."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
import torch.nn.attention.varlen as torch_varlen
import torch.nn.functional as F
import transformers
from torch import Tensor

from tests.stand_ins import varlen as stand_in
from training import varlen
from training.model import recompute_activations, use_packed_attention
from training.packing import PackedClassifier
from training.varlen import Heads, varlen_attention, varlen_obstacle

CPU = torch.device("cpu")
REAL = torch_varlen.varlen_attn
HEADS = Heads(queries=4, keys=2, size=8)


@pytest.fixture(params=stand_in.KERNELS, ids=lambda release: release or "2.12")
def kernel(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """The kernel as a release has it, on the CPU; untried."""
    use(stand_in.KERNELS[request.param], monkeypatch)
    yield request.param
    varlen._probe.cache_clear()


def use(kernel: Callable[..., Tensor], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch_varlen, "varlen_attn", kernel)
    monkeypatch.setattr(varlen, "DEVICE_TYPES", {"cuda", "cpu"})
    varlen._probe.cache_clear()


def obstacle(monkeypatch: pytest.MonkeyPatch, kernel: Callable[..., Tensor], heads: Heads = HEADS) -> str | None:
    use(kernel, monkeypatch)
    found = varlen_obstacle(CPU, torch.bfloat16, heads)
    varlen._probe.cache_clear()
    return found


@pytest.mark.parametrize("key_heads", [1, 2, 4])
@pytest.mark.parametrize("scaling", [None, 16**-0.5, 0.5])
@pytest.mark.parametrize("last_only", [False, True])
def test_each_release_gives_plain_attention(
    kernel: str, key_heads: int, scaling: float | None, last_only: bool
) -> None:
    lengths, tail = [7, 1, 4], 3
    generator = torch.Generator().manual_seed(3)
    query, key, value = (
        torch.randn(1, heads, 15, 16, generator=generator).bfloat16().requires_grad_()
        for heads in (4, key_heads, key_heads)
    )
    last = torch.tensor([6, 7, 11])
    ends = torch.tensor([0, 7, 8, 12, 15], dtype=torch.int32)
    ours = varlen_attention(query, key, value, ends, lengths, last if last_only else None, scaling)
    wide = [state.detach().double().requires_grad_() for state in (query, key, value)]
    texts = zip(*(torch.split(state, [*lengths, tail], dim=2) for state in wide), strict=True)
    plain = [
        F.scaled_dot_product_attention(q, k, v, is_causal=True, scale=scaling, enable_gqa=True) for q, k, v in texts
    ]
    expected = torch.cat(plain, dim=2).transpose(1, 2)
    if last_only:
        expected = torch.zeros_like(expected).index_copy(1, last, expected[:, last])
    weight = torch.randn(ours.shape, generator=generator)
    found = torch.autograd.grad((ours * weight).sum(), (query, key, value))
    wanted = torch.autograd.grad((expected * weight).sum(), wide)
    for mine, theirs in zip((ours, *found), (expected, *wanted), strict=True):
        torch.testing.assert_close(mine.double(), theirs, rtol=2e-2, atol=2e-2)


def test_each_release_is_used(kernel: str) -> None:
    for heads in (HEADS, Heads(queries=4, keys=4, size=64), Heads(queries=32, keys=4, size=128)):
        assert varlen_obstacle(CPU, torch.bfloat16, heads) is None


def test_the_stand_in_takes_what_the_installed_kernel_takes() -> None:
    names = {name: each.kind for name, each in inspect.signature(REAL).parameters.items()}
    known = [
        {name: each.kind for name, each in inspect.signature(kernel).parameters.items()}
        for kernel in stand_in.KERNELS.values()
    ]
    assert names in known


def test_why_the_kernel_is_not_used(monkeypatch: pytest.MonkeyPatch) -> None:
    assert varlen_obstacle(torch.device("meta"), torch.bfloat16, HEADS) == "this is no CUDA card"
    use(stand_in.varlen_attn, monkeypatch)
    assert varlen_obstacle(CPU, torch.float32, HEADS) == "it is for bfloat16, not float32"
    odd = Heads(queries=4, keys=2, size=12)
    assert "does not run here: RuntimeError: FlashAttention" in (obstacle(monkeypatch, stand_in.varlen_attn, odd) or "")

    @functools.wraps(stand_in.varlen_attn)
    def later_text_wrong(q: Tensor, k: Tensor, v: Tensor, *more: Any, **options: Any) -> Tensor:
        rows = stand_in.varlen_attn(q, k, v, *more, **options)
        return torch.cat([rows[:1], 1.5 * rows[1:]]) if len(rows) == 2 else rows  # the form for last tokens alone

    assert "differs from plain attention" in (obstacle(monkeypatch, later_text_wrong) or "")

    def absent(*_: Any, **__: Any) -> Tensor:
        raise ImportError

    assert f"torch {torch.__version__} does not have it" in (obstacle(monkeypatch, absent) or "")


def test_a_card_that_is_full_says_nothing_about_the_kernel(monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: Any, **__: Any) -> Tensor:
        raise torch.OutOfMemoryError("CUDA out of memory.")

    with pytest.raises(torch.OutOfMemoryError):
        obstacle(monkeypatch, full)


@pytest.mark.parametrize("recomputed", [0.0, 1.0])
def test_the_kernel_is_first_tried_outside_of_recomputed_layers(kernel: str, recomputed: float) -> None:
    """As a resumed job does, whose first pass is a training step: there nothing has tried the kernel before."""
    config = transformers.LlamaConfig(
        vocab_size=50, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, pad_token_id=0, num_labels=3,
    )  # fmt: skip
    torch.manual_seed(0)
    results = []
    for attends in (True, False):  # with the kernel and without
        model: Any = transformers.LlamaForSequenceClassification._from_config(config, dtype=torch.bfloat16)
        if results:
            model.load_state_dict(results[0][1].state_dict())
        use_packed_attention(model)
        model.get_base_model = lambda model=model: model
        recompute_activations(model, recomputed)
        model.train()
        classifier = PackedClassifier(model, packed=True)
        if not attends:
            classifier.varlen_obstacle = lambda _: "not now"  # type: ignore[method-assign]
        else:
            assert not varlen._probe.cache_info().currsize
        logits = classifier(torch.arange(1, 31), [17, 9, 4])
        logits.logsumexp(1).sum().backward()
        assert varlen._probe.cache_info().currsize == 1
        gradients = torch.cat([each.grad.flatten().float() for each in model.parameters() if each.grad is not None])
        results.append((logits, model, gradients))
    (ours, _, gradients), (plain, _, expected) = results
    torch.testing.assert_close(ours, plain, rtol=2e-2, atol=2e-2)
    assert float((gradients - expected).norm() / expected.norm()) < 3e-2

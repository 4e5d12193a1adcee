"""Texts laid end to end give the logits and gradients that padded rows give in plain Hugging Face."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
import transformers
from hypothesis import given, settings
from hypothesis import strategies as st
from peft import LoraConfig, TaskType, get_peft_model
from torch import Tensor

from training.batches import group_lengths
from training.fused import fuse_layers
from training.fused_lora import FusedLora
from training.model import PACKED_FAMILIES, can_pack, recompute_activations, use_packed_attention
from training.packing import ROW_MULTIPLE, PackedClassifier, Packing

PAD = 0
VOCABULARY = 50
NUM_LABELS = 3
MAX_SEQ_LENGTH = 16
LENGTHS = [5, 1, 16, 9, 2]
SHAPE = {
    "vocab_size": VOCABULARY, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2,
    "num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 128, "pad_token_id": PAD,
    "bos_token_id": 1, "eos_token_id": 2, "num_labels": NUM_LABELS,
}  # fmt: skip

PACKABLE: dict[str, dict[str, Any]] = {
    "Llama": {},
    "Llama with as many key heads": {"num_key_value_heads": 4},
    "Qwen2": {"sliding_window": 4, "use_sliding_window": False},
    "Qwen3": {"head_dim": 8},
    "Mistral": {"sliding_window": None},
    "Gemma": {"head_dim": 8},
    "Olmo2": {},
    "Phi3": {"sliding_window": None},
    "SmolLM3": {"sliding_window": None, "use_sliding_window": False},
    "Mistral with a window as wide as the texts": {"sliding_window": MAX_SEQ_LENGTH},
}
PADDED: dict[str, dict[str, Any]] = {
    "Mistral with a narrow window": {"sliding_window": 4},
    "Qwen2 with a narrow window": {"sliding_window": 4, "use_sliding_window": True, "max_window_layers": 0},
}


def tiny_classifier(name: str, changes: dict[str, Any]) -> Any:
    """Return a random classifier of the family `name` begins with, in fp32."""
    family = name.split(maxsplit=1)[0]
    config = getattr(transformers, f"{family}Config")(**{**SHAPE, **changes})
    model_class = getattr(transformers, f"{family}ForSequenceClassification")
    torch.manual_seed(0)
    model = model_class._from_config(config, dtype=torch.float32, attn_implementation="eager")
    return model.eval()


def random_texts(lengths: list[int]) -> list[Tensor]:
    """Return token ids, none of them the pad token."""
    generator = torch.Generator().manual_seed(1)
    return [torch.randint(1, VOCABULARY, (length,), generator=generator) for length in lengths]


def padded_logits(model: Any, texts: list[Tensor]) -> Tensor:
    """Run the Hugging Face model the usual way: right padding and a mask."""
    rows = torch.nn.utils.rnn.pad_sequence(texts, batch_first=True, padding_value=PAD)
    return model(input_ids=rows, attention_mask=(rows != PAD).long()).logits  # type: ignore[no-any-return]


def gradients(model: Any, logits: Tensor) -> dict[str, Tensor]:
    """Return the gradient of a loss by each parameter."""
    labels = torch.arange(len(logits)) % NUM_LABELS
    parameters = {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}
    loss = F.cross_entropy(logits, labels, reduction="sum")
    found = torch.autograd.grad(loss, list(parameters.values()), allow_unused=True)
    return {name: gradient for name, gradient in zip(parameters, found, strict=True) if gradient is not None}


def assert_same(model: Any, *, packed: bool, lengths: list[int] = LENGTHS) -> None:
    """Compare logits and gradients of the padded and of our way."""
    texts = random_texts(lengths)
    expected = padded_logits(model, texts)
    expected_gradients = gradients(model, expected)
    if packed:
        use_packed_attention(model)
    fuse_layers(model)
    logits = PackedClassifier(model, packed=packed)(torch.cat(texts), lengths)
    torch.testing.assert_close(logits, expected, rtol=1e-5, atol=1e-5)
    ours = gradients(model, logits)
    assert set(ours) == set(expected_gradients) and len(ours) > 10
    for name, gradient in ours.items():
        torch.testing.assert_close(gradient, expected_gradients[name], rtol=1e-5, atol=1e-5, msg=name)


@pytest.mark.parametrize("name", PACKABLE)
def test_packed_texts_give_the_logits_and_gradients_of_padded_ones(name: str) -> None:
    model = tiny_classifier(name, PACKABLE[name])
    assert can_pack(model.config, MAX_SEQ_LENGTH)
    assert_same(model, packed=True)


@pytest.mark.parametrize("name", PADDED)
def test_a_narrow_window_goes_the_padded_way_and_agrees(name: str) -> None:
    model = tiny_classifier(name, PADDED[name])
    assert not can_pack(model.config, MAX_SEQ_LENGTH)
    assert_same(model, packed=False)


def test_packing_a_narrow_window_all_the_same_would_be_wrong() -> None:
    """Shows that the test above can fail: full attention is not the window's."""
    name = "Mistral with a narrow window"
    model = tiny_classifier(name, PADDED[name])
    with pytest.raises(AssertionError):
        assert_same(model, packed=True)


def test_exactly_the_families_shown_above_are_packed() -> None:
    shown = {tiny_classifier(name, changes).config.model_type for name, changes in PACKABLE.items()}
    assert shown == PACKED_FAMILIES


def test_other_families_are_padded() -> None:
    """GPT-OSS hands its sinks to attention beside the mask."""
    assert not can_pack(transformers.GptOssConfig(), MAX_SEQ_LENGTH)


@pytest.mark.parametrize("packed", [True, False])
def test_a_text_is_judged_alike_in_any_company(packed: bool) -> None:
    model = tiny_classifier("Llama", {})
    if packed:
        use_packed_attention(model)
    classifier = PackedClassifier(model, packed=packed)
    texts = random_texts(LENGTHS)
    together = classifier(torch.cat(texts), LENGTHS)
    for text, logits in zip(texts, together, strict=True):
        torch.testing.assert_close(classifier(text, [len(text)])[0], logits, rtol=1e-5, atol=1e-5)


def test_a_text_may_end_in_the_pad_token() -> None:
    """transformers would read the token before it; the last token of a text is known here."""
    model = tiny_classifier("Llama", {})
    use_packed_attention(model)
    text = torch.tensor([7, 8, PAD])
    classifier = PackedClassifier(model, packed=True)
    with_it, without = classifier(text, [3]), classifier(text[:2], [2])
    assert not torch.allclose(with_it, without)


def with_lora(**changes: Any) -> tuple[Any, Any]:
    """Return a random classifier, and the same with a LoRA that is not zero around it."""
    model = tiny_classifier("Llama", {"attention_bias": True})
    lora = LoraConfig(
        task_type=TaskType.SEQ_CLS, r=4, target_modules="all-linear", init_lora_weights=False, **changes
    )  # fmt: skip
    return model, get_peft_model(model, lora)


@pytest.mark.parametrize("share", [0.0, 0.5, 1.0])
@pytest.mark.parametrize("changes", [{}, {"use_rslora": True}])
def test_gradients_under_peft_and_checkpointing_agree_too(changes: dict[str, Any], share: float) -> None:
    model, adapted = with_lora(**changes)
    texts = random_texts(LENGTHS)
    expected = padded_logits(adapted, texts)
    expected_gradients = gradients(adapted, expected)
    use_packed_attention(adapted)
    fuse_layers(adapted)
    assert any(isinstance(getattr(part.forward, "func", None), FusedLora) for part in adapted.modules())
    recompute_activations(adapted, share)
    model.train()
    logits = PackedClassifier(adapted, packed=True)(torch.cat(texts), LENGTHS)
    torch.testing.assert_close(logits, expected, rtol=1e-5, atol=1e-5)
    ours = gradients(adapted, logits)
    assert set(ours) == set(expected_gradients) and any("lora_A" in name for name in ours)
    for name, gradient in ours.items():
        torch.testing.assert_close(gradient, expected_gradients[name], rtol=1e-5, atol=1e-5, msg=name)


def test_dropout_goes_into_the_adapter_alone_as_in_peft() -> None:
    results = []
    for fused in (False, True):
        model, adapted = with_lora(lora_dropout=0.3)
        use_packed_attention(adapted)
        if fused:
            fuse_layers(adapted)
        model.train()
        torch.manual_seed(5)
        logits = PackedClassifier(adapted, packed=True)(torch.cat(random_texts(LENGTHS)), LENGTHS)
        results.append((logits, gradients(adapted, logits)))
    (plain, plain_gradients), (ours, our_gradients) = results
    torch.testing.assert_close(ours, plain, rtol=1e-5, atol=1e-5)
    assert set(our_gradients) == set(plain_gradients)
    for name in our_gradients:
        torch.testing.assert_close(our_gradients[name], plain_gradients[name], rtol=1e-5, atol=1e-5, msg=name)


def test_bf16_is_as_near_to_fp32_as_plain_bf16_is() -> None:
    """To 1e-2 of the largest value: bf16 rounds to 1 part in 256."""
    lengths = [120, 100, 60, 31, 30, 9, 1]
    _, adapted = with_lora()
    texts = random_texts(lengths)
    expected = padded_logits(adapted, texts)
    expected_gradients = gradients(adapted, expected)
    adapted.to(torch.bfloat16)
    use_packed_attention(adapted)
    fuse_layers(adapted)
    logits = PackedClassifier(adapted, packed=True)(torch.cat(texts), lengths)
    assert float((logits - expected).detach().norm() / expected.norm()) < 1e-2
    ours = torch.cat([gradient.float().flatten() for gradient in gradients(adapted, logits).values()])
    theirs = torch.cat([gradient.flatten() for gradient in expected_gradients.values()])
    assert float((ours - theirs).norm() / theirs.norm()) < 2e-2


def test_neighbours_of_about_one_length_are_folded_together() -> None:
    assert group_lengths([500, 380, 375, 312, 234, 233]) == [(3, 512), (2, 320), (1, 256)]
    assert group_lengths([100, 99, 36, 35, 8]) == [(3, 128), (2, 64)]  # short ones by 64 tokens, not by a quarter
    assert group_lengths([5, 9, 9]) == [(1, 32), (2, 32)]  # longest first is not required
    assert group_lengths([7]) == [(1, 32)]
    assert group_lengths([7] * 19) == [(8, 32), (8, 32), (3, 32)]


@settings(max_examples=50)
@given(st.lists(st.integers(1, 90), min_size=1, max_size=8))
def test_folding_and_unfolding_is_the_identity(lengths: list[int]) -> None:
    packing = Packing.of(lengths, torch.device("cpu"))
    tokens = torch.arange(sum(lengths))
    assert packing.num_tokens % ROW_MULTIPLE == 0 <= packing.num_tokens - len(tokens) < ROW_MULTIPLE
    folded = tokens[packing.fold_index]
    assert folded[packing.unfold_index].tolist() == tokens.tolist()
    texts = list(torch.split(tokens, lengths))
    for num_texts, longest in packing.groups:
        group, folded = folded[: num_texts * longest].view(num_texts, longest), folded[num_texts * longest :]
        for row in group:
            text = texts.pop(0)
            assert row[: len(text)].tolist() == text.tolist()
            assert set(row[len(text) :].tolist()) <= {int(text[-1])}
    assert not texts and not len(folded)
    ends = torch.cumsum(torch.tensor(lengths), 0).tolist()
    assert packing.last_index.tolist() == [end - 1 for end in ends]
    assert packing.ends.tolist() == [0, *ends, packing.num_tokens][: len(ends) + 1 + (ends[-1] < packing.num_tokens)]
    places = [place for length in lengths for place in range(length)]
    assert packing.position_ids[0].tolist() == places + [0] * (packing.num_tokens - len(places))

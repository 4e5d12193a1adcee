"""Long texts: what is read of them, and that a text's logits are the mean of its chunks', each computed alone."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from torch import Tensor
from transformers import LlamaConfig, LlamaForSequenceClassification, PreTrainedTokenizerFast

from training.batches import plan_step
from training.errors import UserError
from training.evaluation import to_device
from training.fused import fuse_layers
from training.long_text import Cutter, longest_whole, tokens_around, what_is_read
from training.model import use_packed_attention
from training.packing import PackedClassifier, pool_chunks
from training.spec import DataSpec
from training.tokens import TokenizedSplit, encode_texts, join_splits

WORDS = [f"w{number}" for number in range(40)]
TEMPLATES = {"none": "$A", "before": "<s> $A", "both": "<s> $A </s>"}
CPU = torch.device("cpu")


def make_tokenizer(around: str) -> Any:
    """Return a tokenizer of words that puts tokens before texts, around them, or none."""
    vocabulary = {word: index for index, word in enumerate(["<pad>", "<s>", "</s>", "<unk>", *WORDS])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer.post_processor = processors.TemplateProcessing(
        single=TEMPLATES[around], special_tokens=[("<s>", 1), ("</s>", 2)]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="<pad>", bos_token="<s>", eos_token="</s>", unk_token="<unk>",
        model_max_length=16,
    )  # fmt: skip


TOKENIZERS = {around: make_tokenizer(around) for around in TEMPLATES}
tokenizers = st.sampled_from(sorted(TEMPLATES))
num_words = st.integers(0, 70)


def data(long_text: str, **changes: Any) -> DataSpec:
    return DataSpec(
        **{"train_file": "t.csv", "max_seq_length": 12, "long_text": long_text, "chunk_overlap": 3, **changes}
    )


def text_of(words: int) -> str:
    return " ".join(WORDS[index % len(WORDS)] for index in range(words))


def chunks_of(text: str, around: str, spec: DataSpec) -> list[list[int]]:
    """Return the chunks of a text as encode_texts cuts them."""
    arrays = encode_texts([text], TOKENIZERS[around], spec)
    assert arrays["first_chunks"].tolist() == [0, len(arrays["offsets"]) - 1]
    return [part.tolist() for part in np.split(arrays["tokens"], arrays["offsets"][1:-1])]


def naive_chunks(text: str, around: str, spec: DataSpec) -> list[list[int]]:
    """Cut word by word."""
    before, after = tokens_around(TOKENIZERS[around])
    tokens = [4 + WORDS.index(word) for word in text.split()]
    chunks: list[list[int]] = []
    start = 0
    while len(chunks) < spec.max_chunks:
        chunk = list(before)
        place = start
        while place < len(tokens) and len(chunk) < spec.max_seq_length - len(after):
            chunk.append(tokens[place])
            place += 1
        chunks.append(chunk + after)
        if place == len(tokens):
            break
        start = place - spec.chunk_overlap
    return chunks


@pytest.mark.parametrize(("around", "expected"), [("none", ([], [])), ("before", ([1], [])), ("both", ([1], [2]))])
def test_what_a_tokenizer_puts_around_a_text_is_found(around: str, expected: tuple[list[int], list[int]]) -> None:
    assert tokens_around(TOKENIZERS[around]) == expected


@given(num_words, tokenizers, st.integers(4, 20), st.integers(0, 9), st.integers(1, 6))
def test_chunks_are_those_cut_word_by_word(words: int, around: str, longest: int, overlap: int, most: int) -> None:
    before, after = tokens_around(TOKENIZERS[around])
    overlap = min(overlap, longest - len(before) - len(after) - 1)
    spec = data("chunk", max_seq_length=longest, chunk_overlap=overlap, max_chunks=most)
    if not words and around == "none":  # nothing at all is tokenized to one pad token
        assert chunks_of("", around, spec) == [[0]]
        return
    assert chunks_of(text_of(words), around, spec) == naive_chunks(text_of(words), around, spec)


@given(st.integers(1, 70), tokenizers, st.integers(0, 9))
def test_chunks_are_those_of_the_tokenizers_own_overflow(words: int, around: str, overlap: int) -> None:
    options = {"truncation": True, "max_length": 12, "stride": overlap, "return_overflowing_tokens": True}
    expected = make_tokenizer(around)(text_of(words), **options)["input_ids"]
    assert chunks_of(text_of(words), around, data("chunk", chunk_overlap=overlap, max_chunks=99)) == expected


@given(st.integers(1, 70), tokenizers)
def test_the_tail_is_what_the_tokenizer_leaves_when_it_truncates_left(words: int, around: str) -> None:
    tokenizer = make_tokenizer(around)
    tokenizer.truncation_side = "left"
    expected = tokenizer(text_of(words), truncation=True, max_length=12)["input_ids"]
    assert chunks_of(text_of(words), around, data("tail")) == [expected]


@given(st.integers(1, 700), tokenizers, st.integers(8, 600))
def test_head_and_tail_are_in_the_proportion_of_the_paper(words: int, around: str, longest: int) -> None:
    (row,) = chunks_of(text_of(words), around, data("head+tail", max_seq_length=longest))
    whole = TOKENIZERS[around](text_of(words), verbose=False)["input_ids"]
    before, after = tokens_around(TOKENIZERS[around])
    if len(whole) <= longest:
        assert row == whole
        return
    room = longest - len(before) - len(after)
    head = len(before) + int(room * 128 / 510)
    assert row == whole[:head] + whole[len(whole) - (longest - head) :]
    assert len(row) == longest


def test_510_tokens_are_the_128_first_and_382_last() -> None:
    spec = data("head+tail", max_seq_length=510)
    cutter = Cutter(data=spec, before=[], after=[])
    assert cutter.cut(list(range(1000))) == [[*range(128), *range(1000 - 382, 1000)]]


@given(st.lists(num_words, min_size=1, max_size=8), tokenizers)
def test_texts_that_fit_are_the_same_whatever_the_setting(numbers: list[int], around: str) -> None:
    texts = [text_of(number % 11) for number in numbers]
    ways = [encode_texts(texts, TOKENIZERS[around], data(way)) for way in ("head", "tail", "head+tail", "chunk")]
    for arrays in ways[1:]:
        for name, array in arrays.items():
            assert array.tolist() == ways[0][name].tolist() and array.dtype == ways[0][name].dtype, name


def test_head_is_the_tokenizers_own_truncation() -> None:
    texts = [text_of(number) for number in (3, 50, 12, 0)]
    arrays = encode_texts(texts, TOKENIZERS["before"], data("head"))
    expected = TOKENIZERS["before"](texts, truncation=True, max_length=12)["input_ids"]
    assert arrays["tokens"].tolist() == [token for row in expected for token in row]
    assert arrays["first_chunks"].tolist() == [0, 1, 2, 3, 4]


@given(tokenizers, st.integers(0, 9), st.integers(1, 6))
def test_of_the_longest_whole_text_nothing_is_cut_and_of_a_longer_one_something(
    around: str, overlap: int, most: int
) -> None:
    spec = data("chunk", chunk_overlap=overlap, max_chunks=most)
    before, after = tokens_around(TOKENIZERS[around])
    words = longest_whole(TOKENIZERS[around], spec) - len(before) - len(after)
    for number, is_whole in ((words, True), (words + 1, False)):
        text = list(range(100, 100 + number))
        cut = Cutter.of(TOKENIZERS[around], spec).cut([*before, *text, *after])
        assert ({token for chunk in cut for token in chunk} >= set(text)) == is_whole


def test_what_cannot_be_cut_is_refused() -> None:
    with pytest.raises(UserError, match=r"max_seq_length is 2, and the tokenizer puts 2 of its own.*Raise it"):
        Cutter.of(TOKENIZERS["both"], data("tail", max_seq_length=2))
    with pytest.raises(UserError, match=r"chunk_overlap is 11, and a chunk holds 10 tokens.*Lower it"):
        Cutter.of(TOKENIZERS["both"], data("chunk", chunk_overlap=11))
    with pytest.raises(UserError, match=r"chunk_overlap is 12. Set it below data.max_seq_length \(12\)"):
        data("chunk", chunk_overlap=12)
    with pytest.raises(UserError, match=r"Only data\.long_text: head works"):
        Cutter.of(lambda *_, **__: {"input_ids": []}, data("tail"))


def test_what_is_read_in_words() -> None:
    assert what_is_read(data("head")) == "the first 12 tokens"
    assert what_is_read(data("tail")) == "the last 12 tokens"
    assert what_is_read(data("head+tail")).startswith("12 tokens, a quarter of them the first")
    assert what_is_read(data("chunk")).startswith("up to 8 chunks of 12 tokens that overlap by 3")


def split_of(*numbers: int, spec: DataSpec | None = None) -> TokenizedSplit:
    """Return texts of these many words, cut into chunks."""
    arrays = encode_texts([text_of(number) for number in numbers], TOKENIZERS["before"], spec or data("chunk"))
    return TokenizedSplit(ids=list(map(str, numbers)), labels=[n % 3 for n in numbers], **arrays)


def test_a_split_knows_its_texts_and_joins_others() -> None:
    split = split_of(3, 30, 5)
    assert split.lengths == [(4,), (12, 12, 12, 7), (6,)] and len(split) == 3
    assert len(split.pack([1])) == 43 and split.pack([0]).tolist() == [1, 4, 5, 6]
    joined = join_splits([split, split_of(13)])
    assert joined.lengths == [*split.lengths, (12, 6)]
    assert joined.pack([1, 3]).tolist() == [*split.pack([1]), *split_of(13).pack([0])]


def make_classifier(*, packed: bool) -> PackedClassifier:
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=64, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, pad_token_id=0, num_labels=3,
    )  # fmt: skip
    model = LlamaForSequenceClassification(config).eval()
    if packed:
        use_packed_attention(model)
    fuse_layers(model)
    return PackedClassifier(model, packed=packed)


def gradients(classifier: PackedClassifier, loss: Tensor) -> list[Tensor]:
    found = torch.autograd.grad(loss, list(classifier.parameters()), allow_unused=True)
    return [gradient for gradient in found if gradient is not None]


@pytest.mark.parametrize("packed", [True, False])
def test_logits_and_gradients_are_those_of_each_chunk_alone(packed: bool) -> None:
    classifier = make_classifier(packed=packed)
    split = split_of(30, 3, 70, 11, 12)
    labels = torch.tensor(split.labels)
    logits = classifier(*to_device(split, list(range(5)), CPU)[0])
    rows = []
    for index, lengths in enumerate(split.lengths):
        chunks = torch.split(torch.from_numpy(split.pack([index])), list(lengths))
        rows.append(sum(classifier(chunk, [len(chunk)])[0] for chunk in chunks) / len(chunks))
    alone = torch.stack(rows)
    assert [len(lengths) for lengths in split.lengths] == [4, 1, 8, 1, 2]
    torch.testing.assert_close(logits, alone, rtol=1e-5, atol=1e-5)
    ours, theirs = (gradients(classifier, F.cross_entropy(each, labels, reduction="sum")) for each in (logits, alone))
    assert len(ours) == len(theirs) > 10
    for gradient, expected in zip(ours, theirs, strict=True):
        torch.testing.assert_close(gradient, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("packed", [True, False])
def test_texts_that_fit_have_the_same_logits_to_the_bit(packed: bool) -> None:
    classifier = make_classifier(packed=packed)
    chunked, plain = split_of(3, 11, 7), split_of(3, 11, 7, spec=data("head"))
    (tokens, packing, num_chunks), _ = to_device(chunked, [0, 1, 2], CPU)
    lengths = packing.lengths
    assert num_chunks == [1, 1, 1] and tokens.tolist() == plain.pack([0, 1, 2]).tolist()
    assert torch.equal(
        classifier(tokens, lengths, num_chunks), classifier(torch.from_numpy(plain.tokens).long(), lengths)
    )


def test_pooling_leaves_a_text_of_one_chunk_as_it_is() -> None:
    logits = torch.randn(5, 3)
    assert pool_chunks(logits, [1] * 5) is logits
    pooled = pool_chunks(logits, [1, 3, 1])
    assert torch.equal(pooled[[0, 2]], logits[[0, 4]])
    torch.testing.assert_close(pooled[1], logits[1:4].mean(dim=0))


@settings(max_examples=10, deadline=None)
@given(st.lists(st.integers(1, 70), min_size=1, max_size=9), st.integers(1, 3), st.integers(1, 9))
def test_ranks_and_micro_batches_never_change_the_gradient_of_a_step(
    numbers: list[int], world_size: int, batch_size: int
) -> None:
    """The loss is one a text, and its weight one over the texts of the step, however many chunks it has."""
    classifier = make_classifier(packed=True)
    split = split_of(*numbers)
    labels = torch.tensor(split.labels)
    everything = classifier(*to_device(split, list(range(len(split))), CPU)[0])
    expected = gradients(classifier, F.cross_entropy(everything, labels))
    total = [torch.zeros_like(gradient) for gradient in expected]
    for rank in range(world_size):
        plan = plan_step(
            0, split.lengths, seed=0, global_batch_size=len(split), rank=rank, world_size=world_size,
            token_budget=batch_size * 12,
        )  # fmt: skip
        assert plan.num_samples == len(split)
        for indices in filter(None, plan.micro_batches):
            logits = classifier(*to_device(split, indices, CPU)[0])
            loss = F.cross_entropy(logits, labels[indices], reduction="sum") / plan.num_samples
            total = [a + b for a, b in zip(total, gradients(classifier, loss), strict=True)]
    for gradient, whole in zip(total, expected, strict=True):
        torch.testing.assert_close(gradient, whole, rtol=1e-4, atol=1e-5)

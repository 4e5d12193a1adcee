"""A tokenizer of whole words, for benchmarks whose texts are made."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path


def save_word_tokenizer(words: Iterable[str], folder: Path) -> None:
    """Write a Hugging Face tokenizer: <pad> <s> </s> <unk> are 0 to 3, then the words; <s> begins every text."""
    from tokenizers import Tokenizer, models, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    vocabulary = {word: index for index, word in enumerate(["<pad>", "<s>", "</s>", "<unk>", *words])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="<pad>", bos_token="<s>", eos_token="</s>", unk_token="<unk>"
    ).save_pretrained(folder)

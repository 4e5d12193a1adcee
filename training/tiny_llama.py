"""`builtin:tiny-llama`: a small LLaMA with random weights and a tokenizer of its own, to try everything offline.

The tokenizer learns the docstrings of the corpus's train modules, never a text of validation or test. The weights are
not pretrained: a minute of it made no better base (36.7 to 37.9 % of the demo's test texts, over three seeds, against
38.4 to 39.2), took many minutes on old CPUs, and gave each kind of CPU another model, where the ranks of a job on
several PCs need the same.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import torch
import transformers  # loads what is asked of it, when it is
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers

from training.cache import cached
from training.corpus.docstrings import docstrings_key, train_texts
from training.errors import ShoalError

FORMAT = 3
"""Raise it when the model changes."""

VOCABULARY = 2048


def ensure_tiny_llama(report: Callable[[str], None]) -> Path:
    """Return the folder of the model in Hugging Face layout; `report` is told how making it goes on."""
    return cached(f"tiny-llama/{docstrings_key()}-{FORMAT}", lambda folder: _make(folder, report))


def _make(folder: Path, report: Callable[[str], None]) -> None:
    """Train the tokenizer, draw the weights, save both."""
    report("building builtin:tiny-llama once: its tokenizer")
    tokenizer = _train_tokenizer(train_texts())
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = transformers.LlamaForCausalLM(_config())
    model.to(torch.bfloat16).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    if not (folder / "config.json").is_file():
        raise ShoalError("transformers saved no model: builtin:tiny-llama is made before ranks join, or by one of them")


def _config() -> transformers.LlamaConfig:
    """Return the shape: 1.7 M parameters. A narrower one leaves too little of its embeddings to the adapter."""
    return transformers.LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=256,
        intermediate_size=512,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=1024,
        tie_word_embeddings=True,
        pad_token_id=0,
        bos_token_id=1,
        eos_token_id=2,
    )


def _train_tokenizer(texts: list[str]) -> transformers.PreTrainedTokenizerFast:
    """Return a byte-level BPE tokenizer that puts <s> before each text."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.train_from_iterator(
        texts,
        trainers.BpeTrainer(
            vocab_size=VOCABULARY,
            special_tokens=["<pad>", "<s>", "</s>"],
            initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
            show_progress=False,
        ),
    )
    tokenizer.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    return transformers.PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>", pad_token="<pad>", model_max_length=1024
    )

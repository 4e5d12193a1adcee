"""`builtin:tiny-llama`: a small LLaMA with its own tokenizer, so that LoRA has something real to adapt offline.

Pretrained for about a minute as a causal language model on the docstrings of the corpus's train modules, never on a
text of validation or test, for a fixed number of steps, and cached.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from training.cache import cached
from training.corpus.docstrings import docstrings_key, pretraining_texts
from training.errors import ShoalError
from training.schedule import learning_rate
from training.spec import TrainingSpec

FORMAT = 2
"""Raise it when the model or its training changes."""

VOCABULARY = 2048
ROW_TOKENS = 128
ROWS = 16
"""A step sees ROWS x ROW_TOKENS tokens."""
STEPS = 300
SCHEDULE = TrainingSpec(learning_rate=4e-4, warmup_steps=20, lr_scheduler_type="linear")
"""A low rate on purpose. At 2e-3 and more the language model ends at a lower loss, but in a minute it learns little
beyond which word follows which: attention narrows to the last words, and a classifier does worse than on random
weights, with which it reads all of them."""
SECONDS_BETWEEN_REPORTS = 5.0


def ensure_tiny_llama(report: Callable[[str], None]) -> Path:
    """Return the folder of the model in Hugging Face layout; `report` is told how making it goes on."""
    return cached(f"tiny-llama/{docstrings_key()}-{FORMAT}", lambda folder: _make(folder, report))


def _make(folder: Path, report: Callable[[str], None]) -> None:
    """Train tokenizer and model, save both."""
    report("building builtin:tiny-llama once (about a minute): tokenizer")
    texts = pretraining_texts()
    tokenizer = _train_tokenizer(texts)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = LlamaForCausalLM(_config())
        _pretrain(model, _rows(tokenizer, texts), report)
    model.to(torch.bfloat16).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    if not (folder / "config.json").is_file():
        raise ShoalError("transformers saved no model: builtin:tiny-llama is made before ranks join, or by one of them")


def _config() -> LlamaConfig:
    """Return the shape: 1.7 M parameters. A narrower one leaves too little of its embeddings to the adapter."""
    return LlamaConfig(
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


def _train_tokenizer(texts: list[str]) -> PreTrainedTokenizerFast:
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
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>", pad_token="<pad>", model_max_length=1024
    )


def _rows(tokenizer: Any, texts: list[str]) -> Iterator[Tensor]:
    """Yield [ROWS, ROW_TOKENS] batches: all texts end to end, in rows drawn without order, over and over."""
    ids = [token for text in tokenizer(texts)["input_ids"] for token in (*text, 2)]
    count = len(ids) // ROW_TOKENS
    rows = torch.tensor(ids[: count * ROW_TOKENS]).view(count, ROW_TOKENS)
    generator = np.random.default_rng(0)
    while True:
        order = torch.from_numpy(generator.permutation(count))
        for start in range(0, count - ROWS + 1, ROWS):
            yield rows[order[start : start + ROWS]]


def _pretrain(model: LlamaForCausalLM, batches: Iterator[Tensor], report: Callable[[str], None]) -> None:
    """Train all weights as a causal language model; bf16 products where the CPU has them."""
    from training.model import resolve_dtype

    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    half = resolve_dtype("auto", device) == torch.bfloat16
    model.to(device).train()
    optimizer = torch.optim.AdamW(model.parameters(), weight_decay=0.1, betas=(0.9, 0.95))
    last_report = time.monotonic()
    for step in range(STEPS):
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(step, STEPS, SCHEDULE)
        batch = next(batches).to(device)
        with torch.autocast(device.type, torch.bfloat16) if half else nullcontext():
            loss = model(input_ids=batch, labels=batch, use_cache=False).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        if time.monotonic() - last_report > SECONDS_BETWEEN_REPORTS or step == STEPS - 1:
            last_report = time.monotonic()
            report(f"building builtin:tiny-llama: step {step + 1}/{STEPS}, loss {loss.item():.2f}")
    model.cpu().eval()

"""`shoal merge RUN`: base and adapter as one ordinary Hugging Face classifier, proved by reloading it.

On the CPU, whose memory holds models that the card does not. The base is loaded as it was before any quantization:
weights of 4 or 8 bits cannot take up an adapter without being rounded again.
"""

from __future__ import annotations

import gc
import shutil
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import AutoModelForSequenceClassification

from training.adapter import compare_logits, padded_logits
from training.disk import flush
from training.errors import UserError
from training.finished import FinishedRun, load_finished, open_run
from training.long_text import what_is_read
from training.progress import format_gib
from training.quiet import quiet_libraries
from training.spec import ModelSpec
from training.tokens import TokenizedSplit

CPU = torch.device("cpu")
NUM_TEXTS = 8
MAX_TOKENS = 64
"""Of a text the models are compared on."""


def merge(folder: Path, output: Path) -> None:
    """Write the merged model of a run to `output`, which must not exist, and say how far its logits are off.

    Raises UserError for a run or folder that cannot be used, VerificationError where the written model is another.
    """
    quiet_libraries()
    run = open_run(folder)
    output = new_folder(output)
    unquantized = replace(run.spec.model, quantization="none")
    model, tokenizer = load_finished(run, unquantized, CPU, say)
    refuse_quantized(model, unquantized)
    texts = fixed_texts(tokenizer, model.config.vocab_size, min(MAX_TOKENS, run.spec.data.max_seq_length))
    expected = padded_logits(model, texts, NUM_TEXTS, CPU, NUM_TEXTS)
    say("merging")
    merged = model.merge_and_unload(safe_merge=True)
    del model
    require_room(merged, output.parent)
    with writing_folder(output) as temporary:
        merged.save_pretrained(str(temporary))
        tokenizer.save_pretrained(str(temporary))
        del merged
        gc.collect()
        say("verifying")
        reloaded = padded_logits(_load_plain(temporary, run), texts, NUM_TEXTS, CPU, NUM_TEXTS)
        verified = compare_logits(reloaded, expected, run.dtype, saved="merged model", original="base and adapter")
    print_verified(run, output, verified)


def new_folder(output: Path) -> Path:
    """Return where to write, which must not exist."""
    output = output.expanduser()
    if output.exists():
        raise UserError(f"--output {output} exists. Choose another folder, or remove it first.")
    return output


@contextmanager
def writing_folder(output: Path) -> Iterator[Path]:
    """Yield a temporary folder that becomes `output`, flushed, unless an error comes first: then nothing is left."""
    temporary = output.with_name(f".{output.name}.tmp")
    shutil.rmtree(temporary, ignore_errors=True)
    try:
        yield temporary
        flush(temporary)
        temporary.rename(output)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def say(message: str) -> None:
    """Say what is going on, on standard error."""
    print(message, file=sys.stderr, flush=True)


def fixed_texts(tokenizer: Any, vocab_size: int, max_tokens: int) -> TokenizedSplit:
    """Return token sequences of 2 to `max_tokens` tokens, the same every time.

    Drawn from the vocabulary and not taken from the job's data, which need not be there any more. Special tokens are
    left out: plain transformers would take a pad token for the end of the text.
    """
    special = {*tokenizer.all_special_ids, tokenizer.pad_token_id}
    words = [token for token in range(min(len(tokenizer), vocab_size)) if token not in special]
    lengths = np.linspace(2, max_tokens, NUM_TEXTS).round().astype(np.int64)
    tokens = np.random.default_rng(0).choice(words, size=int(lengths.sum())).astype(np.int32)
    offsets = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)
    return TokenizedSplit.of_texts([""] * NUM_TEXTS, [0] * NUM_TEXTS, tokens, offsets)


def refuse_quantized(model: Any, spec: ModelSpec) -> None:
    """Refuse a checkpoint that is stored quantized."""
    if getattr(model.config, "quantization_config", None) is not None:
        raise UserError(
            f"the base {spec.model_name_or_path} is stored quantized, and its weights cannot take up an adapter "
            "without being rounded again. Use base and adapter together, as README.md shows."
        )


def require_room(model: Any, folder: Path) -> None:
    """Refuse to begin writing what the disk has no room for; `folder`, where it is to lie, is made."""
    folder.mkdir(parents=True, exist_ok=True)
    needed = sum(parameter.numel() * parameter.element_size() for parameter in model.parameters())
    free = shutil.disk_usage(folder).free
    if needed > free:
        raise UserError(
            f"the merged model takes {format_gib(needed)}, and {folder} has {format_gib(free)} free. "
            "Make room, or choose a folder on another disk."
        )


def _load_plain(folder: Path, run: FinishedRun) -> Any:
    """Load the folder as a user's program would."""
    trust = run.spec.model.trust_remote_code
    model = AutoModelForSequenceClassification.from_pretrained(str(folder), dtype=run.dtype, trust_remote_code=trust)
    return model.eval()


def print_verified(run: FinishedRun, output: Path, verified: dict[str, Any]) -> None:
    """Say where the model lies and how far its logits are off."""
    difference, largest = verified["max_logit_difference"], verified["max_logit"]
    print(f"merged      {output} (verified by reloading)")
    print(f"difference  {difference:.3g} at most of a logit of base and adapter; the largest logit is {largest:.3g}")
    if run.spec.data.long_text != "head":
        print(
            f"note        read of a long text in training: {what_is_read(run.spec.data)}; a program that loads this "
            "model must do so itself, as `shoal predict` and `shoal serve` do with the run's folder"
        )
    quantization = run.spec.model.quantization
    if quantization != "none":
        print(
            f"note        the job trained on a base in {quantization}; this model holds it in "
            f"{str(run.dtype).removeprefix('torch.')}, so its logits differ from the job's by the quantization"
        )

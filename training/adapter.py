"""The adapter as a file anybody can load, and the proof that it loads.

adapter/ is PEFT's plain layout with the tokenizer and the base's config.json (label names, pad token) beside it:

    config = AutoConfig.from_pretrained("adapter")
    base = AutoModelForSequenceClassification.from_pretrained(BASE, config=config)
    model = PeftModel.from_pretrained(base, "adapter")
"""

from __future__ import annotations

import hashlib
import shutil
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from peft import PeftModel
from safetensors.torch import load_file
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from training.disk import flush
from training.errors import VerificationError
from training.memory import is_out_of_memory
from training.packing import pool_chunks
from training.tokens import TokenizedSplit

TOLERANCE = {torch.float32: 1e-3, torch.float16: 0.02, torch.bfloat16: 0.1}
"""Largest difference of a logit, as a share of the largest logit. bf16 rounds to 1 part in 256, once a layer, fp16 to 1
in 2048; a lost head or adapter differs by the size of the logits themselves."""


def save_adapter(model: PeftModel, weights: dict[str, Tensor], tokenizer: Any, config: Any, folder: Path) -> None:
    """Write adapter, head, tokenizer and configuration to `folder`, replacing what was there.

    `weights` are whole tensors by parameter name of `model`, so nothing partitioned can be saved empty.
    """
    temporary = folder.with_name(f".{folder.name}.tmp")
    shutil.rmtree(temporary, ignore_errors=True)
    model.save_pretrained(str(temporary), state_dict=weights, safe_serialization=True, save_embedding_layers=False)
    tokenizer.save_pretrained(str(temporary))
    config.save_pretrained(str(temporary))
    flush(temporary)
    shutil.rmtree(folder, ignore_errors=True)
    temporary.rename(folder)


def check_saved_values(folder: Path, weights: dict[str, Tensor]) -> None:
    """Raise VerificationError unless the file holds the trained tensors, bit by bit; PEFT gives them other names."""
    saved = load_file(folder / "adapter_model.safetensors").values()
    missing = Counter(map(_content, weights.values())) - Counter(map(_content, saved))
    if missing:
        raise VerificationError(
            f"{folder} holds {len(saved)} tensors, and {missing.total()} of the {len(weights)} trained are not among "
            "them as they were trained. The adapter is not usable; please report this with job.yaml."
        )


def _content(tensor: Tensor) -> tuple[int, bytes]:
    """Return a tensor's size and a hash of its bytes."""
    return tensor.numel(), hashlib.sha256(tensor.contiguous().view(torch.uint8).numpy().data).digest()


def reloaded_logits(
    base: Any, folder: Path, split: TokenizedSplit, num_texts: int, device: torch.device, batch_size: int
) -> npt.NDArray[np.float32]:
    """Return logits [num_texts, num_labels] of the first texts from a fresh base with the saved adapter.

    Transformers' own forward pass, padding and pooling, as a user's program would run it.
    """
    try:
        model = PeftModel.from_pretrained(base, str(folder))
    except (KeyError, RuntimeError) as error:  # a tensor that is missing, or of another shape
        if is_out_of_memory(error):
            raise
        raise VerificationError(
            f"{folder} does not load onto its base: {error}. The adapter is not usable; please report this with "
            "job.yaml."
        ) from error
    model = model.to(device).eval()
    return padded_logits(model, split, num_texts, device, batch_size)


@torch.no_grad()
def padded_logits(
    model: Any, split: TokenizedSplit, num_texts: int, device: torch.device, batch_size: int
) -> npt.NDArray[np.float32]:
    """Return logits [num_texts, num_labels] of the first texts from transformers' own forward pass and pooling."""
    batches = padded_batches(split, num_texts, device, batch_size, model.config.pad_token_id)
    logits = [model(**batch).logits.float().cpu() for batch in batches]
    return pool_chunks(torch.cat(logits), [len(text) for text in split.lengths[:num_texts]]).numpy()


def padded_batches(
    split: TokenizedSplit, num_texts: int, device: torch.device, batch_size: int, pad_token_id: int
) -> Iterator[dict[str, Tensor]]:
    """Yield input_ids and attention_mask [rows, T] of the first texts' chunks, `batch_size` rows at a time."""
    texts = split.lengths[:num_texts]
    rows = torch.split(torch.from_numpy(split.pack(range(num_texts))), [length for text in texts for length in text])
    for start in range(0, len(rows), batch_size):
        batch = list(rows[start : start + batch_size])
        input_ids = pad_sequence(batch, batch_first=True, padding_value=pad_token_id).to(device)
        lengths = torch.tensor([len(row) for row in batch], device=device)
        attention_mask = (torch.arange(input_ids.shape[1], device=device)[None] < lengths[:, None]).long()
        yield {"input_ids": input_ids, "attention_mask": attention_mask}


def compare_logits(
    reloaded: npt.NDArray[np.float32],
    trained: npt.NDArray[np.float32],
    dtype: torch.dtype,
    *,
    saved: str = "adapter",
    original: str = "the trained model",
) -> dict[str, Any]:
    """Return the differences; raise VerificationError, naming what was saved, where they are more than rounding."""
    difference = float(np.abs(reloaded - trained).max())
    scale = max(1.0, float(np.abs(trained).max()))
    if not difference <= TOLERANCE[dtype] * scale:
        raise VerificationError(
            f"the saved {saved} gives other logits than {original}: they differ by {difference:.4g}, and the "
            f"largest logit is {scale:.4g}. The {saved} is not usable; please report this with job.yaml."
        )
    return {"verified": True, "max_logit_difference": difference, "max_logit": scale, "num_texts": len(trained)}

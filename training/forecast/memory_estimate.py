"""What a forecast says: a rank's peak memory, by cause, and the work of the job. Light, since the launcher reads it."""

from __future__ import annotations

import functools
import hashlib
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path

from training import __version__

SAFETY_MARGIN = 0.03
"""Share by which a forecast of tensors may be too low; it is added."""

CUDA_CONTEXT = 500 << 20
"""Bytes of CUDA's own memory in a process, with the kernels of PyTorch, bitsandbytes and cuBLAS loaded."""

NCCL_BUFFERS = 400 << 20
"""Bytes of NCCL's own memory on the card of each rank of a job of several."""

GIB = 1 << 30

Bytes = dict[str, int]
"""Cause -> bytes."""


@dataclass(frozen=True, kw_only=True)
class MemoryEstimate:
    """Peak memory of one rank."""

    card: Bytes = field(default_factory=dict)
    """At the card's peak; empty for a job on the CPU."""
    host: Bytes = field(default_factory=dict)
    """At the host memory's peak."""
    phase: str = "training"
    """In which the card (without one, the host) has its peak: loading, training, evaluation, saving or verifying."""
    tensors: dict[str, Bytes] = field(default_factory=dict)
    """Phase -> "card" and "host" -> bytes of tensors alone, what `torch.cuda.max_memory_allocated` counts, without a
    checkpoint that is still being written."""

    @property
    def card_bytes(self) -> int:
        """All of a card's memory that the rank needs."""
        return sum(self.card.values())

    @property
    def host_bytes(self) -> int:
        """All of the host memory that the rank needs."""
        return sum(self.host.values())


@dataclass(frozen=True, kw_only=True)
class Work:
    """What a job computes, however it is cut over ranks and micro-batches."""

    parameters: int
    """Weights each token is multiplied with: those of the base without its embeddings."""
    layers: int
    tokens: int
    """Trained on, over all epochs."""
    evaluated_tokens: int
    """Of validation, after each epoch, and of test."""
    steps: int
    """Of the optimizer."""
    dtype: str = "fp32"
    """In which the job computes."""
    hidden: int = 0
    weights: int = 0
    """All of the base, embeddings included."""
    trained: int = 0
    """Of the adapter."""
    activations: int = 0
    """Numbers in and out of all linear layers, for a token."""
    pairs: int = 0
    """Of positions in one text, over all that is trained on."""
    evaluated_pairs: int = 0
    """The same of what is evaluated."""
    evaluations: int = 2
    """Of validation while training, that of the untrained model included."""


@dataclass(frozen=True, kw_only=True)
class JobForecast:
    """What is known of a job before it runs."""

    memory: MemoryEstimate
    work: Work
    dtype: str
    """bf16, fp16 or fp32, in which it computes."""


@functools.cache
def code_hash() -> str:
    """Return a hash of what a forecast is computed with."""
    packages = [version(name) for name in ("torch", "transformers", "peft", "bitsandbytes", "deepspeed")]
    sources = [file.read_bytes() for file in sorted(Path(__file__).resolve().parents[1].rglob("*.py"))]
    return hashlib.sha256(b"".join([__version__.encode(), *(name.encode() for name in packages), *sources])).hexdigest()

"""Peak memory of this process, and what running out of it looks like."""

from __future__ import annotations

import resource
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Literal

import torch

from training.card_memory.measured import peaks_of_process
from training.errors import ShoalError

MemoryPhase = Literal["loading the model", "training", "evaluation"]


def peak_memory_bytes() -> dict[str, int]:
    """Return "gpu_bytes" (torch.cuda.max_memory_allocated), "host_bytes" (largest resident set) and what
    training.card_memory.measured counts, the largest seen so far; all of a card are 0 on a CPU."""
    gpu = torch.cuda.max_memory_allocated() if torch.cuda.is_available() else 0
    host = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    return {"gpu_bytes": gpu, "host_bytes": host, **peaks_of_process.look()}


class OutOfMemory(ShoalError):
    """A step or an evaluation asked for more memory than there is."""

    def __init__(self, phase: MemoryPhase, step: int, cause: BaseException) -> None:
        self.phase, self.step = phase, step
        super().__init__(f"out of memory in {phase} after step {step}: {first_line(cause)}")


def first_line(error: BaseException) -> str:
    """Return the first line of an error's text."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0]


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error is the card's or the host's memory running out."""
    # torch has no class of its own for the host's (c10/core/impl/alloc_cpu.cpp), cuBLAS's and NCCL's. On a full card
    # cuBLAS cannot make its handle, which it says in three ways; the same status of a product is another matter.
    words = ["DefaultCPUAllocator: can't allocate memory", "CUBLAS_STATUS_ALLOC_FAILED", "out of memory"]
    words += [f"{status} when calling `cublasCreate" for status in ("NOT_INITIALIZED", "INTERNAL_ERROR")]
    said = isinstance(error, RuntimeError) and any(word in str(error) for word in words)
    return said or isinstance(error, (torch.OutOfMemoryError, MemoryError))


@contextmanager
def memory_watched(phase: MemoryPhase, step: int) -> Iterator[None]:
    """Turn running out of memory within this context into OutOfMemory."""
    try:
        yield
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
        raise OutOfMemory(phase, step, error) from error

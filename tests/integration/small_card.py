"""training/main.py on a card that holds few tokens: a larger micro-batch runs out of memory in CUDA's words.

`SMALL_CARD` is JSON: {"training": positions, "evaluation": positions, "rank": the rank that has it, or null for all,
"terminated": whether the rank gets SIGTERM in the very step that runs out}.
"""

from __future__ import annotations

import json
import os
import signal
import sys
from collections.abc import Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import torch
from torch import Tensor

from training.packing import PackedClassifier


def shrink(limits: dict[str, int | None]) -> None:
    """Make PackedClassifier raise for more padded positions than the limits say."""
    forward = PackedClassifier.forward

    def limited(self: PackedClassifier, input_ids: Tensor, lengths: Sequence[int], *chunks: Sequence[int]) -> Tensor:
        limit = limits.get("training" if self.training else "evaluation")
        if limit is not None and len(lengths) * max(lengths) > limit:
            if limits.get("terminated"):
                os.kill(os.getpid(), signal.SIGTERM)
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 1.00 GiB.")
        return forward(self, input_ids, lengths, *chunks)

    PackedClassifier.forward = limited  # type: ignore[method-assign]


if __name__ == "__main__":
    settings = json.loads(os.environ["SMALL_CARD"])
    if settings.get("rank") in (None, int(os.environ.get("RANK", "0"))):
        shrink(settings)
    from training.main import main

    sys.exit(main())

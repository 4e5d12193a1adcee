"""training/main.py on a card that holds few tokens: a larger micro-batch runs out of memory in CUDA's words.

`SMALL_CARD` is JSON: {"training": positions, "evaluation": positions, "rank": the rank that has it, or null for all,
"terminated": whether the rank gets SIGTERM in the very step that runs out, "after": passes that go well whatever their
size}. The stand-ins of SHOAL_STAND_INS are installed, which a forked rank was forked too early for.
"""

from __future__ import annotations

import itertools
import json
import os
import runpy
import signal
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
import torch
from torch import Tensor

from training.packing import PackedClassifier, Packing

INSTALL = Path(__file__).resolve().parents[1] / "stand_ins" / "site" / "sitecustomize.py"


def shrink(limits: dict[str, Any]) -> None:
    """Make PackedClassifier raise for more padded positions than the limits say."""
    forward = PackedClassifier.forward
    passes = itertools.count()

    def limited(self: PackedClassifier, input_ids: Tensor, packing: Packing, *chunks: Sequence[int]) -> Tensor:
        limit = limits.get("training" if self.training else "evaluation")
        early = next(passes) < limits.get("after", 0)
        if not early and limit is not None and len(packing.lengths) * max(packing.lengths) > limit:
            if limits.get("terminated"):
                os.kill(os.getpid(), signal.SIGTERM)
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 1.00 GiB.")
        return forward(self, input_ids, packing, *chunks)

    PackedClassifier.forward = limited  # type: ignore[method-assign]


if __name__ == "__main__":
    runpy.run_path(str(INSTALL))
    settings = json.loads(os.environ["SMALL_CARD"])
    if settings.get("rank") in (None, int(os.environ.get("RANK", "0"))):
        shrink(settings)
    from training.main import main

    sys.exit(main())

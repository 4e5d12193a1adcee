"""The clock of the peers' training steps, as a callback of the Hugging Face Trainer.

`speed_hf.py` passes it to the Trainer. ms-swift, whose trainer is built on the same one, loads this file by
`--external_plugins benchmarks/speed_clock.py --callbacks step_clock`; STEP_CLOCK names the file to write. It imports
nothing of Shoal, for it runs in ms-swift's own environment too.
"""

from __future__ import annotations

import json
import os
import sys
import time
from pathlib import Path
from typing import Any

import torch
from transformers import TrainerCallback

WARMUP_STEPS = 2
"""Steps at the beginning of each cell that no figure counts."""


class StepClock(TrainerCallback):
    """Notes when each optimizer step ended and how many tokens went through the model in it."""

    def __init__(self, output: Path) -> None:
        self.output = output
        self.times: list[float] = []
        self.tokens: list[int] = []
        self.positions: list[int] = []

    def on_train_begin(self, args: Any, state: Any, control: Any, model: Any = None, **_: Any) -> None:
        model.register_forward_pre_hook(self.count, with_kwargs=True)

    def count(self, _module: Any, _arguments: Any, kwargs: dict[str, Any]) -> None:
        mask = kwargs.get("attention_mask")
        self.positions.append(kwargs["input_ids"].numel())
        self.tokens.append(self.positions[-1] if mask is None else int(mask.sum()))

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        self.times.append(time.time())

    def on_train_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        content = {"times": self.times, "tokens": self.tokens, "positions": self.positions}
        self.output.write_text(json.dumps(content), encoding="utf-8")


if "swift" in sys.modules:
    from swift.callbacks import callbacks_map

    callbacks_map["step_clock"] = lambda args, trainer: StepClock(Path(os.environ["STEP_CLOCK"]))

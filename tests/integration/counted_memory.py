"""training/main.py whose host memory is counted: what is pinned, and what is alive when the adapter is verified.

`COUNTED_MEMORY` is the file that gets {"alive": bytes of tensors when the proof begins, "largest": bytes of the
largest of them, "rounded" and "locked": see stand_ins.rounding_pins}.
"""

from __future__ import annotations

import gc
import json
import os
import sys
from pathlib import Path
from typing import Any

sys.path[:0] = [str(Path(__file__).resolve().parents[2]), str(Path(__file__).resolve().parents[1])]

import torch  # noqa: E402
from stand_ins import rounding_pins  # noqa: E402

rounding_pins.install("")

import training.rank  # noqa: E402


def alive() -> list[int]:
    """Return the bytes of each storage of a tensor that is alive."""
    gc.collect()
    storages = {}
    for value in gc.get_objects():
        if isinstance(value, torch.Tensor):
            storage = value.untyped_storage()
            storages[storage._cdata] = storage.nbytes()
    return list(storages.values())


def count(conclude: Any) -> Any:
    def counted(*arguments: Any, **options: Any) -> Any:
        sizes = alive()
        content = {"alive": sum(sizes), "largest": max(sizes), **rounding_pins.counted}
        Path(os.environ["COUNTED_MEMORY"]).write_text(json.dumps(content), encoding="utf-8")
        return conclude(*arguments, **options)

    return counted


if __name__ == "__main__":
    training.rank.conclude = count(training.rank.conclude)  # type: ignore[attr-defined]
    from training.main import main

    sys.exit(main())

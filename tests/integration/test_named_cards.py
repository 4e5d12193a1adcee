"""Jobs whose cards are named by UUID, as schedulers and older clusters do, and by number, as Shoal's launcher does."""

from __future__ import annotations

from pathlib import Path

import pytest
from forked_jobs import run_job
from stand_ins.nvml import Inventory

PROGRAM = Path(__file__).parent / "on_cuda_accelerator.py"
CARD = Inventory.of("3060+3060").devices[1]


@pytest.mark.parametrize(
    ("file", "precision", "visible"),
    [
        ("zero2", "true", CARD.uuid),
        ("zero2_offload", "true", CARD.uuid),
        ("zero1", "false", CARD.uuid),
        ("zero2", "true", str(CARD.index)),
    ],
)
def test_deepspeed_reads_them(job_flags: list[str], tmp_path: Path, file: str, precision: str, visible: str) -> None:
    """ZeRO 1 and 2 ask their accelerator how much of the card is free, by its place in CUDA_VISIBLE_DEVICES."""
    flags = [*job_flags, f"--bf16={precision}", "--max_steps=2", f"--deepspeed=ds_configs/{file}.json"]
    run = run_job(*flags, f"--output_dir={tmp_path}", program=PROGRAM, CUDA_VISIBLE_DEVICES=visible)
    assert run.returncode == 0, run.stderr[-3000:]
    assert (tmp_path / "result.json").exists()

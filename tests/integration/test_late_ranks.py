"""A rank that is late for good reason ends no job; a rank that cannot be reached ends it soon, with what to look at."""

from __future__ import annotations

from pathlib import Path

from forked_jobs import run_job

PROGRAM = Path(__file__).parent / "late_ranks.py"


def test_the_first_ranks_disk_may_keep_the_others_waiting(job_flags: list[str], tmp_path: Path) -> None:
    """Ten steps and four saves, the last one at the end of training: the other rank waits in no call with a limit."""
    flags = [*job_flags, "--save_steps=3", "--save_total_limit=1", "--output_dir", str(tmp_path / "out")]
    run = run_job(*flags, num_ranks=2, program=PROGRAM, LATE="disk")
    assert run.returncode == 0, run.stderr[-3000:]
    assert (tmp_path / "out" / "result.json").exists()


def test_ranks_without_a_way_to_each_other_say_so_before_anything_is_loaded(
    job_flags: list[str], tmp_path: Path
) -> None:
    run = run_job(*job_flags, "--output_dir", str(tmp_path / "out"), num_ranks=2, program=PROGRAM, LATE="nothing")
    assert run.returncode == 1, run.stderr[-3000:]
    assert "a first sum over 2 ranks did not end" in run.stderr and "shoal doctor" in run.stderr
    assert "loading data" not in run.stderr and "Traceback" not in run.stderr

"""benchmarks/memory_forecast.py goes on where it was stopped, and keeps nothing that is of another draw."""

from __future__ import annotations

from benchmarks.memory_forecast import latest
from benchmarks.memory_forecast_job import draw_job


def test_a_row_that_was_measured_stays_and_another_draws_goes() -> None:
    jobs = [draw_job(number).to_dict() for number in range(3)]
    measured = [{"job": job, "measured": {"bytes": size}} for size, job in enumerate(jobs)]
    other = {"job": {**jobs[2], "layers": 99}, "measured": {"bytes": 9}}
    again = {"job": jobs[0], "measured": {"bytes": 7}}
    failed = [{"job": jobs[0], "error": "no"}, {"job": jobs[1], "error": "no"}]
    rows = latest([measured[0], again, *failed, other])
    assert rows == {"job0": again, "job1": failed[1]}
    whole = latest([*rows.values(), *measured[1:]])
    assert whole == {"job0": again, "job1": measured[1], "job2": measured[2]}

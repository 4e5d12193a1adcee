"""Which settings are stopped: as Ray Tune's scheduler decides, and what is Shoal's own about seeds and data."""

from __future__ import annotations

import math
from types import SimpleNamespace

import pytest
from hypothesis import given
from hypothesis import strategies as st
from ray.tune.schedulers import AsyncHyperBandScheduler

from launcher.halving import Halving, Member, Verdict, cutoff
from launcher.study import EarlyStopping

LONGEST = 100


def halving(names: str, *, grace: float = 1.0, factor: int = 3, metric: str = "accuracy") -> Halving:
    """Jobs as "setting/seed@data", in words."""
    members = {}
    for name in names.split():
        job, _, data = name.partition("@")
        members[job] = Member(setting=job.split("/")[0] + data, arena=data, metric=metric)
    return Halving(EarlyStopping(grace_epochs=grace, reduction_factor=factor), members)


def decide(rungs: Halving, job: str, epoch: float, value: float) -> Verdict | None:
    return rungs.decide(job, epoch, {"accuracy": value, "loss": value})


@st.composite
def sequences(draw: st.DrawFn) -> list[tuple[str, int, float]]:
    """(job, epoch, value) in the order in which they are heard; the epochs of a job grow, no value occurs twice."""
    jobs = [f"job{number}" for number in range(draw(st.integers(2, 12)))]
    turns = draw(st.lists(st.sampled_from(jobs), min_size=1, max_size=60))
    values = draw(st.permutations(range(len(turns))))
    epochs = dict.fromkeys(jobs, 0)
    heard = []
    for job, value in zip(turns, values, strict=True):
        epochs[job] += draw(st.integers(1, 6))
        # A root is no interpolation of others, so that no decision hangs on the last bit.
        heard.append((job, min(epochs[job], LONGEST - 1), math.sqrt(value + 2)))
    return heard


@given(sequences(), st.integers(2, 5), st.integers(1, 4), st.sampled_from(["accuracy", "loss"]))
def test_each_decision_is_that_of_rays_scheduler(
    heard: list[tuple[str, int, float]], factor: int, grace: int, metric: str
) -> None:
    ours = halving(" ".join(sorted({job for job, _, _ in heard})), grace=grace, factor=factor, metric=metric)
    # Without stop_last_trials a trial that has passed a rung is not asked at a lower one.
    rays = AsyncHyperBandScheduler(
        time_attr="epoch", metric=metric, mode="min" if metric == "loss" else "max", max_t=LONGEST, grace_period=grace,
        reduction_factor=factor, stop_last_trials=False,
    )  # fmt: skip
    trials = {job: SimpleNamespace(trial_id=job) for job in ours.members}
    for trial in trials.values():
        rays.on_trial_add(None, trial)
    stopped: set[str] = set()
    for job, epoch, value in heard:
        if job in stopped:
            continue
        expected = rays.on_trial_result(None, trials[job], {"epoch": epoch, metric: value})
        verdict = decide(ours, job, epoch, value)
        assert (verdict is not None) == (expected == "STOP")
        stopped |= {job} if verdict else set()
    assert stopped < set(trials)  # somebody is left


@pytest.mark.parametrize(
    ("values", "factor", "expected"),
    [([], 3, None), ([5.0], 3, 5.0), ([1.0, 2.0], 2, 1.5), ([1.0, 2.0, 3.0, 4.0], 3, 3.0), ([4.0, 1.0], 4, 3.25)],
)
def test_the_cutoff_is_the_quantile_of_the_best_share(values: list[float], factor: int, expected: float | None) -> None:
    assert cutoff(values, factor) == expected


def test_nobody_is_stopped_within_the_grace_period_and_the_first_at_a_rung_goes_on() -> None:
    rungs = halving("a b c", grace=2.0)
    assert decide(rungs, "a", 2.0, 0.5) is None
    assert decide(rungs, "b", 1.0, 0.1) is None
    verdict = decide(rungs, "b", 2.0, 0.1)
    assert verdict == Verdict(
        job="b", rung=2.0, epoch=2.0, metric="accuracy", value=0.1, needed=0.5, num_rivals=1, num_seeds=1
    )
    assert decide(rungs, "c", 2.0, 0.9) is None
    assert decide(rungs, "a", 6.0, 0.1) is None  # the first there


def test_a_job_that_goes_on_after_a_failure_is_not_asked_twice() -> None:
    rungs = halving("a b")
    assert decide(rungs, "b", 1.0, 0.2) is None
    assert decide(rungs, "a", 1.0, 0.5) is None
    assert decide(rungs, "b", 1.0, 0.2) is None


def test_epochs_that_events_have_rounded_reach_their_rung() -> None:
    rungs = halving("a b", grace=1 / 3)
    decide(rungs, "a", 0.3333, 0.9)
    assert decide(rungs, "b", 0.3333, 0.1)


def test_what_is_no_number_is_hopeless_and_no_measure() -> None:
    rungs = halving("a b c", metric="loss")
    assert decide(rungs, "a", 1.0, math.nan) is None  # alone
    assert decide(rungs, "b", 1.0, 3.0) is None
    assert decide(rungs, "c", 1.0, math.nan)


def test_jobs_on_other_data_are_not_compared() -> None:
    rungs = halving("a@here b@there c@there")
    assert decide(rungs, "a", 1.0, 0.9) is None
    assert decide(rungs, "b", 1.0, 0.1) is None
    assert decide(rungs, "c", 1.0, 0.05)


def test_seeds_of_a_setting_are_not_compared_and_are_stopped_together_by_their_mean() -> None:
    rungs = halving("a/0 a/1 a/2 b/0 b/1 b/2")
    assert [decide(rungs, f"a/{seed}", 1.0, value) for seed, value in enumerate((0.6, 0.4, 0.5))] == [None] * 3
    assert decide(rungs, "b/0", 1.0, 0.7) is None
    verdict = decide(rungs, "b/1", 1.0, 0.1)
    assert verdict is not None
    assert (verdict.value, verdict.needed, verdict.num_seeds) == (pytest.approx(0.4), pytest.approx(0.5), 2)
    assert rungs.seeds_of("b") == ["b/0", "b/1", "b/2"]
    assert decide(rungs, "b/2", 0.0, 0.99) is verdict  # not even begun


def test_the_last_setting_that_is_left_goes_on() -> None:
    rungs = halving("a/0 a/1 b/0")
    assert decide(rungs, "a/0", 1.0, 0.8) is None
    assert decide(rungs, "b/0", 1.0, 0.7)
    assert decide(rungs, "a/1", 1.0, 0.0) is None

"""Adds up losses and times of the steps and reports them."""

from __future__ import annotations

import math
import time

import torch
import torch.distributed as dist
from torch import Tensor

from training.batches import StepPlan
from training.card_memory.measured import NAMES
from training.errors import ShoalError
from training.memory import peak_memory_bytes
from training.progress import TrainingProgress
from training.run import TrainingRun, TrainingState

MAX_STEP_EVENTS = 500
"""Steps are reported one by one up to this many, then in groups: enough for a curve."""
MAX_STEPS_AN_EVENT = 10
"""Of such a group: the ranks agree on stopping when they add up their losses, and a stop should not wait long."""


def any_rank_stops(run: TrainingRun) -> bool:
    """Whether a rank was asked to stop. All ranks must call it, and wait for the last to do so."""
    stops = torch.tensor(float(run.stop.requested), device=run.device)
    if run.ranks.world_size > 1:
        dist.all_reduce(stops)
    return bool(stops.item())


class StepMeter:
    """Adds up losses and times and reports them as step events."""

    def __init__(self, run: TrainingRun, state: TrainingState) -> None:
        self.run, self.state = run, state
        self.every = min(math.ceil(run.num_steps / MAX_STEP_EVENTS), MAX_STEPS_AN_EVENT)
        self.loss_sum = torch.zeros((), device=run.device)
        self.stop_agreed = False
        """Whether a rank was asked to stop and all know it."""
        self.num_samples = 0
        self.samples_timed = self.tokens_timed = 0
        self.seconds_timed = 0.0
        self.reported = (state.step, 0.0)
        """The step of the last report, and the seconds timed by then."""

    def start(self) -> None:
        """Begin timing a step."""
        self.started = time.perf_counter()

    def add(self, loss_sum: Tensor, plan: StepPlan, rate: float, progress: TrainingProgress, *, due: bool) -> None:
        """Note a finished step; report it if its turn has come or it is `due`."""
        run, state = self.run, self.state
        self.loss_sum += loss_sum
        self.num_samples += plan.num_samples
        if state.step % self.every and not due:
            self._time(plan)
            return
        sums = torch.stack([self.loss_sum, self.loss_sum.new_tensor(float(run.stop.requested))])
        if run.ranks.world_size > 1:
            dist.all_reduce(sums)
        loss, stops = sums.tolist()
        self.stop_agreed = stops > 0
        state.last_loss = loss / self.num_samples
        self._time(plan)
        if not math.isfinite(state.last_loss):
            raise ShoalError(
                f"training diverged: the loss is {state.last_loss} at step {state.step}. "
                f"Lower training.learning_rate ({run.spec.training.learning_rate})."
            )
        self._report(rate, progress)
        self.loss_sum.zero_()
        self.num_samples = 0

    def _time(self, plan: StepPlan) -> None:
        elapsed = time.perf_counter() - self.started
        self.state.seconds += elapsed
        self.seconds_timed += elapsed
        self.samples_timed += plan.num_samples
        self.tokens_timed += plan.num_tokens

    def _report(self, rate: float, progress: TrainingProgress) -> None:
        if not self.run.ranks.is_main:
            return
        run, state = self.run, self.state
        memory = peak_memory_bytes()
        seconds_a_sample = self.seconds_timed / self.samples_timed
        last_step, last_seconds = self.reported
        self.reported = (state.step, self.seconds_timed)
        event = {
            "step": state.step,
            "num_steps": run.num_steps,
            "epoch": round(state.step / run.steps_per_epoch, 4),
            "loss": state.last_loss,
            "learning_rate": rate,
            "samples_per_second": 1.0 / seconds_a_sample,
            "tokens_per_second": self.tokens_timed / self.seconds_timed,
            "step_seconds": (self.seconds_timed - last_seconds) / (state.step - last_step),
            "eta_seconds": (run.num_steps - state.step) * run.global_batch_size * seconds_a_sample,
            "peak_memory_bytes": memory["gpu_bytes"] or memory["host_bytes"],
            **({name: memory[name] for name in NAMES} if memory["gpu_bytes"] else {}),
        }
        run.recorder.event("step", **event)
        progress.step(event)

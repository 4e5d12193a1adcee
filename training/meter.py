"""Adds up losses and times of the steps and reports them."""

from __future__ import annotations

import math
import time
from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import Tensor

from training.batches import StepPlan
from training.card_memory.measured import NAMES
from training.errors import ShoalError
from training.host_copies import Fetched
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


@dataclass(frozen=True, kw_only=True)
class Pending:
    """A report whose loss is on its way to the host."""

    sums: Fetched
    """The loss of all texts since the last report, and the ranks asked to stop."""
    num_samples: int
    step: int
    rate: float
    samples_timed: int
    tokens_timed: int
    seconds_timed: float


class StepMeter:
    """Adds up losses and times and reports them as step events.

    On a card a report comes a step late, for its loss is read while the card works on the next step; before a save or
    an evaluation it comes at once.
    """

    def __init__(self, run: TrainingRun, state: TrainingState) -> None:
        self.run, self.state = run, state
        self.every = min(math.ceil(run.num_steps / MAX_STEP_EVENTS), MAX_STEPS_AN_EVENT)
        self.late = run.device.type == "cuda"
        self.pending: Pending | None = None
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
        """Note a finished step; report it if its turn has come or it is `due`.

        Raises ShoalError for a loss that is no number, before whoever is due saves it.
        """
        self.loss_sum += loss_sum
        self.num_samples += plan.num_samples
        earlier, self.pending = self.pending, None
        sums = self._send() if due or self.state.step % self.every == 0 else None
        if earlier is not None:
            self.stop_agreed |= earlier.sums.values()[1] > 0
        if sums is None and self.stop_agreed:  # as on all ranks; what is saved is to be reported
            sums = self._send()
        at_once = due or self.stop_agreed or not self.late
        if sums is not None and at_once:
            self.stop_agreed |= sums.values()[1] > 0
        self._time(plan)
        if earlier is not None:
            self._settle(earlier, progress)
        if sums is None:
            return
        pending = Pending(
            sums=sums,
            num_samples=self.num_samples,
            step=self.state.step,
            rate=rate,
            samples_timed=self.samples_timed,
            tokens_timed=self.tokens_timed,
            seconds_timed=self.seconds_timed,
        )
        self.num_samples = 0
        if at_once:
            self._settle(pending, progress)
        else:
            self.pending = pending

    def _send(self) -> Fetched:
        """Add up what the ranks have, have it fetched, and begin anew."""
        stops = float(self.run.stop.requested)
        sums = torch.stack([self.loss_sum, torch.full_like(self.loss_sum, stops)])
        if self.run.ranks.world_size > 1:
            dist.all_reduce(sums)
        else:
            self.stop_agreed |= bool(stops)  # nobody else to ask
        self.loss_sum.zero_()
        return Fetched(sums)

    def _time(self, plan: StepPlan) -> None:
        elapsed = time.perf_counter() - self.started
        self.state.seconds += elapsed
        self.seconds_timed += elapsed
        self.samples_timed += plan.num_samples
        self.tokens_timed += plan.num_tokens

    def _settle(self, pending: Pending, progress: TrainingProgress) -> None:
        """Take note of a loss that has come, and report it."""
        state = self.state
        state.last_loss = pending.sums.values()[0] / pending.num_samples
        if not math.isfinite(state.last_loss):
            raise ShoalError(
                f"training diverged: the loss is {state.last_loss} at step {pending.step}. "
                f"Lower training.learning_rate ({self.run.spec.training.learning_rate})."
            )
        if self.run.ranks.is_main:
            self._report(pending, progress)

    def _report(self, pending: Pending, progress: TrainingProgress) -> None:
        run = self.run
        memory = peak_memory_bytes()
        seconds_a_sample = pending.seconds_timed / pending.samples_timed
        last_step, last_seconds = self.reported
        self.reported = (pending.step, pending.seconds_timed)
        event = {
            "step": pending.step,
            "num_steps": run.num_steps,
            "epoch": round(pending.step / run.steps_per_epoch, 4),
            "loss": self.state.last_loss,
            "learning_rate": pending.rate,
            "samples_per_second": 1.0 / seconds_a_sample,
            "tokens_per_second": pending.tokens_timed / pending.seconds_timed,
            "step_seconds": (pending.seconds_timed - last_seconds) / (pending.step - last_step),
            "eta_seconds": (run.num_steps - pending.step) * run.global_batch_size * seconds_a_sample,
            "peak_memory_bytes": memory["gpu_bytes"] or memory["host_bytes"],
            **({name: memory[name] for name in NAMES} if memory["gpu_bytes"] else {}),
        }
        run.recorder.event("step", **event)
        progress.step(event)

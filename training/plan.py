"""How a job's work is cut to fit memory. A plan changes nothing of what is learnt; a retry makes a new one."""

from __future__ import annotations

import json
import math
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from training.errors import ShoalError
from training.result import write_json
from training.spec import JobSpec

PLAN_FILE = "plan.json"


@dataclass(frozen=True, kw_only=True)
class Plan:
    """The sizes a job runs with: those of its spec at first, smaller ones after it ran out of memory."""

    per_device_train_batch_size: int
    gradient_accumulation_steps: int
    per_device_eval_batch_size: int
    recomputed_layers: float
    """Share of the layers whose activations are recomputed in backward (gradient checkpointing), 0 to 1."""
    card_gib: float = 0.0
    """What each rank asks of its card, where what was forecast did not do; 0 where nothing else is known."""
    retries: list[dict[str, Any]] = field(default_factory=list)
    """What each earlier plan ran into: phase, step, error, and `changes` as {setting: [from, to]}."""

    @staticmethod
    def of(spec: JobSpec) -> Plan:
        """Return what the spec asks for."""
        training = spec.training
        return Plan(
            per_device_train_batch_size=training.per_device_train_batch_size,
            gradient_accumulation_steps=training.gradient_accumulation_steps,
            per_device_eval_batch_size=training.per_device_eval_batch_size,
            recomputed_layers=float(training.gradient_checkpointing),
        )

    def deepspeed_sizes(self) -> dict[str, int]:
        """Return the keys of DeepSpeed's JSON that hold these sizes."""
        return {
            "train_micro_batch_size_per_gpu": self.per_device_train_batch_size,
            "gradient_accumulation_steps": self.gradient_accumulation_steps,
        }

    def smaller(self, phase: str, step: int, error: str) -> Plan | None:
        """Return the plan to try after running out of memory; None where nothing is left to give up.

        Micro-batches are halved and added up twice as many times, so that the global batch stays; at one text a
        micro-batch half of the layers are recomputed in backward, then all.
        """
        ways = {"evaluation": self._smaller_evaluation, "training": self._smaller_training}
        changes = ways[phase]() if phase in ways else {}
        if not changes:
            return None
        return self._changed(phase, step, error, changes, {name: getattr(self, name) for name in changes})

    def with_more(self, phase: str, step: int, error: str, had_gib: float, card_gib: float) -> Plan:
        """Return the same plan on more of a card: what was reserved did not do, and the card has room."""
        # Whole MiB, rounded down: all of a card is the most that can be had, and a thousandth more never.
        had, more = (math.floor(gib * 1024) / 1024 for gib in (had_gib, card_gib))
        return self._changed(phase, step, error, {"card_gib": more}, {"card_gib": had})

    def _changed(self, phase: str, step: int, error: str, changes: dict[str, Any], had: dict[str, Any]) -> Plan:
        said = {name: [had[name], value] for name, value in changes.items()}
        retry = {"phase": phase, "step": step, "error": error, "changes": said}
        return replace(self, **changes, retries=[*self.retries, retry])

    def _smaller_training(self) -> dict[str, Any]:
        texts = self.per_device_train_batch_size * self.gradient_accumulation_steps
        fitting = [size for size in range(1, self.per_device_train_batch_size // 2 + 1) if texts % size == 0]
        if fitting:
            return {"per_device_train_batch_size": fitting[-1], "gradient_accumulation_steps": texts // fitting[-1]}
        if self.recomputed_layers < 1:
            return {"recomputed_layers": 0.5 if self.recomputed_layers < 0.5 else 1.0}
        return {}

    def _smaller_evaluation(self) -> dict[str, Any]:
        half = self.per_device_eval_batch_size // 2
        return {"per_device_eval_batch_size": half} if half else {}


class RetryWith(ShoalError):
    """The job ran out of memory and can go on from its newest checkpoint with a smaller plan, in fresh processes."""

    def __init__(self, plan: Plan) -> None:
        self.plan = plan
        last = plan.retries[-1]
        changes = ", ".join(
            f"{name} {round(old, 3)} -> {round(new, 3)}" for name, (old, new) in last["changes"].items()
        )
        super().__init__(f"out of memory in {last['phase']}, step {last['step']}; trying again with {changes}")


def read_plan(workdir: Path, spec: JobSpec, num_ranks: int) -> Plan:
    """Return the plan an earlier try of the job left in its folder, else the spec's own.

    One made with other settings or another number of ranks is void: less or more memory is needed now.
    """
    first = Plan.of(spec)
    try:
        content = json.loads((workdir / PLAN_FILE).read_text(encoding="utf-8"))
        return Plan(**content["plan"]) if content["job"] == _key(spec, num_ranks) else first
    except (OSError, ValueError, KeyError, TypeError):  # none, or damaged: memory is the judge again
        return first


def write_plan(workdir: Path, spec: JobSpec, num_ranks: int, plan: Plan) -> None:
    """Keep a plan for the next try."""
    write_json(workdir / PLAN_FILE, {"job": _key(spec, num_ranks), "plan": asdict(plan)})


def _key(spec: JobSpec, num_ranks: int) -> str:
    """Return what a plan belongs to."""
    return f"{spec.fingerprint()} on {num_ranks} ranks"

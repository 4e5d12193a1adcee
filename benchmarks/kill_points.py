"""Where benchmarks/kills.py kills: a named place in the program, or a random moment.

A place is a function of the trainer; the rank sends itself SIGKILL when the function is called for the n-th time,
before or after its work. SIGKILL cannot be handled, so nothing the program does can soften it.
"""

from __future__ import annotations

import importlib
import os
import random
import signal
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, kw_only=True)
class Place:
    """A function that can be the last thing a rank does."""

    phase: str
    module: str
    name: str
    """Dotted inside the module for a method."""
    most_calls: int = 1
    """The n-th call is drawn from 1 to this."""
    main_only: bool = False
    """Only rank 0 calls it."""


STEPS = 20
SAVES = 7
PLACES = (
    Place(phase="loading", module="training.rank", name="load_material"),
    Place(phase="loading", module="training.rank", name="build_classifier"),
    Place(phase="loading", module="training.rank", name="start_engine"),
    Place(phase="resuming", module="training.rank", name="restore"),
    Place(phase="forward", module="training.packing", name="PackedClassifier.forward", most_calls=3 * STEPS),
    Place(phase="backward", module="deepspeed.runtime.engine", name="DeepSpeedEngine.backward", most_calls=STEPS),
    Place(phase="optimizer", module="deepspeed.runtime.engine", name="DeepSpeedEngine.step", most_calls=STEPS),
    Place(phase="gathering a checkpoint", module="training.saving", name="read_training_state", most_calls=SAVES),
    Place(
        phase="writing tensors", module="training.checkpoint", name="save_file", most_calls=2 * SAVES, main_only=True
    ),
    Place(
        phase="writing state.json", module="training.checkpoint", name="write_json", most_calls=SAVES, main_only=True
    ),
    Place(phase="flushing", module="training.checkpoint", name="flush", most_calls=SAVES, main_only=True),
    Place(phase="renaming", module="training.checkpoint", name="put_in_place", most_calls=SAVES, main_only=True),
    Place(phase="between the renames", module="pathlib", name="Path.rename", most_calls=SAVES + 1, main_only=True),
    Place(phase="dropping the oldest", module="training.saving", name="drop", most_calls=SAVES - 2, main_only=True),
    Place(phase="evaluation", module="training.run", name="compute_logits", most_calls=5),
    Place(phase="saving the adapter", module="training.finish", name="save_adapter", main_only=True),
    Place(phase="verifying", module="training.finish", name="verify_adapter", main_only=True),
    Place(phase="writing predictions", module="training.finish", name="write_predictions", main_only=True),
    Place(phase="writing result.json", module="training.finish", name="write_json", main_only=True),
)


@dataclass(frozen=True, kw_only=True)
class Kill:
    """One kill to make."""

    rank: int
    """Who is killed; the others meet its absence, then are killed too."""
    place: Place | None = None
    call: int = 1
    after: bool = False
    """After the function's work, not before."""
    moment: float = 0.0
    """Without a place: seconds after the start at which all ranks are killed."""

    @property
    def phase(self) -> str:
        """What the table calls it."""
        return self.place.phase if self.place else "any moment, all ranks"


def draw_kill(draw: random.Random, num_ranks: int, seconds: float) -> Kill:
    """Draw a kill: a place two times in three, else a moment within a job of this many seconds."""
    if draw.random() < 1 / 3:
        return Kill(rank=0, moment=draw.uniform(0, seconds))
    place = draw.choice(PLACES)
    rank = 0 if place.main_only else draw.randrange(num_ranks)
    return Kill(rank=rank, place=place, call=draw.randint(1, place.most_calls), after=draw.random() < 0.5)


def arm(kill: Kill) -> None:
    """Make this process die at the kill's place."""
    if kill.place is None:
        return
    owner: Any = importlib.import_module(kill.place.module)
    *path, name = kill.place.name.split(".")
    for part in path:
        owner = getattr(owner, part)
    setattr(owner, name, deadly(getattr(owner, name), kill.call, kill.after))


def deadly(function: Callable[..., Any], call: int, after: bool) -> Callable[..., Any]:
    """Return the function, killing its process at that call."""
    calls = 0

    def wrapper(*arguments: Any, **options: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls == call and not after:
            os.kill(os.getpid(), signal.SIGKILL)
        result = function(*arguments, **options)
        if calls == call:
            os.kill(os.getpid(), signal.SIGKILL)
        return result

    return wrapper

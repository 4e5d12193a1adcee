"""A study file: the settings all jobs share, and a sweep of what differs.

name: agnews                     # default: the file's name
cards_gib: [8, 8]                # virtual cards, for a machine without GPUs
virtual_cards: false             # true: on these also where there are GPUs
priority: 0                      # on a cluster with other studies: the larger goes first
early_stopping: {grace_epochs: 1, reduction_factor: 3}   # hopeless settings are not trained to their end
max_failures: 3                  # how often a job may die and go on from its newest checkpoint
model: {...}                     # any job setting, see training/spec.py
seed: [0, 1, 2]                  # a list runs every setting once a seed
sweep:
  grid: {lora.r: [8, 16]}        # dotted job keys; every combination is run
  jobs: [{name: nf4, model: {quantization: nf4}}]   # settings laid over the shared ones

Each listed job is run with every combination of the grid; one without a grid is run once a seed.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

from launcher.cards import MAX_GIB
from training.errors import UserError, nearest
from training.parse import all_dotted_keys, build, read_yaml
from training.spec import STRICT, JobSpec, Metric, require, require_folder_name

OWN_KEYS = ("name", "output_dir", "resume_from_checkpoint")
"""Job settings a study gives each job itself."""

JOB_KEYS = [key for key in all_dotted_keys(JobSpec) if key not in OWN_KEYS]
"""What a study may set, as dotted keys."""
SECTIONS = {key.split(".")[0] for key in JOB_KEYS if "." in key}
"""Those that hold settings themselves: model, data, lora, training."""


@dataclass(frozen=True, kw_only=True)
class Sweep:
    """What differs between the jobs."""

    __pydantic_config__ = STRICT

    grid: dict[str, list[Any]] = field(default_factory=dict)
    """Dotted job key -> the values it takes; every combination is run."""
    jobs: list[dict[str, Any]] = field(default_factory=list)
    """Settings laid over the shared ones, with an optional `name` and `seed` (a number or a list)."""


@dataclass(frozen=True, kw_only=True)
class EarlyStopping:
    """When settings that fall behind the others on validation are not trained to their end (launcher.halving).

    By asynchronous successive halving (Li et al. 2020, arXiv:1810.05934) in the form of Ray Tune's ASHAScheduler.
    Settings of other data, or of another num_train_epochs or max_steps, are not compared, nor are seeds of a setting.
    """

    __pydantic_config__ = STRICT

    grace_epochs: float = 1.0
    """Passes over train that every setting gets. Compared are the first evaluations after these, after
    `reduction_factor` times as many, and so on; training.eval_steps evaluates more often than once an epoch."""
    reduction_factor: int = 3
    """About one of so many goes on."""
    metric: Metric | None = None
    """Of validation. Default: training.metric_for_best_model."""

    def __post_init__(self) -> None:
        require(self.grace_epochs > 0, f"early_stopping.grace_epochs is {self.grace_epochs}. It must be above 0.")
        require(
            self.reduction_factor >= 2,
            f"early_stopping.reduction_factor is {self.reduction_factor}. It must be at least 2.",
        )


@dataclass(frozen=True, kw_only=True)
class Study:
    """A study file as written, its shape checked; the values of its jobs are checked by `launcher.expand`."""

    __pydantic_config__ = STRICT

    name: str
    """Its folder is outputs/<name>."""
    source: str
    """The file, as the user gave it."""
    cards_gib: list[float] | None = None
    """Virtual cards of these sizes in GiB, for a machine without GPUs: a rank on one trains on the CPU."""
    virtual_cards: bool = False
    """Virtual cards also where there are GPUs, which are left alone."""
    max_failures: int = 3
    """How often a job may lose a rank (killed, its PC gone) or crash, and go on from its newest checkpoint."""
    early_stopping: EarlyStopping | None = None
    """Settings that fall behind on validation are not trained to their end; by default all are."""
    priority: int = 0
    """Free cards go first to the studies of a cluster with the largest. What runs is left to run."""
    sweep: Sweep = field(default_factory=Sweep)
    shared: dict[str, Any] = field(default_factory=dict)
    """Job settings of the top level; `seed` may be a list."""

    def __post_init__(self) -> None:
        require(
            self.cards_gib is None
            or (len(self.cards_gib) > 0 and all(1 <= size <= MAX_GIB for size in self.cards_gib)),
            f"cards_gib is {self.cards_gib}. Give the size of at least one card in GiB, such as [8, 8].",
        )
        require(self.max_failures >= 0, f"max_failures is {self.max_failures}. Give 0 or more.")
        require_folder_name(self.name)


def load_study(path: Path) -> Study:
    """Read a study file. Raises UserError for what is not a study; all wrong keys are named at once."""
    content = read_yaml(path, "study file")
    own = {item.name for item in fields(Study)} - {"source", "shared"}
    sections = {key.split(".")[0] for key in JOB_KEYS}
    errors = [_unknown(str(path), key, own | sections) for key in content if key not in own | sections]
    sweep = content.get("sweep")
    if isinstance(sweep, Mapping):
        errors += _grid_errors(str(path), sweep) + _listed_errors(str(path), sweep)
    if errors:
        raise UserError("\n".join(errors))
    values = {key: value for key, value in content.items() if key in own}
    shared = {key: value for key, value in content.items() if key in sections}
    return build(Study, {"name": path.stem, **values, "source": str(path), "shared": shared}, str(path))


def _unknown(source: str, key: Any, known: set[str]) -> str:
    """Return the message for a top-level key nobody knows."""
    homes = [dotted for dotted in JOB_KEYS if dotted.split(".")[-1] == key]
    hint = f"; it belongs at {homes[0]!r}" if homes else nearest(str(key), known)
    if key in OWN_KEYS:
        hint = "; a study sets it for each job"
    return f"{source}: unknown key {str(key)!r}{hint or '. Remove it.'}"


def _listed_errors(source: str, sweep: Mapping[str, Any]) -> list[str]:
    """Return a message for each listed job that is none, has no proper name, or sets what a study sets itself."""
    errors = []
    listed = sweep.get("jobs")
    for position, job in enumerate(listed if isinstance(listed, list) else []):
        place = f"sweep.jobs[{position}]"
        if not isinstance(job, Mapping):
            errors.append(f"{source}: {place} is {job!r}. Give settings, such as {{lora: {{r: 8}}}}.")
            continue
        if "name" in job and not isinstance(job["name"], str):
            errors.append(f"{source}: {place}.name is {job['name']!r}. Give a text, or leave it out.")
        errors += [
            f"{source}: {place} sets {key!r}, which a study sets for each job. Remove it."
            for key in OWN_KEYS
            if key != "name" and key in job
        ]
        errors += [
            f"{source}: {place}.{key} is {value!r}. Give a mapping of its settings."
            for key, value in job.items()
            if key in SECTIONS and not isinstance(value, Mapping)
        ]
    return errors


def _grid_errors(source: str, sweep: Mapping[str, Any]) -> list[str]:
    """Return a message for each grid key that is no job setting or has no list of values."""
    errors = []
    grid = sweep.get("grid")
    for key, values in grid.items() if isinstance(grid, Mapping) else ():
        if key not in JOB_KEYS:
            homes = [dotted for dotted in JOB_KEYS if dotted.split(".")[-1] == key]
            hint = f"; it belongs at {homes[0]!r}" if homes else nearest(str(key), JOB_KEYS)
            errors.append(f"{source}: unknown key 'sweep.grid.{key}'{hint or '. Remove it.'}")
        elif values == []:
            errors.append(f"{source}: sweep.grid.{key} is empty. Give at least one value, or remove the key.")
        elif not isinstance(values, list):
            errors.append(f"{source}: sweep.grid.{key} is {values!r}. Give a list of values, such as [{values!r}].")
    return errors

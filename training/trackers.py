"""Experiment trackers: what a job tells its recorder, for TensorBoard, MLflow or Weights & Biases too.

`training.report_to` names them, as in Hugging Face's TrainingArguments. TensorBoard files are written beside the job
and kept in its run folder: `tensorboard --logdir outputs/<study>/jobs`. MLflow and Weights & Biases are sent to by rank
0, through their own libraries and environment variables (MLFLOW_TRACKING_URI, MLFLOW_EXPERIMENT_NAME, WANDB_PROJECT,
WANDB_API_KEY, WANDB_MODE ...). A job that goes on after a stop goes on in the same run there.

    train/...       each `step` event, at its step: loss, learning_rate, samples_per_second, epoch, peak_memory_bytes
    validation/...  each `evaluation` event: accuracy, macro_f1, loss
    result/...      validation_ and test_ metrics of the adapter that is kept, at the last step

No tracker is worth a job: one that fails after the start is left, and the job goes on.
"""

from __future__ import annotations

import importlib.util
import json
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Protocol

from training.errors import UserError
from training.plan import RetryWith
from training.recorder import Recorder
from training.result import write_json
from training.spec import JobSpec, TrackerName
from training.stop import Stopped

TRACKERS_FILE = "trackers.json"
"""In the run folder: tracker -> id of the job's run there."""
FOLDER = "tensorboard"
PROJECT = "shoal"
"""The MLflow experiment and Weights & Biases project where their variables name none."""

PACKAGES: dict[TrackerName, str] = {"tensorboard": "tensorboard", "mlflow": "mlflow", "wandb": "wandb"}
STEP_VALUES = ("loss", "learning_rate", "samples_per_second", "epoch", "peak_memory_bytes")
METRICS = ("accuracy", "macro_f1", "loss")
MLFLOW_SETTINGS = {
    # By default it tries for minutes, and a job waits for it at its end.
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "3",
    # Figures of a second go together and one after the other. By default ten threads send each step by itself, in any
    # order, and two that begin a folder of a file store at once lose a figure.
    "MLFLOW_ASYNC_LOGGING_BUFFERING_SECONDS": "1",
    "MLFLOW_ASYNC_LOGGING_THREADPOOL_SIZE": "1",
}
"""Where the user's environment does not say otherwise."""
MAX_PARAMETER_CHARACTERS = 500
"""What every MLflow server takes of a parameter."""


class Tracker(Protocol):
    """One place that figures are sent to."""

    def log(self, figures: Mapping[str, float], step: int) -> None:
        """Send figures of one step."""

    def keep(self, recorder: Recorder) -> None:
        """Have what lies on this machine kept in the run folder."""

    def close(self, status: str) -> None:
        """End; `status` is MLflow's: FINISHED, FAILED or KILLED (it may go on)."""


def require_trackers(names: Sequence[TrackerName]) -> None:
    """Raise UserError where a tracker cannot work here: its library or address is missing."""
    for name in names:
        if importlib.util.find_spec(PACKAGES[name]) is None:
            raise UserError(
                f"training.report_to names {name}, whose library is not installed. Install it where the job runs, "
                f"pip install -e '.[{name}]' in Shoal's checkout, or take {name} out of training.report_to."
            )
    if "mlflow" in names and not os.environ.get("MLFLOW_TRACKING_URI"):
        raise UserError(
            "training.report_to names mlflow, and MLFLOW_TRACKING_URI is not set. Set it to the server where the job "
            "runs (on a cluster, where `ray start` is called), or take mlflow out of training.report_to."
        )


@contextmanager
def tracking(recorder: Recorder, spec: JobSpec, workdir: Path) -> Iterator[Recorder]:
    """Yield a recorder that tells the trackers of `spec` too; to be used on rank 0 alone. Raises UserError."""
    own = TrackingRecorder(recorder, spec, workdir)
    status = "FAILED"
    try:
        yield own
        status = "FINISHED"
    except (RetryWith, Stopped, KeyboardInterrupt):
        status = "KILLED"
        raise
    finally:
        own.close(status)


class TrackingRecorder:
    """A recorder that hands everything on, and figures to trackers too."""

    def __init__(self, recorder: Recorder, spec: JobSpec, workdir: Path) -> None:
        self.recorder = recorder
        self.last_step = 0
        names = list(dict.fromkeys(spec.training.report_to))
        require_trackers(names)
        runs = read_runs(workdir)
        self.trackers: dict[TrackerName, Tracker] = {}
        for name in names:
            try:
                self.trackers[name] = open_tracker(name, spec, workdir, runs)
            except Exception as error:  # each library has its own kinds
                reason = without_password(str(error).strip() or type(error).__name__)
                raise UserError(
                    f"training.report_to names {name}, which cannot be used: {reason}. Check its address and key, or "
                    f"take {name} out of training.report_to."
                ) from None
        if runs:
            write_json(workdir / TRACKERS_FILE, runs)
            recorder.save(TRACKERS_FILE, workdir / TRACKERS_FILE)

    def event(self, kind: str, **values: Any) -> None:
        """Note one event, and send its figures."""
        self.recorder.event(kind, **values)
        self.last_step = int(values.get("step", self.last_step))
        figures = figures_of(kind, values)
        if figures:
            self._each(lambda tracker: tracker.log(figures, self.last_step))
        if kind in ("evaluation", "result"):
            self._each(lambda tracker: tracker.keep(self.recorder))

    def save(self, relative_path: str, source: Path) -> None:
        """Hand on."""
        self.recorder.save(relative_path, source)

    def remove(self, relative_path: str) -> None:
        """Hand on."""
        self.recorder.remove(relative_path)

    def close(self, status: str) -> None:
        """End what the trackers have of this job."""
        self._each(lambda tracker: tracker.close(status))
        self._each(lambda tracker: tracker.keep(self.recorder))

    def _each(self, action: Any) -> None:
        """Do something with each tracker; leave one that fails."""
        for name, tracker in list(self.trackers.items()):
            try:
                action(tracker)
            except Exception as error:  # each library has its own kinds, and none is worth the job
                del self.trackers[name]
                reason = without_password(str(error))
                self.recorder.event("log", message=f"{name} gets no more figures: {reason}. events.jsonl has them all.")


def without_password(text: str) -> str:
    """Return a message without the user and password of an address in it: messages are kept, and shown to others."""
    return re.sub(r"//[^/@\s]+@", "//...@", text)


def figures_of(kind: str, values: Mapping[str, Any]) -> dict[str, float]:
    """Return the figures of an event by their names in the trackers."""
    if kind == "step":
        return {f"train/{name}": float(values[name]) for name in STEP_VALUES if name in values}
    if kind == "evaluation":
        return {f"validation/{name}": float(values[name]) for name in METRICS if name in values}
    if kind == "result":
        return {
            f"result/{split}_{name}": float(values[split][name])
            for split in ("validation", "test")
            for name in METRICS
            if name in values.get(split, {})
        }
    return {}


def parameters(spec: JobSpec) -> dict[str, Any]:
    """Return the settings of a job under dotted keys; a DeepSpeed configuration stays whole."""
    flat: dict[str, Any] = {}
    for key, value in spec.to_dict().items():
        inner = value if isinstance(value, dict) and key != "deepspeed" else None
        flat.update({f"{key}.{name}": item for name, item in inner.items()} if inner is not None else {key: value})
    return flat


def read_runs(workdir: Path) -> dict[str, str]:
    """Return the runs an earlier try of the job began."""
    try:
        return dict(json.loads((workdir / TRACKERS_FILE).read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError):  # none, or damaged: new ones are begun
        return {}


def open_tracker(name: TrackerName, spec: JobSpec, workdir: Path, runs: dict[str, str]) -> Tracker:
    """Open one tracker; `runs` gets the id of its run."""
    if name == "tensorboard":
        return TensorBoard(workdir / FOLDER)
    if name == "mlflow":
        return MLflow(spec, runs)
    return WeightsAndBiases(spec, workdir, runs)


class TensorBoard:
    """An event file, a new one each time the job goes on."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.writer: Any = None

    def log(self, figures: Mapping[str, float], step: int) -> None:
        """Write figures, through to the file: a rank that is killed leaves them."""
        if self.writer is None:
            from torch.utils.tensorboard import SummaryWriter

            # What an earlier try wrote of this step and later ones is done again, and hidden.
            self.writer = SummaryWriter(str(self.folder), purge_step=step)
        for name, value in figures.items():
            self.writer.add_scalar(name, value, step)
        self.writer.flush()

    def keep(self, recorder: Recorder) -> None:
        """Keep this try's file beside those of earlier ones."""
        if self.writer is not None:
            for path in self.folder.iterdir():
                recorder.save(f"{FOLDER}/{path.name}", path)

    def close(self, status: str) -> None:
        """Close the file."""
        if self.writer is not None:
            self.writer.close()


class MLflow:
    """A run of an MLflow experiment."""

    def __init__(self, spec: JobSpec, runs: dict[str, str]) -> None:
        for variable, value in MLFLOW_SETTINGS.items():
            os.environ.setdefault(variable, value)
        import mlflow

        self.mlflow = mlflow
        mlflow.set_experiment(os.environ.get("MLFLOW_EXPERIMENT_NAME", PROJECT))
        begun = runs.get("mlflow")
        runs["mlflow"] = mlflow.start_run(run_id=begun, run_name=None if begun else spec.name).info.run_id
        if not begun:  # they cannot be changed, and a job that goes on may have another number of ranks
            mlflow.log_params({key: str(item)[:MAX_PARAMETER_CHARACTERS] for key, item in parameters(spec).items()})

    def log(self, figures: Mapping[str, float], step: int) -> None:
        """Send figures, without waiting for the server."""
        self.mlflow.log_metrics(dict(figures), step=step, synchronous=False)

    def keep(self, recorder: Recorder) -> None:
        """Do nothing: the server has all."""

    def close(self, status: str) -> None:
        """Wait until the server has all, and end the run."""
        self.mlflow.flush_async_logging()
        self.mlflow.end_run(status)


class WeightsAndBiases:
    """A run of a Weights & Biases project."""

    def __init__(self, spec: JobSpec, workdir: Path, runs: dict[str, str]) -> None:
        import wandb

        self.run = wandb.init(
            project=os.environ.get("WANDB_PROJECT", PROJECT), name=spec.name, id=runs.get("wandb"), resume="allow",
            config=parameters(spec), dir=str(workdir), settings=wandb.Settings(silent=True, console="off"),
        )  # fmt: skip
        runs["wandb"] = self.run.id
        self.files = Path(self.run.dir).parent
        self.stays_here = bool(self.run.offline)
        self.closed = False

    def log(self, figures: Mapping[str, float], step: int) -> None:
        """Send figures; does not wait."""
        self.run.log(dict(figures), step=step)

    def keep(self, recorder: Recorder) -> None:
        """Keep what `wandb sync` is to send later, once it is whole."""
        if self.stays_here and self.closed:
            recorder.save(f"wandb/{self.files.name}", self.files)

    def close(self, status: str) -> None:
        """Send what is left, and end the run."""
        self.run.finish(exit_code=0 if status == "FINISHED" else 1)
        self.closed = True

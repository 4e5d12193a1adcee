"""A study folder as a run leaves it, written in milliseconds: what jobs reached is drawn from a seed."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from sklearn.metrics import accuracy_score, f1_score

from training.corpus.corpus import Split
from training.predictions import write_predictions
from training.result import RunResult, write_json
from training.spec import DataSpec, JobSpec, LoraSpec

LABELS = ("kitchen", "music", "sea")
START = 1_790_000_000.0


class StudyOnDisk:
    """Writes outputs/<study>/ with jobs of one evaluated data."""

    def __init__(
        self, root: Path, *, labels: Sequence[str] = LABELS, num_texts: int = 60, text: str = "text number {}",
        steps: int = 20,
    ) -> None:  # fmt: skip
        self.root, self.labels, self.text, self.steps = root, list(labels), text, steps
        self.clock = START
        self.jobs: list[dict[str, Any]] = []
        truth = np.random.default_rng(0).integers(0, len(labels), num_texts)
        truth[: len(labels)] = np.arange(len(labels))
        self.splits = {name: self._split(name, truth) for name in ("validation", "test")}
        self.data = {
            "source": "tales.csv", "label_names": self.labels, "num_rows": {"train": 100, "test": num_texts},
            "sha256": {"train": "00", **{name: split.sha256() for name, split in self.splits.items()}},
        }  # fmt: skip
        root.mkdir(parents=True, exist_ok=True)

    def _split(self, name: str, truth: Any) -> Split:
        ids = [f"{name}:{row}" for row in range(1, len(truth) + 1)]
        return Split(ids=ids, texts=[self.text.format(row) for row in ids], labels=[int(label) for label in truth])

    def add(self, r: int, seed: int, skill: float, *, card: str = "box:0", error: str = "", log: str = "") -> JobSpec:
        """Add a job of LoRA rank `r`; its logits of the true class are raised by `skill`. Failed with an `error`."""
        spec = JobSpec(
            name=f"r{r}-seed{seed}", seed=seed, data=DataSpec(train_file="train.csv", test_file="test.csv"),
            lora=LoraSpec(r=r), output_dir=str(self.root / "jobs" / f"r{r}-seed{seed}"),
        )  # fmt: skip
        folder = self.root / "jobs" / spec.name
        folder.mkdir(parents=True, exist_ok=True)
        self.jobs.append({"name": spec.name})
        (self.root / "study.yaml").write_text(yaml.safe_dump({"name": self.root.name, "jobs": self.jobs}))
        result = RunResult(
            name=spec.name, status="failed" if error else "succeeded", settings=spec.to_dict(),
            fingerprint=spec.fingerprint(), placement={"cards": [card], "card_gib": 1.5, "host_gib": 1.0},
            forecast={"card": {}, "host": {"base": 1 << 30}},
        )  # fmt: skip
        self._place(spec.name, card)
        if error:
            failed = replace(result, error={"message": error, "log_tail": log})
            write_json(folder / "failure.json", failed.to_dict())
            return spec
        self._learn(folder, skill)
        metrics = self._predict(folder, np.random.default_rng([r, seed]), skill)
        succeeded = replace(
            result, validation=metrics["validation"], test=metrics["test"], data=self.data,
            train={"seconds": 90.0, "steps": self.steps, "samples_per_second": 12.0, "epochs": 1.0},
            peak_memory={"gpu_bytes": 0, "host_bytes": 900 << 20}, versions={"shoal": "0.1.0", "torch": "2.13.0"},
            model={"device": "cpu"},
        )  # fmt: skip
        write_json(folder / "result.json", succeeded.to_dict())
        return spec

    def baseline(self, accuracy: float) -> None:
        """Add a baseline of that accuracy."""
        item = {
            "name": "TF-IDF + LinearSVC", "data": "tales.csv", "split": "test", "sha256": self.data["sha256"],
            "accuracy": accuracy, "macro_f1": accuracy, "seconds": 1.0,
        }  # fmt: skip
        write_json(self.root / "baselines.json", {"key": [item]})

    def _place(self, job: str, card: str) -> None:
        with (self.root / "placements.jsonl").open("a") as file:
            for event, time in (("start", self.clock), ("end", self.clock + 100)):
                file.write(json.dumps({"time": time, "event": event, "job": job, "cards": [card]}) + "\n")
        self.clock += 100

    def _learn(self, folder: Path, skill: float) -> None:
        with (folder / "events.jsonl").open("w") as file:
            for step in range(1, self.steps + 1):
                place = {"step": step, "epoch": step / self.steps}
                file.write(json.dumps({"kind": "step", **place, "loss": 2.0 / (1 + skill * step / self.steps)}) + "\n")
            for step, reached in ((0, 0.3), (self.steps, 0.3 + skill / 10)):
                place = {"kind": "evaluation", "split": "validation", "step": step, "epoch": step / self.steps}
                file.write(json.dumps({**place, "accuracy": reached, "macro_f1": reached, "loss": 1.0}) + "\n")

    def _predict(self, folder: Path, random: np.random.Generator, skill: float) -> dict[str, dict[str, float]]:
        """Write predictions.parquet; return the metrics."""
        evaluated, metrics = {}, {}
        for name, split in self.splits.items():
            logits = random.normal(size=(len(split.labels), len(self.labels))).astype(np.float32)
            logits[np.arange(len(split.labels)), split.labels] += skill
            evaluated[name] = (split, logits)
            predicted = logits.argmax(axis=1)
            metrics[name] = {
                "accuracy": float(accuracy_score(split.labels, predicted)),
                "macro_f1": float(f1_score(split.labels, predicted, average="macro", zero_division=0)),
                "loss": 1.0 / (1 + skill), "num_samples": float(len(split.labels)),
            }  # fmt: skip
        write_predictions(folder / "predictions.parquet", evaluated, self.labels)
        return metrics

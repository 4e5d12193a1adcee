"""Study -> jobs: every combination, named, checked, its paths made absolute. All errors come at once."""

from __future__ import annotations

import hashlib
import itertools
import json
import os
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from launcher.study import Study
from training.disk import sha256
from training.errors import UserError
from training.parse import build, deep_merge, read_text, set_key
from training.spec import DataSpec, JobSpec

CHECKOUT = Path(__file__).resolve().parent.parent

SHORT_KEYS = {
    "learning_rate": "lr", "num_train_epochs": "epochs", "max_seq_length": "len", "num_ranks": "ranks",
    "lora_alpha": "alpha", "lora_dropout": "dropout", "per_device_train_batch_size": "batch",
    "gradient_accumulation_steps": "accumulation", "max_train_samples": "samples", "max_steps": "steps",
}  # fmt: skip
"""What a job's name calls a setting; others keep the last part of their key."""

FILE_SUFFIXES = re.compile(r"(\.(json|jsonl|csv|tsv|parquet|gz|yaml))+$")

Settings = dict[str, Any]


@dataclass(frozen=True, kw_only=True)
class StudyJob:
    """One job of a study."""

    written: JobSpec
    """With paths and the DeepSpeed file as the user wrote them: what is shown."""
    spec: JobSpec
    """With absolute paths and the DeepSpeed file's content: what is run, and what the fingerprint is of."""
    fixed: frozenset[str] = frozenset()
    """The settings that the study names, as dotted keys; the launcher may plan others (launcher.choose)."""
    data_content: list[str]
    """A hash of each local file or folder of the data: mended under the same name, it is other data."""

    @property
    def name(self) -> str:
        """Name of the job and of its folder."""
        return self.spec.name

    @property
    def folder(self) -> Path:
        """Where everything of the job is kept."""
        return Path(self.spec.output_dir)


def but_for_the_seed(settings: Mapping[str, Any]) -> Settings:
    """Return a job's settings without those in which jobs of one setting differ: seed, name and folder."""
    return {key: value for key, value in settings.items() if key not in ("seed", "name", "output_dir")}


def expand(study: Study, outputs: Path = Path("outputs")) -> list[StudyJob]:
    """Return the jobs of a study in the order they are written; `outputs` is where its folder lies or will lie.

    Raises UserError with one line for each mistake.
    """
    combinations = list(_combinations(study))
    names = _unique([name for name, _ in combinations])
    jobs: list[StudyJob] = []
    errors: dict[str, list[str]] = {}
    hashes: dict[Path, str] = {}
    for name, (_, settings) in zip(names, combinations, strict=True):
        output_dir = outputs / study.name / "jobs" / name
        try:
            written = build(JobSpec, {**settings, "name": name, "output_dir": str(output_dir)}, study.source)
            spec = _resolve(written, study.source)
            content = _data_content(spec.data, hashes)
            _refuse_choosing_by_test(spec.data, hashes, study.source)
            jobs.append(StudyJob(written=written, spec=spec, fixed=frozenset(_flatten(settings)), data_content=content))
        except UserError as error:
            for line in str(error).splitlines():
                errors.setdefault(line, []).append(name)
    if errors:
        raise UserError("\n".join(_where(line, at, len(names)) for line, at in errors.items()))
    _refuse_duplicates(jobs, study.source)
    return jobs


def _where(line: str, at: list[str], num_jobs: int) -> str:
    """Return an error with the jobs it is about, unless it is about all."""
    if len(at) == num_jobs:
        return line
    more = f" and {len(at) - 3} more" if len(at) > 3 else ""
    return f"{line} (job {', '.join(at[:3])}{more})"


def _combinations(study: Study) -> Iterator[tuple[str, Settings]]:
    """Yield name and settings of each job: listed jobs x grid x seeds."""
    for position, listed in enumerate(study.sweep.jobs or [{}]):
        overlay = {key: value for key, value in listed.items() if key != "name"}
        twice = [key for key in study.sweep.grid if key in _flatten(overlay)]
        if twice:
            raise UserError(
                f"{study.source}: sweep.jobs[{position}] sets {twice[0]!r}, which sweep.grid sets too. Set it in one."
            )
        for values in itertools.product(*study.sweep.grid.values()):
            varied = dict(zip(study.sweep.grid, values, strict=True))
            settings = _overlay(_overlay(study.shared, overlay), varied)
            seeds = settings.get("seed")
            named = {key: value for key, value in {**_flatten(overlay), **varied}.items() if key != "seed"}
            # Seeds always stand in the name, so that adding seeds or values later keeps the folders there are.
            seed_given = isinstance(seeds, list) or "seed" in varied or "seed" in overlay
            parts = [str(listed["name"])] if "name" in listed else []
            parts += [
                _part(key, value, study.sweep.grid.get(key, []))
                for key, value in (varied if "name" in listed else named).items()
                if key != "seed"
            ]
            if isinstance(seeds, list) and not seeds:
                raise UserError(f"{study.source}: seed is []. Give at least one seed.")
            for seed in seeds if isinstance(seeds, list) else [seeds]:
                seeded = settings if seed is None else {**settings, "seed": seed}
                yield "-".join(parts + ([f"seed{seed}"] if seed_given else [])) or "job", seeded


def _overlay(base: Settings, overlay: Mapping[str, Any]) -> Settings:
    """Lay settings over others; a key may be a section (`lora: {r: 8}`) or dotted (`lora.r: 8`)."""
    for key, value in overlay.items():
        if isinstance(value, Mapping) and key != "deepspeed" and "." not in key:
            base = deep_merge(base, {key: value})
        else:
            base = set_key(base, key, value)
    return base


def _flatten(settings: Mapping[str, Any], prefix: str = "") -> Settings:
    """Return settings under dotted keys; a DeepSpeed configuration stays whole."""
    flat: Settings = {}
    for key, value in settings.items():
        if isinstance(value, Mapping) and key != "deepspeed":
            flat.update(_flatten(value, f"{prefix}{key}."))
        else:
            flat[f"{prefix}{key}"] = value
    return flat


def _part(key: str, value: Any, rivals: list[Any]) -> str:
    """Return what a setting adds to a job's name: `r8`, `nf4`, `zero3_offload`, `use_dora-true`.

    Of a path the last part, but the whole of it where a rival in the grid ends alike.
    """
    last = key.rsplit(".", maxsplit=1)[-1]
    short = SHORT_KEYS.get(last, last)
    if isinstance(value, str) and value != "none":
        alike = [rival for rival in rivals if isinstance(rival, str) and _end(rival) == _end(value)]
        text = _end(value) if len(alike) < 2 else FILE_SUFFIXES.sub("", value)
    elif isinstance(value, int | float) and not isinstance(value, bool):
        text = f"{short}{value:g}"
    elif isinstance(value, list):
        text = "-".join(str(item) for item in value)
    elif isinstance(value, Mapping):
        text = f"zero{value.get('zero_optimization', {}).get('stage', 0)}" if key == "deepspeed" else short
    else:
        text = f"{short}-{str(value).lower()}"
    return re.sub(r"[^\w.-]+", "-", text).strip("-.") or short


def _end(path: str) -> str:
    """Return the last part of a path or hub name, without what says a file's format."""
    return FILE_SUFFIXES.sub("", path.rstrip("/").split("/")[-1])


def _unique(names: list[str]) -> list[str]:
    """Number the names that occur again: a, a-2, a-3."""
    taken: set[str] = set()
    unique = []
    for name in names:
        candidates = itertools.chain([name], (f"{name}-{number}" for number in itertools.count(2)))
        chosen = next(candidate for candidate in candidates if candidate not in taken)
        taken.add(chosen)
        unique.append(chosen)
    return unique


def _refuse_duplicates(jobs: list[StudyJob], source: str) -> None:
    """Raise for two jobs with the same settings."""
    seen: dict[str, str] = {}
    for job in jobs:
        fingerprint = job.spec.fingerprint()
        if fingerprint in seen:
            raise UserError(f"{source}: jobs {seen[fingerprint]} and {job.name} have the same settings. Remove one.")
        seen[fingerprint] = job.name


def _resolve(written: JobSpec, source: str) -> JobSpec:
    """Return the job with absolute paths and the DeepSpeed file's content, for workers that lack the files."""
    data = written.data
    files: dict[str, Any] = {
        key: _require_path(value, f"data.{key}", source)
        for key in ("train_file", "validation_file", "test_file")
        if (value := getattr(data, key)) is not None
    }
    dataset = data.dataset_name and _local_or_hub(data.dataset_name, "data.dataset_name", source)
    model = _local_or_hub(written.model.model_name_or_path, "model.model_name_or_path", source)
    return replace(
        written,
        data=replace(data, dataset_name=dataset, **files),
        model=replace(written.model, model_name_or_path=model),
        deepspeed=_deepspeed_content(written.deepspeed, source),
        output_dir=str(Path(written.output_dir).absolute()),
    )


def _data_content(data: DataSpec, hashes: dict[Path, str]) -> list[str]:
    """Return the hashes of StudyJob.data_content; `hashes` keeps those of the jobs before."""
    names = (data.dataset_name, data.train_file, data.validation_file, data.test_file)
    paths = [path for name in names if name is not None and (path := Path(name)).is_absolute()]
    for path in paths:
        if path not in hashes:
            try:
                hashes[path] = sha256(path) if path.is_file() else _folder_content(path)
            except OSError as error:
                raise UserError(f"{path} cannot be read: {error.strerror}. Check its rights.") from None
    return [hashes[path] for path in paths]


def _refuse_choosing_by_test(data: DataSpec, hashes: Mapping[Path, str], source: str) -> None:
    """Raise where the test file stands for another split as well, under its own name or as a copy.

    As validation it would choose checkpoints and settings, and as train too, where validation is set aside of it.
    What only the rows tell is refused when they are read (training.corpus.load).
    """
    for key in ("train_file", "validation_file"):
        file = getattr(data, key)
        if file is None or data.test_file is None:
            continue
        # A folder's hash is of names and sizes, which says less.
        same = Path(file).is_file() and hashes[Path(file)] == hashes[Path(data.test_file)]
        if same or Path(file).resolve() == Path(data.test_file).resolve():
            raise UserError(
                f"{source}: data.{key} and data.test_file hold the same ({data.test_file}): the study would "
                f"{'train on' if key == 'train_file' else 'choose by'} its test split. Give files of different texts, "
                "or leave data.test_file out."
            )


def _folder_content(folder: Path) -> str:
    """Hash the names and sizes in a folder, which may hold a file a text."""
    files = sorted((path.relative_to(folder).as_posix(), path.stat().st_size) for path in folder.rglob("*"))
    return hashlib.sha256(json.dumps(files).encode()).hexdigest()


def find_path(text: str, source: str) -> Path | None:
    """Look for a relative path in the current directory, beside the study file, in the checkout."""
    for root in (Path.cwd(), Path(source).absolute().parent, CHECKOUT):
        candidate = root / Path(text).expanduser()
        if candidate.exists():
            return Path(os.path.normpath(candidate))
    return None


def _require_path(text: str, key: str, source: str) -> str:
    """Return the absolute path of a file that must be there."""
    found = find_path(text, source)
    if found is None:
        raise UserError(
            f"{source}: {key} {text!r} does not exist (looked in {Path.cwd()}, beside the study file, and in "
            f"{CHECKOUT}). Check the path."
        )
    return str(found)


def _local_or_hub(text: str, key: str, source: str) -> str:
    """Return an absolute path for what is here, the name itself for what must be a preset or on the hub."""
    if text.startswith("builtin:"):
        return text
    if text.startswith((".", "/", "~")):
        return _require_path(text, key, source)
    found = find_path(text, source) if "/" in text else None
    return str(found) if found else text


def _deepspeed_content(value: str | dict[str, Any], source: str) -> dict[str, Any]:
    """Return the content of a DeepSpeed file; its keys are checked by the ranks' side, which knows DeepSpeed."""
    if isinstance(value, dict):
        return value
    path = Path(_require_path(value, "deepspeed", source))
    try:
        content = json.loads(read_text(path, "DeepSpeed config"))
    except json.JSONDecodeError as error:
        raise UserError(f"{source}: deepspeed {value} line {error.lineno}: {error.msg}. Mend the JSON there.") from None
    if not isinstance(content, dict):
        raise UserError(f"{source}: deepspeed {value} holds no settings. See ds_configs/ for examples.")
    return content

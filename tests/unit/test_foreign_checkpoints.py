"""A checkpoint that somebody else made runs no code: no pickle, and its own Python where the study says so alone."""

from __future__ import annotations

import json
import pickle
import shlex
import shutil
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from small_material import write_tiny_model

from launcher.report.build import build_report
from launcher.report.markdown_page import render_markdown
from training.errors import UserError
from training.result import RunResult
from training.spec import DataSpec, JobSpec, ModelSpec


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("model") / "it's tiny"
    write_tiny_model(folder)
    return folder


class Explodes:
    """Leaves a mark where it is unpickled."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> Any:
        return (Path.touch, (self.mark,))


def as_pickle(tiny: Path, folder: Path) -> Path:
    """Copy a checkpoint, its weights as two pickled files."""
    import torch
    from safetensors.torch import load_file

    shutil.copytree(tiny, folder)
    weights = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    names = sorted(weights)
    for number, part in enumerate((names[::2], names[1::2]), start=1):
        torch.save({name: weights[name] for name in part}, folder / f"pytorch_model-0000{number}-of-00002.bin")
    return folder


def load(folder: Path) -> dict[str, Any]:
    import torch

    from training.model import load_base
    from training.pretrained import load_config, resolve_checkpoint

    spec = ModelSpec(model_name_or_path=str(folder))
    checkpoint = resolve_checkpoint(spec, print)
    config = load_config(spec, checkpoint, ["a", "b"])
    return dict(load_base(spec, checkpoint, config, torch.float32, torch.device("cpu")).state_dict())


def test_pickled_weights_are_refused_and_the_command_that_is_told_converts_them(
    tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import torch

    folder = as_pickle(tiny, tmp_path / "it's pickled")
    with pytest.raises(UserError, match="Pickled weights can run code") as caught:
        load(folder)
    command = str(caught.value).split("Convert them: ")[1]
    python, option, code = shlex.split(command)
    assert (python, option) == ("python", "-c")
    exec(code, {})  # in this process: importing torch takes seconds
    converted, original = load(folder), load(tiny)
    assert converted.keys() == original.keys()
    assert all(torch.equal(converted[name], original[name]) for name in original if "score" not in name)

    mark = tmp_path / "mark"
    (folder / "pytorch_model-00003-of-00003.bin").write_bytes(pickle.dumps({"x": Explodes(mark)}, protocol=2))
    with pytest.raises(Exception, match=r"(?i)weights.only|Unsupported"):
        exec(code, {})
    assert not mark.exists()


def test_pickle_beside_safetensors_is_not_touched(tiny: Path, tmp_path: Path) -> None:
    mark = tmp_path / "mark"
    folder = tmp_path / "both"
    shutil.copytree(tiny, folder)
    for name in ("pytorch_model.bin", "tokenizer.pkl", "vocab.pkl", "training_args.bin"):
        (folder / name).write_bytes(pickle.dumps(Explodes(mark)))
    from training.pretrained import load_tokenizer

    load(folder)
    load_tokenizer(ModelSpec(model_name_or_path=str(folder)), str(folder))
    (folder / "model.safetensors").rename(folder / "other.safetensors")
    with pytest.raises(UserError, match=r"Pickled weights.* are not loaded.*convert them"):
        load(folder)
    assert not mark.exists()


def test_an_adapter_in_a_pickle_is_refused(tmp_path: Path) -> None:
    from training.finished import _check_adapter

    mark = tmp_path / "mark"
    for name in ("adapter_config.json", "config.json"):
        (tmp_path / name).write_text("{}")
    (tmp_path / "adapter_model.bin").write_bytes(pickle.dumps(Explodes(mark)))
    with pytest.raises(UserError, match=r"adapter_model\.safetensors does not exist"):
        _check_adapter(tmp_path)
    (tmp_path / "adapter_model.safetensors").write_bytes(pickle.dumps(Explodes(mark)))
    with pytest.raises(UserError, match="damaged"):
        _check_adapter(tmp_path)
    assert not mark.exists()


@pytest.mark.parametrize("part", ["config.json", "tokenizer_config.json"])
def test_code_that_comes_with_a_checkpoint_runs_only_where_the_study_says_so(
    tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, part: str
) -> None:
    from training.pretrained import load_config, load_tokenizer

    mark = tmp_path / "mark"
    folder = tmp_path / "foreign"
    shutil.copytree(tiny, folder)
    config = json.loads((folder / part).read_text())
    maps = {
        "config.json": {"AutoConfig": "foreign.Foreign"},
        "tokenizer_config.json": {"AutoTokenizer": [None, "foreign.Foreign"]},
    }
    config |= {"auto_map": maps[part], "model_type": "foreign"}
    config.pop("tokenizer_class", None)
    (folder / part).write_text(json.dumps(config))
    base = "LlamaConfig" if part == "config.json" else "PreTrainedTokenizerFast"
    (folder / "foreign.py").write_text(
        f"from pathlib import Path\nfrom transformers import {base}\nPath({str(mark)!r}).touch()\n"
        f"class Foreign({base}):\n    model_type = 'foreign'\n"
    )
    monkeypatch.setattr("transformers.dynamic_module_utils.HF_MODULES_CACHE", str(tmp_path / "modules"))
    monkeypatch.setattr(sys, "path", list(sys.path))
    assert not ModelSpec(model_name_or_path=str(folder)).trust_remote_code

    def read(spec: ModelSpec) -> None:
        if part == "config.json":
            load_config(spec, str(folder), ["a", "b"])
        else:
            load_tokenizer(spec, str(folder))

    spec = ModelSpec(model_name_or_path=str(folder))
    with pytest.raises(UserError, match=r"custom code.*model\.trust_remote_code: true"):
        read(spec)
    assert not mark.exists()
    read(replace(spec, trust_remote_code=True))
    assert mark.exists()


def test_the_report_names_whose_code_was_run() -> None:
    def job(name: str, *, trust: bool) -> RunResult:
        model = ModelSpec(model_name_or_path=f"owner/{name}", trust_remote_code=trust)
        settings = JobSpec(name=name, data=DataSpec(dataset_name="imdb"), model=model).to_dict()
        return RunResult(name=name, status="failed", settings=settings, fingerprint="f", error={"message": "no"})

    def report(*jobs: RunResult) -> str:
        return render_markdown(build_report("s", list(jobs), [], num_jobs=len(jobs)))

    assert "trust_remote_code" not in report(job("plain", trust=False))
    text = report(job("plain", trust=False), job("foreign", trust=True))
    assert "**trust_remote_code was on: Python code that came with owner/foreign was run.**" in text

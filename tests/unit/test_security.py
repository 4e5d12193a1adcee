"""What others must not be able to do: read secrets, run code through files they give us, leave the study's folder.

What needs a running Ray is in tests/integration/test_secrets.py.
"""

from __future__ import annotations

import ast
import json
import os
import pickle
import re
import shlex
import shutil
import stat
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml
from small_material import write_tiny_model

from launcher import ray_token
from launcher.cli import main as shoal
from launcher.inbox import Inbox, RayRecorder
from launcher.report.build import build_report
from launcher.report.markdown_page import render_markdown
from launcher.study import load_study
from launcher.worker import _task_error, collect_logs
from training.corpus.load import load_corpus
from training.errors import ShoalError, UserError
from training.parse import load_job
from training.recorder import FolderRecorder
from training.redact import redact, redact_file
from training.result import RunResult
from training.spec import DataSpec, JobSpec, ModelSpec

CHECKOUT = Path(__file__).resolve().parents[2]
SOURCES = sorted([*(CHECKOUT / "training").rglob("*.py"), *(CHECKOUT / "launcher").rglob("*.py")])
HUB_TOKEN = "hf_" + "SecretOfTheHub" * 2


def mode_of(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


# Ray's token


@pytest.fixture
def token(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where this test's home has Ray's token, if it has."""
    for name in ("RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH", "RAY_AUTH_MODE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    return tmp_path / ".ray/auth_token"


def test_the_token_is_made_once_and_for_its_owner_alone(token: Path) -> None:
    before = os.umask(0)
    try:
        ray_token.make_token()
    finally:
        os.umask(before)
    assert (mode_of(token), mode_of(token.parent)) == (0o600, 0o700)
    made = token.read_text()
    assert len(made) == 64 and int(made, 16)
    ray_token.make_token()
    assert token.read_text() == made
    assert [path.name for path in token.parent.iterdir()] == ["auth_token"]


def test_a_token_open_to_others_is_closed_and_that_is_said(token: Path, capsys: pytest.CaptureFixture[str]) -> None:
    ray_token.make_token()
    token.chmod(0o640)
    ray_token.protect_token()
    assert mode_of(token) == 0o600
    assert "mode 0640" in capsys.readouterr().err
    ray_token.protect_token()
    assert capsys.readouterr().err == ""


def test_ray_is_not_started_open_to_everyone(token: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ray_token.require_token_auth()
    monkeypatch.setenv("RAY_AUTH_MODE", "disabled")
    with pytest.raises(UserError, match=r"RAY_AUTH_MODE is 'disabled'.*Unset it"):
        ray_token.require_token_auth()


def test_a_token_file_that_is_not_there_is_named(token: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_AUTH_TOKEN_PATH", str(token.parent / "mine"))
    with pytest.raises(UserError, match=r"RAY_AUTH_TOKEN_PATH names .*mine, which does not exist"):
        ray_token.make_token()


@pytest.mark.parametrize("name", ["cluster.yaml", "example_aws.yaml"])
def test_a_clusters_ray_asks_for_the_token_and_its_dashboard_is_the_heads_own(name: str) -> None:
    cluster = yaml.safe_load((CHECKOUT / "cluster" / name).read_text())
    for kind in ("head", "worker"):
        (start,) = [line for line in cluster[f"{kind}_start_ray_commands"] if "ray start" in line]
        assert "export RAY_AUTH_MODE=token " in start.split("ray start")[0]
        assert ("--dashboard-host=127.0.0.1 " in start) == (kind == "head")


@pytest.mark.parametrize("there", [True, False])
def test_the_heads_token_is_its_owners_alone(tmp_path: Path, there: bool) -> None:
    """The command of cluster.yaml, with a stand-in for `ray get-auth-token --generate`, which minds no rights."""
    ray, token = tmp_path / "shoal/.venv/bin/ray", tmp_path / ".ray/auth_token"
    ray.parent.mkdir(parents=True)
    ray.write_text("#!/bin/sh\necho new > ~/.ray/auth_token; stat -c %a ~/.ray/auth_token > ~/at-first\n")
    ray.chmod(0o755)
    if there:
        token.parent.mkdir()
        token.write_text("old\n")
        token.chmod(0o644)
    (command,) = yaml.safe_load((CHECKOUT / "cluster/cluster.yaml").read_text())["head_setup_commands"]
    subprocess.run(["bash", "-c", command], env={"HOME": str(tmp_path), "PATH": os.environ["PATH"]}, check=True)
    assert token.read_text() == ("old\n" if there else "new\n")
    assert mode_of(token) == 0o600
    assert there or (tmp_path / "at-first").read_text() == "600\n"


# Secrets


@pytest.fixture
def secrets(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A text of secrets of every kind: in the environment, in token files, and by their looks."""
    for name in ("HF_HOME", "HF_TOKEN", "HF_TOKEN_PATH", "RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setenv("WANDB_API_KEY", "hidden-wandb")
    monkeypatch.setenv("MY_PASSWORD", "hidden-password")
    for name in (".ray/auth_token", ".cache/huggingface/token"):
        path = tmp_path / "home" / name
        path.parent.mkdir(parents=True)
        path.write_text(f"hidden-{path.name}\n")
    key = "-----BEGIN RSA PRIVATE KEY-----\nhidden\nhidden\n-----END RSA PRIVATE KEY-----"
    known = "hidden-wandb hidden-password hidden-auth_token hidden-token"
    return f"{known} https://me:hidden@host/x hf_{'hidden' * 5} {key} end"


def test_secrets_of_every_kind_are_hidden_and_the_rest_stays(secrets: str) -> None:
    assert redact(secrets) == (
        "[WANDB_API_KEY] [MY_PASSWORD] [RAY_AUTH_TOKEN] [HF_TOKEN] https://[user:password]@host/x [hub token] "
        "[private key] end"
    )
    harmless = 'see https://host:80/a, me@host, {"a": "http://host", "b": "c@d"}, hf_hub_download, token'
    assert redact(harmless) == harmless


def test_events_hold_no_secret(secrets: str, tmp_path: Path) -> None:
    FolderRecorder(tmp_path).event("log", message=secrets, parts=[{"deep": secrets}], step=3)
    line = (tmp_path / "events.jsonl").read_text()
    assert "hidden" not in line and json.loads(line)["step"] == 3


def test_the_errors_of_tasks_hold_no_secret(secrets: str) -> None:
    for error in (RuntimeError(secrets), UserError(secrets)):
        outcome = _task_error(error)
        assert "hidden" not in json.dumps(outcome) and "[private key]" in outcome["error"]


def test_a_log_that_comes_home_holds_no_secret_and_is_the_same_else(
    secrets: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("launcher.worker.RayRecorder", lambda inbox, job: here(inbox, job, monkeypatch))
    workdir = tmp_path / "work/job"
    workdir.mkdir(parents=True)
    (workdir / "rank0.log").write_bytes(b"10%\r20%\r\n\xff " + secrets.encode() + b"\nlast\n")
    tails = collect_logs("job", str(workdir), Inbox(str(tmp_path / "jobs")))
    log = (tmp_path / "jobs/job/rank0.log").read_bytes()
    assert b"hidden" not in log and log.startswith(b"10%\r20%\r\n\xff [WANDB_API_KEY]") and log.endswith(b"\nlast\n")
    assert "hidden" not in tails["rank0.log"]


def test_a_long_file_is_cleaned_in_parts(secrets: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("training.redact.LINES_BYTES", 64)
    path = tmp_path / "long.log"
    path.write_text("a line that is hidden-wandb\n" * 50)
    redact_file(path)
    assert path.read_text() == "a line that is [WANDB_API_KEY]\n" * 50


@pytest.mark.parametrize(
    ("content", "key"),
    [
        (
            {"model": {"model_name_or_path": f"https://huggingface.co/a/b?token={HUB_TOKEN}"}},
            "model.model_name_or_path",
        ),
        ({"data": {"train_file": "t.csv", "text_column_names": ["a", "https://me:pw@host"]}}, "text_column_names.1"),
    ],
)
def test_a_secret_in_a_study_or_job_is_refused_and_not_repeated(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], content: dict[str, Any], key: str
) -> None:
    path = tmp_path / "leaky.yaml"
    path.write_text(yaml.safe_dump({"data": {"dataset_name": "builtin:docstrings"}, **content}))
    assert shoal(["run", str(path)]) == 2
    with pytest.raises(UserError) as caught:
        load_job(path)
    for message in (capsys.readouterr().err, str(caught.value)):
        assert f"{key} holds a secret" in message
        assert HUB_TOKEN not in message and "me:pw" not in message


# What a rank sends


def here(inbox: Inbox, job: str, monkeypatch: pytest.MonkeyPatch) -> RayRecorder:
    """The rank's end of an inbox in this very process."""
    recorder = RayRecorder(inbox, job)
    monkeypatch.setattr(recorder, "_call", lambda method, *rest: getattr(inbox, method)(job, *rest))
    return recorder


@pytest.fixture
def inbox(tmp_path: Path) -> Inbox:
    (tmp_path / "outside").mkdir()
    (tmp_path / "outside/file").write_text("untouched")
    (tmp_path / "study/jobs/other").mkdir(parents=True)
    (tmp_path / "study/jobs/other/file").write_text("untouched")
    (tmp_path / "study/jobs/job").mkdir()
    (tmp_path / "study/jobs/job/link").symlink_to(tmp_path / "outside")
    return Inbox(str(tmp_path / "study/jobs"))


@pytest.mark.parametrize("way", ["../other", "../../../outside", "a/../../other", "{outside}", "link"])
@pytest.mark.parametrize("call", ["begin", "chunk", "file", "commit", "remove", "list_files", "read"])
def test_no_path_of_a_rank_leaves_its_jobs_folder(tmp_path: Path, inbox: Inbox, call: str, way: str) -> None:
    path = way.format(outside=tmp_path / "outside") + "/file"
    calls = {
        "begin": lambda: inbox.begin("job", path),
        "chunk": lambda: inbox.chunk("job", path, "", b"changed"),
        "file": lambda: inbox.chunk("job", "adapter", f"../../{path}" if way[0] == "." else path, b"changed"),
        "commit": lambda: inbox.commit("job", path),
        "remove": lambda: inbox.remove("job", path),
        "list_files": lambda: inbox.list_files("job", path),
        "read": lambda: inbox.read("job", path, 0),
    }
    if (call, way) == ("file", "link"):
        pytest.skip("what is being sent lies in a folder of its own, where that link is not")
    with pytest.raises(ShoalError, match="not in its folder"):
        calls[call]()
    for kept in (tmp_path / "outside/file", tmp_path / "study/jobs/other/file"):
        assert kept.read_text() == "untouched"


@pytest.mark.parametrize("job", ["..", "../../outside", "other/..", "", "."])
def test_no_job_of_a_rank_is_another_folder(tmp_path: Path, inbox: Inbox, job: str) -> None:
    with pytest.raises(ShoalError, match="not in its folder"):
        inbox.event(job, {"kind": "log"})
    with pytest.raises(ShoalError, match="not in its folder"):
        inbox.remove(job, "file")


def test_what_a_rank_links_to_is_not_sent(tmp_path: Path, inbox: Inbox, monkeypatch: pytest.MonkeyPatch) -> None:
    recorder = here(inbox, "job", monkeypatch)
    adapter = tmp_path / "work/adapter"
    adapter.mkdir(parents=True)
    (adapter / "weights").write_text("w")
    recorder.save("adapter", adapter)
    assert (tmp_path / "study/jobs/job/adapter/weights").read_text() == "w"
    (adapter / "key").symlink_to(tmp_path / "outside/file")
    for sent in (adapter, adapter / "key"):
        with pytest.raises(ShoalError, match="symbolic link"):
            recorder.save("again", sent)
    assert not (tmp_path / "study/jobs/job/again").exists()


@pytest.mark.parametrize("name", ["..", "../up", "/abs", "a/b", ".hidden", "", "a\0b", "a\n", "~"])
def test_names_in_a_study_stay_in_its_folder(tmp_path: Path, name: str) -> None:
    path = tmp_path / "some.yaml"
    content = {"data": {"dataset_name": "builtin:docstrings"}}
    for change in ({"name": name}, {"sweep": {"jobs": [{"name": name}, {"name": "good"}]}}):
        path.write_text(yaml.safe_dump({**content, **change}))
        if "sweep" in change and not name:
            continue  # a job without a name is given one
        assert shoal(["plan", str(path), "--cards", "8"]) == 2
    (tmp_path / "study.yaml").write_text(yaml.safe_dump({"name": "some", "jobs": [{"name": name}]}))
    assert shoal(["report", str(tmp_path)]) == 2


# YAML, and code that comes with data

BOMB = "a: &a [x, x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"{new}: &{new} [{', '.join([f'*{old}'] * 10)}]\n" for old, new in zip("abcdefghi", "bcdefghij", strict=True)
)
MERGES = "a: &a {k: v}\n" + "".join(
    f"{new}: &{new} {{<<: [{', '.join([f'*{old}'] * 10)}]}}\n"
    for old, new in zip("abcdefghi", "bcdefghij", strict=True)
)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("name: !!python/object/apply:os.system ['touch {mark}']\n", "could not determine a constructor"),
        ("name: !!python/object/new:os.system ['touch {mark}']\n", "could not determine a constructor"),
        ("name: !!python/name:os.system\n", "could not determine a constructor"),
        (BOMB, "its aliases (*name) take more than 4 MiB"),
        (MERGES, "its aliases (*name) take more than 4 MiB"),
        ("deepspeed: &a {b: *a}\n", "an alias stands within what it names"),
        ("name: " + "[" * 1_000, "is not YAML"),
    ],
)
def test_a_yaml_file_neither_runs_code_nor_explodes(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], text: str, words: str
) -> None:
    path, mark = tmp_path / "hostile.yaml", tmp_path / "mark"
    path.write_text(text.replace("{mark}", str(mark)))
    assert shoal(["run", str(path)]) == 2
    message = capsys.readouterr().err
    assert words in message and "hostile.yaml" in message and "Traceback" not in message and len(message) < 500
    assert not mark.exists()


def test_ordinary_aliases_work_and_so_does_a_long_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("training.parse.MAX_CHARACTERS", 1000)
    path = tmp_path / "some.yaml"
    jobs = "".join(f"  - {{name: j{index}, lora: *small}}\n" for index in range(100))
    path.write_text(f"lora: &small {{r: 4}}\ndata: {{dataset_name: {'x' * 5000}}}\nsweep:\n  jobs:\n{jobs}")
    assert load_study(path).sweep.jobs[99] == {"name": "j99", "lora": {"r": 4}}


def calls(path: Path) -> Iterator[tuple[str, ast.Call]]:
    """Yield each call in a file with the dotted name of what is called."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Call):
            yield ast.unparse(node.func), node


FORBIDDEN_MODULES = {"pickle", "cPickle", "_pickle", "joblib", "dill", "cloudpickle", "shelve", "marshal"}
FORBIDDEN_CALLS = {
    "eval", "exec", "compile", "torch.load", "yaml.unsafe_load", "yaml.full_load", "yaml.load_all", "os.system",
    "pandas.read_pickle", "pd.read_pickle",
}  # fmt: skip


def dangers(path: Path) -> list[str]:
    """Return what a file does that could run code which somebody else wrote."""
    found = []
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found += [alias.name for alias in node.names if alias.name.split(".")[0] in FORBIDDEN_MODULES]
        elif isinstance(node, ast.ImportFrom):
            named = [f"{node.module}.{alias.name}" for alias in node.names]
            found += [name for name in named if name.split(".")[0] in FORBIDDEN_MODULES or name in FORBIDDEN_CALLS]
    for name, call in calls(path):
        options = {item.arg: ast.unparse(item.value) for item in call.keywords}
        if name in FORBIDDEN_CALLS or options.get("allow_pickle", "False") != "False":
            found.append(ast.unparse(call))
        if name == "yaml.load" and options.get("Loader") != "_StudyLoader":
            found.append(ast.unparse(call))
        if options.get("shell", "False") != "False" or options.get("trust_remote_code") == "True":
            found.append(ast.unparse(call))
    return found


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: path.relative_to(CHECKOUT).as_posix())
def test_nothing_is_unpickled_and_no_text_is_run(path: Path) -> None:
    # The one place that names torch.load tells the user how to convert a checkpoint; it is text there. The baseline
    # is pickled to be weighed, and never read.
    text = path.read_text(encoding="utf-8")
    weighed = path.name == "baseline.py" and set(re.findall(r"pickle\.\w+", text)) == {
        "pickle.dump",
        "pickle.HIGHEST_PROTOCOL",
    }
    assert dangers(path) == (["pickle"] if weighed else [])


def test_the_check_sees_each_danger(tmp_path: Path) -> None:
    lines = [
        "import pickle", "from joblib import load", "import torch; torch.load(f, weights_only=True)",
        "from torch import load", "np.load(f, allow_pickle=True)", "yaml.load(f, Loader=yaml.Loader)", "eval(x)",
        "subprocess.run(x, shell=True)", "AutoModel.from_pretrained(x, trust_remote_code=True)",
    ]  # fmt: skip
    for line in lines:
        path = tmp_path / "some.py"
        path.write_text(line)
        assert dangers(path), line
    assert issubclass(__import__("training.parse").parse._StudyLoader, yaml.SafeLoader)


# Checkpoints


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

    from training.model import load_base, load_config, resolve_checkpoint

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
    from training.model import load_tokenizer

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
    from training.model import load_config, load_tokenizer

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


# Data


def fault(path: Path) -> str:
    with pytest.raises(UserError) as caught:
        load_corpus(DataSpec(train_file=str(path)))
    assert path.name in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("t.jsonl", b'{"text": "a", "label": ' + b"1" * 5000 + b"}\n", "line 1: not JSON"),
        ("t.jsonl", b'{"text": ' + b"[" * 100_000 + b"\n", "line 1: not JSON"),
        ("t.json", b"[" * 100_000, "not JSON"),
        ("t.jsonl", b'{"text": "a\0b", "label": 0}\n', "line 1: not JSON"),
        ("t.jsonl", b'{"text": "a", "label": 1e999}\n{"text": "b", "label": 1}\n', "inf"),
        ("t.csv", b",".join(b"column%d" % index for index in range(500)) + b"\n" + b"1," * 499 + b"1\n",
         "has no column 'label'"),
    ],
    ids=["digits", "deep line", "deep file", "NUL", "infinite", "columns"],
)  # fmt: skip
def test_hostile_data_gets_a_short_answer(tmp_path: Path, name: str, content: bytes, words: str) -> None:
    path = tmp_path / name
    path.write_bytes(content)
    message = fault(path)
    assert words in message and len(message) < 1500


def test_a_field_longer_than_any_text_is_named_by_its_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("training.corpus.files.MAX_FIELD_CHARACTERS", 1000)
    (tmp_path / "t.csv").write_text(f"text,label\na,0\n{'x' * 1001},0\n")
    assert "line 3: field larger than field limit" in fault(tmp_path / "t.csv")


@pytest.mark.parametrize(
    "metadata",
    [
        b"{", b"[]", b'{"info": 7}', b"[" * 100_000, b"\xff",
        b'{"info": {"features": {"label": {"_type": "ClassLabel", "names": 3}}}}',
    ],
    ids=["cut", "list", "number", "deep", "bytes", "names"],
)  # fmt: skip
def test_a_schema_that_lies_about_its_classes_is_no_schema(tmp_path: Path, metadata: bytes) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    table = pa.table({"text": list("abcdef"), "label": list("xyxyxy")}).replace_schema_metadata(
        {b"huggingface": metadata}
    )
    pq.write_table(table, tmp_path / "t.parquet")
    assert load_corpus(DataSpec(train_file=str(tmp_path / "t.parquet"))).label_names == ["x", "y"]

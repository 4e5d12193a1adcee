"""Ray's token is its owner's alone, and no secret is in what Shoal writes.

What needs a running Ray is in tests/integration/test_secrets.py.
"""

from __future__ import annotations

import json
import os
import stat
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml
from near_inbox import recorder_near

from launcher import ray_token
from launcher.cli import main as shoal
from launcher.inbox import Inbox
from launcher.worker import _task_error, collect_logs
from training.errors import UserError
from training.parse import load_job
from training.recorder import FolderRecorder
from training.redact import redact, redact_file

CHECKOUT = Path(__file__).resolve().parents[2]
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
    monkeypatch.setattr("launcher.worker.RayRecorder", lambda inbox, job: recorder_near(inbox, job, monkeypatch))
    workdir = tmp_path / "work/job"
    workdir.mkdir(parents=True)
    (workdir / "rank0.log").write_bytes(b"10%\r20%\r\n\xff " + secrets.encode() + b"\nlast\n")
    tails = collect_logs("job", str(workdir), Inbox(str(tmp_path / "jobs")), "")
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

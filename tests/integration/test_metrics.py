"""What can be watched of a running study: its metrics as Prometheus gets them, and names in Ray's dashboard."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, NamedTuple

import fake_rank
import pytest
from conftest import CHECKOUT, python_path, write_study

from launcher.inbox import INBOX_NAME
from launcher.metrics import JOB_GAUGES, STUDY_GAUGES
from training.ranks import free_port

PATIENCE_SECONDS = 400.0
WIDE = {
    "name": "wide",
    "num_ranks": 2,
    "lora": {"r": fake_rank.RETRIES_AND_WAITS},
    "training": {"per_device_train_batch_size": 8},
}


class RunningStudy(NamedTuple):
    """A study that runs in a process of its own, on a Ray of its own."""

    session: Path
    """Ray's folder of it."""
    output: Path
    launcher: subprocess.Popen[bytes]

    def dashboard(self, path: str, token: str) -> Any:
        """Return what the dashboard's HTTP API answers."""
        address = self.output.read_text().split("Ray dashboard: ")[1].split()[0]
        request = urllib.request.Request(address + path, headers={"Authorization": f"Bearer {token}"})
        with urllib.request.urlopen(request, timeout=30) as answer:
            return json.load(answer)

    def scrape(self) -> str:
        """Return what the nodes' agents give Prometheus, at the addresses that Ray tells it."""
        discovered = self.session / "prom_metrics_service_discovery.json"
        targets = [target for group in json.loads(discovered.read_text()) for target in group["targets"]]
        answers = []
        for target in targets:
            # Ray also names its autoscaler's and its dashboard's own ports, at which not always somebody listens.
            with suppress(urllib.error.URLError):
                answers.append(urllib.request.urlopen(f"http://{target}/metrics", timeout=30).read().decode())
        return "".join(answers)

    def patiently(self, look: Callable[[], Any]) -> Any:
        """Return what `look` returns once it is something and raises no more."""
        give_up_at = time.monotonic() + PATIENCE_SECONDS
        while True:
            assert self.launcher.poll() is None, self.output.read_text()
            try:
                if found := look():
                    return found
            except (OSError, ValueError):
                if time.monotonic() > give_up_at:
                    raise
            assert time.monotonic() < give_up_at, self.output.read_text()
            time.sleep(0.2)


@pytest.fixture
def study(workplace: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[RunningStudy]:
    """One job of two ranks, which runs out of memory, goes on, and then does its first step until it is stopped."""
    monkeypatch.setenv("RAY_metrics_report_interval_ms", "1000")
    # Not in the tests' own folder: the path of a socket is short.
    with tempfile.TemporaryDirectory(prefix="shoal-") as folder:
        path = write_study(workplace, sweep={"jobs": [WIDE]})
        environment = {
            **os.environ,
            "PYTHONPATH": python_path(CHECKOUT, Path(__file__).parent),
            "RAY_TMPDIR": folder,
        }
        output = workplace / "out.txt"
        with output.open("w") as out:
            launcher = subprocess.Popen(
                [sys.executable, "-m", "fake_rank", str(path)],
                env=environment, stdout=out, stderr=out, start_new_session=True,
            )  # fmt: skip
        try:
            yield RunningStudy(session=Path(folder) / "ray" / "session_latest", output=output, launcher=launcher)
        finally:
            launcher.send_signal(signal.SIGTERM)
            launcher.wait(timeout=300)


@contextmanager
def prometheus(config: Path, folder: Path) -> Iterator[Callable[[str], list[dict[str, Any]]]]:
    """Run Prometheus with Ray's settings, but for a shorter interval; yield a function that asks it."""
    text = config.read_text()
    assert "scrape_interval: 10s" in text
    ours = folder / "prometheus.yml"
    ours.write_text(text.replace("scrape_interval: 10s", "scrape_interval: 1s"))
    address = f"127.0.0.1:{free_port()}"
    command = ["prometheus", f"--config.file={ours}", f"--storage.tsdb.path={folder / 'tsdb'}"]
    with (folder / "prometheus.txt").open("w") as log:
        process = subprocess.Popen([*command, f"--web.listen-address={address}"], stdout=log, stderr=log)

    def ask(query: str) -> list[dict[str, Any]]:
        url = f"http://{address}/api/v1/query?{urllib.parse.urlencode({'query': query})}"
        return list(json.load(urllib.request.urlopen(url, timeout=30))["data"]["result"])

    try:
        yield ask
    finally:
        process.terminate()
        process.wait(timeout=60)


def test_a_running_study_is_seen_from_outside(study: RunningStudy, workplace: Path) -> None:
    def exported() -> dict[str, float]:
        found = dict(line.rsplit(" ", 1) for line in study.scrape().splitlines() if line.startswith("ray_shoal_"))
        return found if any(series.startswith("ray_shoal_job_loss{") for series in found) else {}

    series = study.patiently(exported)

    assert {name.split("{")[0] for name in series} == {f"ray_{name}" for name in [*JOB_GAUGES, *STUDY_GAUGES]} - {
        "ray_shoal_job_validation_accuracy"
    }
    assert all('study="tiny"' in name for name in series)
    values = {name.split("{")[0]: float(value) for name, value in series.items() if 'status="' not in name}
    assert all('job_name="wide"' in name for name in series if name.startswith("ray_shoal_job_"))
    assert values["ray_shoal_job_loss"] == 1.0
    assert values["ray_shoal_job_tokens_per_second"] == 400.0
    assert values["ray_shoal_job_progress_ratio"] == 0.5
    assert values["ray_shoal_job_forecast_memory_bytes"] > 1 << 20
    assert values["ray_shoal_study_cards_in_use"] == values["ray_shoal_study_cards"] == 2
    assert values["ray_shoal_study_queue_length"] == 0
    assert values["ray_shoal_job_retries"] == values["ray_shoal_study_retries"] == 1
    (running,) = (value for name, value in series.items() if 'status="running"' in name)
    assert float(running) == 1

    token = (Path.home() / ".ray" / "auth_token").read_text().strip()
    with pytest.raises(urllib.error.HTTPError, match="403"):
        study.dashboard("/api/jobs/", "wrong")
    (job,) = study.dashboard("/api/jobs/", token)
    assert job["metadata"]["job_name"] == "Shoal study tiny"
    actors = study.dashboard("/api/v0/actors?detail=true", token)["data"]["result"]["result"]
    alive = {actor["name"] for actor in actors if actor["state"] == "ALIVE"}
    assert any(name.startswith(INBOX_NAME.format(study="tiny")) for name in alive)
    assert {name.rpartition(" ")[0] for name in alive} >= {"wide rank 0", "wide rank 1"}

    if not shutil.which("prometheus"):
        pytest.skip("all but Prometheus itself was tested: it is not installed (Debian: apt-get install prometheus)")
    with prometheus(study.session / "metrics/prometheus/prometheus.yml", workplace) as ask:
        (loss,) = study.patiently(lambda: ask('ray_shoal_job_loss{study="tiny", job_name="wide"}'))
        assert float(loss["value"][1]) == 1.0

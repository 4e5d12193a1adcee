"""Run a study: `python launcher/launch.py STUDY.yaml [--address ...]`, the same as `shoal run`.

On a cluster of cluster/cluster.yaml, its head has a checkout at ~/shoal, and this file is started in two more ways:

    ray submit cluster/cluster.yaml launcher/launch.py -- STUDY.yaml     copies this one file to the head's home
    ray job submit --working-dir . -- python launcher/launch.py STUDY.yaml     copies the user's whole checkout

There it goes on in ~/shoal's environment, joins the cluster and leaves the results in ~/shoal/outputs. It imports
nothing of Shoal before it has found it, and is written for any Python 3 the head may call `python`.
"""

from __future__ import annotations

import argparse
import os
import re
import socket
import sys
from collections.abc import Sequence
from pathlib import Path

VERSION = "0.1.0"
"""Of the Shoal this file belongs to; it is copied alone. A test holds it to training.__version__."""

EXIT_USER_ERROR = 2
DEFAULT_WAIT_MINUTES = 10.0
START = "ray submit --start cluster/cluster.yaml launcher/launch.py -- {study}"

_HERE = Path(__file__).resolve().parent


def main(arguments: Sequence[str]) -> int:
    """Run a study where this file is; return the exit status."""
    in_checkout = (_HERE / "cli.py").exists()
    in_ray_job = "RAY_JOB_CONFIG_JSON_ENV_VAR" in os.environ
    if in_checkout and not in_ray_job:
        _import_from(_HERE.parent)
        from launcher.cli import main as shoal

        return shoal(["run", *arguments])
    return run_on_head(arguments, Path.home() / "shoal", _HERE.parent if in_checkout else None)


def run_on_head(arguments: Sequence[str], installed: Path, submitted: Path | None) -> int:
    """Run a study on the cluster this head belongs to.

    `installed` is the checkout that cluster.yaml has put here; `submitted` is the one that came with a Ray job.
    """
    options = _parse(arguments)
    problem = check_installed(installed, options.study)
    if problem:
        return _refuse(problem)
    python = installed / ".venv" / "bin" / "python"
    if Path(sys.executable) != python:  # its path as it was called, not resolved: a second time it is equal
        os.execv(python, [str(python), str(Path(__file__).resolve()), *arguments])
    if submitted is None:
        os.chdir(installed)
    else:
        _keep_outputs(Path.cwd() / "outputs", installed / "outputs")
    if not options.study.exists():
        return _refuse(_missing(options.study, installed))
    _import_from(submitted or installed)
    from launcher.cli import main as shoal
    from launcher.joining import wait_for_workers

    address = options.address or os.environ.get("RAY_ADDRESS") or "auto"
    os.environ.setdefault("RAY_AUTH_MODE", "token")  # Ray looks for its token by itself only where the address is auto
    try:
        wait_for_workers(address, minutes=options.wait_minutes)
    except KeyboardInterrupt:
        print("shoal: interrupted", file=sys.stderr)
        return 130
    return shoal(["run", str(options.study), "--address", address])


def check_installed(installed: Path, study: Path) -> str | None:
    """Return what is wrong with the Shoal that cluster.yaml installs on the head, and the mend; None if all is well."""
    start = START.format(study=study)
    marker = installed / "training" / "__init__.py"
    if not marker.exists() or not (installed / ".venv" / "bin" / "python").exists():
        return f"{socket.gethostname()} has no Shoal in {installed}. Set the cluster up with: {start}"
    found = re.search(r'^__version__ = "(.+)"', marker.read_text(encoding="utf-8"), flags=re.MULTILINE)
    version = found[1] if found else "unknown"
    if version != VERSION:
        return (
            f"what was submitted is Shoal {VERSION}, but {socket.gethostname()} has Shoal {version} in {installed}. "
            f"Bring every node to yours with: {start}"
        )
    return None


def _parse(arguments: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="launch.py", description="Run a study on this Ray cluster.")
    parser.add_argument("study", type=Path, help="study file (YAML), e.g. studies/demo.yaml")
    parser.add_argument("--address", help="Ray cluster to join (default: $RAY_ADDRESS, else the one of this node)")
    parser.add_argument(
        "--wait-minutes", type=float, default=DEFAULT_WAIT_MINUTES,
        help="how long to wait for workers that have not joined yet (default: %(default)g)",
    )  # fmt: skip
    return parser.parse_args(arguments)


def _missing(study: Path, installed: Path) -> str:
    """Return the message for a study file the head does not have."""
    if study.is_absolute():
        return f"{study} is not on {socket.gethostname()}. Give a path within {installed}, e.g. studies/demo.yaml."
    return (
        f"{study} is not in {installed} of {socket.gethostname()}. Send it there with: "
        f"ray rsync-up cluster/cluster.yaml {study} '~/shoal/{study}'"
    )


def _keep_outputs(here: Path, kept: Path) -> None:
    """Let a Ray job, whose working folder Ray deletes after it, write to the head's checkout."""
    kept.mkdir(parents=True, exist_ok=True)
    if here.resolve() == kept.resolve():
        return
    if here.exists():  # what came with the job, from the user's own outputs
        here.rename(here.with_name("outputs.submitted"))
    here.symlink_to(kept)


def _import_from(checkout: Path) -> None:
    """Import Shoal from this checkout.

    Python puts this file's folder first on the path, where launcher/ would shadow libraries, and so would a home.
    """
    sys.path[:] = [str(checkout), *(entry for entry in sys.path if Path(entry or ".").resolve() != _HERE)]


def _refuse(problem: str) -> int:
    print(f"shoal: {problem}", file=sys.stderr)
    return EXIT_USER_ERROR


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

"""Wait for the workers of cluster.yaml: `ray submit --start` hands over as soon as the head is up.

A first start installs Shoal on every worker, which takes minutes; one that never comes is not waited for for ever.
"""

from __future__ import annotations

import json
import socket
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import yaml

BOOTSTRAP = Path("~/ray_bootstrap_config.yaml")
"""What `ray up` and `ray submit --start` leave on the head: cluster.yaml with its defaults filled in."""
POLL_SECONDS = 1.0
SAY_SECONDS = 15.0


def wait_for_workers(address: str, *, minutes: float) -> None:
    """Return once every worker of the head's cluster.yaml has joined, or after `minutes`; tell who is missing.

    Returns at once where the cluster was not started with such a file, or cannot be joined: the study's own start
    says that better.
    """
    config = read_bootstrap(BOOTSTRAP.expanduser())
    if config is None:
        return
    import ray

    try:
        ray.init(address=address, log_to_driver=False, logging_level="ERROR")
    except (OSError, RuntimeError, ValueError, ray.exceptions.RayError):
        return
    try:
        _wait(lambda: missing(config, ray.nodes()), minutes * 60)
    finally:
        ray.shutdown()


def read_bootstrap(path: Path) -> dict[str, Any] | None:
    """Return the content of the head's cluster file; None where there is none."""
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, yaml.YAMLError):
        return None
    return content if isinstance(content, dict) else None


def missing(config: Mapping[str, Any], nodes: Sequence[Mapping[str, Any]]) -> list[str]:
    """Return the workers that are not among the living `ray.nodes()`, each with how far its start is.

    Of a provider other than local, whose machines have no addresses beforehand, it says how many.
    """
    alive = {node["NodeManagerAddress"] for node in nodes if node["Alive"]}
    provider = config["provider"]
    if provider["type"] == "local":
        states = _worker_states(config["cluster_name"])
        return [
            f"{worker} ({states.get(worker, 'not started')})"
            for worker in provider["worker_ips"]
            if address_of(worker) not in alive
        ]
    kinds = config.get("available_node_types", {})
    wanted = sum(kind.get("min_workers", 0) for name, kind in kinds.items() if name != config.get("head_node_type"))
    still = wanted - (len(alive) - 1)
    return [f"{still} of {wanted}"] if still > 0 else []


def _wait(who_is_missing: Callable[[], list[str]], seconds: float) -> None:
    """Ask until nobody is missing or the time is over."""
    end = time.monotonic() + seconds
    say_next = time.monotonic()
    while names := who_is_missing():
        now = time.monotonic()
        if now >= end:
            _say(f"starting without workers that have not joined: {', '.join(names)}")
            return
        if now >= say_next:
            _say(f"waiting for workers: {', '.join(names)}")
            say_next = now + SAY_SECONDS
        time.sleep(POLL_SECONDS)


def _worker_states(cluster_name: str) -> dict[str, str]:
    """Return worker -> what the autoscaler does with it, e.g. waiting-for-ssh, from the file Ray keeps on the head."""
    from ray.autoscaler._private.local.config import get_state_path

    with suppress(OSError, ValueError, AttributeError):
        nodes = json.loads(Path(get_state_path(cluster_name)).read_text(encoding="utf-8"))
        return {name: node.get("tags", {}).get("ray-node-status", node["state"]) for name, node in nodes.items()}
    return {}


def address_of(host: str) -> str:
    """Return the IP address of a host; of an unknown one its name."""
    try:
        return socket.gethostbyname(host)
    except OSError:
        return host


def _say(message: str) -> None:
    print(f"shoal: {message}", file=sys.stderr, flush=True)

"""Start Ray on this machine or join a cluster, and start things on its nodes."""

from __future__ import annotations

import os
import signal
import socket
from collections.abc import Sequence
from types import FrameType
from typing import Any

from launcher.cards import Card, cluster_cards, local_sizes_gib, resources
from launcher.expand import CHECKOUT
from training.errors import UserError

OBJECT_STORE_BYTES = 512 << 20
"""Shoal sends chunks of a few MiB; Ray's default of 30 % of the memory is better left to offloaded weights."""


CONNECT_SECONDS = 10.0


class Cluster:
    """Ray, connected. `stop` ends what we started and leaves a joined cluster running."""

    def __init__(self, address: str | None, virtual_cards_gib: Sequence[float] | None) -> None:
        """Start Ray here, or join the cluster at `address` (or $RAY_ADDRESS). Raises UserError where that fails."""
        # Nobody asked Shoal's users whether they want to be counted.
        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
        # Ray would hide the cards from workers that asked for none by num_gpus; we assign cards ourselves.
        os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
        import ray

        self.ray = ray
        address = address or os.environ.get("RAY_ADDRESS")
        self.joined = bool(address) and address != "local"
        quiet: dict[str, Any] = {
            "log_to_driver": False,
            "logging_level": "ERROR",
            # Workers find launcher/ and training/ in a checkout that was not pip-installed too.
            "runtime_env": {
                "env_vars": {
                    "PYTHONPATH": os.pathsep.join([str(CHECKOUT), os.environ.get("PYTHONPATH", "")]).strip(":")
                }
            },
        }
        virtual = False
        if self.joined:
            try:
                _knock(str(address))
                context = ray.init(address=address, **quiet)
            except (OSError, RuntimeError, ValueError) as error:
                raise UserError(
                    f"no Ray cluster answers at {address}: {error}. Start one, or unset RAY_ADDRESS to run here."
                ) from None
        else:
            sizes, virtual = local_sizes_gib(virtual_cards_gib)
            context = _start_local(ray, resources(sizes), quiet)
        # Ray installs a SIGTERM handler of its own; ours is Ctrl-C's.
        signal.signal(signal.SIGTERM, _interrupt)
        self.dashboard_url: str | None = context.dashboard_url or None
        try:
            self.cards = cluster_cards(ray.nodes())
        except UserError:
            ray.shutdown()
            raise
        self.virtual_cards_unused = virtual_cards_gib is not None and not virtual
        """Whether the study's cards_gib gave way to the cards there are, this machine's or the cluster's."""
        self.head_node_id: str = ray.get_runtime_context().get_node_id()

    def on_node(self, node_id: str) -> Any:
        """Return the scheduling strategy that pins something to a node."""
        from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

        return NodeAffinitySchedulingStrategy(node_id=node_id, soft=False)

    def task(self, function: Any, *arguments: Any, node_id: str | None = None) -> Any:
        """Start a function as a Ray task on a node (the head's by default); return its reference."""
        options: dict[str, Any] = {"num_cpus": 0, "max_retries": 0, "max_calls": 1}
        strategy = self.on_node(node_id or self.head_node_id)
        return self.ray.remote(**options)(function).options(scheduling_strategy=strategy).remote(*arguments)

    def actor(self, cls: Any, *arguments: Any, node_id: str, card: Card | None = None) -> Any:
        """Start an actor on a node, holding all of `card` if one is given; return its handle."""
        options: dict[str, Any] = {"num_cpus": 0, "scheduling_strategy": self.on_node(node_id)}
        if card is not None:
            options["resources"] = {card.resource: card.gib}
            options["runtime_env"] = {
                "env_vars": {
                    "CUDA_DEVICE_ORDER": "PCI_BUS_ID",
                    "CUDA_VISIBLE_DEVICES": str(card.index),
                    "OMP_NUM_THREADS": str(card.num_threads),
                }
            }
        return self.ray.remote(cls).options(**options).remote(*arguments)

    def stop(self) -> None:
        """Disconnect; Ray started by us ends with all its processes."""
        self.ray.shutdown()


def _knock(address: str) -> None:
    """Raise OSError where nobody listens at "host:port": Ray itself would try for minutes."""
    host, _, port = address.rpartition(":")
    if host and port.isdigit() and "//" not in address:
        socket.create_connection((host, int(port)), timeout=CONNECT_SECONDS).close()


def _start_local(ray: Any, cards: dict[str, float], quiet: dict[str, Any]) -> Any:
    """Start Ray on this machine with its cards as resources."""
    start = {"address": "local", "resources": cards, "object_store_memory": OBJECT_STORE_BYTES, **quiet}
    try:
        return ray.init(include_dashboard=True, dashboard_host="127.0.0.1", **start)
    except Exception:
        # The dashboard is a convenience; a study runs without it.
        ray.shutdown()
        return ray.init(include_dashboard=False, **start)


def _interrupt(signum: int, frame: FrameType | None) -> None:
    """Treat SIGTERM as Ctrl-C."""
    raise KeyboardInterrupt

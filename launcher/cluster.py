"""Start Ray on this machine or join a cluster, reserve parts of its cards, and start things on its nodes."""

from __future__ import annotations

import os
import signal
import socket
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from types import FrameType
from typing import Any

from launcher.board import Placement
from launcher.cards import (
    GIB,
    Card,
    Inventory,
    LocalCard,
    cluster_cards,
    labels,
    local_cards,
    require_cards,
    resources,
)
from launcher.expand import CHECKOUT
from launcher.ray_token import make_token, protect_token, require_token_auth, token_file
from training.errors import UserError

OBJECT_STORE_BYTES = 512 << 20
"""Shoal sends chunks of a few MiB; Ray's default of 30 % of the memory is better left to offloaded weights."""


CONNECT_SECONDS = 10.0
LISTEN_SECONDS = 0.3
"""How long a node may take to answer of which something has died."""
QUIET: dict[str, Any] = {"log_to_driver": False, "logging_level": "ERROR"}
NODE_ID_LABEL = "ray.io/node-id"
"""Ray's own label of each node (https://docs.ray.io/en/latest/ray-core/scheduling/labels.html)."""
NO_STATISTICS = ("RAY_USAGE_STATS_ENABLED", "0")
"""Nobody asked Shoal's users whether they want to be counted."""


def join(address: str, **options: Any) -> Any:
    """Connect to the Ray cluster at `address`; return Ray's context. Raises UserError where none answers."""
    _before_ray(joined=True)
    import ray

    try:
        _knock(address)
        return ray.init(address=address, **QUIET, **options)
    except (OSError, RuntimeError, ValueError, ray.exceptions.RayError) as error:
        raise UserError(
            f"no Ray cluster answers at {address}: {error}. Start one, or unset RAY_ADDRESS to run here."
        ) from None


def _before_ray(*, joined: bool) -> None:
    """Say what Ray reads when it is imported or started. Raises UserError where its token is not its owner's alone."""
    os.environ.setdefault(*NO_STATISTICS)
    if not joined:
        require_token_auth()
        make_token()
    elif token_file().exists():
        # Ray protects the clusters it starts with a token, but shows it to others only when told to.
        os.environ.setdefault("RAY_AUTH_MODE", "token")
    protect_token()


class Cluster:
    """Ray, connected. `stop` ends what we started and leaves a joined cluster running."""

    def __init__(self, address: str | None, virtual_cards_gib: Sequence[float] | None, name: str) -> None:
        """Start Ray here, or join the cluster at `address` (or $RAY_ADDRESS). Raises UserError where that fails.

        `name` is what Ray's dashboard calls the study.
        """
        # Ray would hide the cards from workers that asked for none by num_gpus; we assign cards ourselves.
        os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
        address = address or os.environ.get("RAY_ADDRESS")
        self.joined = bool(address) and address != "local"
        _before_ray(joined=self.joined)
        import ray

        self.ray = ray
        quiet: dict[str, Any] = {
            "job_config": ray.job_config.JobConfig(metadata={"job_name": name}),
            # Workers find launcher/ and training/ in a checkout that was not pip-installed too.
            "runtime_env": {
                "env_vars": {
                    "PYTHONPATH": os.pathsep.join([str(CHECKOUT), os.environ.get("PYTHONPATH", "")]).strip(":")
                }
            },
        }
        context = join(str(address), **quiet) if self.joined else _start_local(local_cards(virtual_cards_gib), quiet)
        # Ray installs a SIGTERM handler of its own; ours is Ctrl-C's.
        signal.signal(signal.SIGTERM, _interrupt)
        self.dashboard_url: str | None = context.dashboard_url or None
        self.kind: bool | None = None
        self.silent_before: frozenset[str] = frozenset()
        """Nodes that did not answer when they were asked last."""
        self.cards, self.nodes = self.look([])
        try:
            require_cards(self.cards)
        except UserError:
            ray.shutdown()
            raise
        self.on_card = not self.cards[0].is_virtual
        """Whether ranks run on cards; else on the CPU, for virtual ones."""
        self.kind = self.cards[0].is_virtual  # of which all cards that come later must be: forecasts are for it
        self.virtual_cards_unused = virtual_cards_gib is not None and (self.joined or self.on_card)
        """Whether the study's cards_gib gave way to the cards there are, this machine's or the cluster's."""
        self.head_node_id: str = ray.get_runtime_context().get_node_id()

    def look(self, placements: Iterable[Placement]) -> Inventory:
        """Return the cards and nodes there are now, less what others have reserved; `placements` are ours."""
        from ray._private.state import available_resources_per_node

        ours: dict[str, dict[str, float]] = defaultdict(lambda: defaultdict(float))
        for placement in placements:
            for card in placement.cards:
                ours[card.node_id][card.resource] += placement.request.card_gib
                ours[card.node_id]["memory"] += placement.request.host_gib * GIB
        return cluster_cards(self.ray.nodes(), available_resources_per_node(), ours, virtual=self.kind)

    def silent(self, doubted: Iterable[str] = ()) -> frozenset[str]:
        """Return which of these nodes, and of those that were silent before, do not answer, asked themselves.

        Ray takes 10 s and more to notice that a PC has gone, and starts things on it until then; what it has given up
        itself is not among them.
        """
        asked = {*doubted, *self.silent_before}
        nodes = [node for node in self.ray.nodes() if node["NodeID"] in asked and node["Alive"]] if asked else []
        with ThreadPoolExecutor(max_workers=16) as pool:
            found = [
                node["NodeID"] for node, listens in zip(nodes, pool.map(_listens, nodes), strict=True) if not listens
            ]
        self.silent_before = frozenset(found)
        return self.silent_before

    def outcome(self, ref: Any) -> dict[str, Any]:
        """Return what a task or rank came to; its death is an outcome too."""
        try:
            answer = self.ray.get(ref)
        except self.ray.exceptions.RayError as error:
            cause = str(error).strip().splitlines()[0]
            return {
                "ok": False,
                "error": f"its process died: killed from outside or by a full memory ({cause})",
                "died": True,
            }
        return answer if isinstance(answer, dict) and "ok" in answer else {"ok": True, "result": answer}

    def reserve(self, placement: Placement) -> tuple[Any, Any]:
        """Ask Ray for a job's part of its cards and of host memory, all ranks or none.

        Returns the placement group and a reference that is ready once it holds them. Ray keeps whatever studies run
        from over-booking, and shows the reservation in `ray status` and the dashboard.
        """
        from ray.util.placement_group import placement_group

        bundles = [_reserved(placement, card) for card in placement.cards]
        # By Ray's id, and not by its address: several nodes may run on one PC.
        nodes = [{NODE_ID_LABEL: card.node_id} for card in placement.cards]
        group = placement_group(bundles, name=placement.job, bundle_label_selector=nodes)
        return group, group.ready()

    def release(self, group: Any) -> None:
        """Give a reservation back; whatever still runs in it is killed."""
        from ray.util.placement_group import remove_placement_group

        remove_placement_group(group)

    def on_node(self, node_id: str) -> Any:
        """Return the scheduling strategy that pins something to a node."""
        from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

        return NodeAffinitySchedulingStrategy(node_id=node_id, soft=False)

    def task(
        self, function: Any, *arguments: Any, name: str, node_id: str | None = None, is_light: bool = False
    ) -> Any:
        """Start a function as a Ray task on a node (the head's by default); return its reference.

        Its process ends with it and so gives back what it has loaded, unless it `is_light`: then others follow in it.
        """
        options: dict[str, Any] = {"name": name, "num_cpus": 0, "max_retries": 0, "max_calls": 0 if is_light else 1}
        strategy = self.on_node(node_id or self.head_node_id)
        return self.ray.remote(**options)(function).options(scheduling_strategy=strategy).remote(*arguments)

    def actor(self, cls: Any, *arguments: Any, name: str, namespace: str, node_id: str) -> Any:
        """Start an actor on a node; return its handle. By its name others find it in its namespace."""
        # Its calls are many: the dashboard's progress bar would count little else.
        options = {"name": name, "namespace": namespace, "num_cpus": 0, "enable_task_events": False}
        return self.ray.remote(cls).options(**options, scheduling_strategy=self.on_node(node_id)).remote(*arguments)

    def rank_actor(self, cls: Any, *arguments: Any, placement: Placement, group: Any, rank: int) -> Any:
        """Start an actor for a rank of a job in the job's reservation, with its card visible; return its handle."""
        from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

        card = placement.cards[rank]
        reserved = _reserved(placement, card)
        options: dict[str, Any] = {
            "name": f"{placement.job} rank {rank} {group.id.hex()[:8]}",
            "num_cpus": 0,
            "memory": reserved.pop("memory", None),
            "resources": reserved,
            "scheduling_strategy": PlacementGroupSchedulingStrategy(group, placement_group_bundle_index=rank),
            "runtime_env": {
                "env_vars": {
                    "CUDA_DEVICE_ORDER": "PCI_BUS_ID",
                    "CUDA_VISIBLE_DEVICES": card.uuid or ("" if card.is_virtual else str(card.index)),
                    "OMP_NUM_THREADS": str(card.num_threads),
                }
            },
        }
        return self.ray.remote(cls).options(**options).remote(*arguments)

    def stop(self) -> None:
        """Disconnect; Ray started by us ends with all its processes."""
        self.ray.shutdown()


def _reserved(placement: Placement, card: Card) -> dict[str, float]:
    """Return what a rank reserves, as Ray's resources."""
    memory = {"memory": int(placement.request.host_gib * GIB)} if placement.request.host_gib else {}
    return {card.resource: placement.request.card_gib, **memory}


def _knock(address: str) -> None:
    """Raise OSError where nobody listens at "host:port": Ray itself would try for minutes."""
    host, _, port = address.rpartition(":")
    if host and port.isdigit() and "//" not in address:
        socket.create_connection((host, int(port)), timeout=CONNECT_SECONDS).close()


def _listens(node: Mapping[str, Any]) -> bool:
    """Whether a node of `ray.nodes()` answers at its Raylet's port."""
    try:
        address = (node["NodeManagerAddress"], node["NodeManagerPort"])
        socket.create_connection(address, timeout=LISTEN_SECONDS).close()
    except OSError:
        return False
    return True


def _start_local(cards: Sequence[LocalCard], quiet: dict[str, Any]) -> Any:
    """Start Ray on this machine with its cards as resources."""
    os.environ.setdefault(*NO_STATISTICS)
    import ray

    start = {
        **QUIET,
        "address": "local",
        "resources": resources(cards),
        "labels": labels(cards),
        # A GPU that others have filled is none of ours: ranks then run on the CPU.
        **({} if any(card.uuid for card in cards) else {"num_gpus": 0}),
        "object_store_memory": OBJECT_STORE_BYTES,
        **quiet,
    }
    with _on_loopback():
        try:
            return ray.init(include_dashboard=True, dashboard_host="127.0.0.1", **start)
        except Exception:
            # The dashboard is a convenience; a study runs without it.
            ray.shutdown()
            return ray.init(include_dashboard=False, **start)


@contextmanager
def _on_loopback() -> Iterator[None]:
    """Have the Ray that is started listen at 127.0.0.1 alone: nobody else has to reach a single machine's.

    Ray does so by itself on macOS and Windows. On Linux it has no option for it: it turns a `_node_ip_address` of
    127.0.0.1 into the address in the network.
    """
    from ray._private import ray_constants

    before = ray_constants.ENABLE_RAY_CLUSTER
    ray_constants.ENABLE_RAY_CLUSTER = False
    try:
        yield
    finally:
        ray_constants.ENABLE_RAY_CLUSTER = before


def _interrupt(signum: int, frame: FrameType | None) -> None:
    """Treat SIGTERM as Ctrl-C."""
    raise KeyboardInterrupt

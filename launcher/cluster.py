"""The cluster a study runs on: what cards there are, parts of them reserved, things started on its nodes."""

from __future__ import annotations

import os
import signal
import socket
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from types import FrameType
from typing import Any

from launcher.board import Placement, in_mib
from launcher.cards import GIB, Card, local_cards
from launcher.connecting import before_ray, join, start_local
from launcher.expand import CHECKOUT
from launcher.inventory import Inventory, cluster_cards, require_cards
from training.errors import UserError

LISTEN_SECONDS = 0.3
"""How long a node may take to answer of which something has died."""
NODE_ID_LABEL = "ray.io/node-id"
"""Ray's own label of each node (https://docs.ray.io/en/latest/ray-core/scheduling/labels.html)."""


class Cluster:
    """Ray, connected. `stop` ends what we started and leaves a joined cluster running."""

    def __init__(
        self, address: str | None, virtual_cards_gib: Sequence[float] | None, name: str, *, virtual: bool = False
    ) -> None:
        """Start Ray here, or join the cluster at `address` (or $RAY_ADDRESS). Raises UserError where that fails.

        `name` is what Ray's dashboard calls the study. `virtual` cards are used also where there are real ones.
        """
        # Ray would hide the cards from workers that asked for none by num_gpus; we assign cards ourselves.
        os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
        address = address or os.environ.get("RAY_ADDRESS")
        self.joined = bool(address) and address != "local"
        before_ray(joined=self.joined)
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
        cards = [] if self.joined else local_cards(virtual_cards_gib, virtual=virtual)
        context = join(str(address), **quiet) if self.joined else start_local(cards, quiet)
        # Ray installs a SIGTERM handler of its own; ours is Ctrl-C's.
        signal.signal(signal.SIGTERM, _interrupt)
        self.dashboard_url: str | None = context.dashboard_url or None
        self.kind: bool | None = True if virtual else None
        self.silent_before: frozenset[str] = frozenset()
        """Nodes that did not answer when they were asked last."""
        self.cards, self.nodes = self.look([])
        try:
            require_cards(self.cards, ray.nodes(), virtual=self.kind)
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
                ours[card.node_id][card.resource] += in_mib(placement.request.card_gib)
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
            cause = getattr(error, "cause", None) or error
            lines = str(cause).strip().splitlines() or [type(cause).__name__]
            if _is_death(cause):
                text = f"its process died: killed from outside or by a full memory ({lines[0]})"
                return {"ok": False, "error": text, "died": True, "is_user_error": False}
            text = f"Ray could not run it: {lines[-1]}. Where that PC has another version of Shoal, install the head's."
            return {"ok": False, "error": text, "is_user_error": False}
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
        remote = _remote_function(function, 0 if is_light else 1)
        strategy = self.on_node(node_id or self.head_node_id)
        return remote.options(name=name, scheduling_strategy=strategy).remote(*arguments)

    def actor(self, cls: Any, *arguments: Any, name: str, namespace: str, node_id: str) -> Any:
        """Start an actor on a node; return its handle. By its name others find it in its namespace."""
        # Its calls are many: the dashboard's progress bar would count little else.
        options = {"name": name, "namespace": namespace, "num_cpus": 0, "enable_task_events": False}
        return _actor_class(cls).options(**options, scheduling_strategy=self.on_node(node_id)).remote(*arguments)

    def task_actor(self, cls: Any, node_id: str) -> Any:
        """Start an actor without a name on a node; return its handle."""
        return _actor_class(cls).options(num_cpus=0, scheduling_strategy=self.on_node(node_id)).remote()

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
                    # By its number: DeepSpeed cannot read a UUID.
                    "CUDA_VISIBLE_DEVICES": "" if card.is_virtual else str(card.index),
                    "OMP_NUM_THREADS": str(card.num_threads),
                }
            },
        }
        return _actor_class(cls).options(**options).remote(*arguments)

    def stop(self) -> None:
        """Disconnect; Ray started by us ends with all its processes."""
        self.ray.shutdown()


def _is_death(cause: Exception) -> bool:
    """Whether Ray means that a process has gone, and not what our code met there outside what it answers for.

    That is most often that it could not read what it was sent, or lacks a module.
    """
    from ray import exceptions

    unread = isinstance(cause, exceptions.RaySystemError) and bool(cause.traceback_str)
    unborn = isinstance(cause, exceptions.RayActorError) and cause.actor_init_failed
    nameless = type(cause) is exceptions.RayError or isinstance(cause, exceptions.UnserializableException)
    return isinstance(cause, exceptions.RayError) and not (unread or unborn or nameless)


@cache
def _remote_function(function: Any, max_calls: int) -> Any:
    """Return a function as Ray's, made once: Ray keeps some 10 KiB of each it makes, for good."""
    import ray

    return ray.remote(num_cpus=0, max_retries=0, max_calls=max_calls)(function)


@cache
def _actor_class(cls: Any) -> Any:
    """Return a class as Ray's, made once like functions."""
    import ray

    return ray.remote(cls)


def _reserved(placement: Placement, card: Card) -> dict[str, float]:
    """Return what a rank reserves, as Ray's resources."""
    memory = {"memory": int(placement.request.host_gib * GIB)} if placement.request.host_gib else {}
    return {card.resource: in_mib(placement.request.card_gib), **memory}


def _listens(node: Mapping[str, Any]) -> bool:
    """Whether a node of `ray.nodes()` answers at its Raylet's port."""
    try:
        address = (node["NodeManagerAddress"], node["NodeManagerPort"])
        socket.create_connection(address, timeout=LISTEN_SECONDS).close()
    except OSError:
        return False
    return True


def _interrupt(signum: int, frame: FrameType | None) -> None:
    """Treat SIGTERM as Ctrl-C."""
    raise KeyboardInterrupt

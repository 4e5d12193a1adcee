"""Join a Ray cluster or start Ray on this machine, as Shoal wants it: quiet, protected, by itself."""

from __future__ import annotations

import ctypes
import os
import socket
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import Any

from launcher.cards import LocalCard, labels, resources
from launcher.ray_token import make_token, protect_token, require_token_auth, token_file
from training.errors import UserError

CONNECT_SECONDS = 10.0
OBJECT_STORE_BYTES = 512 << 20
"""Shoal sends chunks of a few MiB; Ray's default of 30 % of the memory is better left to offloaded weights."""
QUIET: dict[str, Any] = {"log_to_driver": False, "logging_level": "ERROR"}
M_ARENA_MAX = -8
"""Of glibc's malloc.h."""
NO_STATISTICS = ("RAY_USAGE_STATS_ENABLED", "0")
"""Nobody asked Shoal's users whether they want to be counted."""


def join(address: str, **options: Any) -> Any:
    """Connect to the Ray cluster at `address`; return Ray's context. Raises UserError where none answers."""
    before_ray(joined=True)
    import ray

    try:
        _knock(address)
        return ray.init(address=address, **QUIET, **options)
    except (OSError, RuntimeError, ValueError, ray.exceptions.RayError) as error:
        raise UserError(
            f"no Ray cluster answers at {address}: {error}. Start one, or unset RAY_ADDRESS to run here."
        ) from None


def start_local(cards: Sequence[LocalCard], quiet: dict[str, Any]) -> Any:
    """Start Ray on this machine with its cards as resources."""
    import ray

    start = {
        **QUIET,
        "address": "local",
        "resources": resources(cards),
        "labels": labels(cards),
        # Said, and not left for Ray to find out: a GPU that others have filled is none of ours, and ranks then run on
        # the CPU; so they do where a study asks for virtual cards.
        "num_gpus": len([card for card in cards if card.uuid]),
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


def before_ray(*, joined: bool) -> None:
    """Set what Ray goes by, before it is imported. Raises UserError where its token is not its owner's alone."""
    _share_one_arena()
    os.environ.setdefault(*NO_STATISTICS)
    if not joined:
        require_token_auth()
        make_token()
    elif token_file().exists():
        # Ray protects the clusters it starts with a token, but shows it to others only when told to.
        os.environ.setdefault("RAY_AUTH_MODE", "token")
    protect_token()


def _share_one_arena() -> None:
    """Have the threads of this process share one arena of memory, where the C library is glibc.

    Each of Ray's threads has one of its own by default, and the holes in them grow with each job: 0.3 MiB
    (https://man7.org/linux/man-pages/man3/mallopt.3.html). The environment variable would do it to the ranks too.
    """
    with suppress(AttributeError, OSError, TypeError):
        ctypes.CDLL(None).mallopt(M_ARENA_MAX, 1)


def _knock(address: str) -> None:
    """Raise OSError where nobody listens at "host:port": Ray itself would try for minutes."""
    host, _, port = address.rpartition(":")
    if host and port.isdigit() and "//" not in address:
        socket.create_connection((host, int(port)), timeout=CONNECT_SECONDS).close()


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

"""By which network interface the ranks of several PCs talk. Gloo and NCCL, left alone, may take one that leads nowhere.

Gloo listens at the address of the host's own name, which Debian's /etc/hosts makes 127.0.1.1. NCCL takes whatever is
up but loopback and Docker's bridge: virtual machines' bridges, VPNs and Wi-Fi too, by which it fails or hangs (NCCL's
"Troubleshooting"). Both are told the one by which this PC reaches the first rank's.
"""

from __future__ import annotations

import os
import socket
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path

from training.ranks import Ranks

NCCL_FILES = ("/etc/nccl.conf", "~/.nccl.conf")
"""Where a PC's owner may have set NCCL's variables; $NCCL_CONF_FILE takes the second one's place."""
INFINIBAND = ("NCCL_IB_DISABLE", "NCCL_IB_HCA", "NCCL_NET")
"""Whoever sets one of these has decided about InfiniBand."""


def network_variables(ranks: Ranks, environment: Mapping[str, str]) -> dict[str, str]:
    """Return what gloo and NCCL are to be told in addition to what `environment` and NCCL's files say already.

    Nothing where all ranks are on one PC. InfiniBand is off unless somebody has asked for it: where one PC has such a
    card and another has not, the ranks would look for each other in different networks.
    """
    if ranks.local_world_size == ranks.world_size:
        return {}
    name = interface_to(ranks.master_addr)
    wanted = {} if name is None else {"GLOO_SOCKET_IFNAME": name, "NCCL_SOCKET_IFNAME": f"={name}"}
    known = {*environment, *_in_nccl_files(environment)}
    if known.isdisjoint(INFINIBAND):
        wanted["NCCL_IB_DISABLE"] = "1"
    return {key: value for key, value in wanted.items() if key not in known}


def interface_to(address: str) -> str | None:
    """Return the name of the interface by which this PC reaches an address, or has it; None where it is loopback's."""
    import psutil

    own = _own_address(address)
    for name, addresses in psutil.net_if_addrs().items():
        if own is not None and own in {item.address for item in addresses}:
            return None if name == "lo" else str(name)
    return None


def _own_address(target: str) -> str | None:
    """Return the address that what is sent to `target` comes from. Nothing is sent."""
    with suppress(OSError):
        (family, kind, _, _, address), *_ = socket.getaddrinfo(target, 9, type=socket.SOCK_DGRAM)
        with socket.socket(family, kind) as probe:
            probe.connect(address)
            return str(probe.getsockname()[0])
    return None


def _in_nccl_files(environment: Mapping[str, str]) -> set[str]:
    """Return the variables that NCCL's files set; its environment would win over them."""
    files = (NCCL_FILES[0], environment.get("NCCL_CONF_FILE", NCCL_FILES[1]))
    found = set()
    for file in files:
        with suppress(OSError):
            lines = Path(os.path.expanduser(file)).read_text(encoding="utf-8", errors="replace").splitlines()  # noqa: PTH111
            found |= {line.partition("=")[0].strip() for line in lines if not line.startswith("#")}
    return found

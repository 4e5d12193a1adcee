"""What ranks are told of the network between them, and what is said of it where it does not do."""

from __future__ import annotations

import os
import socket
from collections import namedtuple
from datetime import timedelta
from pathlib import Path

import psutil
import pytest

from training.network import interface, shared_memory
from training.network.interface import interface_to, network_variables
from training.network.limits import advice, limit
from training.network.shared_memory import free_mib, why_too_small
from training.ranks import Ranks

Address = namedtuple("Address", "address")
PCS = Ranks(rank=1, world_size=2, master_addr="192.168.1.2", master_port=1, num_threads=1)
ONE_PC = Ranks(world_size=2, local_world_size=2, master_port=1, num_threads=1)


@pytest.fixture(autouse=True)
def two_interfaces(monkeypatch: pytest.MonkeyPatch) -> None:
    """A PC with a virtual machine's bridge and a cable; NCCL would take both."""
    found = {"lo": "127.0.0.1", "virbr0": "192.168.122.1", "enp5s0": "192.168.1.3"}
    monkeypatch.setattr(psutil, "net_if_addrs", lambda: {name: [Address(ip)] for name, ip in found.items()})
    monkeypatch.setattr(interface, "_own_address", lambda target: target if target[:3] == "127" else "192.168.1.3")
    monkeypatch.setattr(interface, "NCCL_FILES", ("/nowhere", "/nowhere"))


def test_ranks_of_several_pcs_talk_by_the_interface_that_leads_to_the_first() -> None:
    assert network_variables(PCS, {}) == {
        "GLOO_SOCKET_IFNAME": "enp5s0", "NCCL_SOCKET_IFNAME": "=enp5s0", "NCCL_IB_DISABLE": "1",
    }  # fmt: skip
    assert network_variables(ONE_PC, {}) == {}
    assert interface_to("127.0.0.1") is None


@pytest.mark.parametrize("name", ["NCCL_IB_DISABLE", "NCCL_IB_HCA", "NCCL_NET"])
def test_what_a_user_set_of_infiniband_stays(name: str) -> None:
    assert "NCCL_IB_DISABLE" not in network_variables(PCS, {name: "x"})


def test_what_a_user_set_of_interfaces_stays() -> None:
    assert set(network_variables(PCS, {"NCCL_SOCKET_IFNAME": "eth"})) == {"GLOO_SOCKET_IFNAME", "NCCL_IB_DISABLE"}
    assert set(network_variables(PCS, {"GLOO_SOCKET_IFNAME": "eth"})) == {"NCCL_SOCKET_IFNAME", "NCCL_IB_DISABLE"}


def test_ncclS_own_file_is_a_users_word(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "nccl.conf"
    file.write_text("# NCCL_IB_DISABLE=0\nNCCL_SOCKET_IFNAME==ens1f0\n")
    assert set(network_variables(PCS, {"NCCL_CONF_FILE": str(file)})) == {"GLOO_SOCKET_IFNAME", "NCCL_IB_DISABLE"}
    monkeypatch.setattr(interface, "NCCL_FILES", (str(file), "/nowhere"))
    assert "NCCL_SOCKET_IFNAME" not in network_variables(PCS, {})


def test_this_machines_own_interface_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()
    own = {
        item.address: name
        for name, items in psutil.net_if_addrs().items()
        for item in items
        if name != "lo" and item.family == socket.AF_INET
    }
    for address, name in own.items():
        assert interface_to(address) == name
    assert interface_to("127.0.0.1") is None and interface_to("no.such.host.invalid") is None


def test_limits_are_deepspeeds_where_a_user_set_them() -> None:
    assert limit(2.0, {}) == timedelta(minutes=2)
    assert limit(2.0, {"DEEPSPEED_TIMEOUT": "45"}) == timedelta(minutes=45)


def test_advice_names_the_interface() -> None:
    said = advice({"NCCL_SOCKET_IFNAME": "=enp5s0"})
    assert "NCCL_SOCKET_IFNAME==enp5s0" in said and "shoal doctor" in said


def test_dockers_shared_memory_is_too_small(monkeypatch: pytest.MonkeyPatch) -> None:
    block = 4096
    docker = os.statvfs("/")
    fields = list(docker)
    fields[:5] = [block, block, (64 << 20) // block, (64 << 20) // block, (64 << 20) // block]
    monkeypatch.setattr(shared_memory.os, "statvfs", lambda _: os.statvfs_result(fields))
    assert free_mib() == 64
    why = why_too_small(free_mib(), {})
    assert why is not None and "64 MiB" in why and "--shm-size" in why and "--ipc=host" in why
    assert why_too_small(1024, {}) is None and why_too_small(64, {"NCCL_SHM_DISABLE": "1"}) is None
    assert "no /dev/shm" in str(why_too_small(None, {}))

"""Fabrics: two hosts on each kind of wire reach each other, and nothing stays behind."""

from __future__ import annotations

import os
import threading
from ipaddress import ip_address
from pathlib import Path

import pytest

from netio import netns, raw, tap
from netio.fault import FaultPort, Faults
from netio.pcap import PcapPort, read_packets
from netio.port import Port
from softrnic.control import fabric as module
from softrnic.control.fabric import best_wire, fabric
from softrnic.control.host import Host
from softrnic.control.pair import connect_pair, endpoint
from softrnic.errors import IoError
from softrnic.verbs import Access, SendWr, WrOpcode

pytestmark = [pytest.mark.jit_only, pytest.mark.timeout(600)]  # the first one compiles

MEMORY = "memory"
UDP = "udp"
VETH = pytest.param("veth", marks=pytest.mark.privileged("netns"))
TAP = pytest.param("tap", marks=pytest.mark.privileged("netns", "tun"))
RIGHTS = Access.LOCAL_WRITE | Access.REMOTE_WRITE


def write(hosts: tuple[Host, Host], nbytes: int = 300_000) -> None:
    """A WRITE from the first to the second arrives whole."""
    a, b = (endpoint(host) for host in hosts)
    connect_pair(a.qp, b.qp)
    data = os.urandom(nbytes)
    inbox = bytearray(nbytes)
    source, target = a.pd.reg_mr(data, Access(0)), b.pd.reg_mr(inbox, RIGHTS)
    a.qp.post_send(SendWr(WrOpcode.RDMA_WRITE, [source.sge()], remote_addr=target.iova, rkey=target.rkey))
    a.cq.wait(30)[0].raise_for_status()
    assert inbox == data


@pytest.mark.parametrize("wire", [MEMORY, UDP, VETH, TAP])
def test_reachable(wire: str) -> None:
    with fabric(wire) as hosts:
        assert [host.device.name for host in hosts] == ["sr0", "sr1"]
        assert hosts[0].device.node_guid != hosts[1].device.node_guid
        assert hosts[0].device.port.active_mtu == 4096
        write(hosts)


@pytest.mark.parametrize("wire", [MEMORY, VETH, TAP])
def test_reachable_over_ipv6(wire: str) -> None:
    with fabric(wire, ip=6) as hosts:
        assert {host.address.version for host in hosts} == {6}
        write(hosts)


@pytest.mark.parametrize("wire", [MEMORY, VETH, TAP])
def test_small_links(wire: str) -> None:
    with fabric(wire, mtu=1500) as hosts:
        assert hosts[0].device.port.active_mtu == 1024
        write(hosts)


@pytest.mark.parametrize("wire", [MEMORY, UDP, VETH, TAP])
def test_middleware_sees_what_passes(wire: str, tmp_path: Path) -> None:
    """Each side captures the same packets, the other way round."""

    def capture(name: str) -> module.Wrap:
        return lambda port: PcapPort(port, tmp_path / name)

    with fabric(wire, wrap=(capture("a"), capture("b"))) as hosts:
        write(hosts)
    seen = {}
    for name in "ab":
        with (tmp_path / name).open("rb") as file:
            seen[name] = [packet for packet in read_packets(file) if packet.data[12:14] == b"\x08\x00"]
    sent = [p.data[42:] for p in seen["a"] if p.direction.name == "TX"]
    assert len(sent) >= 300_000 // 4096
    assert [p.data[42:] for p in seen["b"] if p.direction.name == "RX"] == sent


@pytest.mark.parametrize("wire", [MEMORY, UDP, VETH, TAP])
def test_nothing_stays_behind(wire: str) -> None:
    """Descriptors, threads and devices, also when an exception ends it."""
    with fabric(wire):
        pass  # whatever is opened once and kept for good
    before = os.listdir("/proc/self/fd"), os.listdir("/sys/class/net"), threading.active_count()

    def fail() -> None:
        with fabric(wire) as hosts:
            write(hosts)
            raise LookupError

    with pytest.raises(LookupError):
        fail()
    assert (os.listdir("/proc/self/fd"), os.listdir("/sys/class/net"), threading.active_count()) == before


@pytest.mark.parametrize("wire", [MEMORY, UDP, VETH, TAP])
def test_a_port_that_does_not_open_leaves_nothing(wire: str) -> None:
    def broken(port: Port) -> Port:
        port.close()
        raise IoError(0, "no such middleware")

    with fabric(wire):
        pass
    before = os.listdir("/proc/self/fd"), threading.active_count()
    with pytest.raises(IoError, match="no such middleware"), fabric(wire, wrap=(None, broken)):
        pass
    assert (os.listdir("/proc/self/fd"), threading.active_count()) == before


def test_nobody_at_this_address() -> None:
    with fabric(MEMORY) as (a, _):
        assert a.device.resolve_mac is not None
        with pytest.raises(IoError, match="nobody on memory0 has address"):
            a.device.resolve_mac(a.device.gids[0], ip_address("10.9.0.3"))


@pytest.mark.privileged("netns", "tun")
def test_nobody_answers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("softrnic.control.host.RESOLVE_SECONDS", 0.05)
    with fabric("tap") as (a, _):
        assert a.device.resolve_mac is not None
        with pytest.raises(IoError, match="nobody on tap0 answers for"):
            a.device.resolve_mac(a.device.gids[0], ip_address("10.9.0.77"))


def test_lossy_from_one_side_only() -> None:
    with fabric(MEMORY, wrap=(lambda port: FaultPort(port, tx=Faults(loss=0.1)), None)) as hosts:
        write(hosts)
        assert hosts[0].port.counters()["fault_tx_lost"] > 0


@pytest.mark.privileged("netns")
def test_what_the_kernel_refuses_is_an_error_of_ours() -> None:
    with pytest.raises(IoError, match=r"^\[Errno (22|34)\] veth wire: "), fabric("veth", mtu=1):
        pass


# --- what can be had here -------------------------------------------------------------------------------------


@pytest.mark.privileged("netns", "tun")
def test_best_wire_is_a_tap() -> None:
    assert best_wire() == ("tap", "")


def refuse(*_: object, **__: object) -> None:
    raise IoError(1, "forbidden here")


@pytest.mark.privileged("netns")
def test_best_wire_without_taps(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tap, "open_tap", refuse)
    assert best_wire() == ("veth", "forbidden here: Operation not permitted")


@pytest.mark.privileged("netns")
def test_best_wire_without_packet_sockets(monkeypatch: pytest.MonkeyPatch) -> None:
    """Why it is no tap is what counts."""
    monkeypatch.setattr(netns, "bridge", refuse)
    monkeypatch.setattr(raw, "open_raw", lambda *_: refuse())
    assert best_wire()[0] == "memory"
    assert "forbidden here" in best_wire()[1] or "tap" in best_wire()[1]


def test_best_wire_without_root(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    assert best_wire() == ("memory", "not root, so no network namespaces")


def test_best_wire_in_a_sandbox(monkeypatch: pytest.MonkeyPatch) -> None:
    """Root that may not make namespaces."""
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    monkeypatch.setattr(netns, "namespace", refuse)
    assert best_wire() == ("memory", "forbidden here: Operation not permitted")

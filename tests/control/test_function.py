"""Functions of hosts on real wires: reached under addresses of their own, and under the same ones at another host."""

from __future__ import annotations

import contextlib
import ipaddress
import os
from collections.abc import Iterator

import pytest

from netio import netns
from softrnic.control import host as hosts
from softrnic.control.fabric import fabric
from softrnic.control.function import Function
from softrnic.control.host import Host
from softrnic.control.pair import Endpoint, connect_pair, endpoint
from softrnic.counters import C
from softrnic.errors import IoError, VerbsError
from softrnic.migrate import restore, save
from softrnic.verbs import Access, QpState, QpType, SendWr, WrOpcode

pytestmark = [pytest.mark.jit_only, pytest.mark.timeout(600)]  # the first one compiles

VETH = pytest.param("veth", marks=pytest.mark.privileged("netns"))
TAP = pytest.param("tap", marks=pytest.mark.privileged("netns", "tun"))
WIRES = pytest.mark.parametrize("wire", ["memory", VETH, TAP])
RIGHTS = Access.LOCAL_WRITE | Access.REMOTE_WRITE
ADDRESSES = {4: "10.9.0.7/24", 6: "fd00:9::7/64"}


def of(function: Function) -> Endpoint:
    """PD, CQ and QP on a function."""
    pd, cq = function.device.alloc_pd(), function.device.create_cq(64)
    return Endpoint(function.host, pd, cq, pd.create_qp(QpType.RC, cq, cq))


def write(a: Endpoint, b: Endpoint, nbytes: int = 100_000) -> None:
    """A WRITE arrives whole."""
    data, inbox = os.urandom(nbytes), bytearray(nbytes)
    with a.pd.reg_mr(data, Access(0)) as source, b.pd.reg_mr(inbox, RIGHTS) as target:
        a.qp.post_send(SendWr(WrOpcode.RDMA_WRITE, [source.sge()], remote_addr=target.iova, rkey=target.rkey))
        a.cq.wait(30)[0].raise_for_status()
    assert inbox == data


@WIRES
@pytest.mark.parametrize("version", [4, 6])
def test_reached_under_its_own_address(wire: str, version: int) -> None:
    """Both ways, and the host's own device beside it; the peer finds the MAC by itself."""
    with fabric(wire, ip=version) as (a, b):
        function = b.add_function("vf0", ADDRESSES[version])
        gid = function.device.gids[0]
        assert gid.mac != b.mac
        one, other = endpoint(a), of(function)
        connect_pair(one.qp, other.qp)
        assert bytes(a.device.record["avs"][one.qp.index]["hdr"][:6]) == gid.mac
        plain, beside = endpoint(a), endpoint(b)
        connect_pair(plain.qp, beside.qp)
        for pair in ((one, other), (plain, beside), (other, one), (beside, plain)):
            write(*pair)
        function.close()
        assert b.functions == []
        write(plain, beside)
        dropped = b.device.counter(C.DROP_ADDRESS)
        one.qp.post_send(SendWr(WrOpcode.SEND, inline=b""))
        assert one.cq.wait(0.3) == []
        assert b.device.counter(C.DROP_ADDRESS) > dropped


@WIRES
def test_several_and_none_left(wire: str) -> None:
    with fabric(wire) as (a, b):
        functions = [b.add_function(f"vf{i}", f"10.9.0.{10 + i}/24") for i in range(3)]
        pairs = [(endpoint(a), of(function)) for function in functions]
        for one, other in pairs:
            connect_pair(one.qp, other.qp)
        functions[1].close()
        for one, other in (pairs[0], pairs[2]):
            write(one, other)
    assert not any(f.device.qps for f in functions)
    assert not b.functions


def test_a_udp_socket_has_one_address() -> None:
    with fabric("udp") as (a, _), pytest.raises(IoError, match="cannot have others"):
        a.add_function("vf0", "127.0.0.3/8")


def test_refusals_leave_nothing() -> None:
    with fabric("memory") as (a, _):
        for address in (f"{a.address}/24", "10.9.0.300/24"):
            with pytest.raises(VerbsError):
                a.add_function("vf0", address)
        assert not a.functions
        assert len(a.device.adapter.functions) == 1


# --- moving ---------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def bridged(kind: str) -> Iterator[list[Host]]:
    """Three hosts on one bridge: taps, or network devices of namespaces of their own."""
    with contextlib.ExitStack() as stack:
        ns = stack.enter_context(netns.namespace())
        made, addresses = [], [ipaddress.ip_interface(f"10.9.0.{i + 1}/24") for i in range(3)]
        spaces = [ns] * 3 if kind == "tap" else [stack.enter_context(netns.namespace()) for _ in range(3)]
        for i, (space, address) in enumerate(zip(spaces, addresses, strict=True)):
            if kind == "tap":
                with ns.entered():
                    made.append(stack.enter_context(hosts.open_tap(address, ifname=f"port{i}", name=f"sr{i}")))
            else:
                netns.veth(space, "eth0", ns, f"port{i}")
                netns.add_address(space, "eth0", str(address))
        netns.bridge(ns, "br0", [f"port{i}" for i in range(3)])
        if kind == "veth":
            made = [stack.enter_context(hosts.open_raw("eth0", name=f"sr{i}", ns=spaces[i])) for i in range(3)]
        yield made


@pytest.mark.parametrize("kind", [VETH, TAP])
def test_moves_with_its_addresses(kind: str) -> None:
    """From host to host and back, in mid-stream; the bridge learns where it is from its announcement."""
    with bridged(kind) as (peer, here, there):
        function = here.add_function("vf0", "10.9.0.7/24")
        one, other = endpoint(peer), of(function)
        connect_pair(one.qp, other.qp, timeout=12)
        data, inbox = os.urandom(1 << 20), bytearray(1 << 20)
        source, target = one.pd.reg_mr(data, Access(0)), other.pd.reg_mr(inbox, RIGHTS)
        for place in (there, here, there):
            inbox[:] = bytes(len(inbox))
            for i in range(8):
                at = i << 17
                one.qp.post_send(SendWr(
                    WrOpcode.RDMA_WRITE, [source.sge(at, 1 << 17)], i, remote_addr=target.iova + at, rkey=target.rkey
                ))  # fmt: skip
            function.device.suspend("rnr")
            while not function.device.settled:
                pass
            state = save(function.device, {target.key: "inbox"})
            arrived = place.add_function("vf0")
            made = restore(arrived.device, state, {"inbox": inbox})
            function.vanish()
            arrived.appear()
            arrived.device.resume()
            function.close()
            function = arrived
            assert made.qps[other.qp.qpn].state == QpState.RTS
            done = []
            while len(done) < 8:
                found = one.cq.wait(30)
                assert found
                done += [wc.raise_for_status().wr_id for wc in found]
            assert done == list(range(8))
            assert inbox == data
            target = made.mrs[target.key]


@pytest.mark.parametrize(
    ("kind", "in_kernel"),
    [
        pytest.param("tap", False, marks=pytest.mark.privileged("netns", "tun")),
        pytest.param("veth", False, marks=pytest.mark.privileged("netns")),
        pytest.param("veth", True, marks=pytest.mark.privileged("netns", "bpf")),
    ],
)
def test_late_packets_are_sent_on(kind: str, in_kernel: bool) -> None:
    """Nobody is told of the move: the bridge goes on sending to the old place until the new one answers."""
    with bridged(kind) as (peer, here, there):
        function = here.add_function("vf0", "10.9.0.7/24")
        one, other = endpoint(peer), of(function)
        connect_pair(one.qp, other.qp, timeout=12)
        write(one, other)
        inbox = bytearray(1 << 16)
        target = other.pd.reg_mr(inbox, RIGHTS)
        function.device.suspend()
        state = save(function.device, {target.key: "inbox"})
        arrived = there.add_function("vf0")
        restore(arrived.device, state, {"inbox": inbox})
        function.forward(there.mac, in_kernel=in_kernel)
        assert not any((function.device.qps, function.device.gids, function.device.mrs))
        arrived.device.resume()
        data = os.urandom(len(inbox))
        with one.pd.reg_mr(data, Access(0)) as source:
            one.qp.post_send(SendWr(WrOpcode.RDMA_WRITE, [source.sge()], remote_addr=target.iova, rkey=target.rkey))
            one.cq.wait(30)[0].raise_for_status()
        assert inbox == data
        assert function.forwarded() > 0
        assert here.device.counter(C.FORWARDED_PKTS) == (0 if in_kernel else function.forwarded())
        function.close()
        assert here.device.record["nforward"] == 0
        arrived.appear()
        arrived.close()


def test_only_network_devices_are_forwarded_by_the_kernel() -> None:
    with fabric("memory") as (a, _):
        function = a.add_function("vf0", "10.9.0.7/24")
        with pytest.raises(IoError, match="no network device"):
            function.forward(b"\x02\x00\x00\x00\x00\x77", in_kernel=True)
        assert function.device.gids

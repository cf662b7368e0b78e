"""perftest between two of our own, and what a peer that is none may say. The stock programs: tests/interop."""

from __future__ import annotations

import contextlib
import socket
import struct
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from ipaddress import IPv6Address

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from softrnic.control import warm
from softrnic.control.fabric import fabric
from softrnic.control.host import Host
from softrnic.control.perftest import TESTS, Keys, Options, Perftest, PerftestError, Report, Result
from softrnic.control.perftest.exchange import Exchange
from softrnic.errors import WireError
from softrnic.spec import Mtu, WrOpcode

KEYS = Keys(0x11, 0x5E5D7D, 0x1A2B, 0x7F00_1234_5000, IPv6Address("::ffff:10.9.0.1"), out_reads=16)
# As ib_write_bw of perftest 25.01 sends it.
STOCK = b"0000:0010:000011:5e5d7d:00001a2b:00007f0012345000:00:00:00:00:00:00:00:00:00:00:ff:ff:0a:09:00:01:00000000:\0"

# --- the exchange -------------------------------------------------------------------------------------------


def test_keys_as_the_stock_program_sends_them() -> None:
    assert len(STOCK) == 108
    assert KEYS.emit() == STOCK
    assert Keys.parse(STOCK) == KEYS


@given(
    st.builds(
        Keys,
        qpn=st.integers(0, 0xFFFFFF),
        psn=st.integers(0, 0xFFFFFF),
        rkey=st.integers(0, 0xFFFFFFFF),
        vaddr=st.integers(0, (1 << 64) - 1),
        gid=st.ip_addresses(v=6),
        out_reads=st.integers(0, 0xFFFF),
        lid=st.integers(0, 0xFFFF),
        srqn=st.integers(0, 0xFFFFFFFF),
    )
)
def test_keys_round_trip(keys: Keys) -> None:
    assert Keys.parse(keys.emit()) == keys


@given(st.binary(max_size=120) | st.binary(max_size=8).map(lambda junk: STOCK[: 108 - len(junk)] + junk))
def test_keys_are_parsed_or_refused(message: bytes) -> None:
    with contextlib.suppress(WireError):
        assert Keys.parse(message).emit() == message


@pytest.mark.parametrize(
    ("said", "match"),
    [
        (b"", "hung up after 0 of 16"),
        (b"GET / HTTP/1.1\r\n", "not a version"),
        (b"4.5".ljust(16, b"\0"), r"speaks version 4\.5"),
        (b"6.24".ljust(16, b"\0") + bytes(4), "hung up after 0 of 4"),
        (b"6.24".ljust(16, b"\0") + bytes(8) + b"9\0", "not a path MTU"),
        (b"6.24".ljust(16, b"\0") + bytes(8) + b"\0\0", "not a path MTU"),
    ],
)
def test_client_that_is_none(said: bytes, match: str) -> None:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        theirs.sendall(said)
        theirs.shutdown(socket.SHUT_WR)
        with pytest.raises(WireError, match=match):
            Exchange(ours, client=False).begin(Mtu.MTU_1024)


def test_report_as_the_stock_program_sends_it() -> None:
    """Each field there, and back, before the next."""
    ours, theirs = socket.socketpair()
    report = Report(65536, 1000, 120.5, 100.25, 0.0016)
    with ours, theirs, ThreadPoolExecutor(1) as pool:
        swapped = pool.submit(Exchange(ours, client=True).report, report)
        told = b""
        for _ in report:
            field = theirs.recv(8, socket.MSG_WAITALL)
            theirs.sendall(field)
            told += field
        assert told == struct.pack(">QQddd", *report)
        assert swapped.result() == report


# --- the tests ----------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def hosts() -> Iterator[tuple[Host, Host]]:
    warm.prepare()
    with fabric("memory") as pair:
        yield pair


@contextlib.contextmanager
def both(hosts: tuple[Host, Host], options: Options) -> Iterator[tuple[Perftest, Perftest, Result, Result]]:
    """Server and client after a test, and what they have measured."""
    with (
        Perftest(hosts[0].device, options) as server,
        Perftest(hosts[1].device, options) as client,
        ThreadPoolExecutor(1) as pool,  # outside the connection, whose end ends a server that waits
        socket.create_server(("127.0.0.1", 0)) as listener,
        socket.create_connection(listener.getsockname()) as sock,
    ):
        served = pool.submit(server.serve, listener)
        called = client.call(sock)
        yield server, client, served.result(), called


@pytest.mark.parametrize("name", TESTS)
def test_data_arrives(hosts: tuple[Host, Host], name: str) -> None:
    options = Options(test=TESTS[name], iters=30, tx_depth=8, rx_depth=8)
    with both(hosts, options) as (server, client, served, called):
        if options.test.opcode == WrOpcode.ATOMIC_FETCH_AND_ADD:
            assert server.inbox.view(np.int64)[0] == 30
        elif options.test.opcode == WrOpcode.RDMA_READ:
            assert (client.outbox == server.inbox).all()
        else:
            assert (client.outbox == server.inbox).all()
            if options.test.latency:
                assert (server.outbox == client.inbox).all()
    assert called.report.iters == 30
    if options.test.report:
        assert served.report == called.report
    if options.test.latency:
        assert len(called.stamps) == 30
        assert (called.latencies > 0).all()
    assert "30 iterations" in str(called)
    assert "30 iterations" in str(served)


def test_sizes_and_path_mtus(hosts: tuple[Host, Host]) -> None:
    """The smaller path MTU is taken, by both."""
    options = Options(test=TESTS["write_bw"], size=100_001, iters=3, mtu=Mtu.MTU_4096)
    with both(hosts, options) as (server, client, _, called):
        assert (client.outbox == server.inbox).all()
        assert int(client._qp.record["pmtu"]) == 4096
    assert called.report.size == 100_001


def test_nothing_is_left_behind(hosts: tuple[Host, Host]) -> None:
    with both(hosts, Options(test=TESTS["send_lat"], iters=3)):
        pass
    for host in hosts:
        device = host.device
        assert not any((device.qps, device.cqs, device.mrs, device.pds))


@pytest.mark.parametrize("name", ["write_lat", "send_bw"])
def test_peer_that_does_nothing(hosts: tuple[Host, Host], name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A server that has swapped keys and then keeps silent."""
    run = Perftest._run

    def run_if_client(peer: Perftest) -> Result:
        return run(peer) if peer._client else Result(peer.options, 0.0, [])

    options = Options(test=TESTS[name], iters=3, rx_depth=1, stall_seconds=0.2)
    monkeypatch.setattr(Perftest, "_run", run_if_client)
    with pytest.raises(PerftestError, match=r"0\.2 s"), both(hosts, options):
        pass


@pytest.mark.parametrize("wrong", [{"size": -1}, {"iters": 0}, {"tx_depth": 0}])
def test_options_are_checked(wrong: dict[str, int]) -> None:
    with pytest.raises(PerftestError, match=f"{next(iter(wrong))} must be"):
        Options(test=TESTS["read_bw"], **wrong)


def test_atomics_have_eight_bytes() -> None:
    assert Options(test=TESTS["atomic_bw"], size=100).size == 8

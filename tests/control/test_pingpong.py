"""Pingpong between two of our own, and what a peer that is none may say. Stock peers: tests/interop."""

from __future__ import annotations

import contextlib
import socket
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from ipaddress import IPv6Address

import pytest
from hypothesis import given
from hypothesis import strategies as st

from netio.fault import FaultPort, Faults
from netio.port import Port
from softrnic.control import warm
from softrnic.control.fabric import fabric
from softrnic.control.host import Host
from softrnic.control.pingpong import Destination, Kind, Options, Pingpong, PingpongError, Result
from softrnic.control.pingpong.exchange import answer, ask
from softrnic.errors import WireError
from softrnic.spec import Mtu

# As ibv_rc_pingpong of rdma-core 56 sends it.
STOCK = b"0000:000011:5e5d7d:00000000000000000000ffff0a090001\0"

# --- the exchange -------------------------------------------------------------------------------------------


def test_message_as_the_stock_program_sends_it() -> None:
    destination = Destination(0x11, 0x5E5D7D, IPv6Address("::ffff:10.9.0.1"))
    assert destination.emit() == STOCK
    assert Destination.parse(STOCK) == destination
    assert str(destination) == "LID 0x0000, QPN 0x000011, PSN 0x5e5d7d, GID ::ffff:10.9.0.1"


@given(
    st.builds(
        Destination,
        qpn=st.integers(0, 0xFFFFFF),
        psn=st.integers(0, 0xFFFFFF),
        lid=st.integers(0, 0xFFFF),
        gid=st.ip_addresses(v=6),
    )
)
def test_message_round_trip(destination: Destination) -> None:
    assert Destination.parse(destination.emit()) == destination


@given(st.binary(max_size=64) | st.binary(max_size=8).map(lambda junk: STOCK[: 52 - len(junk)] + junk))
def test_message_is_parsed_or_refused(message: bytes) -> None:
    with contextlib.suppress(WireError):
        assert Destination.parse(message).emit() == message.lower()


@pytest.mark.parametrize("said", [b"", STOCK[:51], b"GET / HTTP/1.1\r\n\r\n" * 4, STOCK + b"nope\0"])
def test_client_that_is_none(said: bytes) -> None:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        theirs.sendall(said)
        theirs.shutdown(socket.SHUT_WR)
        with pytest.raises(WireError):
            answer(ours, [Destination.parse(STOCK)], lambda _: None)


def test_server_that_is_none() -> None:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        theirs.shutdown(socket.SHUT_WR)
        with pytest.raises(WireError, match="hung up after 0 of 52 bytes"):
            ask(ours, [Destination.parse(STOCK)])


# --- the game -----------------------------------------------------------------------------------------------


@contextlib.contextmanager
def tcp() -> Iterator[tuple[socket.socket, socket.socket]]:
    """A listening socket, and a connection to it."""
    with socket.create_server(("127.0.0.1", 0)) as listener, socket.create_connection(listener.getsockname()) as sock:
        yield listener, sock


def play(hosts: tuple[Host, Host], options: Options, server: Options | None = None) -> tuple[Result, Result]:
    """The results of server and client."""
    with (
        Pingpong(hosts[0].device, server or options) as a,
        Pingpong(hosts[1].device, options) as b,
        tcp() as (listener, sock),
        ThreadPoolExecutor(1) as pool,
    ):
        served = pool.submit(a.serve, listener)
        called = b.call(sock)
        return served.result(), called


@pytest.fixture(scope="module", autouse=True)
def compiled() -> None:
    warm.prepare()


@pytest.fixture(scope="module")
def hosts() -> Iterator[tuple[Host, Host]]:
    with fabric("memory") as pair:
        yield pair


@pytest.mark.parametrize("events", [False, True], ids=["polling", "events"])
@pytest.mark.parametrize("kind", Kind)
def test_game(hosts: tuple[Host, Host], kind: Kind, events: bool) -> None:
    options = Options(kind=kind, size=1000, iters=40, num_qp=5, events=events, check=True)
    for result in play(hosts, options):
        assert result.invalid_pages == []
        assert result.bytes == 80_000


@pytest.mark.parametrize("size", [0, 1, 1023, 1024, 1025, 100_001])
def test_sizes(hosts: tuple[Host, Host], size: int) -> None:
    options = Options(size=size, iters=3, rx_depth=2, events=True, check=True)
    served, called = play(hosts, options)
    assert served.invalid_pages == called.invalid_pages == []


def test_nothing_is_left_behind(hosts: tuple[Host, Host]) -> None:
    play(hosts, Options(kind=Kind.SRQ, iters=20, events=True))
    for host in hosts:
        device = host.device
        assert not any((device.qps, device.cqs, device.srqs, device.mrs, device.pds))


def test_damage_is_noticed(hosts: tuple[Host, Host], monkeypatch: pytest.MonkeyPatch) -> None:
    """The server finds a page that does not begin with 0, the client a byte it has not sent."""
    fill = Pingpong._fill

    def spoil(game: Pingpong) -> None:
        fill(game)
        game._outbox[4096 if game.device is hosts[1].device else 5000] ^= 1

    def send_own(game: Pingpong, i: int, _: bool) -> None:
        send(game, i, True)

    send = Pingpong._send
    monkeypatch.setattr(Pingpong, "_fill", spoil)
    served, _ = play(hosts, Options(size=9000, iters=3, events=True, check=True))
    assert served.invalid_pages == [1]
    assert "invalid data in page 1" in str(served)
    monkeypatch.setattr(Pingpong, "_send", send_own)
    _, called = play(hosts, Options(size=9000, iters=3, events=True, check=True))
    assert called.invalid_pages == [1]


def test_message_too_long_for_the_peer(hosts: tuple[Host, Host]) -> None:
    short = Options(size=8999, iters=3, events=True, stall_seconds=0.2)
    with pytest.raises(PingpongError, match="remote invalid request error"):
        play(hosts, Options(size=9000, iters=3, events=True), short)


def test_lost_datagram_ends_the_game() -> None:
    def lossy(port: Port) -> Port:
        return FaultPort(port, tx=Faults(loss=1.0))

    options = Options(kind=Kind.UD, size=8, iters=3, events=True, stall_seconds=0.2)
    with fabric("memory", wrap=(None, lossy)) as hosts, pytest.raises(PingpongError, match=r"for 0\.2 s"):
        play(hosts, options)


def test_peer_without_gid(hosts: tuple[Host, Host]) -> None:
    with Pingpong(hosts[0].device, Options()) as game, tcp() as (listener, sock):
        sock.sendall(b"0000:000011:5e5d7d:" + b"0" * 32 + b"\0")
        with pytest.raises(PingpongError, match="option -g"):
            game.serve(listener)


@pytest.mark.parametrize(
    ("wrong", "match"),
    [
        ({"size": -1}, "size must be 0 to"),
        ({"iters": 0}, "iters must be 1 to"),
        ({"kind": Kind.SRQ, "rx_depth": 15}, "15 receives are not one for each of 16"),
    ],
)
def test_options_are_checked(wrong: dict[str, object], match: str) -> None:
    with pytest.raises(PingpongError, match=match):
        Options(**wrong)


def test_datagram_larger_than_the_port_carries(hosts: tuple[Host, Host]) -> None:
    with pytest.raises(PingpongError, match="the port carries 4096"):
        Pingpong(hosts[0].device, Options(kind=Kind.UD, size=4097, mtu=Mtu.MTU_4096))

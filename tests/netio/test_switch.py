"""The switch in this process: floods what it does not know, and learns."""

from __future__ import annotations

import time
from collections.abc import Iterator

import pytest

from netio.memory import MemoryPort
from netio.middleware import frame_bytes, put_frame
from netio.switch import MemorySwitch
from softrnic.layout import make_ring

MACS = [bytes([2, 0, 0, 0, 9, i]) for i in range(3)]
EVERYBODY = b"\xff" * 6
SECONDS = 20.0


@pytest.fixture
def ports() -> Iterator[list[MemoryPort]]:
    with MemorySwitch(3) as switch:
        yield switch.ports
        for port in switch.ports:
            port.close()


def send(port: MemoryPort, to: bytes, sender: bytes, text: bytes) -> None:
    ring = make_ring(1)
    put_frame(ring, 0, to + sender + b"\x88\xb5" + text.ljust(46, b"\0"))
    assert port.send_burst(ring, 1, 0) == 1


def hear(port: MemoryPort) -> bytes:
    """The text of the next frame."""
    ring = make_ring(1)
    limit = time.monotonic() + SECONDS
    while not port.recv_burst(ring, 0):
        assert time.monotonic() < limit
        port.wait(100_000_000)
    return frame_bytes(ring, 0)[14:].rstrip(b"\0")


def test_flooded_then_learned_then_moved(ports: list[MemoryPort]) -> None:
    a, b, c = ports
    send(a, EVERYBODY, MACS[0], b"to all")
    assert [hear(b), hear(c)] == [b"to all", b"to all"]
    send(b, MACS[2], MACS[1], b"where is c")
    assert [hear(a), hear(c)] == [b"where is c", b"where is c"]
    send(c, MACS[0], MACS[2], b"to a alone")
    assert hear(a) == b"to a alone"
    send(b, MACS[0], MACS[1], b"next")
    assert hear(a) == b"next"  # and c's frame was not b's, nor b's c's:
    send(a, EVERYBODY, MACS[0], b"last")
    assert [hear(b), hear(c)] == [b"last", b"last"]
    send(c, EVERYBODY, MACS[0], b"a's address has moved to c's port")
    assert [hear(a), hear(b)] == [b"a's address has moved to c's port"] * 2
    send(b, MACS[0], MACS[1], b"to where it is now")
    assert hear(c) == b"to where it is now"


def test_closed_at_once_while_idle() -> None:
    switch = MemorySwitch(2)
    switch.close()
    switch.close()
    assert not switch._thread.is_alive()

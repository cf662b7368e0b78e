"""The in-memory wire: order and content, backpressure, two processes, hostile peers."""

from __future__ import annotations

import fcntl
import os
import random
import select
from collections.abc import Iterator

import pytest

from netio import memory
from netio.kernels import port_tx_room
from netio.memring import ARMED, DATA, HEAD, TAIL
from netio.middleware import put_frame
from netio.port import FRAME_ROOM, PortTables, Ready
from softrnic.errors import IoError
from softrnic.jit import kernel, st32, st64
from softrnic.layout import FrameFlag, make_ring
from tests.netio.frames import drain, exchange, pattern, ring_frames, roce

Pair = tuple[memory.MemoryPort, memory.MemoryPort]


@kernel
def tx_room(pt: PortTables) -> int:
    """kernels.port_tx_room for Python."""
    return port_tx_room(pt)


@kernel
def poke64(addr: int, value: int) -> None:
    """Write what a hostile peer might."""
    st64(addr, value)


@kernel
def poke32(addr: int, value: int) -> None:
    """Write what a hostile peer might."""
    st32(addr, value)


@pytest.fixture
def pair() -> Iterator[Pair]:
    a, b = memory.pair(ring_bytes=memory.MIN_RING)
    with a, b:
        yield a, b


def test_frames_cross_both_ways(pair: Pair) -> None:
    a, b = pair
    there = [(roce(pattern(1)), 0), (roce(pattern(60_000)), 4112)]
    back = [(roce(pattern(9)), 0)]
    assert exchange(a, b, there) == there
    assert exchange(b, a, back) == back
    assert (a.counters()["tx_segments"], b.counters()["rx_segments"]) == (16, 16)
    assert (b.counters()["tx_frames"], a.counters()["rx_frames"]) == (1, 1)


def test_flags_cross(pair: Pair) -> None:
    a, b = pair
    tx, rx = make_ring(1), make_ring(1)
    put_frame(tx, 0, roce(b""), flags=FrameFlag.ID_UNKNOWN)
    a.send_burst(tx, 1, 0)
    assert b.recv_burst(rx, 0) == 1
    assert rx.frames[0]["flags"] == FrameFlag.ID_UNKNOWN


def test_any_sizes_in_order_round_and_round(pair: Pair) -> None:
    """Twenty times round the ring, the end of which falls into frames of every size."""
    a, b = pair
    sizes = random.Random(1)
    tx, rx = make_ring(4), make_ring(3)
    sent, received = [], []
    while sum(len(frame) for frame, _ in sent) < 20 * memory.MIN_RING:
        n = sizes.randrange(1, 5)
        burst = [(pattern(int(2 ** sizes.uniform(4, 16)), len(sent) + i), 0) for i in range(n)]
        for i, (frame, _) in enumerate(burst):
            put_frame(tx, i, frame)
        dropped = n - a.send_burst(tx, n, 0)
        assert dropped == 0
        sent += burst
        while m := b.recv_burst(rx, 0):
            received += ring_frames(rx, m)
    assert received == sent


def test_a_full_wire_drops_the_newest_and_counts(pair: Pair) -> None:
    a, b = pair
    frame = pattern(50_000)
    tx = make_ring(8)
    for i in range(8):
        put_frame(tx, i, bytes([i]) + frame)
    sent = a.send_burst(tx, 8, 0)
    assert 0 < sent < 8
    assert a.counters()["tx_drops"] == 8 - sent
    assert [got[0] for got, _ in drain(b)] == list(range(sent))
    assert exchange(a, b, [(frame, 0)]) == [(frame, 0)]


def test_small_frames_fit_where_a_great_one_does_not(pair: Pair) -> None:
    a, b = pair
    great, small = (pattern(60_000), 0), (pattern(64), 0)
    assert exchange(a, b, [great] * 6 + [small]) == [great] * 4 + [small]


def test_room_is_a_promise(pair: Pair) -> None:
    """Whatever is on the wire, the room told takes that many frames of the greatest length."""
    a, b = pair
    sizes = random.Random(2)
    great = pattern(FRAME_ROOM)
    tx, rx = make_ring(4), make_ring(1)
    for i in range(4):
        put_frame(tx, i, great)
    promised = 0
    for _ in range(300):
        room = tx_room(a.tables)
        promised += room
        assert a.send_burst(tx, room, 0) == room
        exchange_one = make_ring(1)
        put_frame(exchange_one, 0, pattern(sizes.randrange(14, 9000)))
        a.send_burst(exchange_one, 1, 0)
        for _ in range(sizes.randrange(4)):
            b.recv_burst(rx, 0)
    assert promised > 50


def test_the_descriptor_is_readable_while_frames_wait(pair: Pair) -> None:
    a, b = pair
    assert drain(b) == []
    assert select.select([b], [], [], 0)[0] == []
    tx = make_ring(1)
    put_frame(tx, 0, roce(b""))
    a.send_burst(tx, 1, 0)
    assert select.select([b], [], [], 0)[0] == [b]
    assert len(drain(b)) == 1
    assert select.select([b], [], [], 0)[0] == []
    a.send_burst(tx, 1, 0)
    assert select.select([b], [], [], 0)[0] == [b]


def test_wait(pair: Pair) -> None:
    a, b = pair
    assert b.wait(1000) == Ready(0)
    tx = make_ring(1)
    put_frame(tx, 0, roce(b""))
    a.send_burst(tx, 1, 0)
    assert b.wait(-1) == Ready.RX
    assert len(drain(b)) == 1
    b.wake()
    assert b.wait(-1) == Ready.WAKE
    assert b.wait(0) == Ready(0)


def test_frames_that_came_before_the_wait_end_it(pair: Pair) -> None:
    a, b = pair
    tx = make_ring(1)
    put_frame(tx, 0, roce(b""))
    a.send_burst(tx, 1, 0)
    assert b.wait(-1) == Ready.RX


def test_two_processes() -> None:
    """The other side echoes each frame, lengthened by one byte, until it is told to stop."""
    wire = memory.Wire()
    port = wire.port(0)
    exchange(port, port, [])  # compiled before the fork
    child = os.fork()
    if child == 0:
        os._exit(_echo(wire.fds()))
    rx = make_ring(4)
    frames = [pattern(n, n) for n in (14, 100, 65_000)]
    for frame in frames:
        tx = make_ring(1)
        put_frame(tx, 0, frame)
        port.send_burst(tx, 1, 0)
        n = 0
        while n == 0 and port.wait(10 * 10**9):  # RX may be a false alarm
            n = port.recv_burst(rx, 0)
        assert n == 1
        assert ring_frames(rx, 1) == [(frame + b"!", 0)]
    put_frame(tx, 0, b"stop" + bytes(60))
    port.send_burst(tx, 1, 0)
    assert os.waitpid(child, 0)[1] == 0
    port.close()
    wire.close()


def _echo(fds: list[int]) -> int:
    port = memory.Wire.from_fds(fds).port(1)
    rx, tx = make_ring(1), make_ring(1)
    while port.wait(10 * 10**9):
        while port.recv_burst(rx, 0):
            frame, _ = ring_frames(rx, 1)[0]
            if frame.startswith(b"stop"):
                return 0
            put_frame(tx, 0, frame + b"!")
            port.send_burst(tx, 1, 0)
    return 1


@pytest.mark.parametrize("head", [1, 63, 64, 1 << 40, -64, -(1 << 63), (1 << 63) - 64, memory.MIN_RING])
def test_a_head_that_cannot_be_is_no_frame(pair: Pair, head: int) -> None:
    _a, b = pair
    base = int(b.tables.port[0]["rx_base"])
    poke64(base + HEAD, head)
    assert drain(b) == []
    assert b.counters()["rx_errors"] > 0


@pytest.mark.parametrize("tail", [1, 64, 1 << 40, -(1 << 63), (1 << 63) - 1])
def test_a_tail_that_cannot_be_is_no_room(pair: Pair, tail: int) -> None:
    a, b = pair
    poke64(int(a.tables.port[0]["tx_base"]) + TAIL, tail)
    assert tx_room(a.tables) == 0
    assert exchange(a, b, [(roce(b""), 0)]) == []
    assert a.counters()["tx_drops"] == 1


@pytest.mark.parametrize("length", [0, 13, FRAME_ROOM + 1, 0xFFFFFFFF, 0x80000000, 4096])
def test_a_length_that_cannot_be_loses_what_is_on_the_wire(pair: Pair, length: int) -> None:
    a, b = pair
    tx = make_ring(1)
    put_frame(tx, 0, roce(b""))
    a.send_burst(tx, 1, 0)
    poke32(int(b.tables.port[0]["rx_base"]) + DATA, length)
    assert drain(b) == []
    assert b.counters()["rx_errors"] == 1
    a.send_burst(tx, 1, 0)
    assert drain(b) == [(roce(b""), 0)]


def test_a_segment_size_that_cannot_be_is_none(pair: Pair) -> None:
    a, b = pair
    assert exchange(a, b, [(roce(pattern(100)), 1 << 30)]) == [(roce(pattern(100)), 0)]


def test_random_shared_memory_does_no_harm(pair: Pair) -> None:
    _a, b = pair
    noise = random.Random(3)
    base = int(b.tables.port[0]["rx_base"])
    for _ in range(300):
        poke64(base + HEAD, noise.choice([noise.randrange(-(1 << 63), 1 << 63), noise.randrange(0, 1 << 19) & ~63]))
        for at in range(0, 4096, 64):
            poke32(base + DATA + at, noise.choice([noise.randrange(1 << 32), noise.randrange(200), 0xFFFFFFFF]))
        poke64(base + ARMED, noise.randrange(2))
        for frame, seg in drain(b):
            assert 14 <= len(frame) <= FRAME_ROOM
            assert 0 <= seg < len(frame)


@pytest.mark.parametrize("ring_bytes", [0, 4096, (1 << 18) + 64, 1 << 29])
def test_ring_sizes_are_checked(ring_bytes: int) -> None:
    with pytest.raises(IoError, match="ring_bytes"):
        memory.Wire(ring_bytes=ring_bytes)


def test_memory_that_could_shrink_is_refused() -> None:
    memfd = os.memfd_create("unsealed", os.MFD_ALLOW_SEALING)
    with pytest.raises(IoError, match="not sealed"):
        memory.Wire.from_fds([memfd, 0, 0])
    os.close(memfd)


@pytest.mark.parametrize("content", [b"", b"srnwire1" + bytes(8), b"srnwire1\0\0\x10\0\x68\x10\0\0", bytes(5000)])
def test_memory_of_something_else_is_refused(content: bytes) -> None:
    memfd = os.memfd_create("other", os.MFD_ALLOW_SEALING)
    os.write(memfd, content)
    fcntl.fcntl(memfd, fcntl.F_ADD_SEALS, fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_SEAL)
    with pytest.raises(IoError, match="not a memory wire"):
        memory.Wire.from_fds([memfd, 0, 0])
    os.close(memfd)


def test_a_closed_port_does_nothing() -> None:
    a, b = memory.pair()
    a.close()
    assert drain(a) == []
    assert exchange(a, b, [(roce(b""), 0)]) == []
    assert a.wait(-1) == Ready(0)
    a.wake()
    b.close()


def test_nothing_stays_open() -> None:
    before = sorted(os.listdir("/proc/self/fd"))
    a, b = memory.pair()
    a.close()
    b.close()
    b.close()
    assert sorted(os.listdir("/proc/self/fd")) == before

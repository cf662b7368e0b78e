"""Kernels of the in-memory wire: one byte ring each way, single producer, single consumer, lock-free.

Decides how frames lie in shared memory. The other side may be another process: whatever it can write is
checked before use, and our own positions are kept where it cannot reach them.

    0      64     128     4096
    +------+------+-------+--------------------------------------------------------------+
    | head | tail | armed | data: records of 16 bytes of header and a frame, 64-aligned   |
    +------+------+-------+--------------------------------------------------------------+

head and tail count bytes ever put and taken; they never wrap (2^63 bytes are 6 years at 400 Gb/s). A record
never straddles the end: a record of length SKIP fills what is left. armed: the consumer sleeps and wants
its eventfd.
"""

from __future__ import annotations

from typing import Any

from netio.header import segment_count
from netio.libc import AUX_EVENT_OUT, write
from netio.port import FRAME_ROOM, PortFlag, PortTables
from netio.slow import divert, is_slow
from softrnic.jit import (
    addr_of,
    atomic_xchg64,
    i64,
    inline,
    ld32,
    ld_acq32,
    ld_acq64,
    memcpy,
    st32,
    st64,
    st_rel64,
)
from softrnic.layout import FRAME_HEADROOM, FRAME_STRIDE, FrameFlag, FrameRing

HEAD, TAIL, ARMED, DATA = 0, 64, 128, 4096
RECORD_HEADER = 16  # len i4, seg i4, flags u4, func u4
ALIGN = 64
SKIP = 0xFFFFFFFF


@inline
def record_bytes(length: int) -> int:
    """Room a frame takes in the ring."""
    return (RECORD_HEADER + length + ALIGN - 1) & ~(ALIGN - 1)


@inline
def memory_room(port: Any) -> int:
    """Frames of the greatest length that are sure to find room."""
    free = _limit(port) - i64(port["tx_pos"])
    # one record may have to skip the end of the ring
    return int(max(0, free // record_bytes(FRAME_ROOM) - 1))


@inline
def _limit(port: Any) -> int:
    """How far tx_pos may go, by the consumer's tail. A tail that cannot be means no room."""
    base = i64(port["tx_base"])
    position = i64(port["tx_pos"])
    size = i64(port["ring_bytes"])
    tail = int(ld_acq64(base + TAIL))
    return int(tail + size if position - size <= tail <= position else position)


@inline
def _reserve(port: Any, need: int) -> int:
    """Address of `need` bytes at the producer's position, the end of the ring skipped; 0: no room."""
    size = i64(port["ring_bytes"])
    data = i64(port["tx_base"]) + DATA
    position = i64(port["tx_pos"])
    left = size - (position & (size - 1))
    skip = left if left < need else 0
    if position + skip + need > i64(port["tx_limit"]):
        port["tx_limit"] = _limit(port)
        if position + skip + need > i64(port["tx_limit"]):
            return 0
    if skip:
        st32(data + (position & (size - 1)), SKIP)
        position += skip
        port["tx_pos"] = position
    return int(data + (position & (size - 1)))


@inline
def memory_send(pt: PortTables, tx: FrameRing, n: int) -> int:
    """Put frames 0..n-1 in the ring; one that finds no room is dropped and counted."""
    port = pt.port[0]
    base = i64(port["tx_base"])
    slab = addr_of(tx.slab)
    sent = 0
    for i in range(n):
        frame = tx.frames[i]
        addr = slab + i64(frame["off"])
        length = i64(frame["len"])
        seg = i64(frame["seg"])
        at = _reserve(port, record_bytes(length))
        if at == 0:
            port["tx_drops"] += 1
            continue
        st32(at, length)
        st32(at + 4, seg)
        st32(at + 8, i64(frame["flags"]))
        memcpy(at + RECORD_HEADER, addr, length)
        port["tx_pos"] += record_bytes(length)
        st_rel64(base + HEAD, i64(port["tx_pos"]))
        port["tx_frames"] += 1
        port["tx_segments"] += segment_count(addr, length, seg)
        port["tx_bytes"] += length
        sent += 1
    if sent:
        _wake_peer(pt)
    return sent


@inline
def _wake_peer(pt: PortTables) -> None:
    """Signal the consumer if it sleeps. The exchange orders head before flag; see memory_arm()."""
    port = pt.port[0]
    armed = i64(port["tx_base"]) + ARMED
    if int(atomic_xchg64(armed, 0)):
        one = addr_of(pt.aux) + AUX_EVENT_OUT
        st64(one, 1)
        write(i64(port["peer_fd"]), one, 8)


@inline
def memory_arm(port: Any) -> bool:
    """Ask to be signalled; False if frames came meanwhile and there is no need to sleep."""
    base = i64(port["rx_base"])
    atomic_xchg64(base + ARMED, 1)
    return bool(ld_acq64(base + HEAD) == port["rx_pos"])


@inline
def memory_recv(pt: PortTables, rx: FrameRing) -> int:
    """Take frames until the wire or the ring's room ends."""
    port = pt.port[0]
    base = i64(port["rx_base"])
    size = i64(port["ring_bytes"])
    slab = addr_of(rx.slab)
    slots = len(rx.frames)
    position = i64(port["rx_pos"])
    head = int(ld_acq64(base + HEAD))
    if head == position:
        return 0
    n = 0
    for _ in range(2 * slots + 1):  # diverted frames and the skip take no slot
        left = head - position
        if n == slots or left == 0:
            break
        to_end = size - (position & (size - 1))
        at = base + DATA + size - to_end
        length = int(ld_acq32(at))  # once: the producer may change it under our eyes
        if length == SKIP and to_end < left <= size:
            position += to_end
            continue
        if not _sound(length, left, size, to_end):
            port["rx_errors"] += 1
            position = head & ~(ALIGN - 1)  # the producer broke the rules; start again where it says it is
            break
        n += _take(pt, rx.frames[n], slab, n * FRAME_STRIDE + FRAME_HEADROOM, at, length)
        position += record_bytes(length)
    port["rx_pos"] = position
    st_rel64(base + TAIL, position)
    return n


@inline
def _sound(length: int, left: int, size: int, to_end: int) -> bool:
    """Whether a record of this length can be: a frame, wholly put, not beyond the end of the ring."""
    need = record_bytes(length)
    return 14 <= length <= FRAME_ROOM and need <= left <= size and left % ALIGN == 0 and need <= to_end


@inline
def _take(pt: PortTables, frame: Any, slab: int, off: int, at: int, length: int) -> int:
    """Copy one record out; 1 if it is for the engine."""
    port = pt.port[0]
    addr = slab + off
    seg = int(ld32(at + 4))
    memcpy(addr, at + RECORD_HEADER, length)
    if i64(port["flags"]) & PortFlag.DIVERT.value and is_slow(addr, length):
        divert(pt, addr, length)
        return 0
    seg = seg if seg < length else 0
    frame["off"] = off
    frame["len"] = length
    frame["seg"] = seg
    frame["flags"] = int(ld32(at + 8)) & FrameFlag.ID_UNKNOWN.value
    frame["func"] = 0
    port["rx_frames"] += 1
    port["rx_segments"] += segment_count(addr, length, seg)
    port["rx_bytes"] += length
    return 1

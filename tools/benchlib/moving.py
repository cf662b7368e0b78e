"""Moving frames from one port to another: the compiled loops of the port comparison, and the ways that are no port.

A way is how frames leave or enter a packet socket. PORT is what the port itself does, one system call per frame. MMSG
gives the kernel a burst of frames per call (sendmmsg, recvmmsg). RING reads out of a ring that the kernel fills
(TPACKET_V3, Documentation/networking/packet_mmap.rst), without any call. Their state is in `PortTables.xsk`, which
packet sockets do not use. All kernels are in this one file, for the compile cache knows no other file of tools.
"""

from __future__ import annotations

from enum import IntEnum

import numpy as np
from numba import types

from netio.fdio import VNET_BYTES, _vnet_header
from netio.header import udp_offset
from netio.kernels import port_recv, port_send, port_tx_room
from netio.libc import MSG_DONTWAIT, recvmmsg, sendmmsg
from netio.port import FRAME_ROOM, PortTables
from softrnic.jit import (
    addr_of,
    fence,
    i64,
    inline,
    kernel,
    ld16,
    ld32,
    ld64,
    ld_acq32,
    ld_acq64,
    memset,
    pause,
    st64,
    st_rel32,
    st_rel64,
)
from softrnic.layout import FRAME_HEADROOM, FRAME_STRIDE, FrameRing
from softrnic.wire.frame import parse_link
from softrnic.wire.icrc import icrc_base, icrc_check


class Way(IntEnum):
    """How frames leave or enter a socket."""

    PORT = 0
    MMSG = 1
    RING = 2


RECEIVED, STOP = 0, 8  # int64 cells at 64-byte distance
COUNTING, ONE_ID, WRONG, FRAMES = range(4)  # cells of `found`
MAX_BURST = 64

# MMSG: struct mmsghdr[MAX_BURST], then struct iovec[MAX_BURST]
_MMSGHDR, _IOVEC, _IOV_AT, _IOVLEN_AT, _MSG_LEN = 64, 16, 16, 24, 56
MMSG_WORDS = MAX_BURST * (_MMSGHDR + _IOVEC) // 8

# RING: words of its state, and offsets in struct tpacket_block_desc and tpacket3_hdr (linux/if_packet.h)
RING_BASE, RING_BLOCK, RING_BLOCKS, RING_NEXT, RING_WORDS = range(5)
_STATUS, _COUNT, _FIRST = 8, 12, 16
_NEXT_AT, _SNAPLEN, _MAC_AT = 0, 12, 24
_USER = 1  # the block is ours

_CLOCK_MONOTONIC = 1
_clock_gettime = types.ExternalFunction("clock_gettime", types.int32(types.int32, types.int64))


@inline
def _messages(pt, ring, n):
    """Describe slots 0..n-1, a virtio-net header in front of each; the address of the mmsghdrs."""
    headers = addr_of(pt.xsk)
    iovecs = headers + MAX_BURST * _MMSGHDR
    slab = addr_of(ring.slab)
    memset(headers, 0, n * _MMSGHDR)
    for i in range(n):
        st64(headers + i * _MMSGHDR + _IOV_AT, iovecs + i * _IOVEC)
        st64(headers + i * _MMSGHDR + _IOVLEN_AT, 1)
        st64(iovecs + i * _IOVEC, slab + i * FRAME_STRIDE + FRAME_HEADROOM - VNET_BYTES)
        st64(iovecs + i * _IOVEC + 8, VNET_BYTES + FRAME_ROOM)
    return headers


@inline
def _send_mmsg(pt, tx, n):
    """The frames fd_send would write, by one call."""
    headers = _messages(pt, tx, n)
    slab = addr_of(tx.slab)
    for i in range(n):
        addr, length = slab + i64(tx.frames[i]["off"]), i64(tx.frames[i]["len"])
        _vnet_header(addr, udp_offset(addr, length), length, i64(tx.frames[i]["seg"]))
        st64(headers + MAX_BURST * _MMSGHDR + i * _IOVEC + 8, VNET_BYTES + length)
    sendmmsg(i64(pt.port[0]["fd"]), headers, n, MSG_DONTWAIT)


@inline
def _recv_mmsg(pt, rx):
    """As many frames as wait and have room."""
    headers = _messages(pt, rx, len(rx.frames))
    n = i64(recvmmsg(i64(pt.port[0]["fd"]), headers, len(rx.frames), MSG_DONTWAIT, 0))
    for i in range(n):
        rx.frames[i]["len"] = int(ld32(headers + i * _MMSGHDR + _MSG_LEN)) - VNET_BYTES
    return max(0, n)


@inline
def _recv_ring(pt):
    """Look at every frame of the next block, if the kernel has closed it, and give the block back."""
    state = addr_of(pt.xsk)
    nth = int(ld64(state + 8 * RING_NEXT))
    block = int(ld64(state + 8 * RING_BASE)) + nth * int(ld64(state + 8 * RING_BLOCK))
    if int(ld_acq32(block + _STATUS)) & _USER == 0:
        return 0
    n = int(ld32(block + _COUNT))
    header = block + int(ld32(block + _FIRST))
    for _ in range(n):
        frame = header + int(ld16(header + _MAC_AT))
        pt.port[0]["rx_bytes"] += int(ld32(header + _SNAPLEN))
        pt.port[0]["rx_frames"] += int(ld16(frame + 12)) != 0  # a look at the frame itself, for the cache's sake
        header += int(ld32(header + _NEXT_AT))
    fence()
    st_rel32(block + _STATUS, 0)
    st64(state + 8 * RING_NEXT, (nth + 1) % int(ld64(state + 8 * RING_BLOCKS)))
    return n


@inline
def _send(way, pt, tx, n):
    if way == Way.MMSG:
        _send_mmsg(pt, tx, n)
    else:
        port_send(pt, tx, n)


@inline
def _recv(way, pt, rx):
    if way == Way.MMSG:
        return _recv_mmsg(pt, rx)
    if way == Way.RING:
        return _recv_ring(pt)
    return port_recv(pt, rx)


@inline
def _judge(rx, n, found):
    """Look at ICRCs as softrnic/qp/inbound.py does: the identifications of a frame count up, or are all one."""
    for i in range(n):
        frame = rx.frames[i]
        link = parse_link(rx.slab, i64(frame["off"]), i64(frame["len"]), i64(frame["seg"]))
        base = icrc_base(rx.slab, link.l3_off, link.is_v6)
        at = link.bth_off
        for k in range(link.nseg):
            length = link.seg_len if k + 1 < link.nseg else link.last_len
            if icrc_check(rx.slab, at, length, base, link.is_v6, (link.ip_id + k) & 0xFFFF, 0):
                found[COUNTING] += 1
            elif icrc_check(rx.slab, at, length, base, link.is_v6, link.ip_id, 0):
                found[ONE_ID] += 1
            else:
                found[WRONG] += 1
            at += length
        found[FRAMES] += 1


@kernel
def flood(way: int, pt: PortTables, tx: FrameRing, n: int, count: int, window: int, cells: np.ndarray) -> int:
    """Send bursts of up to n frames of `count` packets each, at most `window` packets ahead of the receiver."""
    received, stop = addr_of(cells), addr_of(cells) + 8 * STOP
    sent = 0
    stuck = 0
    while ld_acq64(stop) == 0:
        m = min(n, port_tx_room(pt))
        if m == 0 or sent + m * count - ld_acq64(received) > window:
            pause()
            stuck += 1
            if stuck > 200_000:  # frames were lost
                sent = ld_acq64(received)
                stuck = 0
            continue
        stuck = 0
        _send(way, pt, tx, m)
        sent += m * count
    return sent


@kernel
def drain(way: int, pt: PortTables, rx: FrameRing, count: int, found: np.ndarray, cells: np.ndarray) -> int:
    """Receive until told to stop, and count packets: as the port does, or `count` for each frame.

    `found`: frames received, and their packets by what makes the ICRC right; empty, and nobody looks at it.
    """
    received, stop = addr_of(cells), addr_of(cells) + 8 * STOP
    total = 0
    while ld_acq64(stop) == 0:
        n = _recv(way, pt, rx)
        if n == 0:
            pause()
            continue
        if len(found):
            _judge(rx, n, found)
        total = i64(pt.port[0]["rx_segments"]) if way == Way.PORT else total + n * count
        st_rel64(received, total)
    return total


@kernel
def shuttle(
    out: int, way_in: int, source: PortTables, sink: PortTables, tx: FrameRing, rx: FrameRing, n: int, rounds: int
) -> int:
    """Send a burst of n and receive what came, so many times; returns frames received."""
    total = 0
    for _ in range(rounds):
        _send(out, source, tx, n)
        while True:
            got = _recv(way_in, sink, rx)
            total += got
            if got == 0:
                break
    return total


@inline
def _monotonic_ns(cells):
    _clock_gettime(_CLOCK_MONOTONIC, addr_of(cells))
    return ld64(addr_of(cells)) * 1_000_000_000 + ld64(addr_of(cells) + 8)


@kernel
def alone(
    out: int, way_in: int, source: PortTables, sink: PortTables, tx: FrameRing, rx: FrameRing, times: np.ndarray,
    cells: np.ndarray,
) -> None:  # fmt: skip
    """Send one frame, look until it is there, and note how long that took, in ns; -1 if it never came."""
    for i in range(len(times)):
        begin = _monotonic_ns(cells)
        now = begin
        _send(out, source, tx, 1)
        got = 0
        while got == 0 and now - begin < 100_000_000:
            got = _recv(way_in, sink, rx)
            now = _monotonic_ns(cells)
        times[i] = now - begin if got else -1

"""Kernels of AF_XDP ports: frames between the slots of the engine and the socket's four rings.

    RX          descriptors of frames received    kernel -> us       per socket
    fill        chunks for frames to come         us -> kernel       per UMEM
    TX          descriptors of frames to send     us -> kernel       per socket
    completion  chunks sent                       kernel -> us       per UMEM

A ring is an array of entries and two counters that only grow (mod 2^32), each written by one side: entries
are good once the producer's store with release ordering is seen by a load with acquire ordering. A frame
longer than a chunk takes several descriptors, all but the last with CONTINUED set.

AF_XDP has no segmentation offload, so super-frames are split on the way into the UMEM. One thread at a time
may use a UMEM, whichever of its sockets it works for.
"""

from __future__ import annotations

import errno as _errno
from enum import IntEnum

from netio.header import (
    ETH_IPV6,
    UDP_BYTES,
    fit_headers,
    get_be16,
    ip_id_of,
    ip_offset,
    put_be16,
    udp_checksum,
    udp_offset,
)
from netio.libc import AUX_RX, EAGAIN, ENOBUFS, MSG_DONTWAIT, errno, recvmsg, sendto
from netio.port import FRAME_ROOM, PortTables
from softrnic.jit import addr_of, inline, ld32, ld64, ld_acq32, memcpy, st32, st64, st_rel32
from softrnic.layout import FRAME_HEADROOM, FRAME_STRIDE, FrameRing

# linux/if_xdp.h
CONTINUED = 1    # in a descriptor's options: XDP_PKT_CONTD
NEED_WAKEUP = 1  # in a ring's flags: XDP_RING_NEED_WAKEUP
_DESC_BYTES, _DESC_LEN, _DESC_OPTIONS = 16, 8, 12  # struct xdp_desc: u64 addr, u32 len, u32 options
_CHUNK_BYTES = 8
_U32 = 0xFFFFFFFF
EBUSY = _errno.EBUSY

ETHERNET_BYTES = 18  # header with a VLAN tag
TX_TRIES = 4  # calls that find the device busy, before frames are lost


class Ring(IntEnum):
    """Words that describe one ring."""

    PRODUCER = 0  # addresses of what the kernel shares
    CONSUMER = 1
    FLAGS    = 2
    ENTRIES  = 3
    MASK     = 4  # number of entries - 1
    WORDS    = 5


class Xsk(IntEnum):
    """Words of PortTables.xsk."""

    UMEM       = 0  # address of the UMEM's words
    RX         = 1
    TX         = RX + Ring.WORDS
    FILL       = TX + Ring.WORDS
    COMPLETION = FILL + Ring.WORDS
    WORDS      = COMPLETION + Ring.WORDS


class Umem(IntEnum):
    """Words of a UMEM. After them free slots, a stack; then how many chunks of each slot the kernel has.

    Frames to send lie in slots of whole chunks, each long enough for any packet of the link.
    """

    BASE       = 0  # address of the memory
    BYTES      = 1
    CHUNK      = 2  # bytes of a chunk
    SLOT       = 3  # bytes of a slot
    SLOTS      = 4
    TX_BASE    = 5  # where in the memory the slots begin; chunks to receive in are before
    FREE       = 6  # free slots on the stack
    WORDS      = 7


@inline
def _word(base: int, index: int) -> int:
    return int(ld64(base + 8 * index))


@inline
def _pending_at(umem: int, slot: int) -> int:
    """Address of the count of chunks of a slot that the kernel has."""
    return umem + 8 * (Umem.WORDS.value + _word(umem, Umem.SLOTS.value) + slot)


@inline
def _free_at(umem: int, place: int) -> int:
    """Address of a place on the stack of free slots."""
    return umem + 8 * (Umem.WORDS.value + place)


@inline
def _waiting(ring: int) -> int:
    """Entries that the kernel has produced and we have not consumed."""
    produced = int(ld_acq32(_word(ring, Ring.PRODUCER.value)))
    count = (produced - int(ld32(_word(ring, Ring.CONSUMER.value)))) & _U32
    return min(count, _word(ring, Ring.MASK.value) + 1)


@inline
def _desc(ring: int, index: int) -> int:
    """Address of an entry of the RX or TX ring."""
    return _word(ring, Ring.ENTRIES.value) + (index & _word(ring, Ring.MASK.value)) * _DESC_BYTES


@inline
def _chunk(ring: int, index: int) -> int:
    """Address of an entry of the fill or completion ring."""
    return _word(ring, Ring.ENTRIES.value) + (index & _word(ring, Ring.MASK.value)) * _CHUNK_BYTES


# --- receive


@inline
def xsk_recv(pt: PortTables, rx: FrameRing) -> int:
    """Copy frames that wait into slots 0..n-1 and give their chunks back."""
    port = pt.port[0]
    ring = addr_of(pt.xsk) + 8 * Xsk.RX.value
    umem = _word(addr_of(pt.xsk), Xsk.UMEM.value)
    slab = addr_of(rx.slab)
    longest = min(int(port["mtu"]) + ETHERNET_BYTES, FRAME_ROOM)
    first = int(ld32(_word(ring, Ring.CONSUMER.value)))
    waiting = _waiting(ring)
    taken = n = 0
    while n < len(rx.frames):
        off = n * FRAME_STRIDE + FRAME_HEADROOM
        descs, length = _take_frame(umem, ring, first + taken, waiting - taken, slab + off, longest)
        if descs == 0:
            break
        taken += descs
        if length < 0:
            port["rx_errors"] += 1
            continue
        frame = rx.frames[n]
        frame["off"] = off
        frame["len"] = length
        frame["seg"] = 0
        frame["flags"] = 0
        frame["func"] = 0
        port["rx_frames"] += 1
        port["rx_segments"] += 1
        port["rx_bytes"] += length
        n += 1
    if taken:
        _refill(pt, umem, first, taken)
        st_rel32(_word(ring, Ring.CONSUMER.value), (first + taken) & _U32)
        _wake_rx(pt)
    return n


@inline
def _take_frame(
    umem: int, ring: int, index: int, waiting: int, to: int, longest: int
) -> tuple[int, int]:
    """Put the pieces of one frame together: (descriptors used, length); (0, 0) if it is not there in full.

    A length of -1 tells of pieces outside the UMEM, or of a super-frame that generic XDP saw uncut: how to cut
    it is not told here.
    """
    length = 0
    for i in range(waiting):
        desc = _desc(ring, index + i)
        at, part = int(ld64(desc)), int(ld32(desc + _DESC_LEN))
        sound = 0 <= at <= _word(umem, Umem.BYTES.value) - part
        if length >= 0 and sound and length + part <= longest:
            memcpy(to + length, _word(umem, Umem.BASE.value) + at, part)
            length += part
        else:
            length = -1
        if int(ld32(desc + _DESC_OPTIONS)) & CONTINUED == 0:
            return i + 1, length
    return 0, 0


@inline
def _refill(pt: PortTables, umem: int, first: int, count: int) -> None:
    """Put the chunks of consumed descriptors in the fill ring, which has room for all chunks there are."""
    ring = addr_of(pt.xsk) + 8 * Xsk.RX.value
    fill = addr_of(pt.xsk) + 8 * Xsk.FILL.value
    produced = int(ld32(_word(fill, Ring.PRODUCER.value)))
    for i in range(count):
        chunk = int(ld64(_desc(ring, first + i))) & ~(_word(umem, Umem.CHUNK.value) - 1)
        st64(_chunk(fill, produced + i), chunk)
    st_rel32(_word(fill, Ring.PRODUCER.value), (produced + count) & _U32)


@inline
def _wake_rx(pt: PortTables) -> None:
    """Tell a driver that ran out of chunks that there are more. The message is all zeros and stays so."""
    fill = addr_of(pt.xsk) + 8 * Xsk.FILL.value
    if int(ld32(_word(fill, Ring.FLAGS.value))) & NEED_WAKEUP:
        recvmsg(int(pt.port[0]["fd"]), addr_of(pt.aux) + AUX_RX, MSG_DONTWAIT)


# --- send


@inline
def xsk_send(pt: PortTables, tx: FrameRing, n: int) -> int:
    """Send frames 0..n-1, super-frames packet by packet; what finds no room is dropped and counted."""
    port = pt.port[0]
    slab = addr_of(tx.slab)
    sent = 0
    for i in range(n):
        frame = tx.frames[i]
        addr = slab + int(frame["off"])
        length = int(frame["len"])
        seg = int(frame["seg"])
        udp = udp_offset(addr, length)
        payload = length - udp - UDP_BYTES
        if seg > 0 and udp < 0:
            port["tx_errors"] += 1
        elif seg <= 0 or payload <= seg:
            sent += _send_packets(pt, addr, length, udp, 0, 1)
        else:
            sent += _send_packets(pt, addr, length, udp, seg, (payload + seg - 1) // seg)
    _wake_tx(pt)
    return sent


@inline
def _send_packets(pt: PortTables, addr: int, length: int, udp: int, seg: int, count: int) -> int:
    """Send a frame as `count` packets; 1 if all of them went out."""
    port = pt.port[0]
    umem = _word(addr_of(pt.xsk), Xsk.UMEM.value)
    ip = ip_offset(addr, length)
    longest = length if seg == 0 else udp + UDP_BYTES + seg
    if ip < 0 or longest - ip > int(port["mtu"]):
        port["tx_errors"] += 1
        return 0
    for k in range(count):
        slot = _take_slot(pt, umem)
        if slot < 0:
            port["tx_drops"] += 1
            return 0
        to = _word(umem, Umem.BASE.value) + _slot_offset(umem, slot)
        part = length if seg == 0 else _write_segment(addr, length, udp, seg, k, to)
        if seg == 0:
            memcpy(to, addr, length)
        _fill_in_checksum(to, part)
        _post(pt, umem, slot, part)
    port["tx_frames"] += 1
    port["tx_segments"] += count
    port["tx_bytes"] += length
    return 1


@inline
def _slot_offset(umem: int, slot: int) -> int:
    return _word(umem, Umem.TX_BASE.value) + slot * _word(umem, Umem.SLOT.value)


@inline
def _write_segment(addr: int, length: int, udp: int, seg: int, index: int, to: int) -> int:
    """Write packet `index` of a super-frame; returns its length."""
    headers = udp + UDP_BYTES
    ip = ip_offset(addr, headers)
    part = min(seg, length - headers - index * seg)
    memcpy(to, addr, headers)
    memcpy(to + headers, addr + headers + index * seg, part)
    fit_headers(to, ip, udp, part, ip_id_of(addr, ip) + index)
    return headers + part


@inline
def _fill_in_checksum(addr: int, length: int) -> None:
    """A host drops IPv6 packets without a UDP checksum (RFC 8200 8.1), and here nobody fills it in for us."""
    udp = udp_offset(addr, length)
    ip = ip_offset(addr, length)
    if udp >= 0 and get_be16(addr + ip - 2) == ETH_IPV6:
        put_be16(addr + udp + 6, udp_checksum(addr, ip, udp, length - udp))


@inline
def _take_slot(pt: PortTables, umem: int) -> int:
    """A free slot, or -1 if the kernel has them all and cannot be rid of them."""
    if _word(umem, Umem.FREE.value) == 0:
        _reclaim(pt, umem)
    for _ in range(TX_TRIES):
        if _word(umem, Umem.FREE.value):
            break
        _wake_tx(pt)
        _reclaim(pt, umem)
    free = _word(umem, Umem.FREE.value)
    if free == 0:
        return -1
    st64(umem + 8 * Umem.FREE.value, free - 1)
    return int(ld64(_free_at(umem, free - 1)))


@inline
def _post(pt: PortTables, umem: int, slot: int, length: int) -> None:
    """Put the packet in the slot in the TX ring, which has room for all chunks there are."""
    ring = addr_of(pt.xsk) + 8 * Xsk.TX.value
    chunk = _word(umem, Umem.CHUNK.value)
    at = _slot_offset(umem, slot)
    descs = (length + chunk - 1) // chunk
    st64(_pending_at(umem, slot), descs)
    produced = int(ld32(_word(ring, Ring.PRODUCER.value)))
    for i in range(descs):
        desc = _desc(ring, produced + i)
        st64(desc, at + i * chunk)
        st32(desc + _DESC_LEN, min(chunk, length - i * chunk))
        st32(desc + _DESC_OPTIONS, CONTINUED if i + 1 < descs else 0)
    st_rel32(_word(ring, Ring.PRODUCER.value), (produced + descs) & _U32)


@inline
def _reclaim(pt: PortTables, umem: int) -> None:
    """Take back the slots of which the kernel has completed the last chunk."""
    ring = addr_of(pt.xsk) + 8 * Xsk.COMPLETION.value
    first = int(ld32(_word(ring, Ring.CONSUMER.value)))
    count = _waiting(ring)
    for i in range(count):
        at = int(ld64(_chunk(ring, first + i))) - _word(umem, Umem.TX_BASE.value)
        slot = at // _word(umem, Umem.SLOT.value)
        if 0 <= slot < _word(umem, Umem.SLOTS.value):
            pending = int(ld64(_pending_at(umem, slot)))
            st64(_pending_at(umem, slot), max(0, pending - 1))
            if pending == 1:
                free = _word(umem, Umem.FREE.value)
                st64(_free_at(umem, free), slot)
                st64(umem + 8 * Umem.FREE.value, free + 1)
    st_rel32(_word(ring, Ring.CONSUMER.value), (first + count) & _U32)


@inline
def _wake_tx(pt: PortTables) -> None:
    """Have the kernel send what is in the TX ring, if it does not by itself. A call takes a bounded lot."""
    port = pt.port[0]
    ring = addr_of(pt.xsk) + 8 * Xsk.TX.value
    tries = TX_TRIES
    while tries and int(ld32(_word(ring, Ring.FLAGS.value))) & NEED_WAKEUP and _unsent(ring):
        before = _unsent(ring)
        failed = int(sendto(int(port["fd"]), 0, 0, MSG_DONTWAIT, 0, 0)) < 0
        if failed and errno() not in (EAGAIN, EBUSY, ENOBUFS):
            port["tx_errors"] += 1
            break
        if _unsent(ring) == before:
            tries -= 1


@inline
def _unsent(ring: int) -> int:
    """Descriptors in the TX ring that the kernel has not taken."""
    consumed = int(ld_acq32(_word(ring, Ring.CONSUMER.value)))
    return (int(ld32(_word(ring, Ring.PRODUCER.value))) - consumed) & _U32

"""Building packets into frames, and packing equal-sized packets of one flow into a super-frame.

A packet is reserved with its exact UDP payload length, filled in by the caller, and sealed with its ICRC. While the
next packet has the same address vector and the same length (or is shorter, and then the last), it goes directly
behind the one before and the kernel will cut them apart: segment i carries IP id i (design: section 4). All state of
the frame being built is in ENGINE["tx_*"].
"""

from __future__ import annotations

from softrnic.counters import C
from softrnic.jit import i64, inline
from softrnic.layout import FRAME_HEADROOM, FRAME_STRIDE
from softrnic.wire.frame import put_link
from softrnic.wire.headers import ICRC_LEN, put_bth
from softrnic.wire.icrc import icrc_bth, icrc_finish, icrc_seed, put_icrc

NO_ROOM = -1


@inline
def begin_burst(eng, slots):
    """Start filling the first `slots` frames of a ring."""
    eng["tx_slot"] = -1
    eng["tx_n"] = 0
    eng["tx_slots"] = slots


@inline
def close_frame(eng, tx):
    """Finish the frame being built, if any: its link headers and its descriptor."""
    slot = i64(eng["tx_slot"])
    if slot < 0:
        return
    frame = tx.frames[slot]
    start = slot * FRAME_STRIDE + FRAME_HEADROOM
    av = i64(eng["tx_av"])
    end = i64(eng["tx_end"])
    bth = start + i64(eng["avs"][av]["hdr_len"])
    put_link(tx.slab, start, eng["avs"], av, end - bth, 0)
    frame["off"] = start
    frame["len"] = end - start
    frame["seg"] = i64(eng["tx_seg"]) if i64(eng["tx_nseg"]) > 1 else 0
    frame["flags"] = 0
    frame["func"] = 0
    nseg = i64(eng["tx_nseg"])
    l3_bytes = bth - start - i64(eng["avs"][av]["l3_off"])
    eng["counters"][C.SENT_FRAMES] += 1
    eng["counters"][C.SENT_PKTS] += nseg
    eng["counters"][C.SENT_BYTES] += nseg * l3_bytes + end - bth
    eng["tx_slot"] = -1
    eng["tx_n"] += 1


@inline
def _fits_run(eng, av, length):
    """Whether a packet of `length` may follow in the open frame."""
    if i64(eng["tx_slot"]) < 0 or i64(eng["tx_av"]) != av or length > i64(eng["tx_seg"]):
        return False
    used = i64(eng["tx_end"]) - (i64(eng["tx_slot"]) * FRAME_STRIDE + FRAME_HEADROOM)
    return i64(eng["tx_nseg"]) < i64(eng["max_segs"]) and used + length <= i64(eng["max_frame"])


@inline
def reserve(eng, tx, av, length):
    """Room for one packet of `length` bytes from BTH to ICRC: offset of the BTH in the slab, or NO_ROOM."""
    if _fits_run(eng, av, length):
        bth = i64(eng["tx_end"])
        eng["tx_nseg"] += 1
        eng["tx_end"] = bth + length
        return bth
    close_frame(eng, tx)
    slot = i64(eng["tx_n"])
    if slot >= i64(eng["tx_slots"]):
        return NO_ROOM
    bth = slot * FRAME_STRIDE + FRAME_HEADROOM + i64(eng["avs"][av]["hdr_len"])
    eng["tx_slot"] = slot
    eng["tx_av"] = av
    eng["tx_seg"] = length
    eng["tx_nseg"] = 1
    eng["tx_end"] = bth + length
    return bth


@inline
def cancel(eng, length):
    """Give back the packet reserved last: its payload could not be read."""
    eng["tx_nseg"] -= 1
    eng["tx_end"] -= length
    if i64(eng["tx_nseg"]) == 0:
        eng["tx_slot"] = -1


@inline
def header_crc(eng, tx, av, bth, length, header):
    """CRC state after the pseudo header and the first `header` bytes (BTH and extensions) of the last packet."""
    vec = eng["avs"][av]
    crc = icrc_seed(i64(vec["icrc_base"]), i64(vec["is_v6"]), i64(eng["tx_nseg"]) - 1, length)
    return icrc_bth(crc, tx.slab, bth, header)


@inline
def seal(eng, tx, bth, length, crc):
    """Write the ICRC; a packet shorter than the run's segments ends the run."""
    put_icrc(tx.slab, bth + length - ICRC_LEN, icrc_finish(crc))
    if length < i64(eng["tx_seg"]):
        close_frame(eng, tx)


@inline
def put_plain(eng, tx, qp, av, opcode, psn, length):
    """Reserve a payload-free packet and write its BTH: offset of the BTH or NO_ROOM."""
    bth = reserve(eng, tx, av, length)
    if bth >= 0:
        put_bth(tx.slab, bth, opcode, 0, 0, i64(qp["pkey"]), i64(qp["dqpn"]), 0, psn)
    return bth


@inline
def seal_plain(eng, tx, av, bth, length):
    """Seal a packet that is headers only."""
    crc = header_crc(eng, tx, av, bth, length, length - ICRC_LEN)
    seal(eng, tx, bth, length, crc)

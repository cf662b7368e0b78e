"""What arrives for an address that has moved goes on to its new place, with a new Ethernet header and else untouched.

The ICRC does not cover that header. Frames are copied into a ring of the engine, super-frames whole, and leave with
the next transmit; a full ring loses them, as any queue on a wire does. There are no loops: a frame goes neither back
to the station it comes from nor to the one it was sent to, and every entry ends with its time and its budget of frames.
"""

from __future__ import annotations

from softrnic.counters import C
from softrnic.jit import addr_of, i64, inline, memcpy
from softrnic.layout import FORWARD_SLOTS, FRAME_HEADROOM, FRAME_STRIDE
from softrnic.qp.address import same_ip, same_mac
from softrnic.wire.fields import put16
from softrnic.wire.frame import ETH_LEN, ETHERTYPE_VLAN, VLAN_LEN

_MACS = 12
_ROOM = FRAME_STRIDE - FRAME_HEADROOM


@inline
def forward_frame(eng, rx, slot, link):
    """A frame for none of our addresses. False: it is for none that has moved from here either."""
    frame, buf = rx.frames[slot], rx.slab
    start = i64(frame["off"])
    at = link.l3_off + (24 if link.is_v6 else 16)
    for i in range(i64(eng["nforward"])):
        entry = eng["forwards"][i]
        if entry["valid"] and same_ip(entry["ip"], buf, at, link.is_v6) and same_mac(entry["here"], buf, start):
            if i64(entry["until"]) <= i64(eng["now"]):
                return False
            if _may_pass(eng, entry, buf, frame):
                _copy(eng, entry, buf, frame, link.l3_off)
                entry["left"] -= 1
                entry["packets"] += link.nseg
                eng["counters"][C.FORWARDED_PKTS] += link.nseg
            else:
                eng["counters"][C.DROP_FORWARD] += link.nseg
            return True
    return False


@inline
def _may_pass(eng, entry, buf, frame):
    """There is room and budget, it is no loop, and the port will take such a frame."""
    start, length = i64(frame["off"]), i64(frame["len"])
    if i64(eng["fwd_prod"]) - i64(eng["fwd_cons"]) >= FORWARD_SLOTS or i64(entry["left"]) <= 0:
        return False
    if same_mac(entry["mac"], buf, start) or same_mac(entry["mac"], buf, start + 6):
        return False
    return length + VLAN_LEN <= _ROOM and (i64(frame["seg"]) == 0 or length <= i64(eng["max_frame"]))


@inline
def _copy(eng, entry, buf, frame, l3_off):
    """Into the ring: new MAC addresses, and with a VLAN its tag, or else the tag it came with."""
    prod = i64(eng["fwd_prod"])
    where = prod & (FORWARD_SLOTS - 1)
    src, dst = addr_of(buf), addr_of(eng["fwd_slab"]) + where * FRAME_STRIDE + FRAME_HEADROOM
    start = i64(frame["off"])
    skip, header = _MACS, _MACS
    if i64(entry["vlan"]) >= 0:
        skip, header = l3_off - start - 2, ETH_LEN + VLAN_LEN - 2
        put16(eng["fwd_slab"], where * FRAME_STRIDE + FRAME_HEADROOM + _MACS, ETHERTYPE_VLAN)
        put16(eng["fwd_slab"], where * FRAME_STRIDE + FRAME_HEADROOM + _MACS + 2, i64(entry["vlan"]))
    memcpy(dst, addr_of(entry["mac"]), 6)
    memcpy(dst + 6, addr_of(entry["via"]), 6)
    memcpy(dst + header, src + start + skip, i64(frame["len"]) - skip)
    out = eng["fwd_frames"][where]
    out["off"] = where * FRAME_STRIDE + FRAME_HEADROOM
    out["len"] = i64(frame["len"]) - skip + header
    out["seg"] = frame["seg"]
    eng["fwd_prod"] = prod + 1


@inline
def has_forwards(eng):
    """Whether `send_forwards` has something to do."""
    return i64(eng["fwd_cons"]) != i64(eng["fwd_prod"])


@inline
def send_forwards(eng, tx):
    """Fill frames of a burst that has just begun with what is to go on."""
    while has_forwards(eng) and i64(eng["tx_n"]) < i64(eng["tx_slots"]):
        cons, slot = i64(eng["fwd_cons"]), i64(eng["tx_n"])
        held = eng["fwd_frames"][cons & (FORWARD_SLOTS - 1)]
        frame, off = tx.frames[slot], slot * FRAME_STRIDE + FRAME_HEADROOM
        memcpy(addr_of(tx.slab) + off, addr_of(eng["fwd_slab"]) + i64(held["off"]), i64(held["len"]))
        frame["off"] = off
        frame["len"] = held["len"]
        frame["seg"] = held["seg"]
        frame["flags"] = 0
        frame["func"] = 0
        eng["fwd_cons"] = cons + 1
        eng["tx_n"] = slot + 1

"""The simulated wire: one link from every node to every node, and what may befall a packet on it.

Decides when and whether a packet arrives: rate, loss, loss for a while, flipped bits, duplicates, delay, jitter,
overtaking. Super-frames are taken apart first on a link that says so. Knows of a packet only its length and the node
in the last byte of its destination MAC. Kernel code: the hot half of the simulator.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from softrnic.jit import addr_of, i64, inline, memcpy
from softrnic.layout import FRAME, FRAME_STRIDE, FrameRing
from softrnic.wire.fields import get16, put16
from softrnic.wire.frame import ETH_LEN, ETHERTYPE_IPV6, ETHERTYPE_VLAN, IPV4_LEN, IPV6_LEN, UDP_LEN, VLAN_LEN, ipv4_sum
from tests.sim.chance import CHANCE, below, happens

SMALL_SLOTS = 4096  # packets under way in the whole network; more are dropped
SMALL_STRIDE = 4096 + 256
BIG_SLOTS = 64  # the same for super-frames
NO_SLOT = -1
NEVER = (1 << 63) - 1

LINK = np.dtype(
    [
        ("rng", CHANCE),
        # probabilities per packet, of 2^32
        ("loss", "i8"),
        ("burst", "i8"),  # a stretch of burst_ns begins in which everything is lost
        ("corrupt", "i8"),  # one bit behind the Ethernet header is flipped
        ("duplicate", "i8"),
        ("reorder", "i8"),  # held back by reorder_ns
        ("burst_ns", "i8"),
        ("reorder_ns", "i8"),
        ("delay_ns", "i8"),
        ("jitter_ns", "i8"),  # at most so much on top, in order
        ("ps_per_byte", "i8"),  # 0: no limit
        ("split", "i8"),  # super-frames are cut into packets
        ("bad_until", "i8"),
        ("free_at", "i8"),  # ns, when the last bit of what was sent so far has left
        ("last_due", "i8"),
        # what happened
        ("packets", "i8"),
        ("lost", "i8"),
        ("dropped", "i8"),  # no slot
        ("corrupted", "i8"),
        ("duplicated", "i8"),
        ("reordered", "i8"),
    ]
)

UNDER_WAY = np.dtype([("due", "i8"), ("order", "i8"), ("slot", "i8"), ("dst", "i8")])  # a heap

WIRE = np.dtype(
    [
        ("order", "i8"),
        ("under_way", "i8"),
        ("small_free", "i8"),
        ("big_free", "i8"),
        ("budget", "i8"),  # packets that may still be lost or damaged, on all links together
    ]
)


class Wire(NamedTuple):
    """All links, the packets under way, and the slots they lie in."""

    state: np.ndarray  # WIRE[1]
    links: np.ndarray  # LINK[nodes * nodes], [source * nodes + destination]
    heap: np.ndarray  # UNDER_WAY
    small: np.ndarray  # stack of free slots for packets
    big: np.ndarray  # stack of free slots for super-frames
    slots: FrameRing


def make_wire(nodes: int) -> Wire:
    """A wire whose links do nothing to packets."""
    total = SMALL_SLOTS + BIG_SLOTS
    frames = np.zeros(total, FRAME)
    frames["off"][:SMALL_SLOTS] = np.arange(SMALL_SLOTS) * SMALL_STRIDE
    frames["off"][SMALL_SLOTS:] = SMALL_SLOTS * SMALL_STRIDE + np.arange(BIG_SLOTS) * FRAME_STRIDE
    slab = np.zeros(SMALL_SLOTS * SMALL_STRIDE + BIG_SLOTS * FRAME_STRIDE, np.uint8)
    wire = Wire(
        np.zeros(1, WIRE), np.zeros(nodes * nodes, LINK), np.zeros(total, UNDER_WAY), np.zeros(SMALL_SLOTS, np.int64),
        np.zeros(BIG_SLOTS, np.int64), FrameRing(frames, slab),
    )  # fmt: skip
    clear_wire(wire)
    return wire


def clear_wire(wire: Wire) -> None:
    """Nothing under way, all slots free, links harmless."""
    wire.state[0] = (0, 0, SMALL_SLOTS, BIG_SLOTS, NEVER)
    wire.small[:] = np.arange(SMALL_SLOTS)[::-1]
    wire.big[:] = np.arange(SMALL_SLOTS, SMALL_SLOTS + BIG_SLOTS)[::-1]
    wire.links[:] = np.zeros(1, LINK)
    wire.links["split"] = 1


# --- slots and the heap ---------------------------------------------------------------------------------------


@inline
def _take_slot(wire, length):
    state = wire.state[0]
    if length <= SMALL_STRIDE:
        n = i64(state["small_free"]) - 1
        if n < 0:
            return NO_SLOT
        state["small_free"] = n
        return i64(wire.small[n])
    n = i64(state["big_free"]) - 1
    if n < 0:
        return NO_SLOT
    state["big_free"] = n
    return i64(wire.big[n])


@inline
def free_slot(wire, slot):
    """The packet has arrived, or never will."""
    state = wire.state[0]
    if slot < SMALL_SLOTS:
        wire.small[i64(state["small_free"])] = slot
        state["small_free"] += 1
    else:
        wire.big[i64(state["big_free"])] = slot
        state["big_free"] += 1


@inline
def _before(heap, i, j):
    a, b = i64(heap[i]["due"]), i64(heap[j]["due"])
    return a < b or (a == b and i64(heap[i]["order"]) < i64(heap[j]["order"]))


@inline
def _swap(heap, i, j):
    due, order, slot, dst = heap[i]["due"], heap[i]["order"], heap[i]["slot"], heap[i]["dst"]
    heap[i]["due"], heap[i]["order"] = heap[j]["due"], heap[j]["order"]
    heap[i]["slot"], heap[i]["dst"] = heap[j]["slot"], heap[j]["dst"]
    heap[j]["due"], heap[j]["order"], heap[j]["slot"], heap[j]["dst"] = due, order, slot, dst


@inline
def _push(wire, due, slot, dst):
    state, heap = wire.state[0], wire.heap
    i = i64(state["under_way"])
    state["under_way"] = i + 1
    heap[i]["due"] = due
    heap[i]["order"] = state["order"]
    heap[i]["slot"] = slot
    heap[i]["dst"] = dst
    state["order"] += 1
    while i > 0 and _before(heap, i, (i - 1) >> 1):
        _swap(heap, i, (i - 1) >> 1)
        i = (i - 1) >> 1


@inline
def pop(wire):
    """Take the packet that arrives first off the heap; its entry is then behind the last."""
    state, heap = wire.state[0], wire.heap
    n = i64(state["under_way"]) - 1
    state["under_way"] = n
    _swap(heap, 0, n)
    i = 0
    while True:
        first = i
        for child in (2 * i + 1, 2 * i + 2):
            if child < n and _before(heap, child, first):
                first = child
        if first == i:
            return n
        _swap(heap, i, first)
        i = first


@inline
def next_due(wire):
    """When the next packet arrives, or NEVER."""
    if i64(wire.state[0]["under_way"]) == 0:
        return NEVER
    return i64(wire.heap[0]["due"])


# --- the fate of a packet -------------------------------------------------------------------------------------


@inline
def _leaves(link, length, now):
    """When its last bit is on the wire."""
    rate = i64(link["ps_per_byte"])
    if rate == 0:
        return now
    link["free_at"] = max(now, i64(link["free_at"])) + (length * rate + 999) // 1000
    return i64(link["free_at"])


@inline
def _spend(wire):
    """Take one packet off the budget of losses; False when there is nothing left of it."""
    if i64(wire.state[0]["budget"]) <= 0:
        return False
    wire.state[0]["budget"] -= 1
    return True


@inline
def _is_lost(link, now):
    if now < i64(link["bad_until"]):
        return True
    if happens(link["rng"], i64(link["burst"])):
        link["bad_until"] = now + i64(link["burst_ns"])
        return True
    return happens(link["rng"], i64(link["loss"]))


@inline
def _arrival(link, sent):
    due = sent + i64(link["delay_ns"])
    if i64(link["jitter_ns"]) > 0:
        due = max(due + below(link["rng"], i64(link["jitter_ns"])), i64(link["last_due"]))
    if happens(link["rng"], i64(link["reorder"])):
        link["reordered"] += 1
        return due + i64(link["reorder_ns"])
    link["last_due"] = max(due, i64(link["last_due"]))
    return due


@inline
def _launch(wire, link, dst, slot, now):
    """A packet in a slot goes its way."""
    frame = wire.slots.frames[slot]
    off, length = i64(frame["off"]), i64(frame["len"])
    link["packets"] += 1
    sent = _leaves(link, length, now)
    if _is_lost(link, now) and _spend(wire):
        link["lost"] += 1
        free_slot(wire, slot)
        return
    if happens(link["rng"], i64(link["corrupt"])) and _spend(wire):
        link["corrupted"] += 1
        at = off + ETH_LEN + below(link["rng"], length - ETH_LEN)
        wire.slots.slab[at] ^= 1 << below(link["rng"], 8)
    if happens(link["rng"], i64(link["duplicate"])):
        twin = _take_slot(wire, length)
        if twin != NO_SLOT:
            link["duplicated"] += 1
            _copy(wire.slots.frames[twin], wire.slots.slab, wire.slots.slab, off, length, i64(frame["seg"]))
            _push(wire, _arrival(link, sent), twin, dst)
    _push(wire, _arrival(link, sent), slot, dst)


@inline
def _copy(frame, slab, source, off, length, seg):
    memcpy(addr_of(slab) + i64(frame["off"]), addr_of(source) + off, length)
    frame["len"] = length
    frame["seg"] = seg


@inline
def send_frame(wire, nodes, src, tx, i, now):
    """Frame i of a transmit ring goes onto the link to the node that its destination MAC ends with."""
    frame = tx.frames[i]
    off, length, seg = i64(frame["off"]), i64(frame["len"]), i64(frame["seg"])
    dst = i64(tx.slab[off + 5])
    if dst >= nodes:
        return
    link = wire.links[src * nodes + dst]
    if seg == 0 or link["split"] == 0:
        slot = _take_slot(wire, length)
        if slot == NO_SLOT:
            link["dropped"] += 1
            return
        _copy(wire.slots.frames[slot], wire.slots.slab, tx.slab, off, length, seg)
        _launch(wire, link, dst, slot, now)
        return
    _send_split(wire, link, dst, tx.slab, off, length, seg, now)


@inline
def _send_split(wire, link, dst, slab, off, length, seg, now):
    """Each segment with the headers it would have had alone: its lengths, identification counting up."""
    tagged = get16(slab, off + 12) == ETHERTYPE_VLAN
    l3 = off + ETH_LEN + (VLAN_LEN if tagged else 0)
    is_v6 = get16(slab, l3 - 2) == ETHERTYPE_IPV6
    headers = l3 + (IPV6_LEN if is_v6 else IPV4_LEN) + UDP_LEN - off
    done, count = headers, 0
    while done < length:
        n = min(seg, length - done)
        slot = _take_slot(wire, headers + n)
        if slot == NO_SLOT:
            link["dropped"] += 1
            return
        out = wire.slots.frames[slot]
        _copy(out, wire.slots.slab, slab, off, headers, 0)
        to = i64(out["off"])
        memcpy(addr_of(wire.slots.slab) + to + headers, addr_of(slab) + off + done, n)
        out["len"] = headers + n
        _fit_headers(wire.slots.slab, to + l3 - off, is_v6, n, count)
        _launch(wire, link, dst, slot, now)
        done += n
        count += 1


@inline
def _fit_headers(buf, l3, is_v6, payload, count):
    udp_len = UDP_LEN + payload
    if is_v6:
        put16(buf, l3 + 4, udp_len)
        put16(buf, l3 + IPV6_LEN + 4, udp_len)
        return
    put16(buf, l3 + 2, IPV4_LEN + udp_len)
    put16(buf, l3 + 4, get16(buf, l3 + 4) + count)
    put16(buf, l3 + 10, 0)
    put16(buf, l3 + 10, ~ipv4_sum(buf, l3))
    put16(buf, l3 + IPV4_LEN + 4, udp_len)

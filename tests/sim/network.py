"""Engines and the wire between them on one virtual clock: the event loop of the simulator.

Decides the order of events and nothing else: packets that are due, timers that are due, then everybody sends. The
clock jumps from event to event, never by less than the step (a coarse step makes bursts). Kernel code but for
`Network`, which is what Python holds. Knows nothing of work requests.
"""

from __future__ import annotations

from collections.abc import Sequence
from enum import IntEnum
from typing import NamedTuple

import numpy as np

from softrnic.counters import C
from softrnic.engine import expire_timers, receive_burst, transmit_burst
from softrnic.jit import i64, inline
from softrnic.layout import FrameRing, make_ring
from softrnic.qp.timer import next_deadline
from softrnic.verbs import Cq, Device, Qp
from softrnic.wire.icrc import get_icrc
from tests.sim.compiled import kernel
from tests.sim.invariants import Broken, broken_cq, broken_lists, broken_qp
from tests.sim.link import LINK, NEVER, SMALL_STRIDE, Wire, clear_wire, free_slot, make_wire, next_due, pop, send_frame

LOG_SLOTS = 1024
_DIGEST_MASK = (1 << 48) - 1
_TX_SLOTS = 8


class Reason(IntEnum):
    """Why `run` came back."""

    TIME   = 0  # `until` is reached
    DONE   = 1  # a completion arrived, and its holdoff is over
    IDLE   = 2  # nothing will ever happen
    BROKEN = 3  # an invariant does not hold
    LOG    = 4  # the log is full
    BUSY   = 5  # far too many events at once: a live-lock


NET = np.dtype(
    [
        ("now", "i8"),
        ("until", "i8"),
        ("step_ns", "i8"),
        ("holdoff_ns", "i8"),  # from a completion to the return
        ("completions", "i8"),  # seen when the run began
        ("wake", "i8"),  # when to come back for the first new one
        ("budget", "i8"),  # instants before this counts as a live-lock
        ("digest", "i8"),  # of all packets delivered, with their times
        ("delivered", "i8"),
        ("logging", "i8"),
        ("logged", "i8"),
        ("bad", "i8"),  # Broken
        ("bad_node", "i8"),
        ("bad_index", "i8"),
    ]
)

LOG = np.dtype([("time", "i8"), ("dst", "i8"), ("slot", "i8"), ("len", "i8"), ("seg", "i8")])


class Net(NamedTuple):
    """Everything `run` works on."""

    state: np.ndarray  # NET[1]
    engines: tuple[np.ndarray, ...]
    wire: Wire
    tx: FrameRing
    qps: np.ndarray  # [n, 2] of node and QP index: what the invariants are asked of
    cqs: np.ndarray  # [n, 2] of node and CQ index: what wakes the hosts
    log: np.ndarray  # LOG
    log_slab: np.ndarray


@inline
def _engine(net, node):
    return net.engines[node][0]


@inline
def _note(net, dst, slot):
    """Digest and log of a delivered packet."""
    state = net.state[0]
    frame = net.wire.slots.frames[slot]
    off, length = i64(frame["off"]), i64(frame["len"])
    icrc = get_icrc(net.wire.slots.slab, off + length - 4)
    state["digest"] = (i64(state["digest"]) * 31 + icrc + i64(state["now"])) & _DIGEST_MASK
    state["delivered"] += 1
    if state["logging"] == 0:
        return
    at = i64(state["logged"])
    entry = net.log[at]
    kept = min(length, len(net.log_slab) // LOG_SLOTS)
    for i in range(kept):
        net.log_slab[at * (len(net.log_slab) // LOG_SLOTS) + i] = net.wire.slots.slab[off + i]
    entry["time"] = state["now"]
    entry["dst"] = dst
    entry["slot"] = at
    entry["len"] = length
    entry["seg"] = frame["seg"]
    state["logged"] = at + 1


@inline
def _deliver(net):
    """Hand over what is due. False when the log is full."""
    state = net.state[0]
    now = i64(state["now"])
    while next_due(net.wire) <= now:
        if i64(state["logged"]) >= LOG_SLOTS:
            return False
        entry = net.wire.heap[pop(net.wire)]
        slot, dst = i64(entry["slot"]), i64(entry["dst"])
        _note(net, dst, slot)
        one = FrameRing(net.wire.slots.frames[slot : slot + 1], net.wire.slots.slab)
        receive_burst(_engine(net, dst), one, 1, now)
        free_slot(net.wire, slot)
    return True


@inline
def _expire(net):
    now = i64(net.state[0]["now"])
    for node in range(len(net.engines)):
        eng = _engine(net, node)
        if next_deadline(eng) <= now:
            expire_timers(eng, now)


@inline
def _transmit(net):
    now = i64(net.state[0]["now"])
    for node in range(len(net.engines)):
        eng = _engine(net, node)
        while True:
            n = transmit_burst(eng, net.tx, len(net.tx.frames), now)
            for i in range(n):
                send_frame(net.wire, len(net.engines), node, net.tx, i, now)
            if n < len(net.tx.frames):
                break


@inline
def _check(net):
    """The first broken invariant of any engine."""
    state = net.state[0]
    for node in range(len(net.engines)):
        bad = broken_lists(_engine(net, node))
        if bad != Broken.NONE.value:
            state["bad"], state["bad_node"], state["bad_index"] = bad, node, -1
            return True
    for i in range(len(net.qps)):
        node, index = net.qps[i, 0], net.qps[i, 1]
        eng = _engine(net, node)
        bad = broken_qp(eng, eng["qps"][index], True)
        if bad != Broken.NONE.value:
            state["bad"], state["bad_node"], state["bad_index"] = bad, node, index
            return True
    for i in range(len(net.cqs)):
        node, index = net.cqs[i, 0], net.cqs[i, 1]
        bad = broken_cq(_engine(net, node)["cqs"][index])
        if bad != Broken.NONE.value:
            state["bad"], state["bad_node"], state["bad_index"] = bad, node, index
            return True
    return False


@inline
def _completions(net):
    """And pages found missing, which somebody must bring."""
    total = 0
    for i in range(len(net.cqs)):
        total += i64(_engine(net, net.cqs[i, 0])["cqs"][net.cqs[i, 1]]["prod"])
    for node in range(len(net.engines)):
        total += i64(_engine(net, node)["counters"][C.PAGE_FAULTS])
    return total


@inline
def _next_event(net):
    first = next_due(net.wire)
    for node in range(len(net.engines)):
        first = min(first, next_deadline(_engine(net, node)))
    return first


@kernel
def run(net: Net) -> int:
    """Let time pass until there is a reason to stop: a Reason."""
    state = net.state[0]
    for _ in range(i64(state["budget"])):
        if not _deliver(net):
            return Reason.LOG.value
        _expire(net)
        _transmit(net)
        if _check(net):
            return Reason.BROKEN.value
        now = i64(state["now"])
        if i64(state["wake"]) == NEVER and _completions(net) != i64(state["completions"]):
            state["wake"] = now + i64(state["holdoff_ns"])
        event, stop = _next_event(net), min(i64(state["wake"]), i64(state["until"]))
        if event == NEVER and stop == NEVER:
            return Reason.IDLE.value
        if stop <= now or event > stop:
            state["now"] = max(now, stop)
            return Reason.DONE.value if stop == i64(state["wake"]) else Reason.TIME.value
        state["now"] = max(event, now + i64(state["step_ns"]))
    return Reason.BUSY.value


class LogEntry(NamedTuple):
    """One packet as it was delivered."""

    time: int
    dst: int
    seg: int
    frame: bytes


_wires: dict[int, Wire] = {}  # slots are large, and what lay in them before does not matter
_tx = make_ring(_TX_SLOTS)


class Network:
    """Nodes joined by links. The last byte of a node's MAC is its number."""

    def __init__(self, devices: Sequence[Device], *, now: int, logging: bool = False) -> None:
        nodes = len(devices)
        if nodes not in _wires:
            _wires[nodes] = make_wire(nodes)
        clear_wire(_wires[nodes])
        self.devices = devices
        self.log: list[LogEntry] = []
        self._qps: list[tuple[int, int]] = []
        self._cqs: list[tuple[int, int]] = []
        self._cq_records: list[np.void] = []
        stride = SMALL_STRIDE if logging else 1
        self._net = Net(
            np.zeros(1, NET), tuple(d.engine.tables for d in devices), _wires[nodes], _tx,
            _pairs(self._qps), _pairs(self._cqs), np.zeros(LOG_SLOTS, LOG), np.zeros(LOG_SLOTS * stride, np.uint8),
        )  # fmt: skip
        self.state = self._net.state[0]
        self.state["now"] = now
        self.state["step_ns"] = 1
        self.state["budget"] = 1_000_000
        self.state["logging"] = logging

    @property
    def now(self) -> int:
        """The virtual time, ns."""
        return int(self.state["now"])

    def link(self, src: int, dst: int) -> np.void:
        """The LINK record of one direction."""
        return self._net.wire.links[src * len(self.devices) + dst]  # type: ignore[no-any-return]

    def limit_losses(self, packets: int) -> None:
        """From now on lose or damage no more packets than that, whatever the links would."""
        self._net.wire.state[0]["budget"] = packets

    def totals(self) -> dict[str, int]:
        """What happened to packets, all links together."""
        links = self._net.wire.links
        return {name: int(links[name].sum()) for name in LINK.names[LINK.names.index("packets") :]}

    def watch(self, node: int, qp: Qp | None = None, cq: Cq | None = None) -> None:
        """Ask the invariants of this QP; come back when something arrives on this CQ."""
        if qp is not None:
            self._qps.append((node, qp.index))
        if cq is not None:
            self._cqs.append((node, cq.index))
            self._cq_records.append(self.devices[node].record["cqs"][cq.index])
        self._net = self._net._replace(qps=_pairs(self._qps), cqs=_pairs(self._cqs))

    def run(self, until: int) -> Reason:
        """Let time pass to `until` (NEVER: as long as anything happens), or until a completion."""
        self.state["until"] = until
        self.state["wake"] = NEVER
        faults = sum(device.counter(C.PAGE_FAULTS) for device in self.devices)
        self.state["completions"] = faults + sum(int(record["prod"]) for record in self._cq_records)
        while True:
            reason = Reason(run(self._net))
            self._drain_log()
            if reason != Reason.LOG:
                return reason

    def _drain_log(self) -> None:
        stride = len(self._net.log_slab) // LOG_SLOTS
        for i in range(int(self.state["logged"])):
            time, dst, slot, length, seg = (int(v) for v in self._net.log[i])
            frame = self._net.log_slab[slot * stride : slot * stride + min(length, stride)].tobytes()
            self.log.append(LogEntry(time, dst, seg, frame))
        self.state["logged"] = 0

    def complaint(self) -> str:
        """The invariant that does not hold."""
        state = self.state
        what = Broken(int(state["bad"]))
        return f"{what.name} on node {int(state['bad_node'])}, index {int(state['bad_index'])} at {self.now} ns"


def _pairs(pairs: list[tuple[int, int]]) -> np.ndarray:
    return np.array(pairs, np.int64).reshape(len(pairs), 2)

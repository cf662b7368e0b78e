"""A move in two parts: the objects before the pause, what runs in them during it.

    sketch = draw(device, names)         # while it runs; to the destination, which restores it
    data = sketch.fill_in(device)        # when it is suspended: what has changed since, or None
    made = restore(other, sketch.data, memory); fill(other, made, data)

A sketch is a saved state (envelope.py) like any other, of a function in which nothing is under way. What is filled in
later are queues, PSNs, completions and events. If since the sketch an object was made, destroyed or changed, or a queue
holds a request that names an object, there is nothing to fill in: the state is saved in full.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import msgspec
import numpy as np

from softrnic.errors import StateError
from softrnic.migrate import live, schema
from softrnic.migrate.envelope import OPTIONAL, PRODUCER, Section, unwrap, wrap, wrapped
from softrnic.migrate.live_check import FIELDS, check
from softrnic.migrate.live_put import put
from softrnic.migrate.load import Restored, decode_section, fill_cq, fill_srq, note_events, restore_counters
from softrnic.migrate.save import Saver, all_settled
from softrnic.spec import QpState
from softrnic.verbs import Device

LIVE = 64  # section id
_CHANGING = {3: 1, 5: 1, 6: 1, LIVE: live.VERSION}  # sections filled in, with their versions
_ATTRIBUTES = (
    "qpn", "dqpn", "type", "pmtu", "qkey", "pdn", "sq_base", "sq_mask", "sq_sge_base", "sq_sge_max", "sq_sig_all",
    "retry_cnt", "rnr_retry", "timeout", "max_rd_atomic", "scq", "rcq", "min_rnr_timer", "max_dest_rd_atomic",
    "access", "resp_sge_base", "srq", "rq_base", "rq_mask", "rq_sge_base", "rq_sge_max", "rd_base", "rd_mask",
    "max_inline", "gid_index", "src_ip", "dst_ip", "port", "stop",
)  # fmt: skip


@dataclass(frozen=True)
class Sketch:
    """The objects of a function, and how to tell whether they are still the same."""

    data: bytes
    _names: Mapping[int, str]
    _objects: bytes
    _attributes: bytes

    def fill_in(self, device: Device) -> bytes | None:
        """What is under way on a device that is suspended and settled (else EBUSY); None if the sketch is too old."""
        parts = self.fill_in_parts(device)
        return None if parts is None else b"".join(parts)

    def is_current(self, device: Device) -> bool:
        """Whether the objects are still those, as they were; for a look in passing also while they are used."""
        return self._objects == _objects(Saver(device, self._names)) and self._attributes == _attributes(device)

    def fill_in_parts(self, device: Device) -> list[bytes | memoryview] | None:
        """The same in parts, uncopied."""
        all_settled(device)
        with device.quiesced():
            columns = _columns(device) if self.is_current(device) else None
            if columns is None:
                return None
            saver = Saver(device, self._names)
            parts = {3: saver.queues(), 5: schema.EventState(events=saver.events())}
            if counters := saver.counters():
                parts[6] = schema.CounterState(counters=counters)
        sections = [Section(i, 1, OPTIONAL if i == 6 else 0, msgspec.msgpack.encode(p)) for i, p in parts.items()]
        return wrapped([*sections, Section(LIVE, live.VERSION, 0, columns)], PRODUCER)


def draw(device: Device, names: Mapping[int, str]) -> Sketch:
    """A sketch of a device that may be running, and goes on meanwhile. Making and destroying must wait."""
    before = _attributes(device)
    saver = Saver(device, names)
    states: dict[int, msgspec.Struct] = {
        1: saver.device_state(), 2: saver.memory(), 3: saver.queues(contents=False),
        4: schema.QpState(qps=[saver.outline(qp) for qp in device.qps.values()]),
        5: schema.EventState(),
    }  # fmt: skip
    if saver.spaces:
        states[7] = saver.address_spaces()
    objects = _objects(saver) if _attributes(device) == before else b""  # changed while we looked: of no use
    sections = [Section(i, schema.SECTIONS[i][1], 0, msgspec.msgpack.encode(state)) for i, state in states.items()]
    return Sketch(wrap(sections, PRODUCER), dict(names), objects, before)


def _objects(saver: Saver) -> bytes:
    """Everything but queue pairs and what lies in queues."""
    parts = saver.device_state(), saver.memory(), saver.queues(contents=False), saver.address_spaces()
    return msgspec.msgpack.encode(parts)


def _indices(device: Device) -> np.ndarray:
    return np.fromiter((qp.index for qp in device.qps.values()), np.int64, len(device.qps))


def _attributes(device: Device) -> bytes:
    """Of all queue pairs: which there are, in which state, how configured, on which path.

    Of an adjusted one the record does not have what was requested.
    """
    indices, qps = _indices(device), device.record["qps"]
    states = qps["state"][indices]
    states = np.where(states == QpState.SUSPENDED, qps["resume_to"][indices], states)
    parts = [indices, states, *(qps[name][indices] for name in _ATTRIBUTES), device.record["avs"]["hdr"][indices]]
    requested = repr([(qp.qpn, qp.requested, qp.adjusted) for qp in device.qps.values() if qp.adjusted])
    return b"".join((*(part.tobytes() for part in parts), requested.encode()))


def _columns(device: Device) -> memoryview | None:
    """The live part of all queue pairs, or None if it names objects."""
    tables, indices, totals = device.engine.tables, _indices(device), np.zeros(4, np.int64)
    if not live.measure(tables, indices, totals):
        return None
    buffer, columns = live.allocate([len(indices), *totals.tolist()])
    live.take(tables, indices, columns)
    return buffer


def touch(device: Device, made: Restored) -> None:
    """Have the kernel give the memory that `fill` will write: it does so when a page is first touched, and is slow."""
    record, qps = device.record, device.record["qps"]
    for qp in made.qps.values():
        q = qps[qp.index]
        record["wqes"][int(q["sq_base"]) : int(q["sq_base"]) + qp.sq_size] = 0
        first = int(q["sq_sge_base"])
        record["sges"][first : first + qp.sq_size * qp.sq_sge_max] = 0
        if qp.rq_size:
            record["rwqes"][int(q["rq_base"]) : int(q["rq_base"]) + qp.rq_size] = 0
            first = int(q["rq_sge_base"])
            record["sges"][first : first + qp.rq_size * qp.rq_sge_max] = 0
    for cq in made.cqs.values():
        first = int(record["cqs"][cq.index]["base"])
        device.cqes[first : first + cq.size] = 0


def fill(device: Device, made: Restored, data: bytes | memoryview) -> None:
    """Put what is under way into the objects of a restored sketch, still suspended.

    StateError, and an undefined mixture that only `device.close` ends, for what does not fit.
    """
    sections = unwrap(data, _CHANGING)
    for ident in (3, 5, LIVE):
        if ident not in sections:
            raise StateError(f"$.sections[{ident}]", "missing")
    columns = live.from_bytes(sections[LIVE].payload)
    queues = decode_section(sections[3].payload, schema.QueueState)
    events = decode_section(sections[5].payload, schema.EventState).events
    indices = np.fromiter((qp.index for qp in made.qps.values()), np.int64, len(made.qps))
    if len(columns.qps) != len(indices):
        raise StateError("$.live.qps", f"{len(columns.qps)}, the sketch has {len(indices)}")
    where = np.zeros(2, np.int64)
    with device.quiesced():
        code = int(check(device.engine.tables, indices, columns, where))
        if code:
            raise StateError(f"$.qps[{where[0]}].{FIELDS[code]}", f"does not fit together (at {where[1]})")
        _fill_queues(device, made, queues)
        put(device.engine.tables, indices, columns)
        note_events(device, made, events)
        if 6 in sections:
            restore_counters(device, decode_section(sections[6].payload, schema.CounterState).counters)


def _fill_queues(device: Device, made: Restored, queues: schema.QueueState) -> None:
    if [c.cqn for c in queues.cqs] != list(made.cqs) or [s.srqn for s in queues.srqs] != list(made.srqs):
        raise StateError("$.cqs", "not those of the sketch")
    for i, saved in enumerate(queues.cqs):
        fill_cq(device, made.cqs[saved.cqn], saved, f"$.cqs[{i}]")
    for i, saved_srq in enumerate(queues.srqs):
        fill_srq(device, made.srqs[saved_srq.srqn], saved_srq, f"$.srqs[{i}]")


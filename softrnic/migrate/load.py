"""From a saved state to the objects of an empty device: all of it, or a StateError and an empty device as before.

Objects are made through the verbs with their numbers pinned, so every check of creation is made again; then the
parts that no verb sets - queues, PSNs, what is under way - are written into their records, after check.py has
seen them. The engine may be busy with other functions meanwhile: it passes over a QP without a type, which is given
last, and the device hears nothing until the end, when its addresses come to life.
"""

from __future__ import annotations

import copy
import errno
import ipaddress
import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, TypeVar

import msgspec
import numpy as np

from softrnic import spec
from softrnic.counters import COUNTERS
from softrnic.errors import StateError, VerbsError
from softrnic.layout import EVENT_ENTRIES, RdState, ReqWait, StopFlag, WqeState
from softrnic.migrate import schema
from softrnic.migrate.check import check_qp, length_of, pmtu_of, require
from softrnic.migrate.envelope import unwrap
from softrnic.qp.cq import CQ_OVERRUN
from softrnic.qp.psn import psn_add
from softrnic.spec import Access, EventType, Mtu, QpState, QpType, WrOpcode
from softrnic.verbs import (
    AddressSpace,
    Ah,
    AhAttr,
    Cq,
    Device,
    FileMemory,
    Mr,
    Mw,
    Pd,
    PhysicalMr,
    ProcessMemory,
    Qp,
    QpCap,
    RecvWr,
    Srq,
)  # fmt: skip
from softrnic.verbs.address import IpAddress
from softrnic.verbs.srq import put_rwqe
from softrnic.verbs.wr import Sge

T = TypeVar("T")
Memory = Mapping[str, Any] | Callable[[schema.Region | schema.Slot], Any]

_WRITERS = Access.REMOTE_WRITE | Access.REMOTE_ATOMIC
_RD_ATOMIC = (WrOpcode.RDMA_READ, WrOpcode.ATOMIC_CMP_AND_SWP, WrOpcode.ATOMIC_FETCH_AND_ADD)
_WC_OPCODES = frozenset(spec.WcOpcode)
_LIMIT = 1 << 30  # bytes of a state that anybody could mean


@dataclass
class Restored:
    """The objects made, by the numbers they had: keys, CQNs, SRQNs, QPNs; the others in order."""

    pds: list[Pd] = field(default_factory=list)
    ahs: list[Ah] = field(default_factory=list)
    mrs: dict[int, Mr] = field(default_factory=dict)
    spaces: list[AddressSpace] = field(default_factory=list)
    mws: dict[int, Mw] = field(default_factory=dict)
    cqs: dict[int, Cq] = field(default_factory=dict)
    srqs: dict[int, Srq] = field(default_factory=dict)
    qps: dict[int, Qp] = field(default_factory=dict)


def restore(device: Device, data: bytes, memory: Memory) -> Restored:
    """Make what `save` has saved on an empty device; its QPs are suspended until `device.resume()`.

    `memory` gives each region its bytes, by name or by looking at it; the length must be the same. Other functions of
    the adapter go on meanwhile.
    """
    if device.pds or device.cqs or device.qps or device.gids:
        raise VerbsError(errno.EBUSY, f"device {device.name} is not empty")
    if len(data) > _LIMIT:
        raise StateError("$", f"{len(data)} bytes")
    states = _decode(data)
    loader = _Loader(device, states, memory)
    numbers = copy.deepcopy((device.cq_numbers, device.srq_numbers))
    before = device.numbering, device.node_guid
    try:
        loader.run()
    except BaseException:
        device.close()
        for index in list(device.gids):
            device.del_gid(index)
        device.cq_numbers, device.srq_numbers = numbers
        device.numbering, device.node_guid = before
        raise
    return loader.made


def _decode(data: bytes) -> dict[int, Any]:
    sections = unwrap(data, {ident: version for ident, (_, version, _) in schema.SECTIONS.items()})
    states = {}
    for ident, (kind, _, optional) in schema.SECTIONS.items():
        if ident not in sections:
            require(optional or ident in schema.LATER, f"$.sections[{ident}]", "missing")
            states[ident] = kind()
            continue
        states[ident] = decode_section(sections[ident].payload, kind)
    return states


def decode_section(payload: bytes | memoryview, kind: type[T]) -> T:
    """A section's struct; StateError, by the path of the field, for anything else."""
    try:
        return msgspec.msgpack.decode(payload, type=kind)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        reason, _, path = str(error).partition(" - at `")
        raise StateError(path.rstrip("`") or "$", reason) from None
    except RecursionError:
        raise StateError("$", "nested too deeply") from None


@contextmanager
def _at(path: str) -> Iterator[None]:
    """What a verb refuses, said with the place in the state."""
    try:
        yield
    except VerbsError as error:
        raise StateError(path, re.sub(r"\s+", " ", str(error))) from None


class _Loader:
    """One restoration under way."""

    def __init__(self, device: Device, states: dict[int, Any], memory: Memory) -> None:
        self.device = device
        self.memory = memory
        self.made = Restored()
        self.head: schema.DeviceState = states[1]
        self.mem: schema.MemoryState = states[2]
        self.queues: schema.QueueState = states[3]
        self.qps: list[schema.Qp] = states[4].qps
        self.events: list[schema.Event] = states[5].events
        self.counters: dict[str, int] = states[6].counters
        self.spaces: list[schema.Space] = states[7].spaces

    def run(self) -> None:
        """In the order in which objects need one another."""
        for i, qp in enumerate(self.qps):
            check_qp(qp, pmtu_of(qp, self.device.port.active_mtu), f"$.qps[{i}]")
        self._make_device()
        self._make_memory()
        self._make_queues()
        for i, qp in enumerate(self.qps):
            self._make_qp(qp, f"$.qps[{i}]")
        for i, window in enumerate(self.mem.windows):
            self._bind(window, f"$.windows[{i}]")
        note_events(self.device, self.made, self.events)
        self.device.numbering = self.head.next_qpn, self.head.key_variant
        restore_counters(self.device, self.counters)
        self.device.hear()

    def _make_device(self) -> None:
        require(self.head.next_qpn > 1, "$.next_qpn", "no number for a QP")
        self.device.node_guid = self.head.node_guid
        for i, gid in enumerate(self.head.gids):
            with _at(f"$.gids[{i}]"):
                self.device.add_gid(_ip(gid.ip), gid.mac, gid.vlan, index=gid.index, hearing=False)

    def _pd(self, ordinal: int, path: str) -> Pd:
        require(ordinal < len(self.made.pds), f"{path}.pd", f"there is no PD {ordinal}")
        return self.made.pds[ordinal]

    # --- memory ---

    def _make_memory(self) -> None:
        made = self.made
        with _at("$.pds"):
            made.pds = [self.device.alloc_pd() for _ in range(self.mem.pds)]
        for i, space in enumerate(self.spaces):
            self._make_space(space, f"$.spaces[{i}]")
        for i, region in enumerate(self.mem.regions):
            self._make_region(region, f"$.regions[{i}]")
        for i, window in enumerate(self.mem.windows):
            with _at(f"$.windows[{i}].key"):
                pd = self._pd(window.pd, f"$.windows[{i}]")
                made.mws[window.key] = pd.alloc_mw(window.kind, key=window.key)
        for i, ah in enumerate(self.mem.ahs):
            with _at(f"$.ahs[{i}].path"):
                made.ahs.append(self._pd(ah.pd, f"$.ahs[{i}]").create_ah(_ah_attr(ah.path)))

    def _make_region(self, region: schema.Region, path: str) -> None:
        pd = self._pd(region.pd, path)
        access = Access(region.access)
        if access & _WRITERS:
            access |= Access.LOCAL_WRITE  # fast registration does not ask for it
        if region.space is not None:
            mr = self._region_of_space(pd, region, access, path)
        else:
            buffer = _bytes_of(region, self._given(region, path), path)
            with _at(path):
                mr = pd.reg_mr(buffer, access, iova=region.iova, key=region.key)
        self.made.mrs[region.key] = mr
        self.device.record["mrs"][mr.index]["access"] = region.access
        self.device.record["mrs"][mr.index]["valid"] = region.valid

    def _make_space(self, saved: schema.Space, path: str) -> None:
        with _at(path):
            space = self.device.create_space(saved.page_size, paged=saved.paged)
        self.made.spaces.append(space)
        for i, slot in enumerate(saved.slots):
            at = f"{path}.slots[{i}]"
            memory = self._given(slot, at)
            if isinstance(memory, FileMemory | ProcessMemory):
                require(memory.length == slot.length, f"{at}.length", f"{slot.length}, the memory has {memory.length}")
            else:
                memory = _bytes_of(slot, memory, at)
            with _at(at):
                space.add_slot(slot.addr, memory)

    def _region_of_space(self, pd: Pd, region: schema.Region, access: Access, path: str) -> Mr:
        number = region.space or 0
        require(number < len(self.made.spaces), f"{path}.space", f"there is no address space {number}")
        require(len(region.ranges) % 16 == 0, f"{path}.ranges", "no pairs of 64-bit numbers")
        ranges = np.frombuffer(region.ranges, "<i8").reshape(-1, 2) if region.ranges else None
        require(ranges is not None or region.iova == 0, f"{path}.iova", "a region over all of a space begins at 0")
        with _at(path):
            mr = PhysicalMr(
                pd, self.made.spaces[number], region.iova, ranges, access, key=region.key, odp=region.odp
            )  # fmt: skip
        require(mr.length == region.length, f"{path}.length", f"{region.length}, the ranges have {mr.length}")
        return mr

    def _given(self, region: schema.Region | schema.Slot, path: str) -> Any:
        """What the caller has for a region or slot."""
        try:
            return self.memory(region) if callable(self.memory) else self.memory[region.name]
        except KeyError:
            raise StateError(f"{path}.name", f"no memory was given for {region.name!r}") from None

    def _bind(self, window: schema.Window, path: str) -> None:
        bound = window.bound
        if bound is None:
            return
        made, mrs = self.made, self.device.record["mrs"]
        require(bound.parent in made.mrs, f"{path}.bound.parent", f"there is no region {bound.parent:#x}")
        parent = mrs[made.mrs[bound.parent].index]
        offset = bound.iova - int(parent["iova"])
        inside = offset >= 0 and 0 < bound.length <= int(parent["length"]) - offset
        require(inside and bool(parent["valid"]), f"{path}.bound", "outside of its region")
        require(int(parent["access"]) & Access.MW_BIND != 0, f"{path}.bound", "the region takes no windows")
        writable = not bound.access & _WRITERS or int(parent["access"]) & Access.LOCAL_WRITE
        same = self.mem.regions[list(made.mrs).index(bound.parent)].pd == window.pd
        require(bool(writable) and same, f"{path}.bound", "more than its region allows, or of another PD")
        owner = -1
        if window.kind == 2:
            require(bound.qpn in made.qps, f"{path}.bound.qpn", "a window of type 2 belongs to a QP")
            owner = made.qps[bound.qpn or 0].index
        else:
            require(bound.qpn is None, f"{path}.bound.qpn", "a window of type 1 belongs to no QP")
        record = mrs[made.mws[window.key].index]
        record["parent"], record["iova"], record["length"] = made.mrs[bound.parent].index, bound.iova, bound.length
        record["access"], record["space"], record["qp"] = bound.access, parent["space"], owner
        record["valid"] = 1
        parent["windows"] += 1

    # --- queues ---

    def _make_queues(self) -> None:
        for i, saved in enumerate(self.queues.cqs):
            path = f"$.cqs[{i}]"
            with _at(path):
                cq = self.device.create_cq(saved.size, cqn=saved.cqn)
            self.made.cqs[saved.cqn] = cq
            require(cq.size == saved.size, f"{path}.size", "no power of two")
            fill_cq(self.device, cq, saved, path)
        for i, saved_srq in enumerate(self.queues.srqs):
            self._make_srq(saved_srq, f"$.srqs[{i}]")

    def _make_srq(self, saved: schema.Srq, path: str) -> None:
        pd = self._pd(saved.pd, path)
        with _at(path):
            srq = pd.create_srq(saved.max_wr, saved.max_sge, limit=saved.limit, srqn=saved.srqn)
        self.made.srqs[saved.srqn] = srq
        require(srq.max_wr == saved.max_wr, f"{path}.max_wr", "no power of two")
        fill_srq(self.device, srq, saved, path)

    # --- queue pairs ---

    def _make_qp(self, saved: schema.Qp, path: str) -> None:
        made = self.made
        for name in ("send_cq", "recv_cq"):
            require(getattr(saved, name) in made.cqs, f"{path}.{name}", f"there is no CQ {getattr(saved, name)}")
        require(saved.srq is None or saved.srq in made.srqs, f"{path}.srq", f"there is no SRQ {saved.srq}")
        gsi = saved.type == QpType.GSI
        require(not gsi or saved.qpn == spec.GSI_QPN, f"{path}.qpn", "the GSI QP is number 1")
        cap = QpCap(
            saved.cap.max_send_wr, saved.cap.max_recv_wr, saved.cap.max_send_sge, saved.cap.max_recv_sge,
            saved.cap.max_inline_data,
        )  # fmt: skip
        with _at(path):
            qp = self._pd(saved.pd, path).create_qp(
                QpType(saved.type), made.cqs[saved.send_cq], made.cqs[saved.recv_cq], cap,
                srq=None if saved.srq is None else made.srqs[saved.srq], sq_sig_all=saved.sq_sig_all, qpn=saved.qpn,
            )  # fmt: skip
        made.qps[saved.qpn] = qp
        qp.record["type"] = 0
        require(qp.cap == cap, f"{path}.cap", f"{cap} would become {qp.cap}")
        with _at(path):
            self._configure(qp, saved)
        for i, group in enumerate(saved.groups):
            with _at(f"{path}.groups[{i}]"):
                qp.attach_mcast(_ip(group))
        self._fill_requester(qp, saved, f"{path}.req")
        self._fill_responder(qp, saved)
        q = qp.record
        q["qkey"], q["rnr_fault_timer"] = saved.qkey, saved.rnr_fault_timer
        q["sqd_notified"], q["comm_est"], q["last_wqe"] = saved.sqd_notified, saved.comm_est, saved.last_wqe
        q["access"] = saved.access
        q["stop"] = saved.peer_may_stop * StopFlag.STOP | saved.peer_may_move * StopFlag.MOVE
        q["state"] = QpState.SUSPENDED if saved.suspended else saved.state
        q["resume_to"] = saved.state
        q["type"] = saved.type
        self.device.ring_doorbell(qp.index)  # one in its error state may have something to flush

    def _configure(self, qp: Qp, saved: schema.Qp) -> None:
        """As far as the QP had come, through the state machine."""
        reliable = saved.type == QpType.RC
        if saved.reached >= QpState.INIT:
            if saved.path is not None or saved.type in (QpType.RC, QpType.UC):
                qp.modify(QpState.INIT, pkey_index=0, port=1, access_flags=Access(saved.access))
            else:
                qp.modify(QpState.INIT, pkey_index=0, port=1, qkey=saved.qkey)
        if saved.reached >= QpState.RTR:
            attr: dict[str, Any] = {}
            if saved.path is not None:
                attr = {
                    "ah": _ah_attr(saved.path), "path_mtu": Mtu(saved.path_mtu), "dqpn": saved.dqpn,
                    "rq_psn": saved.resp.epsn,
                }  # fmt: skip
            if reliable:
                attr["max_dest_rd_atomic"], attr["min_rnr_timer"] = saved.max_dest_rd_atomic, saved.min_rnr_timer
            qp.modify(QpState.RTR, **attr)
        if saved.reached >= QpState.RTS:
            attr = {"sq_psn": saved.req.req_psn}
            if reliable:
                attr |= {
                    "timeout": saved.timeout, "retry_cnt": saved.retry_cnt, "rnr_retry": saved.rnr_retry,
                    "max_rd_atomic": saved.max_rd_atomic,
                }  # fmt: skip
            qp.modify(QpState.RTS, **attr)
        used = {
            name: value for name in ("timeout", "retry_cnt", "rnr_retry")
            if (value := getattr(saved, f"used_{name}")) is not None
        }  # fmt: skip
        if used:
            qp.adjust(**used)

    def _fill_requester(self, qp: Qp, saved: schema.Qp, path: str) -> None:
        q, req = qp.record, saved.req
        for i, wqe in enumerate(req.sq):
            self._put_send(qp, i, wqe, f"{path}.sq[{i}]")
        q["sq_head"], q["sq_prod"], q["sq_cur"], q["sq_hi"] = 0, len(req.sq), req.cur, req.hi
        q["req_off"], q["req_psn"], q["una_psn"], q["req_hi_psn"] = req.off, req.req_psn, req.una_psn, req.hi_psn
        q["ssn"], q["retry_left"], q["rnr_left"], q["unacked_req"] = req.ssn, req.retry_left, req.rnr_left, req.unacked
        q["credits_valid"], q["limit_ssn"] = req.limit_ssn is not None, req.limit_ssn or 0
        q["gap_valid"], q["gap_psn"] = req.gap_psn is not None, req.gap_psn or 0
        q["srtt"], q["rttvar"] = req.srtt_ns, req.rttvar_ns
        q["req_wait"] = ReqWait.NONE if req.rnr_wait_ns is None else ReqWait.RNR
        q["rnr_left_ns"] = req.rnr_wait_ns or 0
        sent = req.sq[: req.cur]
        q["rd_out"] = sum(w.state == WqeState.STARTED and w.opcode in _RD_ATOMIC for w in sent)

    def _put_send(self, qp: Qp, index: int, saved: schema.SendWqe, path: str) -> None:
        q, record = qp.record, self.device.record
        sge_base = int(q["sq_sge_base"]) + index * qp.sq_sge_max
        if saved.inline is not None:
            room = record["sges"][sge_base : sge_base + qp.sq_sge_max].view(np.uint8)
            room[: len(saved.inline)] = np.frombuffer(saved.inline, np.uint8)
        for i, sge in enumerate(saved.sges):
            record["sges"][sge_base + i] = (sge.addr, sge.length, sge.lkey)
        wqe = record["wqes"][int(q["sq_base"]) + index]
        for name in (
            "wr_id", "opcode", "flags", "state", "status", "remote_addr", "rkey", "imm", "compare_add", "swap", "dqpn",
            "qkey", "first_psn", "last_psn", "ssn",
        ):  # fmt: skip
            wqe[name] = getattr(saved, name)
        wqe["num_sge"] = len(saved.sges)
        binds = saved.opcode in (WrOpcode.BIND_MW, WrOpcode.REG_MR)
        wqe["length"] = saved.bind_length if binds else length_of(saved)
        wqe["access"], wqe["ah"], wqe["bind_mr"] = saved.bind_access, -1, -1
        if saved.ah is not None:
            require(saved.ah < len(self.made.ahs), path, f"there is no address handle {saved.ah}")
            ah = self.made.ahs[saved.ah]
            require(ah.pd is qp.pd or saved.state != WqeState.STARTED, path, "an address handle of another PD")
            wqe["ah"] = ah.index
        if saved.bind_key is not None:
            require(saved.bind_key in self.made.mrs, path, f"there is no region {saved.bind_key:#x}")
            wqe["bind_mr"] = self.made.mrs[saved.bind_key].index

    def _fill_responder(self, qp: Qp, saved: schema.Qp) -> None:
        q, resp = qp.record, saved.resp
        for i, wqe in enumerate(resp.rq):
            put_receive(self.device, int(q["rq_base"]) + i, int(q["rq_sge_base"]) + i * qp.rq_sge_max, wqe)
        q["rq_head"], q["rq_prod"] = 0, len(resp.rq)
        q["epsn"], q["msn"], q["resp_op"], q["nak_sent"] = resp.epsn, resp.msn, resp.message, resp.nak_sent
        q["ack_state"], q["ack_syndrome"], q["ack_psn"] = resp.ack, resp.ack_syndrome, resp.ack_psn
        q["resp_off"], q["resp_va"], q["resp_resid"], q["resp_key"] = resp.off, resp.va, resp.resid, resp.key
        if resp.held is not None:
            q["resp_wqe"], q["resp_wr_id"], q["resp_nsge"] = 1, resp.held.wr_id, len(resp.held.sges)
            q["resp_len"] = min(sum(s.length for s in resp.held.sges), 1 << 31)
            for i, sge in enumerate(resp.held.sges):
                self.device.record["sges"][int(q["resp_sge_base"]) + i] = (sge.addr, sge.length, sge.lkey)
        for i, res in enumerate(resp.rd):
            self._put_resource(self.device.record["rd_res"][int(q["rd_base"]) + i], res)
        tail = len(resp.rd)
        q["rd_tail"], q["rd_done"], q["rd_head"] = tail, tail - resp.rd_owed, tail - resp.rd_head

    def _put_resource(self, record: np.void, res: schema.RdRes) -> None:
        record["first_psn"], record["last_psn"] = res.first_psn, psn_add(res.first_psn, res.npsn - 1)
        record["state"] = RdState.DONE
        if res.play is not None:
            record["start_psn"], record["cur_psn"] = res.play.start_psn, res.play.cur_psn
            record["end_psn"], record["stop"], record["state"] = res.play.end_psn, res.play.stop, RdState.PENDING
        record["msn"], record["key"], record["va"], record["length"] = res.msn, res.key, res.va, res.length
        record["atomic"], record["orig"], record["mr"] = res.orig is not None, res.orig or 0, -1


def fill_cq(device: Device, cq: Cq, saved: schema.Cq, path: str) -> None:
    """What lies in an empty CQ, and how it is armed."""
    require(cq.size == saved.size, f"{path}.size", f"{saved.size}, it is {cq.size}")
    require(len(saved.entries) <= cq.size, f"{path}.entries", f"{len(saved.entries)} in {cq.size}")
    record = device.record["cqs"][cq.index]
    base = int(record["base"])
    for k, c in enumerate(saved.entries):
        known = c.opcode in _WC_OPCODES and c.wc_flags & ~0x13 == 0
        require(known, f"{path}.entries[{k}]", "an opcode or flag that no completion has")
        device.cqes[base + k] = (
            c.wr_id, c.status, c.opcode, c.vendor_err, c.byte_len, c.imm, c.qpn, c.src_qp, c.wc_flags,
        )  # fmt: skip
    record["prod"], record["armed"] = len(saved.entries), saved.armed
    if saved.overrun:
        record["state"] = CQ_OVERRUN


def fill_srq(device: Device, srq: Srq, saved: schema.Srq, path: str) -> None:
    """What is posted to an empty SRQ, and its limit."""
    require(saved.limit <= srq.max_wr, f"{path}.limit", "more than fits into the queue")
    require(len(saved.posted) <= srq.max_wr, f"{path}.posted", f"{len(saved.posted)} in {srq.max_wr}")
    record = device.record["srqs"][srq.index]
    for k, wqe in enumerate(saved.posted):
        require(len(wqe.sges) <= srq.max_sge, f"{path}.posted[{k}]", "too many SGEs")
        put_receive(device, int(record["base"]) + k, int(record["sge_base"]) + k * srq.max_sge, wqe)
    record["prod"], record["limit"] = len(saved.posted), saved.limit
    record["state"] = 2 if saved.error else 1


def put_receive(device: Device, rwqe_index: int, sge_index: int, wqe: schema.RecvWqe) -> None:
    """A receive into its slot."""
    put_rwqe(device, rwqe_index, sge_index, RecvWr([Sge(s.addr, s.length, s.lkey) for s in wqe.sges], wqe.wr_id))


def note_events(device: Device, made: Restored, events: list[schema.Event]) -> None:
    """Into the engine's ring, behind what is there, in the order they came."""
    found = []
    for i, saved in enumerate(events):
        path = f"$.events[{i}]"
        require(saved.type in list(EventType) and saved.type != EventType.PAGE_FAULT, path, "no such event")
        if saved.type in (EventType.CQ_ERR, EventType.CQ_NOTIFY):
            table: Mapping[int, Cq | Srq | Qp] = made.cqs
        else:
            table = made.srqs if saved.type in (EventType.SRQ_ERR, EventType.SRQ_LIMIT_REACHED) else made.qps
        require(saved.number in table, f"{path}.number", f"there is no object {saved.number}")
        found.append((saved.type, table[saved.number].index))
    record = device.record
    with device.quiesced():
        room = EVENT_ENTRIES - int(record["event_prod"] - record["event_cons"])
        require(len(found) <= room, "$.events", f"{len(found)}, the device has room for {room}")
        for i, (kind, index) in enumerate(found, int(record["event_prod"])):
            record["events"][i & (EVENT_ENTRIES - 1)] = (kind, index, 0, 0, 0, 0)
        record["event_prod"] += len(found)


def restore_counters(device: Device, counters: dict[str, int]) -> None:
    """Those of the adapter, if nothing else is on it."""
    if len(device.adapter.functions) == 1:
        for row in COUNTERS:
            device.record["counters"][row.counter] = counters.get(row.name, 0)


def _bytes_of(region: schema.Region | schema.Slot, given: Any, path: str) -> np.ndarray:
    """A buffer of the right length."""
    try:
        view = np.frombuffer(given, np.uint8)
    except (TypeError, ValueError, BufferError) as error:
        raise StateError(f"{path}.name", f"{region.name!r} is no buffer: {error}") from None
    require(view.nbytes == region.length, f"{path}.length", f"{region.length}, the buffer has {view.nbytes}")
    return view


def _ip(gid: bytes) -> IpAddress:
    address = ipaddress.IPv6Address(gid)
    return address.ipv4_mapped or address


def _ah_attr(path: schema.Path) -> AhAttr:
    return AhAttr(
        _ip(path.dgid), path.sgid_index, path.dmac, path.traffic_class, path.flow_label, path.hop_limit, path.sport
    )

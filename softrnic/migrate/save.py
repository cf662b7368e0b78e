"""From a suspended device to its saved state: reads records and objects, changes nothing.

What load.py does is the inverse of this, function by function: save(restore(x)) == x. Values that the engine
leaves behind and never looks at again are not written, so that equal devices have equal states.
"""

from __future__ import annotations

import errno
import ipaddress
from collections.abc import Mapping
from typing import Any

import msgspec
import numpy as np

from softrnic.counters import COUNTERS
from softrnic.errors import VerbsError
from softrnic.layout import EVENT_ENTRIES, AckState, MrKind, RdState, ReqWait, RespMsg, TimerKind, WqeState
from softrnic.migrate import schema
from softrnic.migrate.envelope import OPTIONAL, PRODUCER, Section, wrap
from softrnic.qp.cq import CQ_OVERRUN
from softrnic.qp.psn import psn_diff
from softrnic.spec import EventType, Mtu, QpState, QpType, SendFlags, WrOpcode
from softrnic.verbs import AddressSpace, Ah, AhAttr, Cq, Device, Mr, Mw, Pd, PhysicalMr, Qp, Srq
from softrnic.verbs.address import gid_bytes

_ON_THE_WIRE = (QpState.RTR, QpState.RTS, QpState.SQD, QpState.SQE)
_IMM = (WrOpcode.RDMA_WRITE_WITH_IMM, WrOpcode.SEND_WITH_IMM, WrOpcode.SEND_WITH_INV)
_ATOMICS = (WrOpcode.ATOMIC_CMP_AND_SWP, WrOpcode.ATOMIC_FETCH_AND_ADD)
_BINDS = (WrOpcode.BIND_MW, WrOpcode.REG_MR)


def save(device: Device, names: Mapping[int, str] | None = None) -> bytes:
    """The state of a device - one function, if its adapter has several - that is suspended and settled, else EBUSY.

    `names` maps the key of a region to the name under which `restore` will be given its bytes; a region without
    one is called by its key, as in "0x101". Slots of address spaces are called "space 0 at 0x10000", by their numbers
    in the order of creation. Polling, posting and destroying must wait until this returns.
    """
    all_settled(device)
    with device.quiesced():
        states = Saver(device, names or {}).states()
    sections = []
    for ident, state in states.items():
        _, version, optional = schema.SECTIONS[ident]
        sections.append(Section(ident, version, OPTIONAL if optional else 0, msgspec.msgpack.encode(state)))
    return wrap(sections, PRODUCER)


def all_settled(device: Device) -> None:
    """EBUSY unless nothing more leaves any queue pair by itself."""
    if device.settled:
        return
    busy = next(qp for qp in device.qps.values() if not qp.settled)
    raise VerbsError(errno.EBUSY, f"QP {busy.qpn:#x} is not suspended, or has answers to finish")


def check_has_bytes(mr: Mr) -> None:
    """EOPNOTSUPP for a region over all of this process: no other one has its memory."""
    if isinstance(mr, PhysicalMr) and mr.follows and mr.space.is_ours:
        raise VerbsError(errno.EOPNOTSUPP, f"region {mr.key:#x} is all of this process, and cannot go anywhere else")


class Saver:
    """Numbers of the objects of one device, and every part of it as a schema value."""

    def __init__(self, device: Device, names: Mapping[int, str]) -> None:
        self.device = device
        self.names = names
        self.pds: dict[Pd, int] = {pd: i for i, pd in enumerate(device.pds.values())}
        handles = sorted((ah for pd in device.pds.values() for ah in pd.ahs), key=lambda ah: ah.index)
        self.ahs: dict[Ah, int] = {ah: i for i, ah in enumerate(handles)}
        self.spaces = [s for s in device.spaces if not s.is_ours]
        self.ah_at = {ah.index: i for ah, i in self.ahs.items()}

    def states(self) -> dict[int, msgspec.Struct]:
        """Every section by its id."""
        later = {7: self.address_spaces()} if self.spaces else {}
        return {
            1: self.device_state(),
            2: self.memory(),
            3: self.queues(),
            4: schema.QpState(qps=[self.qp(q) for q in self.device.qps.values()]),
            5: schema.EventState(events=self.events()),
            6: schema.CounterState(counters=self.counters()),
            **later,
        }

    def memory(self) -> schema.MemoryState:
        """Section 2."""
        found = self.device.mrs.values()
        return schema.MemoryState(
            pds=len(self.pds),
            regions=[self.region(m) for m in found if isinstance(m, Mr)],
            windows=[self.window(m) for m in found if isinstance(m, Mw)],
            ahs=[schema.Ah(pd=self.pds[ah.pd], path=self.handle(ah)) for ah in self.ahs],
        )

    def queues(self, *, contents: bool = True) -> schema.QueueState:
        """Section 3; without `contents` as they were when they were made."""
        cqs, srqs = self.device.cqs.values(), self.device.srqs.values()
        if not contents:
            return schema.QueueState(
                cqs=[schema.Cq(cqn=c.cqn, size=c.size) for c in cqs],
                srqs=[schema.Srq(srqn=s.srqn, pd=self.pds[s.pd], max_wr=s.max_wr, max_sge=s.max_sge) for s in srqs],
            )
        return schema.QueueState(cqs=[self.cq(c) for c in cqs], srqs=[self.srq(s) for s in srqs])

    def counters(self) -> dict[str, int]:
        """Those of the adapter, if all it counts was for this function."""
        if len(self.device.adapter.functions) > 1:
            return {}
        return {r.name: n for r in COUNTERS if (n := int(self.device.record["counters"][r.counter]))}

    def device_state(self) -> schema.DeviceState:
        device = self.device
        return schema.DeviceState(
            node_guid=device.node_guid, next_qpn=device.numbering[0], key_variant=device.numbering[1],
            gids=[
                schema.Gid(index=g.index, ip=gid_bytes(g.ip), mac=g.mac, vlan=g.vlan) for g in device.gids.values()
            ],
        )  # fmt: skip

    # --- memory ---

    def region(self, mr: Mr) -> schema.Region:
        record = self.device.record["mrs"][mr.index]
        check_has_bytes(mr)
        of_space: dict[str, Any] = {}
        if isinstance(mr, PhysicalMr) and mr.space in self.spaces:
            array = np.array(mr.ranges, "<i8")
            whole = mr.follows
            of_space = {
                "space": self.spaces.index(mr.space), "ranges": b"" if whole else array.tobytes(), "odp": mr.odp,
            }  # fmt: skip
        return schema.Region(
            pd=self.pds[mr.pd], key=mr.key, name=self.names.get(mr.key, f"{mr.key:#x}"), iova=int(record["iova"]),
            length=int(record["length"]), access=int(record["access"]), valid=bool(record["valid"]), **of_space,
        )  # fmt: skip

    def address_spaces(self) -> schema.SpaceState:
        """Section 7."""
        return schema.SpaceState(spaces=[self.space(s) for s in self.spaces])

    def space(self, space: AddressSpace) -> schema.Space:
        number = self.spaces.index(space)
        slots = [schema.Slot(addr=s.addr, length=s.length, name=f"space {number} at {s.addr:#x}") for s in space.slots]
        return schema.Space(page_size=space.page_size, paged=space.paged, slots=slots)

    def window(self, mw: Mw) -> schema.Window:
        mrs = self.device.record["mrs"]
        record = mrs[mw.index]
        bound = None
        if record["valid"]:
            owner = self.device.qps.get(int(record["qp"])) if int(record["kind"]) == MrKind.MW2 else None
            bound = schema.Binding(
                parent=int(mrs[int(record["parent"])]["key"]), iova=int(record["iova"]), length=int(record["length"]),
                access=int(record["access"]), qpn=owner.qpn if owner else None,
            )  # fmt: skip
        return schema.Window(pd=self.pds[mw.pd], key=mw.rkey, kind=mw.kind, bound=bound)

    def handle(self, ah: Ah) -> schema.Path:
        """An AH was given its MAC and UDP port when it was made: they are in its record."""
        record = self.device.record["avs"][ah.index]
        header, udp = record["hdr"], int(record["hdr_len"]) - 8
        return _path(ah.attr, bytes(header[:6]), int(header[udp]) << 8 | int(header[udp + 1]))

    # --- queues ---

    def cq(self, cq: Cq) -> schema.Cq:
        record = self.device.record["cqs"][cq.index]
        base, mask = int(record["base"]), int(record["mask"])
        rows = [self.device.cqes[base + (i & mask)].item() for i in range(int(record["cons"]), int(record["prod"]))]
        return schema.Cq(
            cqn=cq.cqn, size=cq.size, armed=int(record["armed"]), overrun=int(record["state"]) == CQ_OVERRUN,
            entries=[
                schema.Cqe(
                    wr_id=c[0], status=c[1], opcode=c[2], vendor_err=c[3], byte_len=c[4], imm=c[5], qpn=c[6],
                    src_qp=c[7], wc_flags=c[8],
                )
                for c in rows
            ],
        )  # fmt: skip

    def srq(self, srq: Srq) -> schema.Srq:
        record = self.device.record["srqs"][srq.index]
        return schema.Srq(
            srqn=srq.srqn, pd=self.pds[srq.pd], max_wr=srq.max_wr, max_sge=srq.max_sge, limit=int(record["limit"]),
            error=int(record["state"]) == 2,
            posted=self._receives(record, int(record["head"]), "base", "mask", "sge_base", srq.max_sge),
        )  # fmt: skip

    def _receives(
        self, queue: np.void, head: int, base: str, mask: str, sge_base: str, sge_max: int
    ) -> list[schema.RecvWqe]:
        found = []
        prod = int(queue["rq_prod" if base == "rq_base" else "prod"])
        for i in range(head, prod):
            slot = i & int(queue[mask])
            rwqe = self.device.record["rwqes"][int(queue[base]) + slot]
            sges = self._sges(int(queue[sge_base]) + slot * sge_max, int(rwqe["num_sge"]))
            found.append(schema.RecvWqe(wr_id=int(rwqe["wr_id"]), sges=sges))
        return found

    def _sges(self, first: int, count: int) -> list[schema.Sge]:
        table = self.device.record["sges"]
        rows = [table[first + i].item() for i in range(count)]
        return [schema.Sge(addr=r[0], length=r[1], lkey=r[2]) for r in rows]

    # --- queue pairs ---

    def qp(self, qp: Qp) -> schema.Qp:
        """All of a queue pair."""
        return msgspec.structs.replace(self.outline(qp), req=self.requester(qp), resp=self.responder(qp))

    def outline(self, qp: Qp) -> schema.Qp:
        """A queue pair with nothing under way; one on the wire as if it were suspended."""
        q, attr = qp.record, qp.attributes
        connected = qp.type in (QpType.RC, QpType.UC)
        path = attr.get("ah")
        patience: dict[str, Any] = {**qp.requested, **{f"used_{name}": value for name, value in qp.adjusted.items()}}
        return schema.Qp(
            qpn=qp.qpn, type=int(qp.type), state=int(qp.resumes_to), reached=_reached(qp, attr),
            suspended=qp.resumes_to in _ON_THE_WIRE, pd=self.pds[qp.pd], send_cq=qp.send_cq.cqn,
            recv_cq=qp.recv_cq.cqn, srq=qp.srq.srqn if qp.srq else None, cap=schema.Cap(**vars(qp.cap)),
            sq_sig_all=bool(q["sq_sig_all"]), access=int(q["access"]), qkey=int(q["qkey"]), dqpn=int(q["dqpn"]),
            path=_path(path, path.dmac, path.sport) if path else None,
            path_mtu=int(attr["path_mtu"]) if connected and path else int(Mtu.MTU_4096),
            **patience,
            min_rnr_timer=int(q["min_rnr_timer"]), rnr_fault_timer=int(q["rnr_fault_timer"]),
            max_rd_atomic=int(q["max_rd_atomic"]), max_dest_rd_atomic=int(q["max_dest_rd_atomic"]),
            sqd_notified=bool(q["sqd_notified"]), comm_est=bool(q["comm_est"]), last_wqe=bool(q["last_wqe"]),
            peer_may_stop=qp.peer_may_stop, peer_may_move=qp.peer_may_move,
            groups=[gid_bytes(group) for group in qp.groups],
        )  # fmt: skip

    def requester(self, qp: Qp) -> schema.Requester:
        q = qp.record
        head, hi = int(q["sq_head"]), max(int(q["sq_head"]), int(q["sq_hi"]))
        cur = max(head, int(q["sq_cur"]))
        sq = [self.send_wqe(qp, i, started=i < hi) for i in range(head, int(q["sq_prod"]))]
        sending = cur < hi and sq[cur - head].state == WqeState.STARTED
        return schema.Requester(
            req_psn=int(q["req_psn"]), una_psn=int(q["una_psn"]), hi_psn=int(q["req_hi_psn"]), ssn=int(q["ssn"]),
            limit_ssn=int(q["limit_ssn"]) if q["credits_valid"] else None, retry_left=int(q["retry_left"]),
            rnr_left=int(q["rnr_left"]), rnr_wait_ns=self._rnr_wait(q),
            gap_psn=int(q["gap_psn"]) if q["gap_valid"] else None, unacked=int(q["unacked_req"]),
            srtt_ns=int(q["srtt"]), rttvar_ns=int(q["rttvar"]), cur=cur - head, hi=hi - head,
            off=int(q["req_off"]) if sending else 0, sq=sq,
        )  # fmt: skip

    def _rnr_wait(self, q: np.void) -> int | None:
        if int(q["req_wait"]) != ReqWait.RNR:
            return None
        if int(q["timer"]) == TimerKind.NONE:
            return int(q["rnr_left_ns"])
        return max(0, int(q["deadline"]) - int(self.device.record["now"]))

    def send_wqe(self, qp: Qp, index: int, *, started: bool) -> schema.SendWqe:
        q, record = qp.record, self.device.record
        slot = index & int(q["sq_mask"])
        wqe = record["wqes"][int(q["sq_base"]) + slot]
        sge_base = int(q["sq_sge_base"]) + slot * qp.sq_sge_max
        opcode, flags = int(wqe["opcode"]), int(wqe["flags"])
        length = int(wqe["length"])
        inline = None
        if flags & SendFlags.INLINE:
            inline = record["sges"][sge_base : sge_base + qp.sq_sge_max].view(np.uint8)[:length].tobytes()
        state = int(wqe["state"]) if started else int(WqeState.POSTED)
        numbered = state in (WqeState.STARTED, WqeState.FAILED)
        binds, datagram = opcode in _BINDS, qp.type in (QpType.UD, QpType.GSI)
        region = self.device.mrs.get(int(wqe["bind_mr"])) if binds else None
        return schema.SendWqe(
            wr_id=int(wqe["wr_id"]), opcode=opcode, flags=flags, state=state,
            status=int(wqe["status"]) if state == WqeState.FAILED else 0,
            sges=[] if inline is not None else self._sges(sge_base, int(wqe["num_sge"])), inline=inline,
            remote_addr=int(wqe["remote_addr"]), rkey=int(wqe["rkey"]), imm=int(wqe["imm"]) if opcode in _IMM else 0,
            compare_add=int(wqe["compare_add"]) if opcode in _ATOMICS else 0,
            swap=int(wqe["swap"]) if opcode in _ATOMICS else 0,
            ah=self.ah_at.get(int(wqe["ah"])) if datagram else None, dqpn=int(wqe["dqpn"]) if datagram else 0,
            qkey=int(wqe["qkey"]) if datagram else 0, first_psn=int(wqe["first_psn"]) if numbered else 0,
            last_psn=int(wqe["last_psn"]) if numbered else 0, ssn=int(wqe["ssn"]) if numbered else 0,
            bind_length=length if binds else 0, bind_key=region.key if isinstance(region, Mr) else None,
            bind_access=int(wqe["access"]) if binds else 0,
        )  # fmt: skip

    def responder(self, qp: Qp) -> schema.Responder:
        q = qp.record
        message, ack = int(q["resp_op"]), int(q["ack_state"])
        writing = message == RespMsg.WRITE
        held = None
        if q["resp_wqe"]:
            sges = self._sges(int(q["resp_sge_base"]), int(q["resp_nsge"]))
            held = schema.RecvWqe(wr_id=int(q["resp_wr_id"]), sges=sges)
        first, rd = self._resources(qp)
        tail = int(q["rd_tail"])
        return schema.Responder(
            epsn=int(q["epsn"]), msn=int(q["msn"]), message=message, nak_sent=bool(q["nak_sent"]), ack=ack,
            ack_syndrome=int(q["ack_syndrome"]) if ack == AckState.NAK else 0,
            ack_psn=int(q["ack_psn"]) if ack == AckState.NAK else 0, held=held,
            off=int(q["resp_off"]) if message in (RespMsg.SEND, RespMsg.WRITE) else 0,
            va=int(q["resp_va"]) if writing else 0, resid=int(q["resp_resid"]) if writing else 0,
            key=int(q["resp_key"]) if writing else 0,
            rq=self._receives(q, int(q["rq_head"]), "rq_base", "rq_mask", "rq_sge_base", qp.rq_sge_max),
            rd=rd, rd_owed=tail - int(q["rd_done"]), rd_head=min(tail - int(q["rd_head"]), tail - first),
        )  # fmt: skip

    def _resources(self, qp: Qp) -> tuple[int, list[schema.RdRes]]:
        """Ring index of the first READ or atomic that may still matter, and all from there."""
        q = qp.record
        head, tail = int(q["rd_head"]), int(q["rd_tail"])
        first = max(0, min(head, tail - int(q["max_dest_rd_atomic"])))
        rd = []
        for i, r in enumerate(qp.resources(first), first):
            play = None
            if i >= head and int(r["state"]) == RdState.PENDING:
                play = schema.Play(
                    start_psn=int(r["start_psn"]), cur_psn=int(r["cur_psn"]), end_psn=int(r["end_psn"]),
                    stop=int(r["length"] if r["atomic"] else r["stop"]),
                )  # fmt: skip
                if r["atomic"]:
                    psn = int(r["first_psn"])
                    play = schema.Play(start_psn=psn, cur_psn=psn, end_psn=psn, stop=8)
            rd.append(
                schema.RdRes(
                    first_psn=int(r["first_psn"]), npsn=psn_diff(int(r["last_psn"]), int(r["first_psn"])) + 1,
                    msn=int(r["msn"]), key=int(r["key"]), va=int(r["va"]), length=int(r["length"]),
                    orig=int(r["orig"]) if r["atomic"] else None, play=play,
                )
            )  # fmt: skip
        return first, rd

    # --- events ---

    def events(self) -> list[schema.Event]:
        """What was handed out and not fetched, then what the engine has noted; missing pages are noted anew."""
        device, record = self.device, self.device.record
        found = []
        for event in device.async_events:
            number = _number(event.element)
            if number is not None:
                found.append(schema.Event(type=int(event.type), number=number))
        for i in range(int(record["event_cons"]), int(record["event_prod"])):
            noted = record["events"][i & (EVENT_ENTRIES - 1)]
            kind, index = EventType(int(noted["type"])), int(noted["index"])
            number = None if kind == EventType.PAGE_FAULT else _number(device.element(kind, index))
            if number is not None:
                found.append(schema.Event(type=int(kind), number=number))
        return found


def _number(element: object) -> int | None:
    if isinstance(element, Qp):
        return element.qpn
    if isinstance(element, Cq):
        return element.cqn
    return element.srqn if isinstance(element, Srq) else None


def _path(attr: AhAttr, dmac: bytes | None, sport: int | None) -> schema.Path:
    dgid = ipaddress.ip_address(attr.dgid)
    return schema.Path(
        dgid=gid_bytes(dgid), sgid_index=attr.sgid_index, dmac=dmac or b"", traffic_class=attr.traffic_class,
        flow_label=attr.flow_label, hop_limit=attr.hop_limit, sport=sport,
    )  # fmt: skip


def _reached(qp: Qp, attr: dict[str, Any]) -> int:
    """The last of RESET, INIT, RTR and RTS that the QP was configured for, wherever it is now."""
    if "timeout" in attr or (qp.type != QpType.RC and "sq_psn" in attr):
        return int(QpState.RTS)
    if "ah" in attr or qp.resumes_to == QpState.RTR:
        return int(QpState.RTR)
    return int(QpState.INIT) if "port" in attr else int(QpState.RESET)

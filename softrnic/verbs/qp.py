"""Queue pairs: creation, the state machine's effects on the record, posting."""

from __future__ import annotations

import errno
import ipaddress
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from softrnic.errors import VerbsError
from softrnic.layout import QP, Hold, MrKind, Probe, RdState, ReqWait, StopFlag, TimerKind
from softrnic.qp import admin
from softrnic.qp.machine import check_modify
from softrnic.qp.pagewait import FAULT_TIMER_START
from softrnic.qp.retransmit import CWND_MAX, CWND_START
from softrnic.slab import Slab
from softrnic.spec import DEFAULT_PKEY, GSI_QPN, PSN_MASK, Access, Mtu, QpState, QpType, SendFlags, WrOpcode
from softrnic.verbs import multicast
from softrnic.verbs.address import IpAddress, gid_bytes
from softrnic.verbs.cq import Cq
from softrnic.verbs.pd import AhAttr, with_mac, write_av
from softrnic.verbs.srq import Srq, put_rwqe
from softrnic.verbs.survival import POLICIES, Peer, Survival, survival
from softrnic.verbs.suspension import HOLD_RNR_TIMER, HOLDS, ON_THE_WIRE
from softrnic.verbs.wr import RecvWr, SendWr
from softrnic.wire.frame import flow_sport

if TYPE_CHECKING:
    from softrnic.verbs.pd import Pd


@dataclass(frozen=True)
class QpCap:
    """ibv_qp_cap."""

    max_send_wr: int = 64
    max_recv_wr: int = 64
    max_send_sge: int = 1
    max_recv_sge: int = 1
    max_inline_data: int = 0


# Ranges of the attributes of `modify`: name -> (lowest, highest).
_RANGES = {
    "pkey_index": (0, 0),
    "port": (1, 1),
    "qkey": (0, 0xFFFFFFFF),
    "dqpn": (0, 0xFFFFFF),
    "rq_psn": (0, PSN_MASK),
    "sq_psn": (0, PSN_MASK),
    "min_rnr_timer": (0, 31),
    "timeout": (0, 31),
    "retry_cnt": (0, 7),
    "rnr_retry": (0, 7),
}
_ANY_ACCESS = sum(Access)
_PATIENCE = ("timeout", "retry_cnt", "rnr_retry")
_SENDING = (QpState.RTS, QpState.SQD)


class Qp:
    """ibv_qp. Made by `Pd.create_qp`."""

    def __init__(
        self, pd: Pd, kind: QpType, send_cq: Cq, recv_cq: Cq, cap: QpCap, *, srq: Srq | None, sq_sig_all: bool,
        qpn: int | None,
    ) -> None:  # fmt: skip
        pd.check_alive()
        self.pd = pd
        self.device = device = pd.device
        self.type = QpType(kind)
        self.send_cq, self.recv_cq, self.srq = send_cq, recv_cq, srq
        for queue in (send_cq, recv_cq, *((srq,) if srq else ())):
            if queue.device is not device or not queue.alive:
                raise VerbsError(errno.EINVAL, f"the {type(queue).__name__} is of another device or destroyed")
        self._check_cap(cap, srq)
        if srq is not None and srq.pd is not pd:
            raise VerbsError(errno.EINVAL, "the SRQ is in another protection domain")
        if srq is not None and self.type == QpType.GSI:
            raise VerbsError(errno.EINVAL, "a GSI QP has no SRQ")
        if qpn == GSI_QPN and self.type != QpType.GSI:
            raise VerbsError(errno.EINVAL, f"QPN {qpn} is that of the GSI")
        self.qpn = device.choose_qpn(GSI_QPN if self.type == QpType.GSI else qpn)
        self.sq_size = 1 << max(0, cap.max_send_wr - 1).bit_length()
        self.rq_size = 0 if srq else 1 << max(0, cap.max_recv_wr - 1).bit_length()
        inline_slots = (cap.max_inline_data + 15) // 16
        self.sq_sge_max = max(1, cap.max_send_sge, inline_slots)
        self.rq_sge_max = srq.max_sge if srq else max(1, cap.max_recv_sge)
        self.cap = QpCap(
            self.sq_size, self.rq_size, self.sq_sge_max, self.rq_sge_max, inline_slots * 16 and self.sq_sge_max * 16
        )
        self.index = device.pools.qps.alloc()
        self._rd_slots = 0
        self._attr: dict[str, Any] = {}
        self._adjusted: dict[str, int] = {}
        self.record = device.record["qps"][self.index]
        with device.quiesced(), ExitStack() as undo:
            undo.callback(device.pools.qps.free, self.index)
            self._init_record(sq_sig_all, undo)
            device.bind_qpn(self.qpn, self.index)
            undo.pop_all()
        device.qps[self.index] = self
        pd.users += 1
        send_cq.users += 1
        recv_cq.users += 1
        if srq is not None:
            srq.users += 1

    def _check_cap(self, cap: QpCap, srq: Srq | None) -> None:
        attr = self.device.attr
        for name, value, top in (
            ("max_send_wr", cap.max_send_wr, attr.max_qp_wr),
            ("max_recv_wr", 0 if srq else cap.max_recv_wr, attr.max_qp_wr),
            ("max_send_sge", cap.max_send_sge, attr.max_sge),
            ("max_recv_sge", cap.max_recv_sge, attr.max_sge),
            ("max_inline_data", cap.max_inline_data, attr.max_inline_data),
        ):
            if not 0 <= value <= top:
                raise VerbsError(errno.EINVAL, f"{name} must be 0 to {top}, not {value}")

    def _init_record(self, sq_sig_all: bool, undo: ExitStack) -> None:
        """The record of a QP just created; its queues are claimed from the slabs, to be given back by `undo`."""
        slabs, q = self.device.slabs, self.record

        def claim(slab: Slab, count: int) -> int:
            base = slab.alloc(count)
            undo.callback(slab.free, base, count)
            return base

        self.device.record["qps"][self.index : self.index + 1] = np.zeros(1, QP)
        q["sq_base"], q["sq_mask"] = claim(slabs.wqes, self.sq_size), self.sq_size - 1
        q["sq_sge_base"], q["sq_sge_max"] = claim(slabs.sges, self.sq_size * self.sq_sge_max), self.sq_sge_max
        q["rq_mask"] = max(0, self.rq_size - 1)
        q["rq_sge_max"] = self.rq_sge_max
        if self.rq_size:
            q["rq_base"] = claim(slabs.rwqes, self.rq_size)
            q["rq_sge_base"] = claim(slabs.sges, self.rq_size * self.rq_sge_max)
        q["resp_sge_base"] = claim(slabs.sges, self.rq_sge_max)
        q["qpn"], q["func"], q["pdn"] = self.qpn, self.device.func, self.pd.pdn
        q["scq"], q["rcq"] = self.send_cq.index, self.recv_cq.index
        q["srq"] = -1 if self.srq is None else self.srq.index
        q["sq_sig_all"] = sq_sig_all
        q["max_inline"] = self.cap.max_inline_data
        q["pkey"] = DEFAULT_PKEY
        q["rnr_fault_timer"] = FAULT_TIMER_START
        q["pmtu"] = self.device.port.active_mtu
        self._reset_record()
        q["type"] = self.type

    def _reset_record(self) -> None:
        """RESET: queues empty, nothing outstanding (10.3.1.1)."""
        q = self.record
        for name in (
            "sq_prod", "sq_head", "sq_cur", "sq_hi", "req_off", "rq_prod", "rq_head", "rd_head", "rd_done", "rd_tail",
            "rd_out", "resp_off", "resp_resid", "resp_wqe", "resp_op", "ack_state", "nak_sent", "fault", "req_wait",
            "credits_valid", "gap_valid", "rtt_valid", "srtt", "rttvar", "rtt_min", "probes", "probe", "msn", "epsn",
            "req_psn", "una_psn", "unacked_req", "cwnd_credit", "sqd_notified", "comm_est", "last_wqe", "limit_ssn",
            "req_hi_psn", "quiet", "hold", "rnr_left_ns", "fault_tries", "stop",
        ):  # fmt: skip
            q[name] = 0
        q["ssn"] = 1
        q["cwnd"], q["ssthresh"] = CWND_START, CWND_MAX
        q["timer"] = TimerKind.NONE
        q["timer_slot"] = -1
        q["state"] = QpState.RESET

    # --- state ---

    @property
    def alive(self) -> bool:
        """False once it is destroyed."""
        return self.device.qps.get(self.index) is self

    @property
    def state(self) -> QpState:
        """The state the QP is in now; errors change it without a modify."""
        return QpState(int(self.record["state"]))

    def modify(self, state: QpState | None = None, **attr: Any) -> None:
        """ibv_modify_qp: go to `state` (default: stay) with attributes named as the state machine names them.

        `ah` is an AhAttr, `path_mtu` a Mtu, `access_flags` an Access; everything else a number. EINVAL says which
        attribute is missing, too many or out of range, and leaves the QP as it was.
        """
        if not self.alive:
            raise VerbsError(errno.EINVAL, f"QP {self.qpn:#x} was destroyed")
        old = self.state
        try:
            new = old if state is None else QpState(state)
        except ValueError as error:
            raise VerbsError(errno.EINVAL, str(error)) from None
        check_modify(self.type, old, new, frozenset(attr))
        if attr.pop("cur_state", old) != old:
            raise VerbsError(errno.EINVAL, f"cur_state: the QP is in {old.name}")
        if old == QpState.SUSPENDED and new in ON_THE_WIRE and new != self.resumes_to:
            where = f"the QP was suspended in {self.resumes_to.name}"
            raise VerbsError(errno.EINVAL, f"no transition from {old.name} to {new.name}: {where}")
        self._check_values(attr)
        if "ah" in attr:
            attr["ah"] = with_mac(self.device, attr["ah"])
        with self.device.quiesced():
            self._apply(attr)
            self._enter(old, new, bool(attr.get("en_sqd_async_notify")))
        self._attr.update(attr)

    def _check_values(self, attr: dict[str, Any]) -> None:
        top = self.device.attr.max_qp_rd_atom
        ranges = {**_RANGES, "max_rd_atomic": (0, top), "max_dest_rd_atomic": (0, top)}
        for name, value in attr.items():
            low, high = ranges.get(name, (0, 0))
            if name in ranges and not (isinstance(value, int) and low <= value <= high):
                raise VerbsError(errno.EINVAL, f"{name} must be {low} to {high:#x}, not {value!r}")
        access = attr.get("access_flags", 0)
        if not isinstance(access, int) or access & ~_ANY_ACCESS:
            raise VerbsError(errno.EINVAL, f"access_flags {access!r} are not ibv_access_flags")
        if "path_mtu" in attr:
            try:
                mtu = Mtu(attr["path_mtu"])
            except ValueError:
                raise VerbsError(errno.EINVAL, f"path_mtu {attr['path_mtu']!r} is not an ibv_mtu") from None
            if mtu.bytes > self.device.port.active_mtu:
                raise VerbsError(errno.EINVAL, f"path_mtu {mtu.bytes}: the port carries {self.device.port.active_mtu}")

    def _apply(self, attr: dict[str, Any]) -> None:
        q = self.record
        if "max_dest_rd_atomic" in attr:
            self._set_resources(attr["max_dest_rd_atomic"])
        if "ah" in attr:
            self._set_path(attr["ah"], attr.get("dqpn", int(q["dqpn"])))
        for name in ("dqpn", "qkey", "min_rnr_timer", "timeout", "retry_cnt", "rnr_retry", "max_rd_atomic", "port"):
            if name in attr and name not in self._adjusted:
                q[name] = attr[name]
        if "access_flags" in attr:
            q["access"] = int(Access(attr["access_flags"]))
        if "path_mtu" in attr:
            q["pmtu"] = Mtu(attr["path_mtu"]).bytes
        if "rq_psn" in attr:
            q["epsn"] = attr["rq_psn"]
        if "sq_psn" in attr:
            q["req_psn"] = q["req_hi_psn"] = q["una_psn"] = attr["sq_psn"]
        q["retry_left"], q["rnr_left"] = q["retry_cnt"], q["rnr_retry"]

    def _set_path(self, ah: AhAttr, dqpn: int) -> None:
        device = self.device
        write_av(device, self.index, ah, flow_sport(self.qpn, dqpn), self.pd.pdn)
        own, peer = device.query_gid(ah.sgid_index).ip, gid_bytes(ipaddress.ip_address(ah.dgid))
        self.record["gid_index"] = ah.sgid_index
        self.record["src_ip"] = np.frombuffer(gid_bytes(own), np.uint8)
        self.record["dst_ip"] = np.frombuffer(peer, np.uint8)

    def _set_resources(self, count: int) -> None:
        """Room to remember `count` READs and atomics; ENOMEM leaves the QP as it was."""
        slots = 1 << (count - 1).bit_length() if count else 0
        base = self.device.slabs.rd_res.alloc(slots) if slots else 0
        self._free_resources()
        self.record["max_dest_rd_atomic"] = count
        if slots:
            self._rd_slots = slots
            self.record["rd_base"], self.record["rd_mask"] = base, slots - 1
            self.device.record["rd_res"][base : base + self._rd_slots]["state"] = 0
        self.record["rd_head"] = self.record["rd_done"] = self.record["rd_tail"] = 0

    def _free_resources(self) -> None:
        if self._rd_slots:
            self.device.slabs.rd_res.free(int(self.record["rd_base"]), self._rd_slots)
            self._rd_slots = 0

    def _enter(self, old: QpState, new: QpState, notify: bool) -> None:
        """What entering `new` does beyond its attributes; `notify`: SQD says when it has drained."""
        if new == QpState.RESET:
            admin.forget(self.device.engine.tables, self.index)
            self._reset_record()
            self._attr.clear()
            self._adjusted.clear()
        elif new == QpState.ERR:
            if old != QpState.ERR:
                admin.to_error(self.device.engine.tables, self.index)
        else:
            if old == QpState.RTS and new == QpState.SQD:
                self.record["sqd_notified"] = not notify
            elif new == QpState.SUSPENDED:
                self.record["resume_to"] = old
                self.record["hold"] = Hold.SILENCE
            elif old == QpState.SUSPENDED:
                self.restart_requester()
            self.record["state"] = new
            self.device.ring_doorbell(self.index)

    def restart_requester(self) -> None:
        """Requests flow again, if need be after a RESUME that the peer acknowledges.

        The local ACK timeout runs in full from the next transmit on: no time away counts.
        """
        q = self.record
        q["quiet"] = 0
        if self.peer_may_stop and self.resumes_to in _SENDING:
            if int(q["req_wait"]) == ReqWait.RNR:
                q["rnr_left"] = min(int(q["rnr_left"]) + 1, int(q["rnr_retry"]))  # that wait is not sat out
            q["req_wait"], q["probe"], q["probes"], q["timer"] = ReqWait.RESUMED, Probe.DUE, 0, TimerKind.NONE
        elif int(q["timer"]) == TimerKind.ACK:
            q["timer"] = TimerKind.NONE

    @property
    def rnr_fault_timer(self) -> int:
        """RNR timer code of the first NAK for a request that needs a missing page; longer ones follow.

        Code 0, the longest there is, stays what it is.
        """
        return int(self.record["rnr_fault_timer"])

    @rnr_fault_timer.setter
    def rnr_fault_timer(self, code: int) -> None:
        if not 0 <= code <= 31:
            raise VerbsError(errno.EINVAL, f"rnr_fault_timer must be 0 to 31, not {code}")
        self.record["rnr_fault_timer"] = code

    # --- suspension ---

    @property
    def resumes_to(self) -> QpState:
        """The state itself, or of a suspended QP the one it returns to."""
        state = self.state
        return QpState(int(self.record["resume_to"])) if state == QpState.SUSPENDED else state

    def suspend_egress(self) -> None:
        """First phase of a suspension: no new requests, no timeouts; what arrives is still taken and answered."""
        if self.state not in (*ON_THE_WIRE, QpState.SUSPENDED):
            raise VerbsError(errno.EINVAL, f"a QP in {self.state.name} is not on the wire")
        with self.device.quiesced():
            self.record["quiet"] = 1

    def suspend(self, policy: str = "silence", *, rnr_timer: int = HOLD_RNR_TIMER) -> None:
        """Take the QP off the wire with its state whole; again, to change the policy.

        "silence": the peer hears nothing but the rest of a READ response already begun. "rnr": answers owed go out,
        then every request at the expected PSN gets an RNR NAK with `rnr_timer`, which costs the peer no retry. "stop":
        the same with NAK 5 to every request, for peers that know it (`peer_may_stop`).
        """
        if policy == "forward":
            raise VerbsError(errno.EINVAL, "packets are sent on by address: suspend the device so")
        if policy not in HOLDS:
            raise VerbsError(errno.EINVAL, f"policy {policy!r} is not one of {', '.join(HOLDS)}")
        if policy == "stop" and not self.peer_may_stop:
            raise VerbsError(errno.EINVAL, "the peer has not agreed to be stopped, and would take it for an error")
        if not 0 <= rnr_timer <= 31:
            raise VerbsError(errno.EINVAL, f"rnr_timer must be 0 to 31, not {rnr_timer}")
        self.suspend_egress()
        if self.state != QpState.SUSPENDED:
            self.modify(QpState.SUSPENDED)
        with self.device.quiesced():
            self.record["hold"], self.record["hold_timer"] = HOLDS[policy], rnr_timer
        self.device.ring_doorbell(self.index)

    def resume(self) -> None:
        """Back on the wire, from either phase; nothing happens to a QP that is not suspended."""
        if self.state == QpState.SUSPENDED:
            self.modify(self.resumes_to)
        elif self.record["quiet"]:
            with self.device.quiesced():
                self.restart_requester()
            self.device.ring_doorbell(self.index)

    def abort(self) -> None:
        """Give a move up: the QP goes on here as if nothing had happened."""
        self.resume()

    @property
    def settled(self) -> bool:
        """Whether nothing more leaves this QP by itself, so that its state may be saved."""
        q = self.record
        if self.state in ON_THE_WIRE:
            return False
        if self.state != QpState.SUSPENDED:
            return int(q["rd_head"]) == int(q["rd_tail"]) and not q["ack_state"]
        pending = [r for r in self.resources(int(q["rd_head"])) if int(r["state"]) == RdState.PENDING]
        if int(q["hold"]) != Hold.SILENCE:
            return not pending and not q["ack_state"]
        return not pending or int(pending[0]["cur_psn"]) == int(pending[0]["start_psn"])

    # --- what the peer will bear, and what we bear for a peer that is away ---

    def peer(self, policy: str = "silence", rnr_timer: int = HOLD_RNR_TIMER) -> Peer:
        """The peer, taken to be configured as this QP was told to be itself: nothing on the wire tells."""
        if policy not in POLICIES:
            raise VerbsError(errno.EINVAL, f"policy {policy!r} is not one of {', '.join(POLICIES)}")
        if policy == "stop" and not self.peer_may_stop:
            policy = "rnr"
        wanted = self.requested
        return Peer(
            wanted["timeout"], wanted["retry_cnt"], wanted["rnr_retry"], policy, rnr_timer, self.type == QpType.RC
        )  # fmt: skip

    def survival(self, pause_ns: int, policy: str = "silence", *, rnr_timer: int = HOLD_RNR_TIMER) -> Survival:
        """Whether the peer keeps its connection while this QP is suspended so for `pause_ns`."""
        return survival(self.peer(policy, rnr_timer), pause_ns, tuple(self._awaited()))

    def _awaited(self) -> Iterator[str]:
        """What the peer waits for, as far as it shows here."""
        q = self.record
        if self.type != QpType.RC or self.resumes_to not in (QpState.RTR, *_SENDING):
            return
        if owed := int(q["rd_tail"]) - int(q["rd_done"]):
            yield f"{owed} READs or atomics without their answer"
        if q["ack_state"]:
            yield "an acknowledgement not yet sent"
        if q["resp_op"]:
            yield "the rest of a message that it is sending"

    @property
    def requested(self) -> dict[str, int]:
        """`timeout`, `retry_cnt` and `rnr_retry` as they were set by `modify`."""
        return {name: int(self._attr.get(name, 0)) for name in _PATIENCE}

    @property
    def effective(self) -> dict[str, int]:
        """The same as the QP uses them now: those requested, or what `adjust` has put in their place."""
        return {name: int(self.record[name]) for name in _PATIENCE}

    @property
    def adjusted(self) -> dict[str, int]:
        """What `adjust` was last given."""
        return dict(self._adjusted)

    def adjust(
        self, *, timeout: int | None = None, retry_cnt: int | None = None, rnr_retry: int | None = None
    ) -> None:
        """Be more (or less) patient than was requested, while the peer is known to move; without arguments, no longer.

        What was requested stays as it was, and is what `query` says. Retries already spent stay spent.
        """
        given = {"timeout": timeout, "retry_cnt": retry_cnt, "rnr_retry": rnr_retry}
        changed = {name: value for name, value in given.items() if value is not None}
        if self.type != QpType.RC or self.resumes_to not in (*_SENDING, QpState.ERR):
            raise VerbsError(errno.EINVAL, f"a {self.type.name} QP in {self.state.name} waits for nobody")
        self._check_values(changed)
        q, before = self.record, self.effective
        with self.device.quiesced():
            self._adjusted = changed
            for name, value in {**self.requested, **changed}.items():
                q[name] = value
            for left, count in (("retry_left", "retry_cnt"), ("rnr_left", "rnr_retry")):
                q[left] = max(0, int(q[count]) - (before[count] - int(q[left])))

    # --- what is agreed with the peer beyond the standard ---

    @property
    def peer_may_stop(self) -> bool:
        """Whether both ends know NAK 5 and RESUME (MigrOS), by agreement outside of this; never without. RC only."""
        return bool(int(self.record["stop"]) & StopFlag.STOP)

    @peer_may_stop.setter
    def peer_may_stop(self, agreed: bool) -> None:
        self._agree(StopFlag.STOP, agreed)

    @property
    def peer_may_move(self) -> bool:
        """Whether a RESUME from another address is followed there. Whoever can forge one takes the connection over."""
        return bool(int(self.record["stop"]) & StopFlag.MOVE)

    @peer_may_move.setter
    def peer_may_move(self, agreed: bool) -> None:
        self._agree(StopFlag.MOVE, agreed)

    def _agree(self, flag: StopFlag, agreed: bool) -> None:
        if self.type != QpType.RC:
            raise VerbsError(errno.EINVAL, f"a {self.type.name} QP has no peer that waits")
        with self.device.quiesced():
            self.record["stop"] = int(self.record["stop"]) & ~flag | (flag if agreed else 0)

    def follow_peer(self) -> None:
        """The engine has noted that the peer resumed at another address: from now on that is where it is."""
        ah = self._attr["ah"]
        address = ipaddress.IPv6Address(self.record["moved_ip"].tobytes())
        moved = replace(ah, dgid=address.ipv4_mapped or address, dmac=self.record["moved_mac"].tobytes())
        with self.device.quiesced():
            self._set_path(moved, int(self.record["dqpn"]))
        self._attr["ah"] = moved

    def resources(self, first: int) -> list[np.void]:
        """The records of READs and atomics from ring index `first` on."""
        q, table = self.record, self.device.record["rd_res"]
        base, mask = int(q["rd_base"]), int(q["rd_mask"])
        return [table[base + (i & mask)] for i in range(first, int(q["rd_tail"]))]

    @property
    def attributes(self) -> dict[str, Any]:
        """The attributes set by `modify` so far, as they were given."""
        return dict(self._attr)

    def query(self) -> dict[str, Any]:
        """ibv_query_qp: the state and every attribute set so far, with both PSNs as they are now.

        `effective` are the timeout and retry counts in use, which `adjust` may have changed.
        """
        q = self.record
        now = {
            "state": self.state, "qpn": self.qpn, "type": self.type, "rq_psn": int(q["epsn"]),
            "sq_psn": int(q["req_hi_psn"]), "cap": self.cap, "sq_draining": self._draining(),
            "path_mtu": Mtu((int(q["pmtu"]) >> 7).bit_length() - 1),
        }  # fmt: skip
        if self.type == QpType.RC and "timeout" in self._attr:
            now["effective"] = self.effective
        return {**self._attr, **now}

    def _draining(self) -> bool:
        return self.state == QpState.SQD and int(self.record["sq_head"]) != int(self.record["sq_hi"])

    # --- posting ---

    def post_send(self, wr: SendWr | Sequence[SendWr]) -> None:
        """Post send work requests; ENOMEM when the queue is full, EINVAL for one that can never work."""
        if self.resumes_to in (QpState.RESET, QpState.INIT, QpState.RTR):
            raise VerbsError(errno.EINVAL, f"the QP is in {self.state.name}, sends need RTS")
        posted = 0
        try:
            for one in (wr,) if isinstance(wr, SendWr) else wr:
                self._put_send(one)
                posted += 1
        except OverflowError as error:
            raise VerbsError(errno.EINVAL, str(error)) from None
        finally:
            if posted:
                self.device.ring_doorbell(self.index)

    def _put_send(self, wr: SendWr) -> None:
        q, device = self.record, self.device
        prod = int(q["sq_prod"])
        if prod - int(q["sq_head"]) >= self.sq_size:
            raise VerbsError(errno.ENOMEM, f"send queue of QP {self.qpn:#x} is full ({self.sq_size})")
        flags, length, nsge = int(wr.flags) & ~SendFlags.INLINE, 0, len(wr.sges)
        slot = prod & (self.sq_size - 1)
        sge_index = int(q["sq_sge_base"]) + slot * self.sq_sge_max
        if wr.inline is not None:
            flags |= SendFlags.INLINE
            length, nsge = self._put_inline(sge_index, wr), 0
        elif nsge > self.sq_sge_max:
            raise VerbsError(errno.EINVAL, f"{nsge} SGEs, the queue takes {self.sq_sge_max}")
        else:
            sges = device.record["sges"]
            for i, sge in enumerate(wr.sges):
                sges[sge_index + i] = (sge.addr, sge.length, sge.lkey)
        wqe = device.record["wqes"][int(q["sq_base"]) + slot]
        wqe["wr_id"], wqe["opcode"], wqe["flags"] = wr.wr_id, wr.opcode, flags
        wqe["num_sge"], wqe["length"] = nsge, length
        wqe["remote_addr"], wqe["rkey"], wqe["imm"] = _signed(wr.remote_addr), wr.rkey, wr.imm
        if wr.opcode in (WrOpcode.ATOMIC_CMP_AND_SWP, WrOpcode.ATOMIC_FETCH_AND_ADD):
            wqe["compare_add"], wqe["swap"] = _signed(wr.compare_add), _signed(wr.swap)
        if self.type in (QpType.UD, QpType.GSI):
            if wr.ah is None or wr.ah.pd.device is not device:
                raise VerbsError(errno.EINVAL, "a datagram needs an address handle of its device")
            wqe["ah"], wqe["dqpn"], wqe["qkey"] = wr.ah.index, wr.dqpn, wr.qkey
        if wr.opcode in (WrOpcode.BIND_MW, WrOpcode.REG_MR):
            if wr.bind_mr is not None and wr.bind_mr.device is not device:
                raise VerbsError(errno.EINVAL, "the region to bind is of another device")
            wqe["length"], wqe["access"] = wr.bind_length, int(wr.access)
            wqe["bind_mr"] = -1 if wr.bind_mr is None else wr.bind_mr.index
        q["sq_prod"] = prod + 1

    def _put_inline(self, sge_index: int, wr: SendWr) -> int:
        data = bytes(wr.inline or b"")
        if len(data) > self.cap.max_inline_data:
            raise VerbsError(errno.EINVAL, f"{len(data)} inline bytes, the queue takes {self.cap.max_inline_data}")
        room = self.device.record["sges"][sge_index : sge_index + self.sq_sge_max].view(np.uint8)
        room[: len(data)] = np.frombuffer(data, np.uint8)
        return len(data)

    def post_recv(self, wr: RecvWr | Sequence[RecvWr]) -> None:
        """Post receive work requests; ENOMEM when the queue is full."""
        if self.srq is not None:
            raise VerbsError(errno.EINVAL, "this QP receives from an SRQ: post there")
        if self.state == QpState.RESET:
            raise VerbsError(errno.EINVAL, "the QP is in RESET, receives need INIT")
        q = self.record
        for one in (wr,) if isinstance(wr, RecvWr) else wr:
            prod = int(q["rq_prod"])
            if prod - int(q["rq_head"]) >= self.rq_size:
                raise VerbsError(errno.ENOMEM, f"receive queue of QP {self.qpn:#x} is full ({self.rq_size})")
            if len(one.sges) > self.rq_sge_max:
                raise VerbsError(errno.EINVAL, f"{len(one.sges)} SGEs, the queue takes {self.rq_sge_max}")
            slot = prod & (self.rq_size - 1)
            put_rwqe(
                self.device, int(q["rq_base"]) + slot, int(q["rq_sge_base"]) + slot * self.rq_sge_max, one
            )
            q["rq_prod"] = prod + 1
        if self.state == QpState.ERR:
            self.device.ring_doorbell(self.index)  # to be flushed

    # --- multicast (IBTA 10.5.2) ---

    @property
    def groups(self) -> list[IpAddress]:
        """The multicast groups it is attached to."""
        return self.device.adapter.groups.of(self.index) if self.alive else []

    def attach_mcast(self, group: str | IpAddress) -> None:
        """ibv_attach_mcast: receive what others send to an IP multicast group; again is harmless.

        EINVAL for another QP than UD and for an address that is no group, ENOSPC where too many are attached. What this
        NIC sends to the group itself does not come back to it.
        """
        multicast.attach(self, group)

    def detach_mcast(self, group: str | IpAddress) -> None:
        """ibv_detach_mcast; EINVAL where it is not attached. Destroying the QP detaches it, too."""
        multicast.detach(self, group)

    # --- end ---

    def destroy(self) -> None:
        """Destroy the QP at once, whatever is outstanding."""
        device, q = self.device, self.record
        if not self.alive:
            return
        for group in self.groups:
            self.detach_mcast(group)
        with device.quiesced():
            admin.forget(device.engine.tables, self.index)
            q["type"] = 0
            q["state"] = QpState.RESET
            device.unbind_qpn(self.qpn)
            device.record["avs"][self.index]["valid"] = 0
            self._unbind_windows()
            self._free_resources()
            device.slabs.wqes.free(int(q["sq_base"]), self.sq_size)
            device.slabs.sges.free(int(q["sq_sge_base"]), self.sq_size * self.sq_sge_max)
            device.slabs.sges.free(int(q["resp_sge_base"]), self.rq_sge_max)
            if self.rq_size:
                device.slabs.rwqes.free(int(q["rq_base"]), self.rq_size)
                device.slabs.sges.free(int(q["rq_sge_base"]), self.rq_size * self.rq_sge_max)
        del device.qps[self.index]
        device.pools.qps.free(self.index)
        self.pd.users -= 1
        self.send_cq.users -= 1
        self.recv_cq.users -= 1
        if self.srq is not None:
            self.srq.users -= 1
        self.record = np.zeros(1, QP)[0]  # in RESET for ever: the place may soon be another QP's

    def _unbind_windows(self) -> None:
        """Type 2 windows bound on this QP end with it (10.6.7.2.5)."""
        mrs = self.device.record["mrs"]
        for mw in [m for m in self.device.mrs.values() if int(mrs[m.index]["kind"]) == MrKind.MW2]:
            record = mrs[mw.index]
            if record["valid"] and int(record["qp"]) == self.index:
                record["valid"] = 0
                mrs[int(record["parent"])]["windows"] -= 1

    def __enter__(self) -> Qp:
        return self

    def __exit__(self, *exc: object) -> None:
        self.destroy()


def _signed(value: int) -> int:
    """A 64-bit number as the i8 field that holds it."""
    return ((value + (1 << 63)) & ((1 << 64) - 1)) - (1 << 63)

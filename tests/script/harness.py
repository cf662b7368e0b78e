"""Packet scripts: one engine, a peer made of packets written by hand, and a clock in hand.

A script posts, expects, injects and advances, one rule of the specification at a time:

    with Script(psn=100) as s:
        s.post(WrOpcode.SEND, 5, wr_id=1)
        s.expect(Op.SEND_ONLY, psn=100, ackreq=1, payload=s.memory(0, 5))
        s.ack(psn=100, msn=1)
        s.sent(wr_id=1)

Packets in both directions go through scapy, which shares nothing with softrnic.wire: what the engine sends is
dissected, built again from its fields and compared, ICRC and all. Leaving the block asserts that the engine has
nothing more to say: no packet, no completion, no event that the script did not ask for.
"""

from __future__ import annotations

import mmap
from collections import deque
from types import SimpleNamespace, TracebackType
from typing import Any

import numpy as np

from softrnic.counters import C
from softrnic.layout import FRAME_HEADROOM, make_ring
from softrnic.spec import GSI_QKEY, EventType, Nak, Op, Service
from softrnic.verbs import (
    Access,
    Ah,
    AhAttr,
    AsyncEvent,
    Cq,
    Device,
    Mtu,
    QpCap,
    QpState,
    QpType,
    RecvWr,
    SendFlags,
    SendWr,
    Sge,
    Wc,
    WcStatus,
    WrOpcode,
)
from tests import scapy_roce as sr

US, MS, S = 1_000, 1_000_000, 1_000_000_000
TICK = 4096  # ns: how late a timer may be

OWN_MAC, PEER_MAC = "02:00:00:00:00:01", "02:00:00:00:00:02"
FAMILIES = {"v4": ("10.0.0.1", "10.0.0.2"), "v6": ("fd00::1", "fd00::2")}
PEER_QPN = 0x456
PEER_VA, PEER_RKEY = 0x7000_0000_0010, 0xABCD01  # what the script's requests name at the peer
QKEY = 0x1234
ALL_ACCESS = Access.LOCAL_WRITE | Access.REMOTE_WRITE | Access.REMOTE_READ | Access.REMOTE_ATOMIC | Access.MW_BIND
PAGE = 4096
SIZE = 16 * PAGE

SERVICE = {QpType.RC: Service.RC, QpType.UC: Service.UC, QpType.UD: Service.UD, QpType.GSI: Service.UD}
NO_CREDITS = 0x1F  # ACK syndrome: credit count not valid

# Our name of each field of an extension header: scapy's layer and its name there.
EXTENSION_FIELDS = {
    sr.RETH: {"va": "va", "rkey": "rkey", "dmalen": "dmalen"},
    sr.AETH: {"syndrome": "syndrome", "msn": "msn"},
    sr.AtomicETH: {"va": "va", "rkey": "rkey", "swap": "swap", "compare": "compare"},
    sr.AtomicAckETH: {"orig": "orig"},
    sr.ImmDt: {"imm": "imm"},
    sr.IETH: {"inv_rkey": "rkey"},
    sr.DETH: {"qkey": "qkey", "sqpn": "sqpn"},
    sr.CNPPadding: {},
}


def rnr(timer: int) -> int:
    """Syndrome of an RNR NAK."""
    return 0x20 | timer


def nak(code: int) -> int:
    """Syndrome of a NAK."""
    return 0x60 | code


def page_aligned(size: int) -> np.ndarray:
    """Bytes that start on a page boundary."""
    return np.frombuffer(mmap.mmap(-1, size), np.uint8)


def dissect(data: bytes) -> SimpleNamespace:
    """A frame as scapy reads it, checked to be what scapy would write from the same fields."""
    packet = sr.Ether(data)
    bth = packet[sr.BTH]
    fields: dict[str, Any] = {
        "opcode": bth.opcode, "se": bth.solicited, "padcnt": bth.padcount, "pkey": bth.pkey, "dqpn": bth.dqpn,
        "ackreq": bth.ackreq, "psn": bth.psn, "frame": data, "packet": packet,
    }  # fmt: skip
    assert (bth.version, bth.fecn, bth.becn, bth.resv6, bth.resv7) == (0, 0, 0, 0, 0)
    layer = bth.payload
    for kind in sr.extensions(bth.opcode):
        assert type(layer) is kind, f"{bth.opcode:#x}: {type(layer)} instead of {kind}"
        fields |= {ours: getattr(layer, theirs) for ours, theirs in EXTENSION_FIELDS[kind].items()}
        layer = layer.payload
    padded = bytes(layer)
    assert len(padded) % 4 == 0
    assert padded[len(padded) - bth.padcount :] == bytes(bth.padcount)
    fields["payload"] = padded[: len(padded) - bth.padcount]
    del bth.icrc, packet[sr.UDP].len
    if sr.IP in packet:
        del packet[sr.IP].len, packet[sr.IP].chksum
    else:
        del packet[sr.IPv6].plen
    assert bytes(packet) == data
    return SimpleNamespace(**fields)


class Script:
    """One device with one QP in RTS (or in `state`), and its peer under the script's control."""

    def __init__(
        self,
        kind: QpType = QpType.RC,
        *,
        state: QpState = QpState.RTS,
        mtu: Mtu = Mtu.MTU_256,
        psn: int = 100,
        peer_psn: int = 500,
        family: str = "v4",
        vlan: int | None = None,
        timeout: int = 14,
        retry_cnt: int = 7,
        rnr_retry: int = 7,
        min_rnr_timer: int = 1,
        max_rd_atomic: int = 4,
        max_dest_rd_atomic: int = 4,
        access: Access = ALL_ACCESS,
        cap: QpCap | None = None,
        cqe: int = 64,
        recv_cqe: int = 64,
        sq_sig_all: bool = False,
        srq: int = 0,
        qkey: int = QKEY,
        traffic_class: int = 0,
    ) -> None:
        self.kind, self.family, self.vlan = kind, family, vlan
        self.own_ip, self.peer_ip = FAMILIES[family]
        self.device = Device()
        self.gid = self.device.add_gid(self.own_ip, bytes.fromhex(OWN_MAC.replace(":", "")), vlan)
        self.pd = self.device.alloc_pd()
        self.scq, self.rcq = self.device.create_cq(cqe), self.device.create_cq(recv_cqe)
        self.buf = page_aligned(SIZE)
        self.buf[:] = np.arange(SIZE) % 251
        self.mr = self.pd.reg_mr(self.buf, ALL_ACCESS)
        self.srq = self.pd.create_srq(srq, 2) if srq else None
        self.qp = self.pd.create_qp(
            kind, self.scq, self.rcq, cap or QpCap(16, 16, 4, 4, 64), srq=self.srq, sq_sig_all=sq_sig_all
        )
        self.ah_attr = AhAttr(
            self.peer_ip, self.gid, bytes.fromhex(PEER_MAC.replace(":", "")), traffic_class=traffic_class
        )
        self.qkey = GSI_QKEY if kind == QpType.GSI else qkey
        self.rtr = {"ah": self.ah_attr, "path_mtu": mtu, "dqpn": PEER_QPN, "rq_psn": peer_psn}
        self.rts: dict[str, Any] = {"sq_psn": psn}
        if kind == QpType.RC:
            self.rtr |= {"max_dest_rd_atomic": max_dest_rd_atomic, "min_rnr_timer": min_rnr_timer}
            self.rts |= {
                "timeout": timeout, "retry_cnt": retry_cnt, "rnr_retry": rnr_retry, "max_rd_atomic": max_rd_atomic
            }  # fmt: skip
        self.init: dict[str, Any] = {"pkey_index": 0, "port": 1}
        if kind in (QpType.UD, QpType.GSI):
            self.init["qkey"], self.rtr = self.qkey, {}
        else:
            self.init["access_flags"] = access
        self.ah: Ah | None = self.pd.create_ah(self.ah_attr) if kind in (QpType.UD, QpType.GSI) else None
        self.pmtu = mtu.bytes
        self.now = 10 * S
        self._tx, self._rx = make_ring(8), make_ring(1)
        self._out: deque[tuple[int, bytes]] = deque()
        self.notified: list[Cq] = []
        for cq in (self.scq, self.rcq):
            cq.notified = lambda cq=cq: self.notified.append(cq)  # type: ignore[method-assign]
        self.bring_to(state)

    def bring_to(self, state: QpState) -> None:
        """Walk the QP from RESET up to `state`."""
        for step, attr in ((QpState.INIT, self.init), (QpState.RTR, self.rtr), (QpState.RTS, self.rts)):
            if step <= state:
                self.qp.modify(step, **attr)

    def __enter__(self) -> Script:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        if error is None:
            self.expect_nothing()
            assert self.scq.poll() == []
            assert self.rcq.poll() == []
            assert self.events() == []

    # --- memory ---

    def memory(self, at: int = 0, length: int = SIZE) -> bytes:
        """Bytes of the registered buffer."""
        return self.buf[at : at + length].tobytes()

    @property
    def va(self) -> int:
        """Address of the registered buffer, for the peer's requests."""
        return self.mr.addr

    # --- post ---

    def post(self, opcode: WrOpcode, length: int = 0, at: int = 0, **wr: Any) -> None:
        """Post a send work request over buf[at : at + length]; atomics take their eight bytes by themselves."""
        if opcode in (WrOpcode.ATOMIC_CMP_AND_SWP, WrOpcode.ATOMIC_FETCH_AND_ADD):
            length = 8
        wr.setdefault("sges", [self.mr.sge(at, length)] if length else [])
        wr.setdefault("remote_addr", PEER_VA)
        wr.setdefault("rkey", PEER_RKEY)
        if self.ah is not None:
            wr = {"ah": self.ah, "dqpn": PEER_QPN, "qkey": self.qkey, **wr}
        self.qp.post_send(SendWr(opcode, **wr))

    def post_recv(self, length: int = 0, at: int = 0, wr_id: int = 0, sges: list[Sge] | None = None) -> None:
        """Post a receive of buf[at : at + length], to the QP or its SRQ."""
        wr = RecvWr([self.mr.sge(at, length)] if sges is None else sges, wr_id)
        (self.qp if self.srq is None else self.srq).post_recv(wr)

    # --- expect ---

    def _pump(self) -> None:
        ring = self._tx
        while True:
            n = self.device.engine.transmit(ring, self.now)
            for frame in ring.frames[:n]:
                off = int(frame["off"])
                assert frame["seg"] == 0
                self._out.append((self.now, ring.slab[off : off + int(frame["len"])].tobytes()))
            if n < len(ring.frames):
                return

    def expect(self, op: int, **fields: Any) -> SimpleNamespace:
        """The next packet the engine sends has this opcode (of the QP's transport) and these fields."""
        self._pump()
        assert self._out, f"nothing was sent; expected {Op(op).name}"
        at, data = self._out.popleft()
        got = dissect(data)
        got.at = at
        expected = {"opcode": SERVICE[self.kind] | op, "dqpn": PEER_QPN, "pkey": 0xFFFF, **fields}
        actual = {name: getattr(got, name, None) for name in expected}
        assert actual == expected
        self._check_link(got.packet)
        return got

    def _check_link(self, packet: Any) -> None:
        assert (packet[sr.Ether].src, packet[sr.Ether].dst) == (OWN_MAC, PEER_MAC)
        assert (packet[sr.Dot1Q].vlan if sr.Dot1Q in packet else None) == self.vlan
        ip = packet[sr.IP] if self.family == "v4" else packet[sr.IPv6]
        assert (ip.src, ip.dst) == (self.own_ip, self.peer_ip)

    def expect_ack(self, psn: int, msn: int, **fields: Any) -> SimpleNamespace:
        """A positive acknowledgement."""
        got = self.expect(Op.ACKNOWLEDGE, psn=psn, msn=msn, payload=b"", **fields)
        assert got.syndrome >> 5 == 0
        return got

    def expect_nak(self, psn: int, code: Nak, **fields: Any) -> SimpleNamespace:
        """A negative acknowledgement."""
        return self.expect(Op.ACKNOWLEDGE, psn=psn, syndrome=nak(code), **fields)

    def expect_rnr(self, psn: int, timer: int = 1, **fields: Any) -> SimpleNamespace:
        """An RNR NAK."""
        return self.expect(Op.ACKNOWLEDGE, psn=psn, syndrome=rnr(timer), **fields)

    def expect_nothing(self) -> None:
        """The engine has nothing to send."""
        self._pump()
        assert [(at, dissect(data)) for at, data in self._out] == []

    def flush_wire(self) -> list[SimpleNamespace]:
        """Whatever the engine sends now, unexamined but for its form."""
        self._pump()
        taken = [dissect(data) for _, data in self._out]
        self._out.clear()
        return taken

    # --- inject ---

    def inject(self, op: int, psn: int, payload: bytes = b"", **fields: Any) -> None:
        """A packet of the peer arrives. Unnamed fields are what a well-behaved peer would send."""
        self.deliver(self.build(op, psn, payload, **fields))

    def build(self, op: int, psn: int, payload: bytes = b"", **fields: Any) -> bytes:
        """A frame of the peer. `service`, `src_ip`, `dst_ip` and every header field may be given."""
        values = {
            "va": self.va, "rkey": self.mr.rkey, "dmalen": len(payload), "syndrome": NO_CREDITS, "msn": 0, "swap": 0,
            "compare": 0, "orig": 0, "imm": 0, "inv_rkey": 0, "qkey": self.qkey, "sqpn": PEER_QPN, **fields,
        }  # fmt: skip
        opcode = values.get("service", SERVICE[self.kind]) | op
        packet = sr.Ether(src=PEER_MAC, dst=OWN_MAC)
        if self.vlan is not None:
            packet /= sr.Dot1Q(vlan=self.vlan)
        src, dst = values.get("src_ip", self.peer_ip), values.get("dst_ip", self.own_ip)
        packet /= sr.IP(src=src, dst=dst, flags="DF", id=0) if self.family == "v4" else sr.IPv6(src=src, dst=dst)
        packet /= sr.UDP(sport=0xC123, dport=4791, chksum=0)
        packet /= sr.BTH(
            opcode=opcode, solicited=values.get("se", 0), migreq=1, padcount=values.get("padcnt", -len(payload) % 4),
            version=values.get("tver", 0), pkey=values.get("pkey", 0xFFFF), dqpn=values.get("dqpn", self.qp.qpn),
            ackreq=values.get("ackreq", 0), psn=psn,
        )  # fmt: skip
        for layer in sr.extensions(opcode):
            packet /= layer(**{theirs: values[ours] for ours, theirs in EXTENSION_FIELDS[layer].items()})
        if payload:
            packet /= sr.Raw(payload + bytes(-len(payload) % 4))
        return bytes(packet)

    def deliver(self, data: bytes) -> None:
        """These very bytes arrive."""
        self._rx.slab[FRAME_HEADROOM : FRAME_HEADROOM + len(data)] = np.frombuffer(data, np.uint8)
        self._rx.frames[0] = (FRAME_HEADROOM, len(data), 0, 0, 0)
        self.device.engine.receive(self._rx, 1, self.now)

    def ack(self, psn: int, msn: int = 0, credit: int = NO_CREDITS) -> None:
        """The peer acknowledges."""
        self.inject(Op.ACKNOWLEDGE, psn, syndrome=credit, msn=msn)

    def nak(self, psn: int, code: int) -> None:
        """The peer answers a request with a NAK."""
        self.inject(Op.ACKNOWLEDGE, psn, syndrome=nak(code))

    def rnr_nak(self, psn: int, timer: int = 1) -> None:
        """The peer is not ready."""
        self.inject(Op.ACKNOWLEDGE, psn, syndrome=rnr(timer))

    # --- advance ---

    def advance(self, ns: int) -> None:
        """Let time pass; timers run when they are due, and what they send is kept for `expect`."""
        end = self.now + ns
        while (deadline := self.device.engine.next_deadline()) is not None and deadline <= end:
            self.now = max(self.now, deadline)
            self.device.engine.on_timer(self.now)
            self._pump()
        self.now = end

    # --- completions and events ---

    def sent(self, wr_id: int, status: WcStatus = WcStatus.SUCCESS, **fields: Any) -> Wc:
        """The next completion of the send queue."""
        return self._completion(self.scq, wr_id, status, fields)

    def received(self, wr_id: int, status: WcStatus = WcStatus.SUCCESS, **fields: Any) -> Wc:
        """The next completion of the receive queue."""
        return self._completion(self.rcq, wr_id, status, fields)

    def _completion(self, cq: Cq, wr_id: int, status: WcStatus, fields: dict[str, Any]) -> Wc:
        taken = cq.poll(1)
        assert taken, f"no completion; expected wr_id {wr_id} {status.name}"
        expected = {"wr_id": wr_id, "status": status, "qpn": self.qp.qpn, **fields}
        assert {name: getattr(taken[0], name) for name in expected} == expected
        return taken[0]

    def nothing_completed(self) -> None:
        """No work request has completed."""
        assert self.scq.poll() == self.rcq.poll() == []

    def events(self) -> list[AsyncEvent]:
        """Asynchronous events not yet taken."""
        self.device.dispatch_events()
        taken = list(self.device.async_events)
        self.device.async_events.clear()
        return taken

    def expect_event(self, kind: EventType, element: Any = None) -> None:
        """The next asynchronous event, about the QP unless said otherwise."""
        self.device.dispatch_events()
        assert self.device.async_events, f"no event; expected {kind.name}"
        assert self.device.async_events.popleft() == (kind, self.qp if element is None else element)

    def expect_notified(self, *cqs: Cq) -> None:
        """These CQs, and no others, have called for attention since the last look."""
        self.device.dispatch_events()
        taken, self.notified = self.notified, []
        assert [cq.cqn for cq in taken] == [cq.cqn for cq in cqs]

    def count(self, which: C) -> int:
        """A counter of the device."""
        return self.device.counter(which)


SIGNALED, FENCE, SOLICITED = SendFlags.SIGNALED, SendFlags.FENCE, SendFlags.SOLICITED
UNSIGNALED = SendFlags(0)

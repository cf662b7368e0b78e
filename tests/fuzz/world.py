"""One epoch's surroundings: a device, the QP under fuzz in some state, regions of every kind, guards between them.

Everything is made through verbs, from a seed. Around the arena lie pages that nobody may touch at all: whatever strays
further than the guards ends the process.
"""

from __future__ import annotations

import ctypes
import mmap
from dataclasses import dataclass
from random import Random

import numpy as np

from softrnic.layout import MR, QP, Hold, make_ring
from softrnic.spec import GSI_QKEY, Service
from softrnic.verbs import (
    Access,
    AhAttr,
    Cq,
    Device,
    Mr,
    Mtu,
    Mw,
    Pd,
    Qp,
    QpCap,
    QpState,
    QpType,
    RecvWr,
    SendFlags,
    SendWr,
    Sge,
    WrOpcode,
)
from tests.fuzz.records import CANARY, FUZZ, KEPT, KEPT_BYTES, REGION, World
from tests.sim.chance import seed_chance

PAGE = mmap.PAGESIZE
PEER_QPN = 0x456
OWN_MAC, PEER_MAC = b"\x02\x00\x00\x00\x00\x01", b"\x02\x00\x00\x00\x00\x02"
FAMILIES = (("10.0.0.1", "10.0.0.2"), ("fd00::1", "fd00::2"))
QKEY = 0x1234
BYSTANDER_QPN = 0x5A17C3  # no single byte away from any other
FULL = Access.LOCAL_WRITE | Access.REMOTE_WRITE | Access.REMOTE_READ | Access.REMOTE_ATOMIC | Access.MW_BIND
SERVICE = {QpType.RC: Service.RC, QpType.UC: Service.UC, QpType.UD: Service.UD, QpType.GSI: Service.UD}
RECVS, SENDS = 16, 16
_BURST_SLOTS = 16
_WINDOW_AT = 100
_NOISE = np.frombuffer(np.random.default_rng(4791).bytes(16384), np.uint8).copy()

_STATES = (
    [QpState.RTS] * 14 + [QpState.RTR] * 5 + [QpState.SQD] * 3 + [QpState.SUSPENDED] * 3
    + [QpState.ERR, QpState.SQE, QpState.INIT, QpState.RESET]
)  # fmt: skip


@dataclass(frozen=True)
class Setting:
    """What an epoch is about."""

    kind: QpType
    state: QpState
    srq: bool
    hold: Hold
    family: int
    vlan: int | None
    mtu: Mtu
    burst: int
    offload: bool
    rd_atomic: int
    access: Access

    def __str__(self) -> str:
        words = [self.kind.name, self.state.name, f"MTU {self.mtu.bytes}", f"IPv{4 + 2 * self.family}"]
        words += [f"{self.burst} frames at a time"] * (self.burst > 1) + ["SRQ"] * self.srq
        words += [f"VLAN {self.vlan}"] * (self.vlan is not None) + ["super-frames"] * self.offload
        words += [f"{self.hold.name}"] * (self.state == QpState.SUSPENDED)
        return ", ".join(words)


def draw_setting(kind: QpType, seed: int, epoch: int) -> Setting:
    """The setting of one epoch."""
    random = Random(f"{kind.name} {seed} {epoch}")
    state = random.choice(_STATES)
    if state == QpState.SQE and kind == QpType.RC:
        state = QpState.RTS
    return Setting(
        kind=kind, state=state, srq=kind != QpType.GSI and random.random() < 0.3,
        hold=random.choice([Hold.SILENCE, Hold.RNR]),
        family=int(random.random() < 0.3), vlan=random.choice([None, None, None, 7]),
        mtu=random.choice([Mtu.MTU_256, Mtu.MTU_256, Mtu.MTU_256, Mtu.MTU_512, Mtu.MTU_1024, Mtu.MTU_4096]),
        burst=random.choice([1, 1, 1, 1, 4, _BURST_SLOTS]), offload=random.random() < 0.3,
        rd_atomic=random.choice([1, 2, 4, 16]),
        access=random.choice([*[FULL] * 4, Access.LOCAL_WRITE | Access.REMOTE_WRITE, Access.REMOTE_READ]),
    )  # fmt: skip


class Arena:
    """Memory between two untouchable pages, handed out in pieces with gaps; what is not loose must not change."""

    def __init__(self, size: int) -> None:
        size = -(-size // PAGE) * PAGE
        self.map = mmap.mmap(-1, size + 2 * PAGE)
        whole = np.frombuffer(self.map, np.uint8)
        for at in (0, size + PAGE):
            self._protect(whole.ctypes.data + at, 0)
        self.bytes = whole[PAGE : PAGE + size]
        self._at = 64
        self._loose: list[tuple[int, int]] = []

    def _protect(self, address: int, prot: int) -> None:
        if ctypes.CDLL(None, use_errno=True).mprotect(ctypes.c_void_p(address), PAGE, prot):
            raise OSError(ctypes.get_errno(), "mprotect")

    def piece(self, length: int, *, align: int = 1, odd: int = 0, loose: bool) -> np.ndarray:
        """`length` bytes, `odd` behind a multiple of `align`; `loose`: they may change."""
        start = -(-self._at // align) * align + odd
        self._at = start + length + 24
        assert self._at <= len(self.bytes), "arena too small"
        if loose:
            self._loose.append((start, length))
        return self.bytes[start : start + length]

    def canaries(self) -> np.ndarray:
        """Everything that is not loose, as CANARY records."""
        found, at = [], 0
        for start, length in [*sorted(self._loose), (len(self.bytes), 0)]:
            if start > at:
                found.append((at, start - at))
            at = start + length
        return np.array(found, CANARY)


class Epoch:
    """The World of one epoch, and the objects that must live as long."""

    def __init__(self, setting: Setting, seed: tuple[int, ...]) -> None:
        self.setting = s = setting
        self.random = Random(f"{s} {seed}")
        self.device = Device()
        if s.offload:
            self.device.engine.set_offload(65535, 64)
        own, peer = FAMILIES[s.family]
        self.gid = self.device.add_gid(own, OWN_MAC, s.vlan)
        self.path = AhAttr(peer, self.gid, PEER_MAC)
        self.pd, self.foreign = self.device.alloc_pd(), self.device.alloc_pd()
        self.scq, self.rcq = self.device.create_cq(256), self.device.create_cq(256)
        connected = s.kind in (QpType.RC, QpType.UC)
        self.mtu = s.mtu.bytes if connected else self.device.port.active_mtu  # payload of a packet
        self.arena = Arena(64 * 1024 + 40 * self.mtu)
        self.arena.bytes[:] = np.resize(_NOISE, len(self.arena.bytes))
        self.srq = self.pd.create_srq(RECVS, 2) if s.srq else None
        self.qp = self._create_qp(self.scq, self.rcq)
        self.bystander = self.pd.create_qp(QpType.RC, *self._cqs(), QpCap(4, 4, 1, 1, 0), qpn=BYSTANDER_QPN)
        self._bring(self.bystander, QpType.RC, QpState.RTS)
        self._bring(self.qp, s.kind, self._saved_state())
        self._make_regions()
        if self._saved_state() == QpState.RTS:
            self._bind_window()
            self._make_sends()
        self._make_receives()
        assert (self.qp.sq_size, self.qp.rq_size or RECVS) == (SENDS, RECVS)
        self.world = self._make_world(seed)

    def _cqs(self) -> tuple[Cq, Cq]:
        cq = self.device.create_cq(16)
        return cq, cq

    def _create_qp(self, scq: Cq, rcq: Cq) -> Qp:
        kind = self.setting.kind
        cap = QpCap(SENDS, RECVS, 3, 2, 32)
        return self.pd.create_qp(kind, scq, rcq, cap, srq=self.srq, sq_sig_all=True)

    def _saved_state(self) -> QpState:
        """How far verbs bring the QP; the kernel does the rest."""
        early = (QpState.RESET, QpState.INIT, QpState.RTR)
        return self.setting.state if self.setting.state in early else QpState.RTS

    def _bring(self, qp: Qp, kind: QpType, to: QpState) -> None:
        s = self.setting
        steps: list[tuple[QpState, dict[str, object]]]
        if kind in (QpType.UD, QpType.GSI):
            steps = [
                (QpState.INIT, {"pkey_index": 0, "port": 1, "qkey": GSI_QKEY if kind == QpType.GSI else QKEY}),
                (QpState.RTR, {}), (QpState.RTS, {"sq_psn": 0}),
            ]  # fmt: skip
        else:
            rtr: dict[str, object] = {"ah": self.path, "path_mtu": s.mtu, "dqpn": PEER_QPN, "rq_psn": 0}
            rts: dict[str, object] = {"sq_psn": 0}
            if kind == QpType.RC:
                rtr |= {"max_dest_rd_atomic": s.rd_atomic, "min_rnr_timer": 1 + self.random.randrange(31)}
                rts |= {
                    "timeout": 8, "retry_cnt": self.random.randrange(8), "rnr_retry": self.random.choice([1, 7]),
                    "max_rd_atomic": s.rd_atomic,
                }  # fmt: skip
            steps = [
                (QpState.INIT, {"pkey_index": 0, "port": 1, "access_flags": s.access}),
                (QpState.RTR, rtr), (QpState.RTS, rts),
            ]  # fmt: skip
        for state, attr in steps:
            if state <= to:
                qp.modify(state, **attr)

    # --- memory ---

    def _region(self, length: int, access: Access, *, pd: Pd | None = None, align: int = 1) -> Mr:
        odd = 0 if align > 1 else self.random.randrange(8)
        loose = pd is None and bool(access & (Access.REMOTE_WRITE | Access.REMOTE_ATOMIC))
        piece = self.arena.piece(length, align=align, odd=odd, loose=loose)
        chosen = (17 + len(self.device.mrs) << 32) + 8 * self.random.randrange(512)
        iova = None if self.random.random() < 0.5 else chosen
        return (pd or self.pd).reg_mr(piece, access, iova=iova)

    def _make_regions(self) -> None:
        """rw, atomic, read-only, write-only, local, of another PD, gone; the last two are for invalidation."""
        n = self.mtu
        self.local = self._region(2 * n + 3, Access.LOCAL_WRITE)
        self.gone = self._region(64, FULL)
        self.regions: list[Mr] = [
            self._region(3 * n + 37, Access.LOCAL_WRITE | Access.REMOTE_WRITE | Access.REMOTE_READ),
            self._region(64, Access.LOCAL_WRITE | Access.REMOTE_ATOMIC, align=8),
            self._region(2 * n + 5, Access.REMOTE_READ),
            self._region(2 * n + 5, Access.LOCAL_WRITE | Access.REMOTE_WRITE),
            self.local,
            self._region(256, FULL, pd=self.foreign, align=8),
        ]
        self.window_parent = self._region(512, Access.LOCAL_WRITE | Access.MW_BIND)
        self.window: Mw | None = None
        self.spare = self._region(128, FULL, align=8)

    def _make_receives(self) -> None:
        """A receive for every slot: some small, some in two pieces, one with a key that is not valid."""
        if self._saved_state() == QpState.RESET:
            return
        n = self.mtu
        queue = self.srq or self.qp
        target = self.arena.piece(RECVS * (n + n // 2 + 88), loose=True)
        mr = self.pd.reg_mr(target, Access.LOCAL_WRITE)
        # a datagram that does not fit leaves the receive in hand: with short ones UD soon hears nothing
        connected = self.setting.kind in (QpType.RC, QpType.UC)
        short = [n // 2, 41, 1] if connected or self.random.random() < 0.2 else []
        bad = self.random.randrange(RECVS) if self.random.random() < 0.5 else -1
        for slot in range(RECVS):
            size = self.random.choice([n + n // 2, n + n // 2, n + 40, *short])
            at = slot * (n + n // 2 + 88)
            if slot == bad:
                sges = [Sge(mr.addr + at, size, 0xDEAD00)]
            elif self.random.random() < 0.3:
                cut = self.random.randrange(size + 1)
                sges = [mr.sge(at, cut), mr.sge(at + cut + 7, size - cut)]
            else:
                sges = [mr.sge(at, size)]
            queue.post_recv(RecvWr(sges, slot))
        self.inbox = mr

    def _make_sends(self) -> None:
        """A send for every slot, of every opcode the QP may post."""
        n, s = self.mtu, self.setting
        source = self.pd.reg_mr(self.arena.piece(4 * n + 9, odd=3, loose=False), Access(0))
        sink = self.pd.reg_mr(self.arena.piece(4 * n + 9, odd=5, loose=True), Access.LOCAL_WRITE)
        if s.kind in (QpType.UD, QpType.GSI):
            opcodes = [WrOpcode.SEND, WrOpcode.SEND_WITH_IMM]
        elif s.kind == QpType.UC:
            opcodes = [WrOpcode.SEND, WrOpcode.SEND_WITH_IMM, WrOpcode.RDMA_WRITE, WrOpcode.RDMA_WRITE_WITH_IMM]
        else:
            opcodes = [
                WrOpcode.SEND, WrOpcode.RDMA_READ, WrOpcode.RDMA_WRITE, WrOpcode.ATOMIC_FETCH_AND_ADD,
                WrOpcode.RDMA_READ, WrOpcode.SEND_WITH_IMM, WrOpcode.ATOMIC_CMP_AND_SWP, WrOpcode.RDMA_WRITE_WITH_IMM,
                WrOpcode.SEND_WITH_INV,
            ]  # fmt: skip
        ah = self.pd.create_ah(self.path) if s.kind in (QpType.UD, QpType.GSI) else None
        for slot in range(SENDS):
            opcode = opcodes[slot % len(opcodes)]
            size = self.random.choice([0, 1, 5, n - 1, n, n + 1, 3 * n + 7])
            if ah is not None:
                size = min(size, n)
            reads = opcode in (WrOpcode.RDMA_READ, WrOpcode.ATOMIC_FETCH_AND_ADD, WrOpcode.ATOMIC_CMP_AND_SWP)
            if opcode in (WrOpcode.ATOMIC_FETCH_AND_ADD, WrOpcode.ATOMIC_CMP_AND_SWP):
                size = 8
            sges = [(sink if reads else source).sge(0, size)] if size else []
            flags = SendFlags.FENCE if self.random.random() < 0.1 else SendFlags(0)
            more = {} if ah is None else {"ah": ah, "dqpn": PEER_QPN, "qkey": QKEY}
            self.qp.post_send(
                SendWr(opcode, sges, slot, flags, remote_addr=0x7000_0000_0010, rkey=0xABCD01, imm=slot, **more)
            )

    def _bind_window(self) -> None:
        """A type 2 window on the QP under fuzz, for the peer to use and to invalidate."""
        if self.setting.kind not in (QpType.RC, QpType.UC):
            return
        self.window = self.pd.alloc_mw(2)
        rights = Access.REMOTE_READ
        self.qp.post_send(
            SendWr(
                WrOpcode.BIND_MW, [], 0, rkey=self.window.rkey, bind_mr=self.window_parent,
                remote_addr=self.window_parent.iova + _WINDOW_AT, bind_length=200, access=rights,
            )
        )  # fmt: skip
        self.device.engine.transmit(make_ring(1), 1)
        assert [wc.ok for wc in self.scq.poll()] == [True]
        assert self.window.valid
        self._forget_posted()

    # --- the world ---

    def _region_table(self) -> np.ndarray:
        """REGION records: the first for most requests, the second for atomics, the last two to be invalidated."""
        remote = Access.REMOTE_READ | Access.REMOTE_WRITE | Access.REMOTE_ATOMIC
        rows = []
        for mr in [*self.regions, self.window_parent, self.gone]:
            rights = Access(0) if mr is self.gone or mr.pd is not self.pd else mr.access & remote
            rows.append((mr.key, mr.iova, mr.addr, mr.length, int(rights), -1 if mr is self.gone else mr.index))
        if self.window is not None:
            parent, at = self.window_parent, _WINDOW_AT
            rows.append(
                (self.window.rkey, parent.iova + at, parent.addr + at, 200, int(Access.REMOTE_READ), self.window.index)
            )
        spare = self.spare
        rows.append((spare.key, spare.iova, spare.addr, spare.length, int(spare.access & remote), spare.index))
        return np.array(rows, REGION)

    def _make_world(self, seed: tuple[int, ...]) -> World:
        s, engine = self.setting, self.device.engine
        record = self.device.record
        self._forget_posted()
        engine.transmit(make_ring(1), 1)  # the doorbells of their making
        regions = self._region_table()
        self.gone.dereg()
        saved = np.zeros(3, QP)
        saved[0], saved[1] = record["qps"][self.qp.index], record["qps"][self.bystander.index]
        saved_mrs = np.zeros(len(regions), MR)
        for i, mr in enumerate(regions["mr"]):
            if mr >= 0:
                saved_mrs[i] = record["mrs"][mr]
        fz = np.zeros(1, FUZZ)
        seed_chance(fz[0], seed)
        fz["qp"], fz["bystander"] = self.qp.index, self.bystander.index
        fz["srq"] = -1 if self.srq is None else self.srq.index
        fz["scq"], fz["rcq"] = self.scq.index, self.rcq.index
        fz["start"], fz["hold"], fz["service"] = s.state, s.hold, SERVICE[s.kind]
        fz["qkey"] = GSI_QKEY if s.kind == QpType.GSI else QKEY
        fz["burst"], fz["every"] = s.burst, 16 if self.mtu < 1024 else 64
        fz["nak_psn"], fz["now"] = -1, 10**10
        header, l3 = self._peer_header()
        fz["hdr_len"], fz["l3"], fz["is_v6"] = len(header), l3, s.family
        return World(
            engs=engine.tables, fz=fz, rx=make_ring(_BURST_SLOTS), tx=make_ring(8), header=header, noise=_NOISE,
            regions=regions, canaries=self.arena.canaries(), arena=self.arena.bytes,
            picture=self.arena.bytes.copy(), shadow=np.zeros(len(self.arena.bytes), np.uint8), saved=saved,
            saved_mrs=saved_mrs, kept=np.zeros((KEPT, KEPT_BYTES), np.uint8),
        )  # fmt: skip

    def _forget_posted(self) -> None:
        """The slots keep what was posted; posting it again is one step of a producer index."""
        for name in ("sq_prod", "sq_head", "sq_cur", "sq_hi", "rq_prod", "rq_head"):
            self.qp.record[name] = 0

    def _peer_header(self) -> tuple[np.ndarray, int]:
        """Ethernet to UDP as the peer would send them, and where IP begins."""
        index = self.bystander.index
        own = self.device.record["avs"][index]
        header = own["hdr"][: int(own["hdr_len"])].copy()
        l3, n = int(own["l3_off"]), 16 if self.setting.family else 4
        at = l3 + (8 if self.setting.family else 12)
        for start, size in ((0, 6), (at, n)):
            there = header[start : start + 2 * size].copy()
            header[start : start + size], header[start + size : start + 2 * size] = there[size:], there[:size]
        return header, l3


"""The work of one send queue, planned in order, and what must come of it at both ends.

A `Stream` is one direction of a channel. Planning executes each operation on the hosts' pictures at once: the spec
promises that it is as if the peer executed them one after another (IBTA 10.8.3.3, table 76), wherever that promise
needs a fence there is one. UC and UD promise less; there, memory is judged by what completions say.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from random import Random

from softrnic.spec import QpType, SendFlags, WcFlags, WcOpcode, WcStatus, WrOpcode
from softrnic.verbs import Ah, Mr, Qp, SendWr, Wc
from tests.sim.host import ArenaFullError, Host, Piece
from tests.sim.receiving import GRH_BYTES, Receiver
from tests.sim.scenario import ChannelPlan

QKEY = 0x1357
_MASK64 = (1 << 64) - 1

_WC_OPCODE = {
    WrOpcode.SEND: WcOpcode.SEND,
    WrOpcode.SEND_WITH_IMM: WcOpcode.SEND,
    WrOpcode.SEND_WITH_INV: WcOpcode.SEND,
    WrOpcode.RDMA_WRITE: WcOpcode.RDMA_WRITE,
    WrOpcode.RDMA_WRITE_WITH_IMM: WcOpcode.RDMA_WRITE,
    WrOpcode.RDMA_READ: WcOpcode.RDMA_READ,
    WrOpcode.ATOMIC_CMP_AND_SWP: WcOpcode.COMP_SWAP,
    WrOpcode.ATOMIC_FETCH_AND_ADD: WcOpcode.FETCH_ADD,
    WrOpcode.LOCAL_INV: WcOpcode.LOCAL_INV,
}


@dataclass(slots=True)
class Incoming:
    """A message that must take a receive WQE at the peer."""

    number: int
    payload: bytes | None  # None: RDMA WRITE with immediate, nothing in the buffer
    length: int
    imm: int = 0
    flags: int = 0  # WcFlags
    invalidates: Mr | None = None


@dataclass(slots=True)
class Outgoing:
    """A work request whose completion must come, and what is checked then."""

    wr_id: int
    opcode: WcOpcode
    length: int
    check: Callable[[], str | None] | None = None


@dataclass(slots=True)
class Cell:
    """Eight bytes that several streams add to. The values they saw must form one chain from the first to the last."""

    piece: Piece
    start: int
    seen: list[tuple[int, int]] = field(default_factory=list)  # value before, what was added

    def complaint(self, end: int) -> str | None:
        """What is wrong with the chain from `start` to `end`."""
        value = self.start
        for before, added in sorted(self.seen, key=lambda s: (s[0] - self.start) & _MASK64):
            if before != value:
                return f"an addition to the cell at {self.piece.offset} saw {before:#x}, not {value:#x}"
            value = (value + added) & _MASK64
        return None if value == end else f"the cell at {self.piece.offset} is {end:#x}, not {value:#x}"


class Stream:
    """One direction of a channel."""

    def __init__(
        self, plan: ChannelPlan, random: Random, number: int, *, src: Host, dst: Host, qp: Qp, peer: Qp,
        receiver: Receiver, ah: Ah | None,
    ) -> None:  # fmt: skip
        self.plan, self.random, self.number = plan, random, number
        self.src, self.dst, self.qp, self.peer = src, dst, qp, peer
        self.receiver, self.ah = receiver, ah
        self.wrs: list[SendWr] = []
        self.posted = 0
        self.outgoing: deque[Outgoing] = deque()  # signalled and not yet completed
        self.incoming: list[Incoming] = []
        self.arrived = 0  # of incoming, in order
        self.wire_keeps_order = True
        self.writes: list[tuple[Piece, bytes, bytes]] = []  # UC: target, before, after
        self.cells: list[Cell] = []
        self._signalled: list[Outgoing | None] = []  # by position in wrs
        self._read_unfenced: set[Piece] = set()  # remote pieces a READ may still be reading
        self._written: list[Piece] = []  # remote pieces this stream has written
        self._fetched: list[list[Piece]] = []  # local pieces this stream has read into
        self._own_cells: list[Piece] = []  # that nobody else works on
        self._shared: list[tuple[Cell, list[Piece], int]] = []  # additions to shared cells, and where results go

    # --- planning ---

    def plan_work(self, count: int) -> None:
        """Draw `count` work requests, fewer if the arenas fill up."""
        kinds = {QpType.RC: self._RC, QpType.UC: self._UC, QpType.UD: self._UD}[self.plan.kind]
        makers, weights = zip(*kinds, strict=True)
        try:
            for maker in self.random.choices(makers, weights, k=count):
                maker(self)
        except ArenaFullError:
            pass

    def _length(self) -> int:
        r, mtu = self.random, self.plan.mtu.bytes
        size = r.choice(
            (0, 1, 2, 3, 4, 8, 64, mtu - 1, mtu, mtu + 1, 2 * mtu, 3 * mtu - 1, r.randrange(1, 9) * mtu,
             r.randrange(8 * mtu))
        )  # fmt: skip
        return min(size, self.plan.largest)

    def _source(self, length: int, wr: SendWr) -> bytes:
        """Give the work request something to send; returns the bytes."""
        r = self.random
        if length <= self.plan.inline and r.random() < 0.5:
            wr.inline = r.randbytes(length)
            return wr.inline
        if self._fetched and r.random() < 0.1:
            pieces = r.choice(self._fetched)
            wr.flags |= SendFlags.FENCE
            self._read_unfenced.clear()
        else:
            pieces = self.src.alloc_split(length, self.plan.send_sge)
        wr.sges = self.src.sges(pieces)
        return self.src.read(pieces, self.src.image)

    def _add(self, wr: SendWr, length: int, check: Callable[[], str | None] | None = None) -> None:
        r = self.random
        if r.random() < 0.1:
            wr.flags |= SendFlags.FENCE
        if wr.flags & SendFlags.FENCE:
            self._read_unfenced.clear()
        if r.random() < 0.2:
            wr.flags |= SendFlags.SOLICITED
        wr.wr_id = (1 << 63) | self.number << 32 | len(self.wrs)
        signalled = r.random() < 0.6
        if signalled:
            wr.flags |= SendFlags.SIGNALED
        done = Outgoing(wr.wr_id, _WC_OPCODE[wr.opcode], length, check)
        self._signalled.append(done if signalled or self.plan.sig_all else None)
        self.wrs.append(wr)

    def _expect(self, message: Incoming) -> None:
        """The message will take a receive WQE; room for it first, so that a full arena ends the plan in time."""
        self.receiver.plan(message.length + (GRH_BYTES if self.plan.kind == QpType.UD else 0))
        self.incoming.append(message)

    def _new(self, opcode: WrOpcode) -> SendWr:
        wr = SendWr(opcode, flags=SendFlags(0))
        if self.ah is not None:
            wr.ah, wr.dqpn, wr.qkey = self.ah, self.peer.qpn, QKEY
        return wr

    def _send(self) -> None:
        opcode = self.random.choice((WrOpcode.SEND, WrOpcode.SEND_WITH_IMM))
        wr = self._new(opcode)
        payload = self._source(self._length(), wr)
        message = Incoming(len(self.wrs), payload, len(payload))
        if opcode == WrOpcode.SEND_WITH_IMM:
            message.imm = wr.imm = self.random.randrange(1 << 32)
            message.flags = WcFlags.WITH_IMM
        self._expect(message)
        self._add(wr, len(payload))

    def _send_inv(self) -> None:
        wr = self._new(WrOpcode.SEND_WITH_INV)
        payload = self._source(self._length(), wr)
        piece = self.dst.alloc(8)
        victim = self.dst.pd.reg_mr(self.dst.arena[piece.offset : piece.offset + 8], self.dst.mrs[0].access)
        wr.imm = victim.rkey
        self._expect(
            Incoming(len(self.wrs), payload, len(payload), victim.rkey, WcFlags.WITH_INV, invalidates=victim)
        )
        self._add(wr, len(payload))

    def _target(self, length: int, wr: SendWr) -> Piece:
        """Where a WRITE goes: mostly untouched memory, sometimes what this stream has written or read before."""
        r = self.random
        if self.plan.kind == QpType.RC and self._written and r.random() < 0.25:
            piece = r.choice(self._written)
            if piece.length >= length:
                if piece in self._read_unfenced:
                    wr.flags |= SendFlags.FENCE
                return piece
        piece = self.dst.alloc(length)
        self._written.append(piece)
        return piece

    def _write(self) -> None:
        opcode = self.random.choice((WrOpcode.RDMA_WRITE, WrOpcode.RDMA_WRITE, WrOpcode.RDMA_WRITE_WITH_IMM))
        wr = self._new(opcode)
        payload = self._source(self._length(), wr)
        piece = self._target(len(payload), wr)
        if opcode == WrOpcode.RDMA_WRITE_WITH_IMM:
            wr.imm = self.random.randrange(1 << 32)
            self._expect(Incoming(len(self.wrs), None, len(payload), wr.imm, WcFlags.WITH_IMM))
        wr.remote_addr, wr.rkey = self.dst.remote(piece)
        if self.plan.kind == QpType.UC:
            piece = Piece(piece.offset, len(payload))
            self.writes.append((piece, self.dst.read([piece], self.dst.image), payload))
        self.dst.expect([piece], payload)
        self._add(wr, len(payload))

    def _read(self) -> None:
        r = self.random
        wr = self._new(WrOpcode.RDMA_READ)
        if self._written and r.random() < 0.4:
            remote = r.choice(self._written)
        else:
            remote = self.dst.alloc(self._length())
            self._written.append(remote)
        pieces = self.src.alloc_split(remote.length, self.plan.send_sge)
        wr.sges = self.src.sges(pieces)
        wr.remote_addr, wr.rkey = self.dst.remote(remote)
        data = self.dst.read([remote], self.dst.image)
        self.src.expect(pieces, data)
        self._add(wr, remote.length, lambda: None if self.src.read(pieces) == data else "READ data is wrong")
        self._read_unfenced.add(remote)
        self._fetched.append(pieces)

    def _atomic_on_own_cell(self) -> None:
        """A cell nobody else touches: its value is known at every step."""
        r = self.random
        opcode = r.choice((WrOpcode.ATOMIC_CMP_AND_SWP, WrOpcode.ATOMIC_FETCH_AND_ADD))
        wr = self._new(opcode)
        if not self._own_cells or r.random() < 0.3:
            self._own_cells.append(self.dst.alloc(8, 8))
        cell = r.choice(self._own_cells)
        before = int.from_bytes(self.dst.read([cell], self.dst.image), "little")
        wr.swap = r.randrange(1 << 64)
        if opcode == WrOpcode.ATOMIC_FETCH_AND_ADD:
            wr.compare_add = r.choice((1, _MASK64, r.randrange(1 << 64)))
            after = (before + wr.compare_add) & _MASK64
        else:
            wr.compare_add = before if r.random() < 0.6 else r.randrange(1 << 64)
            after = wr.swap if wr.compare_add == before else before
        pieces = self._atomic(wr, cell)
        self.dst.expect([cell], after.to_bytes(8, "little"))
        value = before.to_bytes(8, "little")
        self.src.expect(pieces, value)
        self._add(wr, 8, lambda: None if self.src.read(pieces) == value else "atomic returned a wrong value")

    def _add_to_shared_cell(self) -> None:
        if not self.cells:
            return
        cell = self.random.choice(self.cells)
        wr = self._new(WrOpcode.ATOMIC_FETCH_AND_ADD)
        wr.compare_add = self.random.randrange(1, 1 << 40)
        pieces = self._atomic(wr, cell.piece)
        self._shared.append((cell, pieces, wr.compare_add))
        self._add(wr, 8)

    def _atomic(self, wr: SendWr, cell: Piece) -> list[Piece]:
        pieces = self.src.alloc_split(8, self.plan.send_sge)
        wr.sges = self.src.sges(pieces)
        wr.remote_addr, wr.rkey = self.dst.remote(cell)
        return pieces

    def _local_inv(self) -> None:
        piece = self.src.alloc(8)
        victim = self.src.pd.reg_mr(self.src.arena[piece.offset : piece.offset + 8], self.src.mrs[0].access)
        wr = self._new(WrOpcode.LOCAL_INV)
        wr.rkey = victim.rkey
        self._add(wr, 0, lambda: "LOCAL_INV did nothing" if victim.valid else None)

    _RC = (
        (_send, 5), (_write, 5), (_read, 4), (_atomic_on_own_cell, 2), (_add_to_shared_cell, 2), (_send_inv, 1),
        (_local_inv, 1),
    )  # fmt: skip
    _UC = ((_send, 1), (_write, 1))
    _UD = ((_send, 1),)

    # --- running ---

    @property
    def unposted(self) -> int:
        """Work requests still to be posted."""
        return len(self.wrs) - self.posted

    @property
    def room(self) -> int:
        """How many could be posted now."""
        if self.posted == len(self.wrs):
            return 0
        record = self.qp.record
        return min(self.unposted, self.qp.sq_size - int(record["sq_prod"]) + int(record["sq_head"]))

    def post(self, most: int) -> int:
        """Post up to `most` work requests, as far as the send queue has room; returns how many."""
        n = min(most, self.room)
        if n == 0:
            return 0
        self.qp.post_send(self.wrs[self.posted : self.posted + n])
        self.outgoing.extend(o for o in self._signalled[self.posted : self.posted + n] if o is not None)
        self.posted += n
        return n

    def sent(self, wc: Wc) -> str | None:
        """A completion of the send queue: what is wrong with it, or None."""
        if not self.outgoing:
            return f"a completion that nobody waits for: {wc}"
        due = self.outgoing.popleft()
        if (wc.wr_id, wc.status, wc.opcode, wc.byte_len) != (due.wr_id, WcStatus.SUCCESS, due.opcode, due.length):
            return f"completion {wc}, expected {due}"
        return due.check() if due.check is not None else None

    def received(self, wc: Wc) -> str | None:
        """A completion of the peer's receive queue for a message of this stream: what is wrong with it, or None."""
        pieces = self.receiver.take(wc)
        if pieces is None:
            return f"a receive that is not next, or completed before: {wc}"
        got = self.dst.read(pieces)
        if self.plan.kind != QpType.RC:
            self.dst.accept(pieces)
            return self._match(wc, got[GRH_BYTES:] if self.plan.kind == QpType.UD else got)
        if self.arrived == len(self.incoming):
            return f"a message that nobody sent: {wc}"
        due = self.incoming[self.arrived]
        self.arrived += 1
        if due.payload is not None:
            self.dst.expect(pieces, due.payload)
        return self._judge(due, wc, got)

    def _judge(self, due: Incoming, wc: Wc, got: bytes) -> str | None:
        write = due.payload is None
        opcode = WcOpcode.RECV_RDMA_WITH_IMM if write else WcOpcode.RECV
        if (wc.status, wc.opcode, wc.byte_len, wc.imm) != (WcStatus.SUCCESS, opcode, due.length, due.imm):
            return f"receive completion {wc}, expected message {due.number} of {due.length} bytes"
        if wc.wc_flags & ~WcFlags.GRH != due.flags:
            return f"receive completion {wc}, expected {due.flags!r}"
        if not write and got[: due.length] != due.payload:
            return f"message {due.number} arrived with wrong bytes"
        if due.invalidates is not None and due.invalidates.valid:
            return f"message {due.number} invalidated nothing"
        return None

    def _match(self, wc: Wc, got: bytes) -> str | None:
        """UC and UD: some message that was sent, later than all before if the wire keeps order."""
        first = self.arrived if self.wire_keeps_order else 0
        for i in range(first, len(self.incoming)):
            due = self.incoming[i]
            payload = None if wc.opcode == WcOpcode.RECV_RDMA_WITH_IMM else got[: due.length]
            length = wc.byte_len - (GRH_BYTES if self.plan.kind == QpType.UD else 0)
            same = (due.length, due.imm, due.flags) == (length, wc.imm, wc.wc_flags & ~WcFlags.GRH)
            if same and payload == due.payload:
                self.arrived = i + 1
                return None
        return f"a message that nobody sent, or too late: {wc}"

    # --- the end ---

    def leftovers(self) -> str | None:
        """Whether all that had to happen has happened."""
        if self.unposted or self.outgoing:
            return f"{self.unposted} work requests not posted, {len(self.outgoing)} not completed"
        if self.plan.kind == QpType.RC and self.arrived != len(self.incoming):
            return f"{len(self.incoming) - self.arrived} messages did not arrive"
        if self.plan.kind == QpType.RC and self.receiver.unposted:
            return f"{self.receiver.unposted} receives were not used"
        return None

    def settle(self) -> str | None:
        """Judge what can only be judged at the end; the pictures are complete afterwards."""
        for cell, pieces, added in self._shared:
            cell.seen.append((int.from_bytes(self.src.read(pieces), "little"), added))
            self.src.accept(pieces)
        for piece, before, after in self.writes:
            got = self.dst.read([piece])
            if any(g not in (b, a) for g, b, a in zip(got, before, after, strict=True)):
                return f"bytes at {piece.offset} are neither what was there nor what was written"
            self.dst.accept([piece])
        return None

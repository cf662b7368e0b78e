"""The RC requester and completer, slow and obvious: which packets may go out next, and what each answer means.

Everything is counted in positions: how many PSNs after the first one. Work requests are a list, laid out on the line of
positions one behind the other, and a packet is a question to that line. A requester is free to send again what has not
been acknowledged when a timer gives it a reason; so the model follows what the engine sends and says whether it was
allowed, and keeps every place where the engine might stand (IBTA 9.7.3, 9.7.5.1, 9.7.6, 9.7.7.2, 9.9.2).
"""

from __future__ import annotations

from dataclasses import dataclass, field

from tests.model import packets as p
from tests.model.packets import Packet, psn_add, psn_behind
from tests.model.responder import CREDITS, NO_CREDITS

RNR_INFINITE = 7
# 9.7.5.2.8, table 47: what an RNR NAK's timer field says, in units of 10 us
RNR_WAIT = [65536, 1] + [n for k in range(1, 16) for n in (1 << k, 3 << k - 1)]
FAILURES = {0x61: "REM_INV_REQ_ERR", 0x62: "REM_ACCESS_ERR", 0x63: "REM_OP_ERR"}
_FIRST = {"send": p.SEND_FIRST, "write": p.WRITE_FIRST}
_ONLY = {"send": p.SEND_ONLY, "write": p.WRITE_ONLY}
_LAST = {"send": p.SEND_LAST, "write": p.WRITE_LAST}


@dataclass
class Work:
    """A send work request."""

    wr_id: int
    kind: str  # send, write, read, cas, faa
    data: bytes = b""  # of a send or write
    imm: int | None = None
    invalidate: int | None = None
    va: int = 0
    rkey: int = 0
    pieces: list[tuple[int, int]] = field(default_factory=list)  # where the answer of a read or atomic goes
    swap: int = 0
    compare: int = 0
    fence: bool = False
    signaled: bool = True
    solicited: bool = False
    first: int = 0  # position, set when posted
    ssn: int = 0

    @property
    def length(self) -> int:
        """Bytes of the message or of its answer."""
        return sum(n for _, n in self.pieces) if self.wants_data else len(self.data)

    @property
    def wants_data(self) -> bool:
        """A READ or atomic: only its answer completes it."""
        return self.kind in ("read", "cas", "faa")

    @property
    def needs_credit(self) -> bool:
        """It takes a receive WQE of the peer."""
        return self.kind == "send" or self.imm is not None


class Requester:
    """One QP's sending half."""

    def __init__(
        self, *, psn: int, pmtu: int, memory: bytearray, max_rd_atomic: int, retry_cnt: int, rnr_retry: int
    ) -> None:  # fmt: skip
        self.psn, self.pmtu, self.memory = psn, pmtu, memory
        self.max_rd_atomic, self.retry_cnt, self.rnr_retry = max_rd_atomic, retry_cnt, rnr_retry
        self.works: list[Work] = []  # not yet completed
        self.end = 0  # position behind the last work request posted
        self.posted = 0
        self.una = 0  # oldest position not acknowledged
        self.top = 0  # one past the highest ever sent
        self.cursors = {0}  # where the next packet may come from
        self.may_resend = False
        self.probed = False
        self.now = 0
        self.rnr_until: int | None = None
        self.rnr_left = rnr_retry
        self.gap: int | None = None  # position of the last loss acted on
        self.gap_known = True
        self.losses = [0, 0]  # since the last progress: surely, at most
        self.limit: int | None = None  # SSN up to which the peer has receives
        self.lost_once = False
        self._last_limit = 0
        self.error = False
        self.completions: list[tuple[int, str]] = []

    # --- the line of positions ---

    def npsn(self, work: Work) -> int:
        """PSNs a work request takes."""
        return 1 if work.kind in ("cas", "faa") else max(1, -(-work.length // self.pmtu))

    def post(self, work: Work) -> None:
        """A work request."""
        self.posted += 1
        work.first, work.ssn = self.end, self.posted
        self.end += self.npsn(work)
        self.works.append(work)

    def _work_at(self, position: int) -> Work:
        return next(w for w in self.works if w.first <= position < w.first + self.npsn(w))

    def _psn(self, position: int) -> int:
        return psn_add(self.psn, position)

    def packet_at(self, position: int) -> tuple[Packet, int]:
        """The request packet that belongs at a position, and the position behind it."""
        work = self._work_at(position)
        offset, psn = (position - work.first) * self.pmtu, self._psn(position)
        target = {"va": (work.va + offset) & p.MASK64, "rkey": work.rkey}
        if work.kind == "read":
            packet = Packet(opcode=p.READ_REQUEST, psn=psn, dmalen=work.length - offset, **target)
            return packet, work.first + self.npsn(work)
        if work.kind in ("cas", "faa"):
            op = p.CAS if work.kind == "cas" else p.FAA
            return Packet(opcode=op, psn=psn, swap=work.swap, compare=work.compare, **target), position + 1
        return self._data_packet(work, offset, psn), position + 1

    def _data_packet(self, work: Work, offset: int, psn: int) -> Packet:
        payload = work.data[offset : offset + self.pmtu]
        first, last = offset == 0, offset + len(payload) == len(work.data)
        op = _ONLY[work.kind] if first and last else _FIRST[work.kind] if first else _LAST[work.kind]
        fields: dict[str, int] = {}
        if not first and not last:
            op = _FIRST[work.kind] + 1
        if last and work.imm is not None:
            op, fields["imm"] = op + 1, work.imm
        if last and work.invalidate is not None:
            op, fields["imm"] = (p.SEND_ONLY_INV if first else p.SEND_LAST_INV), work.invalidate
        if first and work.kind == "write":
            fields |= {"va": work.va, "rkey": work.rkey, "dmalen": len(work.data)}
        return Packet(opcode=op, psn=psn, se=int(last and work.solicited), payload=payload, **fields)

    # --- sending ---

    def may_send(self, position: int) -> bool:
        """Whether the packet at a position may go out now, if that is where the requester stands."""
        if self.error or self.rnr_until is not None or position >= self.end:
            return False
        work = self._work_at(position)
        waiting = sum(w.wants_data and w.first < position for w in self.works if w is not work)
        if work.fence and position == work.first and waiting:
            return False
        if work.wants_data and waiting >= self.max_rd_atomic:
            return False
        beyond = self.limit is not None and psn_behind(work.ssn & p.PSN_MASK, self.limit) > 0
        return not (work.needs_credit and beyond and position != self.una)

    def sent(self, packet: Packet) -> bool:
        """The engine has sent this: False if it must not."""
        packet = packet.without_ackreq()
        places: set[int] = set()
        for cursor in self.cursors:
            if self.may_send(cursor):
                expected, behind = self.packet_at(cursor)
                if packet == expected:
                    places.add(behind)
        if not places and self.may_resend and self.una < self.top and self.rnr_until is None:
            expected, behind = self.packet_at(self.una)
            if packet == expected:
                places = self.cursors | {behind}  # it has gone back, or has only asked whether anybody is there
        if not places:
            return False
        self.cursors = places
        self.top = max(self.top, *(c for c in places if c <= self.end))
        return True

    def idle(self) -> str | None:
        """The engine says it has nothing to send: what it should have sent, or None."""
        self.may_resend = False
        for cursor in self.cursors:
            if not self.may_send(cursor):
                return None
            if cursor > self.una and (self.losses[1] or self.probed or self.lost_once):
                return None  # its window may be small since the loss, and full
        return f"{self.cursors} of {self.end} wait for nothing (una {self.una}, top {self.top})"

    # --- answers ---

    def receive(self, answer: Packet, now: int) -> None:
        """A response packet has arrived."""
        self.now = now
        if self.error:
            return
        position = self.una + psn_behind(answer.psn, self._psn(self.una))
        if position >= self.top:
            return
        if position < self.una:
            if answer.opcode == p.ACK and position == self.una - 1 and answer.kind in ("ack",):
                self._take_credits(answer)
            return
        if answer.opcode == p.ACK:
            self._receive_ack(answer, position)
        else:
            self._receive_data(answer, position)

    def _take_credits(self, answer: Packet) -> None:
        code = answer.syndrome & 0x1F
        if code == NO_CREDITS:
            self.limit = None
            return
        limit = psn_add(answer.msn, CREDITS[code])
        if self.limit is None or psn_behind(limit, self._last_limit) > 0:
            self._last_limit = limit
        self.limit = self._last_limit

    def _receive_ack(self, answer: Packet, position: int) -> None:
        if answer.kind == "reserved":
            return
        if answer.kind == "ack":
            self._take_credits(answer)
            if not self._acknowledge(position):
                self._loss()
            return
        if not self._acknowledge(position - 1) or self.una != position:
            self._loss()  # something before it was lost
        elif answer.kind == "rnr":
            self._rnr(answer.syndrome & 0x1F)
        elif answer.syndrome == 0x60:
            self._loss()
        else:
            self.fail(FAILURES.get(answer.syndrome, "BAD_RESP_ERR"))

    def _acknowledge(self, position: int) -> bool:
        """Everything up to a position has arrived. False if a READ or atomic among it has not been answered."""
        start, answered = self.una, True
        while self.works and self.works[0].first <= position and self.works[0].first < self.top:
            work = self.works[0]
            if work.wants_data:
                self.una = max(self.una, work.first)
                answered = position < self.una
                break
            end = work.first + self.npsn(work)
            if end - 1 > position:
                self.una = max(self.una, position + 1)
                break
            self._complete(end)
        self._moved(start)
        return answered

    def _complete(self, una: int) -> None:
        self.una = una
        work = self.works.pop(0)
        if work.signaled:
            self.completions.append((work.wr_id, "SUCCESS"))

    def _moved(self, start: int) -> None:
        """After an answer: if it was progress, all budgets are whole again."""
        self.cursors = {max(c, self.una) for c in self.cursors}
        if self.una == start:
            return
        self.may_resend = self.may_resend or self.probed
        self.lost_once = self.lost_once or self.probed
        self.probed = False
        self.losses = [0, 0]
        self.gap, self.gap_known = None, True
        self.rnr_left = self.rnr_retry

    def _receive_data(self, answer: Packet, position: int) -> None:
        if position != self.una and (not self._acknowledge(position - 1) or self.una != position):
            self._loss()
            return
        work = self.works[0]
        atomic = answer.opcode == p.ATOMIC_ACK
        if not work.wants_data or atomic != (work.kind != "read"):
            return
        if answer.opcode in p.WITH_AETH:
            if answer.kind != "ack":
                return
            self._take_credits(answer)
        start = self.una
        if atomic:
            self._place(work, 0, answer.orig.to_bytes(8, "little"))
            self._complete(self.una + 1)
        elif not self._receive_read(work, answer):
            return
        self._moved(start)

    def _receive_read(self, work: Work, answer: Packet) -> bool:
        offset = (self.una - work.first) * self.pmtu
        last = self.una == work.first + self.npsn(work) - 1
        says_last = answer.opcode in (p.READ_LAST, p.READ_ONLY)
        if len(answer.payload) != min(self.pmtu, work.length - offset) or says_last != last:
            self.fail("BAD_RESP_ERR")
            return False
        self._place(work, offset, answer.payload)
        if last:
            self._complete(self.una + 1)
        else:
            self.una += 1
        return True

    def _place(self, work: Work, offset: int, data: bytes) -> None:
        for at, length in work.pieces:
            if offset >= length:
                offset -= length
                continue
            part = data[: length - offset]
            self.memory[at + offset : at + offset + len(part)] = part
            data, offset = data[len(part) :], 0

    # --- losses, waits, ends ---

    def _loss(self) -> None:
        """A NAK, or an answer that shows that one before it is missing: go back, once per gap."""
        if self.error:
            return
        if self.gap == self.una:
            if self.gap_known:
                return
            self.losses[1] += 1  # a timer may have forgotten the gap
            self.may_resend = self.lost_once = True
            return
        self.gap, self.gap_known = self.una, True
        self.losses = [n + 1 for n in self.losses]
        if self.losses[0] > self.retry_cnt:
            self.fail("RETRY_EXC_ERR")
            return
        self.may_resend = self.lost_once = True
        self.cursors = {self.una}

    def _rnr(self, timer: int) -> None:
        if self.rnr_until is not None:
            return
        if self.rnr_retry != RNR_INFINITE:
            if self.rnr_left == 0:
                self.fail("RNR_RETRY_EXC_ERR")
                return
            self.rnr_left -= 1
        self.losses = [0, 0]
        self.rnr_until = self.now + RNR_WAIT[timer] * 10_000
        self.cursors = {self.una}

    def timer(self, now: int) -> None:
        """The engine was told the time; any timer of its own may have run out."""
        if self.error:
            return
        if self.rnr_until is not None:
            if now >= self.rnr_until:
                self.rnr_until = None
        elif self.una < self.top:
            self.losses[1] += 1
            self.may_resend = self.probed = True
            self.gap_known = False

    def gives_up(self) -> bool:
        """The engine has failed the oldest work request for want of an answer: whether it may."""
        if self.losses[1] <= self.retry_cnt:
            return False
        self.fail("RETRY_EXC_ERR")
        return True

    def fail(self, status: str) -> None:
        """The oldest work request fails, the others are flushed."""
        self.error = True
        self.completions.append((self.works.pop(0).wr_id, status))
        self.completions += [(w.wr_id, "WR_FLUSH_ERR") for w in self.works]
        self.works.clear()

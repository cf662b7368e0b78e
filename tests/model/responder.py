"""The RC responder, slow and obvious: one request at a time, in the words of IBTA 9.7.4 and 9.7.5.

Lists and dictionaries, no record, no kernel, nothing from softrnic. What a real responder may choose is chosen as the
engine documents it: answers wait until it transmits, several acknowledgements become one, and READ responses and atomic
results go before it.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field

from tests.model import packets as p
from tests.model.packets import MASK64, Packet, psn_add, psn_behind

MAX_MESSAGE = 1 << 31
NO_CREDITS = 0x1F
# 9.7.7.2, table 50: what a credit count field says
CREDITS = [0, 1] + [n for k in range(1, 15) for n in (1 << k, 3 << k - 1)] + [32768]
NAK_SEQUENCE, NAK_INVALID, NAK_ACCESS, NAK_OPERATIONAL = range(4)


@dataclass
class Region:
    """Registered memory: a name for a stretch of the responder's bytes."""

    iova: int
    offset: int
    length: int
    write: bool = True
    read: bool = True
    atomic: bool = True
    valid: bool = True


@dataclass
class Receive:
    """A posted receive: stretches (offset, length) of the responder's bytes.

    An offset of None stands for memory that is not its own.
    """

    wr_id: int
    pieces: list[tuple[int | None, int]]

    @property
    def length(self) -> int:
        """Bytes it can take."""
        return sum(length for _, length in self.pieces)


@dataclass
class Completion:
    """What the owner of the receive queue learns."""

    wr_id: int
    status: str
    opcode: str = "RECV"
    length: int = 0
    imm: int | None = None
    invalidated: int | None = None


@dataclass
class Played:
    """A READ or an atomic that was executed, and may have to be answered again."""

    request: Packet
    msn: int
    orig: int = 0
    span: int = 1  # PSNs its answer takes
    due: deque[Packet] = field(default_factory=deque)  # answers not yet sent
    answered: bool = False


class RefusedError(Exception):
    """The request is not executed: NAK code, or None for silence; and what that means for our own queue pair."""

    def __init__(self, syndrome: int | None, fatal: str | None = None) -> None:
        super().__init__(syndrome, fatal)
        self.syndrome, self.fatal = syndrome, fatal


class Responder:
    """One QP's receiving half."""

    def __init__(
        self, *, epsn: int, pmtu: int, memory: bytearray, regions: dict[int, Region], depth: int = 4,
        rnr_timer: int = 1, write: bool = True, read: bool = True, atomic: bool = True,
    ) -> None:  # fmt: skip
        self.epsn, self.pmtu, self.memory, self.regions = epsn, pmtu, memory, regions
        self.depth, self.rnr_timer = depth, rnr_timer
        self.write, self.read, self.atomic = write, read, atomic
        self.msn = 0
        self.receives: deque[Receive] = deque()
        self.held: Receive | None = None  # taken for the message being received
        self.message: str | None = None  # "send" or "write" between a first and a last packet
        self.placed = 0  # bytes of it so far
        self.target = (0, 0, 0)  # of a WRITE: rkey, next address, bytes still to come
        self.nak_sent = False
        self.played: list[Played] = []
        self.owed: tuple[int, int] | None = None  # NAK syndrome and PSN, or
        self.ack_owed = False
        self.error = False
        self.completions: list[Completion] = []

    # --- requests ---

    def receive(self, request: Packet) -> None:
        """One request packet has arrived."""
        if self.error:
            return
        ahead = psn_behind(request.psn, self.epsn)
        if ahead < 0:
            self._duplicate(request)
            return
        try:
            if ahead > 0:
                raise RefusedError(None if self.nak_sent else 0x60 | NAK_SEQUENCE)
            self.nak_sent = False
            self._check(request)
            self._execute(request)
        except RefusedError as refused:
            self._refuse(refused)
            return
        self._finish(request)

    def _check(self, request: Packet) -> None:
        """Everything that can be wrong with a request in sequence, in the order of 9.7.4.1."""
        op = request.opcode
        self._check_place(op)
        if (op in p.WRITES and not self.write) or (op == p.READ_REQUEST and not self.read):
            raise RefusedError(0x60 | NAK_INVALID, "REM_INV_REQ_ERR")
        if op in p.ATOMICS and not self.atomic:
            raise RefusedError(0x60 | NAK_INVALID, "REM_INV_REQ_ERR")
        self._check_resources(op)
        self._check_length(request)
        self._check_keys(request)

    def _check_place(self, op: int) -> None:
        """A message is a first packet, middles and a last, or an only one; no other request comes between."""
        begins = op in p.FIRSTS
        kind = "send" if op in p.SENDS else "write" if op in p.WRITES else None
        if begins != (self.message is None) or (not begins and kind != self.message):
            raise RefusedError(0x60 | NAK_INVALID, "REM_INV_REQ_ERR")

    def _check_resources(self, op: int) -> None:
        takes_receive = (op in p.SENDS and op in p.FIRSTS) or op in (p.WRITE_LAST_IMM, p.WRITE_ONLY_IMM)
        if takes_receive and self.held is None:
            if not self.receives:
                raise RefusedError(0x20 | self.rnr_timer)
            self.held = self.receives.popleft()
        unanswered = sum(not played.answered for played in self.played)
        if (op == p.READ_REQUEST or op in p.ATOMICS) and unanswered >= self.depth:
            raise RefusedError(0x60 | NAK_INVALID, "REM_INV_REQ_ERR")

    def _check_length(self, request: Packet) -> None:
        op, n = request.opcode, len(request.payload)
        least = self.pmtu if op not in p.LASTS else 0 if op in p.FIRSTS else 1
        if (op in p.SENDS or op in p.WRITES) and not least <= n <= self.pmtu:
            raise RefusedError(0x60 | NAK_INVALID, "REM_INV_REQ_ERR")
        if op in p.WRITES:
            left = request.dmalen if op in p.WITH_RETH else self.target[2]
            if left > MAX_MESSAGE or (n != left if op in p.LASTS else n >= left):
                raise RefusedError(0x60 | NAK_INVALID, "REM_INV_REQ_ERR")
        if op in p.SENDS:
            assert self.held is not None
            before = 0 if op in p.FIRSTS else self.placed
            if before + n > self.held.length:
                raise RefusedError(0x60 | NAK_INVALID, "LOC_LEN_ERR")

    def _check_keys(self, request: Packet) -> None:
        op = request.opcode
        if op in p.WITH_RETH:
            if request.dmalen > MAX_MESSAGE:
                raise RefusedError(0x60 | NAK_INVALID, "REM_INV_REQ_ERR")
            right = "read" if op == p.READ_REQUEST else "write"
            self._check_access(request.rkey, request.va, request.dmalen, right)
        elif op in p.ATOMICS:
            if request.va % 8:
                raise RefusedError(0x60 | NAK_INVALID, "REM_INV_REQ_ERR")
            self._check_access(request.rkey, request.va, 8, "atomic")
        elif op in p.WRITES:
            self._check_access(*self.target, "write")
        if op in p.WITH_INV and not (request.imm in self.regions and self.regions[request.imm].valid):
            raise RefusedError(0x60 | NAK_ACCESS, "LOC_ACCESS_ERR")

    def _check_access(self, rkey: int, va: int, length: int, right: str) -> None:
        if length and self._locate(rkey, va, length, right) is None:
            raise RefusedError(0x60 | NAK_ACCESS, "LOC_ACCESS_ERR")

    def _locate(self, rkey: int, va: int, length: int, right: str) -> int | None:
        """Where the bytes lie, if the peer has this right to all of them."""
        region = self.regions.get(rkey)
        if region is None or not region.valid or not getattr(region, right):
            return None
        at = va - region.iova
        return region.offset + at if at >= 0 and at + length <= region.length else None

    # --- execution ---

    def _execute(self, request: Packet) -> None:
        op = request.opcode
        if op in p.SENDS:
            self._place(request.payload, 0 if op in p.FIRSTS else self.placed)
            self.placed = (0 if op in p.FIRSTS else self.placed) + len(request.payload)
        elif op in p.WRITES:
            self._write(request)
        elif op == p.READ_REQUEST:
            played = Played(request, psn_add(self.msn, 1), span=max(1, -(-request.dmalen // self.pmtu)))
            self._play(played, request)
            self._remember(played)
            self.epsn = psn_add(self.epsn, played.span - 1)
        else:
            self._atomic(request)

    def _place(self, payload: bytes, at: int) -> None:
        """Bytes of a SEND go to the receive's pieces; all of the packet or nothing is not promised."""
        assert self.held is not None
        for offset, length in self.held.pieces:
            if not payload:
                return
            if at >= length:
                at -= length
                continue
            part = payload[: length - at]
            if offset is None:
                raise RefusedError(0x60 | NAK_OPERATIONAL, "LOC_PROT_ERR")
            self.memory[offset + at : offset + at + len(part)] = part
            payload, at = payload[len(part) :], 0

    def _write(self, request: Packet) -> None:
        if request.opcode in p.WITH_RETH:
            self.target = request.rkey, request.va, request.dmalen
            self.placed = 0
        rkey, va, left = self.target
        if request.payload:
            at = self._locate(rkey, va, len(request.payload), "write")
            assert at is not None
            self.memory[at : at + len(request.payload)] = request.payload
        n = len(request.payload)
        self.target, self.placed = (rkey, va + n, left - n), self.placed + n

    def _atomic(self, request: Packet) -> None:
        at = self._locate(request.rkey, request.va, 8, "atomic")
        assert at is not None
        orig = int.from_bytes(self.memory[at : at + 8], "little")
        if request.opcode == p.FAA:
            new = (orig + request.swap) & MASK64
        else:
            new = request.swap if orig == request.compare else orig
        self.memory[at : at + 8] = new.to_bytes(8, "little")
        played = Played(request, psn_add(self.msn, 1), orig)
        played.due.append(self._atomic_ack(played))
        self._remember(played)

    def _remember(self, played: Played) -> None:
        """No more than the peer was told are remembered; the ring holds a power of two of them."""
        self.played.append(played)
        slots = 1 << (self.depth - 1).bit_length()
        for old in self.played[:-slots]:
            old.due.clear()

    def _finish(self, request: Packet) -> None:
        op = request.opcode
        self.epsn = psn_add(self.epsn, 1)
        if op in p.LASTS:
            self.message = None
            self.msn = psn_add(self.msn, 1)
            if op in p.SENDS or op in p.WITH_IMM:
                self._complete(request)
        else:
            self.message = "send" if op in p.SENDS else "write"
        if request.ackreq and op not in p.ATOMICS and op != p.READ_REQUEST:
            self.ack_owed = True

    def _complete(self, request: Packet) -> None:
        assert self.held is not None
        done = Completion(self.held.wr_id, "SUCCESS", "RECV", self.placed)
        if request.opcode in p.WRITES:
            done.opcode = "RECV_RDMA_WITH_IMM"
        if request.opcode in p.WITH_IMM:
            done.imm = request.imm
        if request.opcode in p.WITH_INV:
            done.invalidated = request.imm
            self.regions[request.imm].valid = False
        self.completions.append(done)
        self.held = None

    # --- refusals ---

    def _refuse(self, refused: RefusedError) -> None:
        if refused.syndrome is not None:
            self.owed = refused.syndrome, self.epsn
            self.nak_sent = True
        if refused.fatal is not None:
            self._fail(refused.fatal)

    def _fail(self, status: str) -> None:
        """To the error state: what is posted comes back."""
        self.error = True
        if self.held is not None:
            self.completions.append(Completion(self.held.wr_id, status))
            self.held = None
        while self.receives:
            self.completions.append(Completion(self.receives.popleft().wr_id, "WR_FLUSH_ERR"))

    # --- duplicates ---

    def _duplicate(self, request: Packet) -> None:
        """A request before epsn changes nothing; it is acknowledged or answered again (9.7.5.1.3)."""
        if request.opcode != p.READ_REQUEST and request.opcode not in p.ATOMICS:
            self.ack_owed = True
            return
        for played in reversed(self.played[-self.depth :]):
            first = played.request
            into = psn_behind(request.psn, first.psn)
            same_kind = (request.opcode == p.READ_REQUEST) == (first.opcode == p.READ_REQUEST)
            if same_kind and 0 <= into < played.span:
                self._again(played, request, into)
                return

    def _again(self, played: Played, request: Packet, into: int) -> None:
        first = played.request
        if request.rkey != first.rkey:
            return
        if request.opcode in p.ATOMICS:
            if request.va == first.va:
                played.due = deque([self._atomic_ack(played)])
            return
        skipped = into * self.pmtu
        if request.va == (first.va + skipped) & MASK64 and request.dmalen <= first.dmalen - skipped:
            played.due.clear()
            self._play(played, request)

    # --- answers ---

    def _credits(self) -> int:
        have = len(self.receives) + (self.held is not None)
        return max(code for code, n in enumerate(CREDITS) if n <= have)

    def _atomic_ack(self, played: Played) -> Packet:
        return Packet(opcode=p.ATOMIC_ACK, psn=played.request.psn, msn=played.msn, orig=played.orig)

    def _play(self, played: Played, request: Packet) -> None:
        """Queue the responses to a READ, without their data: that is read when they go out."""
        count = max(1, -(-request.dmalen // self.pmtu))
        for i in range(count):
            first, last = i == 0, i == count - 1
            op = (p.READ_ONLY if last else p.READ_FIRST) if first else (p.READ_LAST if last else p.READ_MIDDLE)
            n = min(self.pmtu, request.dmalen - i * self.pmtu)
            # va, rkey and dmalen are where the data will come from
            played.due.append(
                Packet(
                    opcode=op, psn=psn_add(request.psn, i), msn=played.msn if first or last else 0, rkey=request.rkey,
                    va=request.va + i * self.pmtu, dmalen=n,
                )
            )  # fmt: skip

    def transmit(self) -> list[Packet]:
        """Everything owed, in order: answers of READs and atomics, then one acknowledgement or NAK."""
        out: list[Packet] = []
        for played in self.played:
            while played.due:
                answer = self._fill(played.due[0])
                if answer is None:
                    self._refuse_answer(played.due[0])
                    break
                played.due.popleft()
                out.append(answer)
            else:
                played.answered = True
        if self.owed is not None:
            syndrome, psn = self.owed
            out.append(Packet(opcode=p.ACK, psn=psn, syndrome=syndrome, msn=self.msn))
        elif self.ack_owed and not self.error:
            out.append(Packet(opcode=p.ACK, psn=psn_add(self.epsn, -1), syndrome=self._credits(), msn=self.msn))
        self.owed, self.ack_owed = None, False
        return out

    def _fill(self, due: Packet) -> Packet | None:
        """The answer with its data, or None when its memory has been taken away."""
        syndrome = self._credits() if due.opcode in p.WITH_AETH else 0
        if due.opcode == p.ATOMIC_ACK:
            return Packet(opcode=due.opcode, psn=due.psn, syndrome=syndrome, msn=due.msn, orig=due.orig)
        at = self._locate(due.rkey, due.va, due.dmalen, "read") if due.dmalen else 0
        if at is None:
            return None
        data = bytes(self.memory[at : at + due.dmalen])
        return Packet(opcode=due.opcode, psn=due.psn, syndrome=syndrome, msn=due.msn, payload=data)

    def _refuse_answer(self, due: Packet) -> None:
        self.owed = 0x60 | NAK_ACCESS, due.psn
        for played in self.played:
            played.due.clear()
        self._fail("WR_FLUSH_ERR")

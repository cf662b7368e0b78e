"""Model and engine as requesters, side by side: any work, any sequence of answers, late timers."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from softrnic.jit import JIT
from softrnic.verbs import Access, Mtu, QpState, SendFlags, SendWr, Sge, WrOpcode
from tests.model import packets as p
from tests.model.nic import MEMORY, OWN_KEY, SENDS, Nic
from tests.model.packets import PSN_MASK, Packet, psn_add
from tests.model.requester import Requester, Work
from tests.sim.pages import small_pages

pytestmark = pytest.mark.slow  # drives both for minutes: pytest -m slow tests/model

CONTENT = np.random.default_rng(10).bytes(MEMORY)
PSNS = st.one_of(st.integers(0, PSN_MASK), st.sampled_from([0, PSN_MASK, PSN_MASK - 3, (1 << 23) - 2, 1 << 23]))
MOSTLY = st.integers(0, 9).map(lambda n: n < 8)
SELDOM = st.integers(0, 19).map(lambda n: n == 0)
LENGTHS = st.sampled_from([0, 1, 3, 255, 256, 257, 511, 512, 600, 1024])
SYNDROMES = st.one_of(
    st.sampled_from([0x1F, 0x1F, 0x1F, 0x00, 0x01, 0x0A, 0x21, 0x60, 0x60]),
    st.sampled_from([0x61, 0x62, 0x63, 0x64, 0x65, 0x7F, 0x40, 0x5F, 0x80, 0xFF]),
)
OPCODES = {"cas": WrOpcode.ATOMIC_CMP_AND_SWP, "faa": WrOpcode.ATOMIC_FETCH_AND_ADD, "read": WrOpcode.RDMA_READ}


@pytest.fixture(autouse=True, scope="module")
def _small_pages() -> Iterator[None]:
    with small_pages():
        yield


class Requesters(RuleBasedStateMachine):
    """Answers drawn so that most are what a peer would say next, and the rest are lost, early, late or nonsense."""

    nic: Nic | None = None

    @initialize(data=st.data())
    def start(self, data: st.DataObject) -> None:
        self._connect(data.draw)

    @precondition(lambda self: self.model.error)
    @rule(data=st.data())
    def begin_again(self, data: st.DataObject) -> None:
        self.teardown()
        self._connect(data.draw)

    def _connect(self, draw) -> None:
        psn, mtu = draw(PSNS), draw(st.sampled_from([Mtu.MTU_256, Mtu.MTU_512]))
        reads = draw(st.integers(1, 3))
        retry, rnr = draw(st.sampled_from([0, 1, 2, 7, 7])), draw(st.sampled_from([0, 1, 7]))
        self.nic = Nic(
            CONTENT, epsn=0, sq_psn=psn, mtu=mtu, access=Access(0), depth=0, max_rd_atomic=reads, retry_cnt=retry,
            rnr_retry=rnr,
        )  # fmt: skip
        self.model = Requester(
            psn=psn, pmtu=mtu.bytes, memory=bytearray(CONTENT), max_rd_atomic=reads, retry_cnt=retry, rnr_retry=rnr
        )
        self.used = 0

    def teardown(self) -> None:
        if self.nic is not None:
            self.nic.close()

    # --- work ---

    def _pieces(self, draw, length: int) -> list[tuple[int, int]]:
        cut = draw(st.integers(0, length))
        at = self.used
        self.used = (self.used + length + 8) % (MEMORY - 4096)
        return [(at, length)] if draw(st.booleans()) else [(at, cut), (at + cut + 3, length - cut)]

    @precondition(lambda self: not self.model.error and len(self.model.works) < SENDS // 2)
    @rule(data=st.data(), kind=st.sampled_from(["send", "send", "write", "write", "read", "cas", "faa"]))
    def post(self, data: st.DataObject, kind: str) -> None:
        assert self.nic is not None
        draw = data.draw
        work = Work(self.model.posted + 1, kind, va=draw(st.integers(0, 1 << 40)), rkey=0x77)
        length = 8 if kind in ("cas", "faa") else draw(LENGTHS)
        work.pieces = self._pieces(draw, length)
        work.fence, work.signaled, work.solicited = draw(SELDOM), draw(MOSTLY), draw(st.booleans())
        if kind in ("send", "write"):
            work.data = b"".join(self.model.memory[at : at + n] for at, n in work.pieces)
            if draw(st.booleans()):
                work.imm = 0xCAFE0000 + work.wr_id
            elif kind == "send" and draw(SELDOM):
                work.invalidate = 0xBEEF00
        if kind in ("cas", "faa"):
            work.swap = draw(st.integers(0, p.MASK64))
            work.compare = draw(st.integers(0, p.MASK64)) if kind == "cas" else 0
        self.nic.post_send(self._work_request(work))
        self.model.post(work)

    @staticmethod
    def _work_request(work: Work) -> SendWr:
        if work.kind == "send":
            opcode = WrOpcode.SEND if work.imm is None else WrOpcode.SEND_WITH_IMM
            opcode = opcode if work.invalidate is None else WrOpcode.SEND_WITH_INV
        elif work.kind == "write":
            opcode = WrOpcode.RDMA_WRITE if work.imm is None else WrOpcode.RDMA_WRITE_WITH_IMM
        else:
            opcode = OPCODES[work.kind]
        flags = SendFlags(0)
        for flag, wanted in (
            (SendFlags.FENCE, work.fence), (SendFlags.SIGNALED, work.signaled), (SendFlags.SOLICITED, work.solicited)
        ):  # fmt: skip
            flags |= flag if wanted else SendFlags(0)
        add = work.compare if work.kind == "cas" else work.swap
        imm = work.imm if work.imm is not None else work.invalidate or 0
        return SendWr(
            opcode, [Sge(at, n, OWN_KEY) for at, n in work.pieces], work.wr_id, flags, work.va, work.rkey, imm, add,
            work.swap,
        )  # fmt: skip

    # --- what happens ---

    @rule()
    def transmit(self) -> None:
        assert self.nic is not None
        for packet in self.nic.transmit():
            assert self.model.sent(packet), (packet, self.model.cursors)
        complaint = self.model.idle()
        assert complaint is None, complaint

    @precondition(lambda self: not self.model.error and self.model.una < self.model.top)
    @rule(data=st.data(), count=st.integers(1, 5))
    def answers(self, data: st.DataObject, count: int) -> None:
        """What a peer that has received everything would say next."""
        for _ in range(count):
            if self.model.una < self.model.top and not self.model.error:
                self._answer(data.draw)

    @precondition(lambda self: not self.model.error and self.model.una < self.model.top)
    @rule(syndrome=st.sampled_from([0x21, 0x21, 0x2E, 0x60, 0x60, 0x61, 0x62, 0x63]))
    def refusal(self, syndrome: int) -> None:
        """A NAK for the oldest packet."""
        model = self.model
        self._deliver(Packet(opcode=p.ACK, psn=psn_add(model.psn, model.una), syndrome=syndrome))
        self.transmit()

    def _answer(self, draw) -> None:
        model = self.model
        work = model.works[0]
        if work.wants_data:
            packet = self._data_answer(work)
        else:
            reach = next((w.first for w in model.works if w.wants_data), model.top)
            position = draw(st.integers(model.una, min(reach, model.top) - 1))
            packet = Packet(opcode=p.ACK, psn=psn_add(model.psn, position), syndrome=0x1F)
        self._deliver(packet)
        if draw(MOSTLY):
            self.transmit()

    def _data_answer(self, work: Work) -> Packet:
        model = self.model
        psn = psn_add(model.psn, model.una)
        if work.kind != "read":
            return Packet(opcode=p.ATOMIC_ACK, psn=psn, syndrome=0x1F, orig=0x1122334455667788 + work.wr_id)
        done, count = model.una - work.first, model.npsn(work)
        first, last = done == 0, done == count - 1
        op = (p.READ_ONLY if last else p.READ_FIRST) if first else (p.READ_LAST if last else p.READ_MIDDLE)
        payload = bytes([work.wr_id & 0xFF]) * min(model.pmtu, work.length - done * model.pmtu)
        return Packet(opcode=op, psn=psn, syndrome=0x1F if op in p.WITH_AETH else 0, payload=payload)

    @rule(data=st.data(), opcode=st.sampled_from([p.ACK] * 5 + sorted(p.RESPONSES)), syndrome=SYNDROMES)
    def nonsense(self, data: st.DataObject, opcode: int, syndrome: int) -> None:
        """Any answer, near the window."""
        draw, model = data.draw, self.model
        base = draw(st.sampled_from([model.una, model.una, model.top]))
        fields = {"opcode": opcode, "psn": psn_add(model.psn, base + draw(st.integers(-2, 4)))}
        if opcode in p.WITH_AETH:
            fields |= {"syndrome": syndrome, "msn": (model.posted - len(model.works) + draw(st.integers(0, 2)))}
        if opcode == p.ATOMIC_ACK:
            fields["orig"] = 7
        elif opcode != p.ACK:
            fields["payload"] = bytes(draw(st.sampled_from([0, 1, 88, 255, model.pmtu, model.pmtu, model.pmtu + 1])))
        self._deliver(Packet(**fields))
        if draw(MOSTLY):
            self.transmit()

    def _deliver(self, packet: Packet) -> None:
        assert self.nic is not None
        self.nic.receive(packet)
        self.model.receive(packet, self.nic.now)
        self._has_given_up()

    @rule()
    def timer(self) -> None:
        assert self.nic is not None
        deadline = self.nic.device.engine.next_deadline()
        if deadline is None or self.model.error:
            return
        self.nic.expire(deadline)
        self.model.timer(self.nic.now)
        self._has_given_up()
        self.transmit()

    def _has_given_up(self) -> None:
        """When the engine counts a retry as the last one, the model must agree that it may be."""
        assert self.nic is not None
        if self.nic.qp.state == QpState.ERR and not self.model.error:
            assert self.model.gives_up()

    # --- what must agree ---

    @invariant()
    def same_state(self) -> None:
        if self.nic is not None:
            assert (self.nic.qp.state == QpState.ERR) == self.model.error

    @invariant()
    def same_memory(self) -> None:
        if self.nic is not None:
            assert self.nic.memory.tobytes() == self.model.memory

    @invariant()
    def same_completions(self) -> None:
        if self.nic is not None:
            done, self.model.completions = self.model.completions, []
            assert [(wc.wr_id, wc.status.name) for wc in self.nic.poll()] == done


TestRequesters = Requesters.TestCase
TestRequesters.settings = settings(max_examples=200 if JIT else 20, stateful_step_count=40, deadline=None)

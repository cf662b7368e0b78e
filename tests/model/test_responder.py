"""Model and engine as responders, side by side: any sequence of requests, packet for packet the same answers."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from softrnic.jit import JIT
from softrnic.verbs import Access, Mtu, QpState, Wc, WcFlags
from tests.model import packets as p
from tests.model.nic import MEMORY, RECEIVES, Nic
from tests.model.packets import PSN_MASK, Packet, psn_add
from tests.model.responder import Completion, Receive, Region, Responder
from tests.sim.pages import small_pages

pytestmark = pytest.mark.slow  # drives both for minutes: pytest -m slow tests/model

CONTENT = np.random.default_rng(9).bytes(MEMORY)
REMOTE, LOCAL = 0, 1 << 14  # below: regions the peer may name; above: receive buffers
ALL = Access.LOCAL_WRITE | Access.REMOTE_WRITE | Access.REMOTE_READ | Access.REMOTE_ATOMIC
LAYOUT = {
    # key: where, how long, at which address, with which rights
    0x1100: (0x40, 6000, 0x7F00_0000_1000, ALL),
    0x1200: (0x2000, 1000, 0x10, Access.LOCAL_WRITE | Access.REMOTE_WRITE),
    0x1300: (0x2800, 1000, 0x7FFF_FFFF_0000_0000, Access.REMOTE_READ),
    0x1400: (0x3000, 64, 0x2000, Access.LOCAL_WRITE | Access.REMOTE_ATOMIC),
}
BAD_KEY = 0x1500
PSNS = st.one_of(st.integers(0, PSN_MASK), st.sampled_from([0, PSN_MASK, PSN_MASK - 2, (1 << 23) - 1, 1 << 23]))
MOSTLY = st.integers(0, 9).map(lambda n: n < 8)
SELDOM = st.integers(0, 19).map(lambda n: n == 0)


@pytest.fixture(autouse=True, scope="module")
def _small_pages() -> Iterator[None]:
    with small_pages():
        yield


def completion_of(wc: Wc) -> Completion:
    """A completion of the engine in the model's words."""
    done = Completion(wc.wr_id, wc.status.name)
    if wc.ok:
        done.opcode, done.length = wc.opcode.name, wc.byte_len
        done.imm = wc.imm if wc.wc_flags & WcFlags.WITH_IMM else None
        done.invalidated = wc.imm if wc.wc_flags & WcFlags.WITH_INV else None
    return done


class Responders(RuleBasedStateMachine):
    """Requests drawn so that most are right, and the rest wrong in one way or another."""

    nic: Nic | None = None

    @initialize(data=st.data())
    def start(self, data: st.DataObject) -> None:
        self._connect(data.draw)

    @precondition(lambda self: self.model.error)
    @rule(data=st.data())
    def begin_again(self, data: st.DataObject) -> None:
        self.answers()
        self.same_completions()
        self.teardown()
        self._connect(data.draw)

    def _connect(self, draw) -> None:
        epsn, mtu = draw(PSNS), draw(st.sampled_from([Mtu.MTU_256, Mtu.MTU_512]))
        depth, access = draw(st.integers(1, 4)), ALL
        if draw(SELDOM):
            access &= ~draw(st.sampled_from([Access.REMOTE_WRITE, Access.REMOTE_READ, Access.REMOTE_ATOMIC]))
        self.nic = Nic(CONTENT, epsn=epsn, sq_psn=0, mtu=mtu, access=access, depth=depth, max_rd_atomic=4)
        regions = {}
        for key, (offset, length, iova, right) in LAYOUT.items():
            self.nic.register(key, offset, length, iova, right)
            write, read = bool(right & Access.REMOTE_WRITE), bool(right & Access.REMOTE_READ)
            regions[key] = Region(iova, offset, length, write, read, bool(right & Access.REMOTE_ATOMIC))
        self.model = Responder(
            epsn=epsn, pmtu=mtu.bytes, memory=bytearray(CONTENT), regions=regions, depth=depth,
            write=bool(access & Access.REMOTE_WRITE), read=bool(access & Access.REMOTE_READ),
            atomic=bool(access & Access.REMOTE_ATOMIC),
        )  # fmt: skip
        self.posted = 0

    def teardown(self) -> None:
        if self.nic is not None:
            self.nic.close()

    # --- what happens ---

    @precondition(lambda self: not self.model.error and len(self.model.receives) < RECEIVES - 1)
    @rule(lengths=st.lists(st.sampled_from([0, 1, 255, 256, 300, 600, 2000, 2000]), max_size=4), bad=SELDOM)
    def post_receive(self, lengths: list[int], bad: bool) -> None:
        assert self.nic is not None
        at, pieces = LOCAL + self.posted % 7 * 100, []
        for length in lengths:
            pieces.append((None if bad and length else at, length))
            at += length + 5
        self.posted += 1
        self.nic.post_recv(self.posted, pieces)
        self.model.receives.append(Receive(self.posted, pieces))

    @rule(data=st.data())
    def request(self, data: st.DataObject) -> None:
        self._deliver(self._draw_request(data.draw))
        if data.draw(MOSTLY):
            self.answers()

    @rule()
    def answers(self) -> None:
        assert self.nic is not None
        sent, expected = self.nic.transmit(), self.model.transmit()
        assert sent == expected

    @rule(data=st.data(), again=st.integers(0, 3))
    def repeat(self, data: st.DataObject, again: int) -> None:
        """READs and atomics come again, whole or in part."""
        if not self.model.played:
            return
        played = self.model.played[max(0, len(self.model.played) - 1 - again)]
        request = played.request
        into = data.draw(st.integers(0, played.span - 1))
        if request.opcode == p.READ_REQUEST:
            skipped = into * self.model.pmtu
            request = Packet(
                opcode=p.READ_REQUEST, psn=psn_add(request.psn, into), va=request.va + skipped, rkey=request.rkey,
                dmalen=data.draw(st.integers(0, request.dmalen - skipped) | st.just(request.dmalen - skipped)),
            )  # fmt: skip
        self._deliver(request)
        if data.draw(MOSTLY):
            self.answers()

    def _deliver(self, request: Packet) -> None:
        assert self.nic is not None
        self.nic.receive(request)
        if request.opcode in p.REQUESTS and not self._is_malformed(request):
            self.model.receive(request)

    @staticmethod
    def _is_malformed(request: Packet) -> bool:
        """Payload where the opcode has none: not a packet at all."""
        return bool(request.payload) and request.opcode in p.ATOMICS | {p.READ_REQUEST}

    # --- drawing requests ---

    def _draw_request(self, draw) -> Packet:
        model = self.model
        opcodes = {None: p.FIRSTS, "send": p.SENDS - p.FIRSTS, "write": p.WRITES - p.FIRSTS}[model.message]
        op = draw(st.sampled_from(sorted(opcodes)))
        if model.message == "write" and model.target[2] > model.pmtu:
            op = p.WRITE_MIDDLE
        elif model.message == "write" and op == p.WRITE_MIDDLE:
            op = p.WRITE_LAST
        right = Access.REMOTE_READ if op == p.READ_REQUEST else Access.REMOTE_ATOMIC
        right = Access.REMOTE_WRITE if op in p.WRITES else right
        wrong = draw(SELDOM)
        keys = [key for key, row in LAYOUT.items() if wrong or op in p.SENDS or row[3] & right]
        key = draw(st.sampled_from(keys))
        _, length, iova, _ = LAYOUT[key]
        fields = {"opcode": op, "psn": model.epsn, "ackreq": int(draw(MOSTLY)), "se": 0}
        size = self._draw_size(draw, op)
        if op in p.WITH_RETH:
            more = draw(st.integers(1, 900)) if op == p.WRITE_FIRST else 0
            total = draw(st.integers(0, 1500)) if op == p.READ_REQUEST else size + more
            fields |= {"rkey": key, "va": iova + draw(st.integers(0, max(0, length - total))), "dmalen": total}
        if op in p.ATOMICS:
            at = iova + 8 * draw(st.integers(0, length // 8 - 1))
            fields |= {"rkey": key, "va": at, "swap": draw(st.integers(0, p.MASK64)), "compare": self._peek(key, at)}
        if op in p.WITH_IMM:
            fields["imm"] = 0xDEADBEEF
        if op in p.WITH_INV:
            fields["imm"] = key
        fields["payload"] = (bytes(range(256)) * 3)[model.epsn % 256 :][:size]
        return Packet(**self._spoil(draw, fields))

    def _draw_size(self, draw, op: int) -> int:
        model = self.model
        if op not in p.SENDS and op not in p.WRITES:
            return 0
        if op not in p.LASTS:
            return model.pmtu
        if model.message == "write":
            return min(model.pmtu, model.target[2])
        least = 0 if op in p.FIRSTS else 1
        return draw(st.one_of(st.sampled_from([least, model.pmtu, 3, 4, 5]), st.integers(least, model.pmtu)))

    def _peek(self, key: int, va: int) -> int:
        """What the cell holds, so that a compare may succeed."""
        offset, _, iova, _ = LAYOUT[key]
        return int.from_bytes(self.model.memory[offset + va - iova :][:8], "little")

    def _spoil(self, draw, fields: dict) -> dict:
        """Most requests stay as they are; some get one thing wrong."""
        if draw(MOSTLY) or draw(st.booleans()):
            return fields
        what = draw(st.sampled_from(["psn"] * 8 + ["opcode", "payload", "rkey", "va", "dmalen", "imm", "compare"]))
        if what == "psn":
            fields["psn"] = psn_add(fields["psn"], draw(st.sampled_from([-1, -2, -5, -(1 << 23), 1, 2, (1 << 23) - 1])))
        elif what == "opcode":
            fields["opcode"] = draw(st.integers(0, 31))
        elif what == "payload":
            fields["payload"] = bytes(draw(st.sampled_from([0, 1, 255, 256, 257, 512, 513, 600])))
        elif what == "rkey":
            fields["rkey"] = draw(st.sampled_from([BAD_KEY, *LAYOUT]))
        elif what == "va":
            change = st.sampled_from([-1, 1, 4, -4096, 1 << 62, -(1 << 63), 1 << 63])
            fields["va"] = (fields.get("va", 0) + draw(change)) & p.MASK64
        elif what == "dmalen":
            lengths = st.sampled_from([0, 1, 256, 257, 1000, 1001, 1 << 31, (1 << 31) + 1, (1 << 32) - 1])
            fields["dmalen"] = draw(lengths)
        elif what == "imm":
            fields["imm"] = draw(st.sampled_from([BAD_KEY, *LAYOUT]))
        else:
            fields["compare"] = 0
        return fields

    # --- what must agree ---

    @invariant()
    def same_state(self) -> None:
        if self.nic is None:
            return
        assert (self.nic.qp.state == QpState.ERR) == self.model.error
        if not self.model.error:
            now = self.nic.qp.record
            assert (int(now["epsn"]), int(now["msn"])) == (self.model.epsn, self.model.msn)

    @invariant()
    def same_memory(self) -> None:
        if self.nic is not None:
            assert self.nic.memory.tobytes() == self.model.memory

    @invariant()
    def same_completions(self) -> None:
        if self.nic is not None:
            done, self.model.completions = self.model.completions, []
            assert [completion_of(wc) for wc in self.nic.poll()] == done


TestResponders = Responders.TestCase
TestResponders.settings = settings(max_examples=200 if JIT else 20, stateful_step_count=40, deadline=None)

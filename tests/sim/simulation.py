"""One seed from beginning to end: build what the scenario says, let it run, judge it.

    result = simulate(4711)
    assert result.complaint is None, result

Everything is a function of the seed, whatever ran before; only numbers of memory addresses differ, and nothing depends
on those.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from random import Random

from softrnic.counters import C
from softrnic.verbs import Qp, QpCap, QpState, QpType, Srq, Wc
from tests.sim.host import CQ_ENTRIES, Host
from tests.sim.link import NEVER
from tests.sim.network import LogEntry, Network, Reason
from tests.sim.receiving import GRH_BYTES, Receiver
from tests.sim.scenario import NODES, ChannelPlan, Scenario, draw_scenario
from tests.sim.traffic import QKEY, Cell, Stream

LIMIT_NS = 2000 * 10**9  # virtual time after which a run is taken to hang
LIMIT_VISITS = 20_000  # and so is one in which so many visits in a row find nothing new
_SRQ_DEPTH = 32
_QUIET = ("sched", "timer", "rd_out", "req_wait", "ack_state", "resp_op", "fault")


@dataclass
class Result:
    """What became of a seed."""

    scenario: Scenario
    complaint: str | None
    messages: int = 0
    virtual_ns: int = 0
    digest: int = 0
    wire: dict[str, int] = field(default_factory=dict)
    counters: dict[str, int] = field(default_factory=dict)
    log: list[LogEntry] = field(default_factory=list)


def simulate(seed: int, *, logging: bool = False) -> Result:
    """Run one seed."""
    return Simulation(draw_scenario(seed), logging=logging).run()


class Simulation:
    """A scenario, built and running."""

    def __init__(self, scenario: Scenario, *, logging: bool = False) -> None:
        self.scenario = scenario
        self.random = Random(f"traffic {scenario.seed}")
        self.hosts = [
            Host(node, self.random, scenario.offloads[node], paged=scenario.paged[node]) for node in range(NODES)
        ]
        self.network = Network([h.device for h in self.hosts], now=scenario.now, logging=logging)
        self.network.state["step_ns"] = scenario.step_ns
        self.network.state["holdoff_ns"] = scenario.holdoff_ns
        if scenario.losses is not None:
            self.network.limit_losses(scenario.losses)
        for src in range(NODES):
            for dst in range(NODES):
                scenario.link(src, dst).apply(self.network.link(src, dst), (scenario.seed, src, dst))
        self.streams: list[Stream] = []
        self.receivers: list[Receiver] = []
        self._sending: dict[tuple[int, int], Stream] = {}  # by node and QPN
        self._receiving: dict[tuple[int, int], Stream] = {}
        self._srqs: dict[tuple[int, bool], tuple[Srq, Receiver]] = {}  # by node, and whether it is for RC
        self._draining: list[Qp] = []
        self.cells = [self._new_cells(host) for host in self.hosts]
        for plan in scenario.channels:
            self._open(plan)
        for host in self.hosts:
            for cq in host.cqs:
                self.network.watch(host.node, cq=cq)
        self._plan_traffic()

    # --- building ---

    def _new_cells(self, host: Host) -> list[Cell]:
        cells = []
        for _ in range(2):
            piece = host.alloc(8, 8)
            cells.append(Cell(piece, int.from_bytes(host.read([piece]), "little")))
        return cells

    def _open(self, plan: ChannelPlan) -> None:
        """Create and connect both queue pairs of a channel."""
        hosts = [self.hosts[n] for n in plan.nodes]
        qps = [self._new_qp(plan, side, hosts[side]) for side in (0, 1)]
        for side, (host, qp) in enumerate(zip(hosts, qps, strict=True)):
            self._connect(plan, side, host, qp, qps[1 - side])
            self.network.watch(host.node, qp=qp)
        for side in (0, 1):
            self._add_stream(plan, hosts[side], hosts[1 - side], qps[side], qps[1 - side])

    def _new_qp(self, plan: ChannelPlan, side: int, host: Host) -> Qp:
        srq = self._srq_of(host, plan.kind)[0] if plan.srq[side] else None
        cap = QpCap(plan.send_wr[side], plan.recv_wr[side], plan.send_sge, plan.recv_sge, plan.inline)
        return host.pd.create_qp(plan.kind, host.new_cq(), host.new_cq(), cap, srq=srq, sq_sig_all=plan.sig_all)

    def _srq_of(self, host: Host, kind: QpType) -> tuple[Srq, Receiver]:
        """Duplicates of datagrams take receives, which RC would wait for in vain: each has a queue of its own."""
        reliable = kind == QpType.RC
        if (host.node, reliable) not in self._srqs:
            sharing = [p for p in self.scenario.channels if host.node in p.nodes]
            srq = host.pd.create_srq(_SRQ_DEPTH, 4)
            number = 0x800 + 2 * host.node + reliable
            receiver = Receiver(host, srq, 4, number, max(p.largest for p in sharing) + GRH_BYTES)
            self.receivers.append(receiver)
            self._srqs[host.node, reliable] = srq, receiver
        return self._srqs[host.node, reliable]

    def _connect(self, plan: ChannelPlan, side: int, host: Host, qp: Qp, peer: Qp) -> None:
        if plan.kind == QpType.UD:
            qp.modify(QpState.INIT, pkey_index=0, port=1, qkey=QKEY)
            qp.modify(QpState.RTR)
            qp.modify(QpState.RTS, sq_psn=plan.psn[side])
            return
        qp.modify(QpState.INIT, pkey_index=0, port=1, access_flags=host.mrs[0].access)
        path = {
            "ah": host.ah(plan.nodes[1 - side], plan.family), "path_mtu": plan.mtu, "dqpn": peer.qpn,
            "rq_psn": plan.psn[1 - side],
        }  # fmt: skip
        if plan.kind == QpType.UC:
            qp.modify(QpState.RTR, **path)
            qp.modify(QpState.RTS, sq_psn=plan.psn[side])
            return
        qp.modify(
            QpState.RTR, **path, max_dest_rd_atomic=plan.rd_atomic[side], min_rnr_timer=plan.min_rnr_timer
        )  # fmt: skip
        qp.modify(
            QpState.RTS, sq_psn=plan.psn[side], timeout=plan.timeout, retry_cnt=7, rnr_retry=7,
            max_rd_atomic=plan.rd_atomic[1 - side],
        )  # fmt: skip

    def _add_stream(self, plan: ChannelPlan, src: Host, dst: Host, qp: Qp, peer: Qp) -> None:
        number = len(self.streams) + 1
        if peer.srq is None:
            # a datagram lost leaves its buffer to the next one
            size = None if plan.kind == QpType.RC else plan.largest + GRH_BYTES
            receiver = Receiver(dst, peer, plan.recv_sge, number, size)
            self.receivers.append(receiver)
        else:
            receiver = self._srq_of(dst, plan.kind)[1]
        ah = src.pd.create_ah(src.ah(dst.node, plan.family)) if plan.kind == QpType.UD else None
        stream = Stream(plan, self.random, number, src=src, dst=dst, qp=qp, peer=peer, receiver=receiver, ah=ah)
        stream.cells = self.cells[dst.node]
        stream.wire_keeps_order = self.scenario.link(src.node, dst.node).keeps_order
        self.streams.append(stream)
        self._sending[src.node, qp.qpn] = stream
        self._receiving[dst.node, peer.qpn] = stream

    def _plan_traffic(self) -> None:
        for i, stream in enumerate(self.streams):
            stream.plan_work(stream.plan.messages[i % 2])

    # --- running ---

    def run(self) -> Result:
        """To the end, or to the first thing that is wrong."""
        complaint = next(self._complaints(), None)
        network = self.network
        counters = {row.name: sum(h.device.counter(row) for h in self.hosts) for row in C}
        return Result(
            self.scenario, complaint, sum(s.posted for s in self.streams), network.now - self.scenario.now,
            int(network.state["digest"]), network.totals(), counters, network.log,
        )  # fmt: skip

    def _complaints(self) -> Iterator[str]:
        yield from self._run()
        yield from filter(None, (s.leftovers() for s in self.streams))
        yield from filter(None, (s.settle() for s in self.streams))
        yield from self._judge_cells()
        yield from self._judge_memory()
        yield from self._judge_qps()

    def _run(self) -> Iterator[str]:
        limit = self.scenario.now + LIMIT_NS
        delivered, idle_visits = 0, 0
        while True:
            yield from self._poll()
            acted = self._page() | self._act()
            reason = self.network.run(self._next_visit())
            before, delivered = delivered, int(self.network.state["delivered"])
            idle_visits = 0 if acted or delivered != before else idle_visits + 1
            if reason == Reason.BROKEN:
                yield f"invariant {self.network.complaint()}"
            elif reason == Reason.BUSY:
                yield "live-lock"
            elif reason == Reason.IDLE and not acted and not self._something_to_do():
                return
            if self.network.now > limit or idle_visits > LIMIT_VISITS:
                yield f"still busy after {(self.network.now - self.scenario.now) / 1e9} s"

    def _page(self) -> bool:
        """Bring pages that are missing; whether any was brought."""
        acted = False
        for host in self.hosts:
            if host.paging is not None:
                host.device.dispatch_events()
                acted |= host.paging.visit()
        return acted

    def _something_to_do(self) -> bool:
        return bool(self._draining) or any(q.room for q in (*self.streams, *self.receivers))

    def _next_visit(self) -> int:
        """When the hosts look again without being woken: while there is something that could be posted."""
        if any(host.paging is not None and host.paging.busy for host in self.hosts):
            return self.network.now + self.random.choice((100, 3_000))
        if self._something_to_do():
            return self.network.now + self.random.choice((100, 3_000, 100_000, 2_000_000))
        return NEVER

    def _act(self) -> bool:
        """Post what there is room for; whether anything was."""
        scenario, r = self.scenario, self.random
        acted = False
        for qp in self._draining:
            if qp.state == QpState.SQD:
                qp.modify(QpState.RTS)
        self._draining.clear()
        for receiver in self.receivers:
            if receiver.room:
                most = r.randrange(4) if scenario.late_receives else CQ_ENTRIES
                acted |= receiver.post(most) > 0
        for stream in self.streams:
            if stream.room:
                acted |= stream.post(r.randrange(1, scenario.post_burst + 1)) > 0
            if scenario.drains and stream.qp.state == QpState.RTS and r.random() < 0.05:
                stream.qp.modify(QpState.SQD)
                self._draining.append(stream.qp)
        return acted

    def _poll(self) -> Iterator[str]:
        for host in self.hosts:
            for cq in host.cqs:
                while done := cq.poll(64):
                    yield from filter(None, (self._completed(host, wc) for wc in done))

    def _completed(self, host: Host, wc: Wc) -> str | None:
        receive = wc.opcode >= 128
        stream = (self._receiving if receive else self._sending).get((host.node, wc.qpn))
        if stream is None:
            return f"a completion of no QP: {wc}"
        complaint = stream.received(wc) if receive else stream.sent(wc)
        return complaint and f"QP {wc.qpn:#x} of node {host.node}: {complaint}"

    # --- judging ---

    def _judge_cells(self) -> Iterator[str]:
        for host, cells in zip(self.hosts, self.cells, strict=True):
            for cell in cells:
                end = int.from_bytes(host.read([cell.piece]), "little")
                if complaint := cell.complaint(end):
                    yield complaint
                host.accept([cell.piece])

    def _judge_memory(self) -> Iterator[str]:
        for receiver in self.receivers:
            if any(p.kind != QpType.RC for p in self.scenario.channels):
                receiver.forgive()
        for host in self.hosts:
            if stray := host.stray_bytes():
                yield f"node {host.node}: memory differs at {stray}"

    def _judge_qps(self) -> Iterator[str]:
        """Nothing outstanding, nothing owed, no timer."""
        for stream in self.streams:
            q, peer = stream.qp.record, stream.peer.record
            busy = [name for name in _QUIET if int(q[name]) and (name != "resp_op" or stream.plan.kind == QpType.RC)]
            if busy:
                yield f"QP {stream.qp.qpn:#x} at rest: {', '.join(f'{n}={int(q[n])}' for n in busy)}"
            if int(q["sq_head"]) != int(q["sq_prod"]):
                yield f"QP {stream.qp.qpn:#x}: send queue not empty"
            if stream.plan.kind != QpType.RC:
                continue
            psns = {int(q["una_psn"]), int(q["req_psn"]), int(q["req_hi_psn"]), int(peer["epsn"])}
            if len(psns) != 1:
                yield f"QP {stream.qp.qpn:#x}: window not empty, PSNs {sorted(psns)}"
            if int(q["rd_head"]) != int(q["rd_tail"]):
                yield f"QP {stream.qp.qpn:#x}: answers still owed"

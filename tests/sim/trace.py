"""A simulation in words: the packets as they were delivered, and how the queue pairs stood when it ended."""

from __future__ import annotations

from collections.abc import Iterator

from softrnic.verbs import QpType
from softrnic.wire.show import one_line
from tests.sim.network import LogEntry
from tests.sim.simulation import Result, Simulation

_IP, _UDP = 20, 8
_SHOWN = (
    "sq_head", "sq_cur", "sq_hi", "sq_prod", "una_psn", "req_psn", "req_hi_psn", "rd_out", "cwnd", "retry_left",
    "timer", "req_wait", "epsn", "msn", "resp_op", "nak_sent", "ack_state", "rd_head", "rd_done", "rd_tail", "rq_head",
    "rq_prod",
)  # fmt: skip


def packets(frame: bytes, seg: int) -> Iterator[bytes]:
    """The packets of a frame, of a super-frame each with the headers it would have alone."""
    if seg == 0:
        yield frame
        return
    l3 = 18 if frame[12:14] == b"\x81\x00" else 14
    is_v6 = frame[l3 - 2 : l3] == b"\x86\xdd"
    headers = l3 + (40 if is_v6 else _IP) + _UDP
    for number, at in enumerate(range(headers, len(frame), seg)):
        payload = frame[at : at + seg]
        yield bytes(_fit(bytearray(frame[:headers]), l3, is_v6, len(payload), number)) + payload


def _fit(head: bytearray, l3: int, is_v6: bool, payload: int, number: int) -> bytearray:
    head[-4:-2] = (_UDP + payload).to_bytes(2, "big")
    if is_v6:
        head[l3 + 4 : l3 + 6] = (_UDP + payload).to_bytes(2, "big")
        return head
    head[l3 + 2 : l3 + 4] = (_IP + _UDP + payload).to_bytes(2, "big")
    ip_id = int.from_bytes(head[l3 + 4 : l3 + 6], "big") + number
    head[l3 + 4 : l3 + 6] = (ip_id & 0xFFFF).to_bytes(2, "big")
    head[l3 + 10 : l3 + 12] = bytes(2)
    total = sum(int.from_bytes(head[i : i + 2], "big") for i in range(l3, l3 + _IP, 2))
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    head[l3 + 10 : l3 + 12] = (~total & 0xFFFF).to_bytes(2, "big")
    return head


def packet_lines(log: list[LogEntry], start: int) -> Iterator[str]:
    """One line per packet: microseconds since the start, receiving node, the packet."""
    for entry in log:
        for packet in packets(entry.frame, entry.seg):
            yield f"{(entry.time - start) / 1000:12.3f} us  node {entry.dst}  {one_line(packet)}"


def qp_lines(simulation: Simulation) -> Iterator[str]:
    """Two or three lines per send queue."""
    for stream in simulation.streams:
        q = stream.qp.record
        yield (
            f"node {stream.src.node} QP {stream.qp.qpn:#x} {stream.qp.type.name} {stream.qp.state.name} to node "
            f"{stream.dst.node} QP {stream.peer.qpn:#x}: {stream.posted} of {len(stream.wrs)} posted, "
            f"{stream.arrived} of {len(stream.incoming)} received"
        )
        if stream.qp.type == QpType.RC:
            yield "    " + " ".join(f"{name}={int(q[name])}" for name in _SHOWN)


def scenario_lines(result: Result) -> Iterator[str]:
    """What the seed stands for."""
    scenario = result.scenario
    for number, plan in enumerate(scenario.channels):
        yield f"channel {number}: {plan}"
    for number, link in enumerate(scenario.links):
        if number == 0 or link != scenario.links[0]:
            yield f"link {number // 3} to {number % 3}: {link}"
    yield (
        f"step {scenario.step_ns} ns, holdoff {scenario.holdoff_ns} ns, late receives {scenario.late_receives}, "
        f"drains {scenario.drains}, losses {scenario.losses}, offloads {scenario.offloads}"
    )
    yield f"wire: {result.wire}"
    yield f"counters: { {name: n for name, n in result.counters.items() if n} }"

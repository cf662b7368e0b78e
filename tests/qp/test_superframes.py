"""Super-frames change how packets travel, not which: with offload and without, the same bytes arrive.

A super-frame is cut here as a kernel would cut it (segment i carries IP id i), and every packet of it goes through
scapy, which knows nothing of super-frames.
"""

from __future__ import annotations

import numpy as np
import pytest

from softrnic.layout import FRAME_HEADROOM, FRAME_STRIDE, make_ring
from softrnic.spec import Op
from softrnic.verbs import Mtu, QpCap, QpType, RecvWr, SendWr, WcStatus, WrOpcode
from tests.pairs import IPV4, IPV6, Pair, Side, deliver
from tests.script.harness import dissect

SIZE = 1 << 17
LENGTHS = [0, 1, 3, 255, 256, 257, 1023, 1024, 1025, 4096, 5000, 9_000, 4, 4, 4, 4]
HAS_VA = {Op.WRITE_FIRST, Op.WRITE_ONLY, Op.WRITE_ONLY_IMM, Op.READ_REQUEST, Op.COMPARE_SWAP, Op.FETCH_ADD}


def ones_complement(header: bytes) -> int:
    """IPv4 header checksum (RFC 1071)."""
    total = sum(int.from_bytes(header[i : i + 2], "big") for i in range(0, len(header), 2))
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return ~total & 0xFFFF


def cut(frame: bytes, seg: int) -> list[bytes]:
    """What the kernel makes of a super-frame: one frame per segment, with its own lengths, id and checksum."""
    if not seg:
        return [frame]
    v6 = frame[12:14] == b"\x86\xdd"
    l4 = 14 + (40 if v6 else 20)
    payload, packets = frame[l4 + 8 :], []
    for i, start in enumerate(range(0, len(payload), seg)):
        part = payload[start : start + seg]
        header = bytearray(frame[: l4 + 8])
        udp_len = 8 + len(part)
        header[l4 + 4 : l4 + 6] = udp_len.to_bytes(2, "big")
        if v6:
            header[18:20] = udp_len.to_bytes(2, "big")
        else:
            header[16:18] = (20 + udp_len).to_bytes(2, "big")
            ip_id = int.from_bytes(header[18:20], "big") + i & 0xFFFF
            header[18:20] = ip_id.to_bytes(2, "big")
            header[24:26] = bytes(2)
            header[24:26] = ones_complement(bytes(header[14:34])).to_bytes(2, "big")
        packets.append(bytes(header) + part)
    return packets


class Wiretap:
    """A pair whose wire is watched; `cutting` makes it one that cuts super-frames."""

    def __init__(self, offload: bool, ips: tuple[str, str], *, cutting: bool = False) -> None:
        self.pair = Pair(size=SIZE, ips=ips, offload=offload)
        self.sent: dict[str, list[bytes]] = {"a": [], "b": []}
        self.frames = 0
        self.cutting = cutting
        self.pair._carry_filtered = self._carry  # type: ignore[method-assign]
        self.pair.filter = lambda data, side: data

    def _carry(self, src: Side, dst: Side, n: int) -> None:
        for frame in src.tx.frames[:n]:
            off, length, seg = int(frame["off"]), int(frame["len"]), int(frame["seg"])
            data = src.tx.slab[off : off + length].tobytes()
            packets = cut(data, seg)
            self.frames += 1
            if self.frames % 7 == 1:
                dissect(packets[0])
                dissect(packets[-1])
            self.sent["a" if src is self.pair.a else "b"] += map(self.essence, packets)
            if self.cutting:
                for packet in packets:
                    deliver(dst.device, packet, self.pair.now)
            else:
                deliver(dst.device, data, self.pair.now, seg)

    def essence(self, packet: bytes) -> bytes:
        """BTH to payload, less what depends on timing (AckReq, the credits of an AETH) and on where buffers lie."""
        bth = bytearray(packet[14 + (40 if packet[12:14] == b"\x86\xdd" else 20) + 8 : -4])
        bth[8] &= 0x7F
        op = bth[0] & 0x1F
        if op in (Op.READ_RESPONSE_FIRST, Op.READ_RESPONSE_LAST, Op.READ_RESPONSE_ONLY, Op.ATOMIC_ACKNOWLEDGE):
            bth[12] = 0
        elif op in HAS_VA:
            va = int.from_bytes(bth[12:20], "big") - self.pair.b.mr.addr
            bth[12:20] = va.to_bytes(8, "big")
        return bytes(bth)


def work(tap: Wiretap, kind: QpType, mtu: Mtu) -> None:
    """Messages of every kind and length, one way."""
    p = tap.pair
    rng = np.random.default_rng(5)
    p.a.buf[:] = rng.integers(0, 256, SIZE, np.uint8)
    p.b.buf[:] = rng.integers(0, 256, SIZE, np.uint8)
    qa, qb = p.connect(kind, mtu=mtu, cap=QpCap(128, 128, 4, 4))
    opcodes = [WrOpcode.SEND, WrOpcode.RDMA_WRITE, WrOpcode.RDMA_WRITE_WITH_IMM]
    if kind == QpType.RC:
        opcodes += [WrOpcode.RDMA_READ, WrOpcode.ATOMIC_FETCH_AND_ADD]
    at, posted, receives = 8, [], 0
    for opcode in opcodes:
        for length in LENGTHS:
            size = 8 if opcode == WrOpcode.ATOMIC_FETCH_AND_ADD else length
            remote = p.b.mr.addr + (at & ~7)
            sges = [p.a.mr.sge(at & ~7, size)] if size else []
            posted.append(
                SendWr(opcode, sges, len(posted), remote_addr=remote, rkey=p.b.mr.rkey, imm=at, compare_add=3)
            )
            if opcode in (WrOpcode.SEND, WrOpcode.RDMA_WRITE_WITH_IMM):
                qb.post_recv(RecvWr([p.b.mr.sge(SIZE // 2 + at // 2, length)], receives))
                receives += 1
            at = (at + length + 16) % (SIZE // 2)
    qa.post_send(posted)
    p.run()
    completed, received = p.a.cq.poll(1000), p.b.cq.poll(1000)
    assert [(wc.wr_id, wc.status) for wc in completed] == [(i, WcStatus.SUCCESS) for i in range(len(posted))]
    assert [wc.wr_id for wc in received] == list(range(receives))


def without_acks(packets: list[bytes]) -> list[bytes]:
    """How many acknowledgements there are depends on timing."""
    return [packet for packet in packets if packet[0] != Op.ACKNOWLEDGE]


@pytest.mark.parametrize(
    ("kind", "mtu", "ips"),
    [
        (QpType.RC, Mtu.MTU_256, IPV4),
        (QpType.RC, Mtu.MTU_1024, IPV6),
        (QpType.RC, Mtu.MTU_4096, IPV4),
        (QpType.UC, Mtu.MTU_1024, IPV4),
        (QpType.UC, Mtu.MTU_256, IPV6),
    ],
    ids=["rc-256-v4", "rc-1024-v6", "rc-4096-v4", "uc-1024-v4", "uc-256-v6"],
)
def test_same_bytes(kind: QpType, mtu: Mtu, ips: tuple[str, str]) -> None:
    """Plain, with super-frames, and with super-frames cut on the way: the same packets, the same memory."""
    plain, whole, cutting = Wiretap(False, ips), Wiretap(True, ips), Wiretap(True, ips, cutting=True)
    for tap in (plain, whole, cutting):
        work(tap, kind, mtu)
    for other in (whole, cutting):
        assert other.frames < plain.frames / 2
        for side in "ab":
            assert without_acks(other.sent[side]) == without_acks(plain.sent[side])
        assert (other.pair.a.buf == plain.pair.a.buf).all()
        assert (other.pair.b.buf == plain.pair.b.buf).all()


def test_small_messages_travel_together() -> None:
    """Many messages of one size fill one frame, not one frame each."""
    tap = Wiretap(True, IPV4)
    qa, qb = tap.pair.connect(mtu=Mtu.MTU_1024)
    qb.post_recv([RecvWr([tap.pair.b.mr.sge(i * 8, 8)], i) for i in range(50)])
    qa.post_send([SendWr(WrOpcode.SEND, [tap.pair.a.mr.sge(i * 8, 8)], i) for i in range(50)])
    assert tap.pair.a.device.engine.transmit(tap.pair.a.tx, tap.pair.now) == 1
    frame = tap.pair.a.tx.frames[0]
    assert int(frame["seg"]) > 0
    data = tap.pair.a.tx.slab[int(frame["off"]) :][: int(frame["len"])].tobytes()
    assert [dissect(packet).psn for packet in cut(data, int(frame["seg"]))] == list(range(100, 150))


@pytest.mark.parametrize(
    ("max_frame", "max_segs"), [(0, 64), (600, 64), (65535, 1), (65535, 2), (4000, 64), (65535, 64)]
)
def test_limits_of_the_port(max_frame: int, max_segs: int) -> None:
    """No frame is larger than the port takes, nor has more segments; all slots are inside the ring."""
    p = Pair(size=SIZE)
    p.a.device.engine.set_offload(max_frame, max_segs)
    qa, _ = p.connect(mtu=Mtu.MTU_256)
    qa.post_send(SendWr(WrOpcode.RDMA_WRITE, [p.a.mr.sge(0, 60_001)], remote_addr=p.b.mr.addr, rkey=p.b.mr.rkey))
    psns = []
    ring = make_ring(4)
    while n := p.a.device.engine.transmit(ring, p.now):
        for slot, frame in enumerate(ring.frames[:n]):
            off, length, seg = int(frame["off"]), int(frame["len"]), int(frame["seg"])
            assert off == slot * FRAME_STRIDE + FRAME_HEADROOM
            packets = cut(ring.slab[off : off + length].tobytes(), seg)
            assert len(packets) <= max(1, max_segs)
            assert len(packets) == 1 or length <= max_frame
            assert (len(packets) > 1) == (seg > 0)
            psns += [dissect(packet).psn for packet in packets]
        p.b.device.engine.receive(ring, n, p.now)
        p.run(until=lambda: True)
        p.now += 1000
        n = p.b.device.engine.transmit(p.b.tx, p.now)
        p.a.device.engine.receive(p.b.tx, n, p.now)
    assert psns == list(range(100, 100 + -(-60_001 // 256)))
    assert (p.b.buf[:60_001] == p.a.buf[:60_001]).all()


def test_two_destinations_do_not_share_a_frame() -> None:
    """A frame has one set of headers, so packets of two QPs never travel in one."""
    p = Pair(size=SIZE, offload=True)
    qps = [p.connect(mtu=Mtu.MTU_1024)[0] for _ in range(3)]
    for qp in qps:
        qp.post_send([SendWr(WrOpcode.RDMA_WRITE, [p.a.mr.sge(0, 8)], remote_addr=p.b.mr.addr, rkey=p.b.mr.rkey)] * 5)
    n = p.a.device.engine.transmit(p.a.tx, p.now)
    assert n == 3
    for i, frame in enumerate(p.a.tx.frames[:n]):
        data = p.a.tx.slab[int(frame["off"]) :][: int(frame["len"])].tobytes()
        assert {packet.dqpn for packet in map(dissect, cut(data, int(frame["seg"])))} == {p.b.qps[i].qpn}

"""Packets that a kernel merged on their way in (GRO): right whether their identifications count up or are all one.

Linux merges both kinds, and the super-frame does not tell which it was (inet_gro_flush, since Linux 6.10).
"""

from __future__ import annotations

import struct

import numpy as np
import pytest

from softrnic.counters import C
from softrnic.verbs import Mtu, RecvWr, SendWr, WcStatus, WrOpcode
from tests.model.packets import icrc
from tests.pairs import IPV4, Pair, deliver
from tests.qp.test_superframes import ones_complement

COUNT, SIZE = 6, 256
FIRST_ID = 0xFFFD  # the counter wraps on the way


def with_id(packet: bytes, ip_id: int) -> bytes:
    """As another sender would have made it: the ICRC covers the identification."""
    ip = bytearray(packet[14:34])
    ip[4:6], ip[10:12] = ip_id.to_bytes(2, "big"), bytes(2)
    ip[10:12] = ones_complement(bytes(ip)).to_bytes(2, "big")
    return packet[:14] + bytes(ip) + packet[34:-4] + icrc(bytes(ip) + packet[34:42], packet[42:-4])


def merge(packets: list[bytes]) -> tuple[bytes, int]:
    """What GRO makes of packets of one flow and length: the first one's headers, all payloads; and the segment size."""
    payload = b"".join(packet[42:] for packet in packets)
    ip = bytearray(packets[0][14:34])
    ip[2:4], ip[10:12] = struct.pack("!H", 28 + len(payload)), bytes(2)
    ip[10:12] = ones_complement(bytes(ip)).to_bytes(2, "big")
    udp = packets[0][34:38] + struct.pack("!H", 8 + len(payload)) + packets[0][40:42]
    return packets[0][:14] + bytes(ip) + udp + payload, len(packets[0]) - 42


@pytest.mark.parametrize("damaged", [None, 0, 1, 3, COUNT - 1])
@pytest.mark.parametrize("step", [0, 1])
def test_only_what_is_damaged_is_dropped(step: int, damaged: int | None) -> None:
    pair = Pair(ips=IPV4)
    qa, qb = pair.connect(mtu=Mtu.MTU_1024)
    pair.a.buf[: COUNT * SIZE] = np.arange(COUNT * SIZE) % 251
    qb.post_recv([RecvWr([pair.b.mr.sge(i * SIZE, SIZE)], i) for i in range(COUNT)])
    qa.post_send([SendWr(WrOpcode.SEND, [pair.a.mr.sge(i * SIZE, SIZE)], i) for i in range(COUNT)])
    assert pair.a.device.engine.transmit(pair.a.tx, pair.now) == COUNT
    packets = [pair.a.tx.slab[int(f["off"]) :][: int(f["len"])].tobytes() for f in pair.a.tx.frames[:COUNT]]
    packets = [with_id(packet, FIRST_ID + i * step & 0xFFFF) for i, packet in enumerate(packets)]
    if damaged is not None:
        packets[damaged] = packets[damaged][:60] + bytes([packets[damaged][60] ^ 1]) + packets[damaged][61:]
    frame, seg = merge(packets)
    deliver(pair.b.device, frame, pair.now, seg)
    count = pair.b.device.counter
    assert count(C.DROP_ICRC) == (damaged is not None)
    assert count(C.RCVD_PKTS) == COUNT - (damaged is not None)
    pair.run()
    assert [wc.status for wc in pair.b.cq.poll(COUNT)] == [WcStatus.SUCCESS] * COUNT
    assert (pair.b.buf[: COUNT * SIZE] == pair.a.buf[: COUNT * SIZE]).all()

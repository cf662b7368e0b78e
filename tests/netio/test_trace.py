"""The trace of the last packets."""

from __future__ import annotations

from netio import memory
from netio.pcap import Direction
from netio.trace import TracePort
from tests.netio import naive
from tests.netio.frames import exchange, pattern, roce


def test_keeps_the_heads_of_the_last_packets() -> None:
    a, b = memory.pair()
    with b:
        port = TracePort(a, depth=4, snaplen=50)
        frame, answer = roce(pattern(500)), roce(b"answer")
        exchange(port, b, [(frame, 100)], now=1)
        exchange(b, port, [(answer, 0)], now=2)
        expected = [(1, Direction.TX, packet[:50], len(packet)) for packet in naive.split(frame, 100)]
        assert list(port.packets) == [*expected[2:], (2, Direction.RX, answer[:50], len(answer))]
        port.close()

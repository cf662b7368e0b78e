"""Every port and every middleware is a Port."""

from __future__ import annotations

from pathlib import Path

from netio import memory
from netio.arp import NeighbourPort, Neighbours
from netio.fault import FaultPort
from netio.pcap import PcapPort
from netio.port import COUNTERS, MAX_SUPER_FRAME, PORT, Port
from netio.trace import TracePort
from softrnic.layout import FRAME_STRIDE
from tests.netio.frames import exchange, pattern, roce


def test_a_stack_of_middleware_is_a_port(tmp_path: Path) -> None:
    a, b = memory.pair(mtu=1500)
    stack: Port = FaultPort(
        TracePort(PcapPort(NeighbourPort(a, Neighbours(a.mac)), tmp_path / "x.pcapng")),
    )
    assert isinstance(stack, Port)
    assert isinstance(a, Port)
    assert (stack.name, stack.mtu, stack.mac, stack.fixed_sport) == (a.name, 1500, a.mac, None)
    assert stack.caps == a.caps
    assert stack.fileno() == a.fileno()
    frame = roce(pattern(100))
    assert exchange(stack, b, [(frame, 0)]) == [(frame, 0)]
    assert exchange(b, stack, [(frame, 50)]) == [(frame, 50)]
    assert set(COUNTERS) < set(stack.counters())
    assert stack.next_deadline() is None
    stack.close()
    stack.close()
    b.close()


def test_counters_are_fields_of_the_record() -> None:
    assert set(COUNTERS) <= set(PORT.names or ())


def test_a_slot_holds_the_longest_super_frame() -> None:
    assert MAX_SUPER_FRAME + 64 <= FRAME_STRIDE

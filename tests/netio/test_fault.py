"""Fault middleware: the same seed gives the same run, each fault does what it says and nothing else."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator

import pytest

from netio import memory
from netio.fault import NO_FAULTS, BurstLoss, FaultPort, Faults, FaultyLink, Xorshift
from netio.middleware import put_frame
from softrnic.layout import FrameFlag, make_ring
from tests.netio import naive
from tests.netio.frames import drain, exchange, pattern, roce

US, MS = 1_000, 1_000_000


def numbered(n: int, size: int = 60) -> list[bytes]:
    return [i.to_bytes(4, "big") + bytes(size - 4) for i in range(n)]


def run(faults: Faults, packets: list[bytes], *, seed: int = 1, gap_ns: int = 0) -> list[tuple[int, bytes]]:
    """Send packets gap_ns apart; (arrival, packet) of each that comes out."""
    link = FaultyLink(faults, seed)
    for i, packet in enumerate(packets):
        link.put(packet, 0, i * gap_ns)
    arrived = []
    while (due := link.next_due()) is not None:
        arrived += [(due, packet) for packet, _ in link.take(due, 1)]
    return arrived


def indices(arrived: list[tuple[int, bytes]]) -> list[int]:
    return [int.from_bytes(packet[:4], "big") for _, packet in arrived]


EVERYTHING = Faults(
    loss=0.05,
    burst=BurstLoss(enter=0.01, leave=0.2),
    duplicate=0.05,
    corrupt=0.05,
    reorder=0.05,
    delay_ns=50 * US,
    jitter_ns=20 * US,
    rate_bps=10**9,
)


def test_a_run_is_a_function_of_the_seed() -> None:
    packets = numbered(2000)
    assert run(EVERYTHING, packets, gap_ns=US) == run(EVERYTHING, packets, gap_ns=US)
    assert run(EVERYTHING, packets, gap_ns=US) != run(EVERYTHING, packets, gap_ns=US, seed=2)


def test_the_generator_is_xorshift64star() -> None:
    """The first outputs from state 1, by Vigna's reference code."""
    random = Xorshift(0)
    random._state = 1
    assert [random.next() for _ in range(3)] == [0x47E4CE4B896CDD1D, 0xABCFA6A8E079651D, 0xB9D10D8FEB731F57]


def test_below_is_uniform() -> None:
    random = Xorshift(7)
    counts = [0] * 10
    for _ in range(10_000):
        counts[random.below(10)] += 1
    assert all(abs(count - 1000) < 5 * math.sqrt(900) for count in counts)


@pytest.mark.parametrize("seed", [1, 2, 3])
@pytest.mark.parametrize("loss", [0.001, 0.01, 0.3])
def test_loss(loss: float, seed: int) -> None:
    n = 20_000
    arrived = indices(run(Faults(loss=loss), numbered(n), seed=seed))
    assert abs(n - len(arrived) - n * loss) < 4 * math.sqrt(n * loss * (1 - loss))
    assert arrived == sorted(arrived)


def test_loss_of_all_and_of_none() -> None:
    assert run(Faults(loss=1.0), numbered(100)) == []
    assert indices(run(Faults(loss=0.0, delay_ns=1), numbered(100))) == list(range(100))


def test_burst_loss_has_bursts() -> None:
    """Mean burst 1 / leave, share of time in the bad state enter / (enter + leave)."""
    n = 50_000
    arrived = set(indices(run(Faults(burst=BurstLoss(enter=0.01, leave=0.1)), numbered(n))))
    lost = [i not in arrived for i in range(n)]
    bursts = sum(1 for i in range(n) if lost[i] and not (i and lost[i - 1]))
    assert 0.07 < sum(lost) / n < 0.12
    assert 8 < sum(lost) / bursts < 12


def test_duplicates_come_twice_and_at_once() -> None:
    arrived = indices(run(Faults(duplicate=0.2), numbered(5000)))
    twice = [i for i in set(arrived) if arrived.count(i) == 2]
    assert 850 < len(twice) < 1150
    assert arrived == sorted(arrived)
    assert len(arrived) == 5000 + len(twice)


def test_corruption_is_one_bit_behind_the_ethernet_header() -> None:
    packets = [pattern(100, i) for i in range(2000)]
    positions = set()
    changed = 0
    for (_, arrived), sent in zip(run(Faults(corrupt=0.5), packets), packets, strict=True):
        difference = int.from_bytes(arrived, "big") ^ int.from_bytes(sent, "big")
        assert difference.bit_count() <= 1
        changed += difference.bit_count()
        positions |= {i for i in range(100) if arrived[i] != sent[i]}
    assert 900 < changed < 1100
    assert positions == set(range(14, 100))


def test_corruption_of_a_frame_with_nothing_to_damage() -> None:
    assert run(Faults(corrupt=1.0), [bytes(14)]) == [(0, bytes(14))]


def test_delay_is_exact() -> None:
    arrived = run(Faults(delay_ns=5 * MS), numbered(10), gap_ns=US)
    assert [time for time, _ in arrived] == [5 * MS + i * US for i in range(10)]


def test_jitter_never_changes_the_order() -> None:
    arrived = run(Faults(delay_ns=MS, jitter_ns=MS), numbered(1000), gap_ns=US)
    assert indices(arrived) == list(range(1000))
    late = [time - i * US - MS for i, (time, _) in enumerate(arrived)]
    assert min(late) >= 0
    assert max(late) <= MS
    assert len(set(late)) > 20


def test_reordered_packets_are_overtaken() -> None:
    arrived = run(Faults(reorder=0.1, reorder_ns=10 * US), numbered(1000), gap_ns=US)
    order = indices(arrived)
    assert sorted(order) == list(range(1000))
    overtaken = [i for i in order if any(j > i for j in order[: order.index(i)])]
    assert 70 < len(overtaken) < 130
    assert all(time in (i * US, i * US + 10 * US) for time, i in zip((t for t, _ in arrived), order, strict=True))


def test_rate_spaces_packets() -> None:
    """1 Gb/s: 125 bytes take a microsecond."""
    arrived = run(Faults(rate_bps=10**9), numbered(5, 125))
    assert [time for time, _ in arrived] == [US, 2 * US, 3 * US, 4 * US, 5 * US]


def test_a_link_that_was_idle_starts_at_once() -> None:
    arrived = run(Faults(rate_bps=10**9), numbered(3, 125), gap_ns=MS)
    assert [time for time, _ in arrived] == [i * MS + US for i in range(3)]


def test_the_queue_of_a_slow_link_is_bounded() -> None:
    link = FaultyLink(Faults(rate_bps=10**9, queue_bytes=1000), 1)
    for packet in numbered(20, 125):
        link.put(packet, 0, 0)
    assert link.counters["queue_dropped"] == 11
    assert indices([(0, packet) for packet, _ in link.take(MS, 99)]) == list(range(9))


@pytest.mark.parametrize("field", ["loss", "duplicate", "corrupt", "reorder"])
@pytest.mark.parametrize("value", [-0.1, 1.1, math.nan, 2])
def test_probabilities_are_checked(field: str, value: float) -> None:
    with pytest.raises(ValueError, match="no probability"):
        dataclasses.replace(NO_FAULTS, **{field: value})


def test_other_values_are_checked() -> None:
    with pytest.raises(ValueError, match="no probability"):
        BurstLoss(enter=1.5, leave=0.5)
    with pytest.raises(ValueError, match="negative"):
        Faults(delay_ns=-1)


# --- as a port ----------------------------------------------------------------------------------------------


@pytest.fixture
def wire() -> Iterator[tuple[memory.MemoryPort, memory.MemoryPort]]:
    a, b = memory.pair()
    with a, b:
        yield a, b


def test_no_faults_leave_super_frames_whole(wire) -> None:
    port = FaultPort(wire[0])
    frame = roce(pattern(3000))
    assert exchange(port, wire[1], [(frame, 1000)]) == [(frame, 1000)]
    assert exchange(wire[1], port, [(frame, 1000)]) == [(frame, 1000)]
    assert port.next_deadline() is None


def test_super_frames_are_taken_apart(wire) -> None:
    port = FaultPort(wire[0], tx=Faults(delay_ns=1), rx=Faults(delay_ns=1))
    frame = roce(pattern(3000))
    expected = [(packet, 0) for packet in naive.split(frame, 100)]
    assert exchange(port, wire[1], [(frame, 100)]) == []
    assert drain(port, now=1) == []
    assert drain(wire[1]) == expected
    assert exchange(wire[1], port, [(frame, 100)], now=1) == []
    assert drain(port, now=2) == expected


def test_losing_a_packet_of_a_super_frame(wire) -> None:
    port = FaultPort(wire[0], tx=Faults(loss=0.3), seed=5)
    frame = roce(pattern(2000))
    packets = naive.split(frame, 100)
    arrived = [packet for packet, _ in exchange(port, wire[1], [(frame, 100)])]
    assert 0 < len(arrived) < 20
    assert arrived == [packet for packet in packets if packet in arrived]
    assert port.counters()["fault_tx_lost"] == 20 - len(arrived)
    assert port.counters()["fault_tx_delivered"] == len(arrived)


def test_the_deadline_is_that_of_the_next_packet_either_way(wire) -> None:
    port = FaultPort(wire[0], tx=Faults(delay_ns=5), rx=Faults(delay_ns=3))
    frame = roce(b"")
    exchange(port, wire[1], [(frame, 0)], now=100)
    assert port.next_deadline() == 105
    exchange(wire[1], port, [(frame, 0)], now=101)
    assert port.next_deadline() == 104
    assert drain(port, now=103) == []
    assert drain(port, now=104) == [(frame, 0)]
    assert port.next_deadline() == 105
    assert drain(wire[1]) == []
    port.recv_burst(make_ring(1), 105)
    assert drain(wire[1]) == [(frame, 0)]
    assert port.next_deadline() is None


def test_what_does_not_fit_waits_for_the_next_burst(wire) -> None:
    port = FaultPort(wire[0], rx=Faults(delay_ns=1))
    exchange(wire[1], port, [(roce(pattern(500)), 100)], now=0)
    rx = make_ring(2)
    assert [port.recv_burst(rx, 1) for _ in range(4)] == [2, 2, 1, 0]


def test_a_wire_that_becomes_good_delivers_first_what_is_under_way(wire) -> None:
    port = FaultPort(wire[0], tx=Faults(delay_ns=5), rx=Faults(delay_ns=5))
    early, late = roce(b"early"), roce(b"late.")
    exchange(port, wire[1], [(early, 0)], now=0)
    exchange(wire[1], port, [(early, 0)], now=0)
    port.tx.faults = port.rx.faults = NO_FAULTS
    assert exchange(port, wire[1], [(late, 0)], now=1) == []
    assert exchange(wire[1], port, [(late, 0)], now=1) == []
    assert drain(port, now=5) == [(early, 0), (late, 0)]
    assert drain(wire[1]) == [(early, 0), (late, 0)]
    assert port.next_deadline() is None


def test_flags_survive(wire) -> None:
    port = FaultPort(wire[0], rx=Faults(delay_ns=1))
    tx, rx = make_ring(1), make_ring(1)
    put_frame(tx, 0, roce(b""), flags=FrameFlag.ID_UNKNOWN)
    wire[1].send_burst(tx, 1, 0)
    assert port.recv_burst(rx, 0) == 0
    assert port.recv_burst(rx, 1) == 1
    assert rx.frames[0]["flags"] == FrameFlag.ID_UNKNOWN


def test_the_directions_have_generators_of_their_own(wire) -> None:
    faults = Faults(loss=0.5)
    port = FaultPort(wire[0], tx=faults, rx=faults)
    assert [port.tx._loses() for _ in range(64)] != [port.rx._loses() for _ in range(64)]

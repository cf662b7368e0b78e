"""AF_XDP ports: over veth pairs with the steering program, and the kernels alone against rings that lie."""

from __future__ import annotations

import contextlib
import errno
import os
import socket
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from scapy.layers.l2 import Ether

from ebpf.rules import Counter, Rule
from ebpf.steering import Mode, Steering
from netio import kernels, netns, xsk, xskio
from netio.netns import Namespace
from netio.port import Kind, Port, PortTables, Ready, make_tables
from netio.xsk import XskPort, open_xsk
from netio.xskio import Ring, Umem, Xsk
from softrnic.errors import IoError
from softrnic.layout import make_ring
from tests.ebpf.conftest import PacketSocket
from tests.ebpf.frames import vnet_header
from tests.netio import naive
from tests.netio.frames import drain, exchange, pattern, ring_frames, roce

needs_xsk = pytest.mark.privileged("netns", "xsk", "bpf")

MTU = 4200
A, B = "10.0.0.1", "10.0.0.2"
PATIENCE_NS = 10_000_000_000

Frame = tuple[bytes, int]  # bytes and segment size


def bth(qpn: int) -> bytes:
    """As much of a BTH as steering reads (IBTA 9.2)."""
    return struct.pack("!BBHII", 4, 0, 0xFFFF, qpn, 0)


def send(source: Port, *frames: Frame) -> None:
    """One burst."""
    exchange(source, NOBODY, list(frames))


def receive(sink: XskPort, count: int) -> list[Frame]:
    """`count` frames and whatever else is there by then. The kernel may deliver when it finds the time."""
    received: list[Frame] = []
    while len(received) < count and sink.wait(PATIENCE_NS) & Ready.RX:
        received += drain(sink)
    return received + drain(sink)


class Nobody:
    """A sink that reads nothing."""

    def recv_burst(self, rx: object, now: int) -> int:
        return 0


NOBODY: Port = Nobody()  # type: ignore[assignment]


def with_checksum(frame: bytes) -> bytes:
    """What a port without checksum offload must make of an IPv6 frame."""
    whole = Ether(frame)
    if "IPv6" in whole:
        whole["UDP"].chksum = None
    return bytes(whole)


@dataclass
class Link:
    """Two hosts, each with an AF_XDP port that gets all RoCEv2."""

    stack: contextlib.ExitStack
    near_ns: Namespace
    far_ns: Namespace
    near: XskPort
    far: XskPort
    near_steering: Steering
    far_steering: Steering


@pytest.fixture(params=[Mode.XDP_NATIVE, Mode.XDP_GENERIC])
def mode(request: pytest.FixtureRequest) -> Mode:
    return Mode(request.param)


@pytest.fixture
def wire() -> Iterator[tuple[Namespace, Namespace]]:
    with netns.namespace() as near, netns.namespace() as far:
        netns.veth(near, "near", far, "far", mtu=MTU)
        yield near, far


@pytest.fixture
def few_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    """So little memory that a few packets go around all rings."""
    monkeypatch.setattr(xsk, "RX_CHUNKS", 64)
    monkeypatch.setattr(xsk, "TX_SLOTS", 16)


@pytest.fixture
def link(wire: tuple[Namespace, Namespace], mode: Mode) -> Iterator[Link]:
    with contextlib.ExitStack() as stack:
        ends = []
        for ns, ifname in zip(wire, ("near", "far"), strict=True):
            with ns.entered():
                port = stack.enter_context(open_xsk(ifname))
                steering = stack.enter_context(Steering(ifname, mode, default=Rule.to_socket(0), vlan=True))
            steering.add_xsk(port.fileno())
            ends.append((port, steering))
        (near, near_steering), (far, far_steering) = ends
        yield Link(stack, *wire, near, far, near_steering, far_steering)


# --- frames


@needs_xsk
@pytest.mark.parametrize("version", [4, 6])
@pytest.mark.parametrize("vlan", [None, 5])
def test_a_frame_arrives_as_it_was_sent(link: Link, version: int, vlan: int | None) -> None:
    """The lengths straddle a chunk, and a chunk less the driver's headroom."""
    for payload in (16, 1040, 3780, 3798, 3799, 3840, 4036, 4040, 4054, 4055, 4100):
        frame = roce(pattern(payload), version=version, vlan=vlan)
        for source, sink in ((link.near, link.far), (link.far, link.near)):
            send(source, (frame, 0))
            assert receive(sink, 1) == [(with_checksum(frame), 0)]


@needs_xsk
@pytest.mark.parametrize("version", [4, 6])
def test_super_frames_are_split_as_by_scapy(link: Link, version: int) -> None:
    segments = 0
    for payload, seg in ((64_000, 4112), (64_000, 1040), (1041, 1040), (40, 16), (40, 40)):
        frame = roce(pattern(payload), version=version, ip_id=0xFFF0)
        expected = [(with_checksum(packet), 0) for packet in naive.split(frame, seg)]
        send(link.near, (frame, seg))
        assert receive(link.far, len(expected)) == expected
        segments += len(expected)
    assert link.near.counters()["tx_segments"] == segments
    assert link.far.counters()["rx_segments"] == segments


@needs_xsk
@pytest.mark.parametrize("version", [4, 6])
def test_super_frames_are_split_as_by_linux(link: Link, version: int) -> None:
    """A device with native XDP takes no super-frames, so the peer's kernel cuts those it is given."""
    frame, seg = roce(pattern(20_000), version=version), 1040
    with link.near_ns.entered(), contextlib.closing(PacketSocket("near", vnet=True)) as packet_socket:
        packet_socket.send(vnet_header(csum_start=34 if version == 4 else 54, segment=seg) + frame)
    if link.far_steering.mode is Mode.XDP_GENERIC:
        assert link.far.wait(PATIENCE_NS) == Ready.RX
        assert drain(link.far) == [], "generic XDP has super-frames uncut, of no use to us"
        assert link.far.counters()["rx_errors"] == 1
        return
    theirs = receive(link.far, 20)
    send(link.near, (frame, seg))
    ours = receive(link.far, 20)
    assert [without_checksum(each) for each, _ in theirs] == [without_checksum(each) for each, _ in ours]


def without_checksum(frame: bytes) -> bytes:
    """Linux completes the UDP checksum, of which the test gave it no beginning; we leave it 0 over IPv4."""
    udp = 34 if frame[12:14] == b"\x08\x00" else 54
    return frame[: udp + 6] + frame[udp + 8 :]


@needs_xsk
def test_the_rings_go_around(few_chunks: None, link: Link) -> None:
    for lap in range(40):
        frames = [(roce(pattern(size, lap)), 0) for size in (100, 4100, 2000, 4100)]
        send(link.near, *frames)
        assert receive(link.far, 4) == frames
    for port, counter in ((link.near, "tx_frames"), (link.far, "rx_frames")):
        counters = port.counters()
        assert counters[counter] == 160
        assert not any(counters[each] for each in ("tx_drops", "tx_errors", "rx_drops", "rx_errors"))


@needs_xsk
def test_a_super_frame_may_have_more_packets_than_there_are_slots(few_chunks: None, link: Link) -> None:
    frame = roce(pattern(40 * 16))
    send(link.near, (frame, 16))
    assert len(receive(link.far, 40)) == 40


@needs_xsk
def test_a_slow_reader_loses_frames_and_goes_on(few_chunks: None, link: Link) -> None:
    lost = 0
    for _ in range(2):
        for _ in range(10):
            send(link.near, *[(roce(pattern(100)), 0)] * 16)
        arrived = len(receive(link.far, 60))
        assert 60 <= arrived < 160
        lost += 160 - arrived
    assert link.far.counters()["rx_drops"] == lost


@needs_xsk
def test_a_burst_larger_than_the_ring_comes_in_pieces(link: Link) -> None:
    send(link.near, *[(roce(pattern(100 + i)), 0) for i in range(10)])
    send(link.near, (roce(pattern(64)), 0))
    rx = make_ring(4)
    bursts: list[int] = []
    while sum(bursts) < 11 and link.far.wait(PATIENCE_NS) == Ready.RX:
        bursts.append(link.far.recv_burst(rx, 0))
    assert sum(bursts) == 11
    assert max(bursts) <= 4


@needs_xsk
@pytest.mark.parametrize(
    ("frame", "seg"),
    [(roce(pattern(MTU - 27)), 0), (roce(pattern(9000)), MTU - 27), (bytes(17), 0), (bytes(60), 16)],
    ids=["too long", "packets too long", "too short", "super-frame of what"],
)
def test_what_cannot_be_sent_is_an_error(link: Link, frame: bytes, seg: int) -> None:
    good = roce(pattern(64))
    send(link.near, (frame, seg), (good, 0))
    assert receive(link.far, 1) == [(good, 0)]
    assert link.near.counters()["tx_errors"] == 1


@needs_xsk
def test_a_link_that_is_down(link: Link) -> None:
    with link.near_ns.netlink() as ip:
        index = socket.if_nametoindex("near")
        ip.link("set", index=index, state="down")
        send(link.near, (roce(pattern(64)), 0))
        assert link.near.counters()["tx_errors"] == 1
        ip.link("set", index=index, state="up")
    send(link.near, (roce(pattern(65)), 0))
    assert (roce(pattern(65)), 0) in receive(link.far, 2)


@needs_xsk
def test_waiting(link: Link) -> None:
    assert link.far.wait(0) == Ready(0)
    send(link.near, (roce(pattern(64)), 0))
    assert link.far.wait(PATIENCE_NS) == Ready.RX
    assert len(drain(link.far)) == 1
    assert link.far.wait(0) == Ready(0)
    link.far.wake()
    assert link.far.wait(PATIENCE_NS) == Ready.WAKE


# --- who gets what


@needs_xsk
def test_the_host_keeps_the_rest(link: Link) -> None:
    """Neighbour discovery and a UDP exchange between the two hosts' stacks."""
    for ns, ifname, address in ((link.near_ns, "near", A), (link.far_ns, "far", B)):
        netns.add_address(ns, ifname, f"{address}/24")
    with link.far_ns.entered():
        server = link.stack.enter_context(socket.socket(socket.AF_INET, socket.SOCK_DGRAM))
        server.bind((B, 0))
    with link.near_ns.entered():
        client = link.stack.enter_context(socket.socket(socket.AF_INET, socket.SOCK_DGRAM))
    server.settimeout(10)
    client.sendto(b"hello", server.getsockname())
    assert server.recv(100) == b"hello"
    assert drain(link.far) == []


@needs_xsk
def test_functions_share_a_queue(link: Link) -> None:
    """Two sockets in one memory, told apart by QPN; a suspended queue pair is counted and dropped."""
    with link.far_ns.entered():
        second = link.stack.enter_context(open_xsk("far", beside=link.far))
    link.far_steering.add_xsk(second.fileno(), target=1)
    link.far_steering.add(B, 0x11, Rule.to_socket(1))
    link.far_steering.add(B, 0x12, Rule.drop())
    frames = {qpn: roce(bth(qpn) + pattern(3900)) for qpn in (0x10, 0x11, 0x12)}
    for _ in range(3):
        send(link.near, *[(frames[qpn], 0) for qpn in (0x12, 0x11, 0x10)])
    assert receive(link.far, 3) == [(frames[0x10], 0)] * 3
    assert receive(second, 3) == [(frames[0x11], 0)] * 3
    assert link.far_steering.entry(B, 0x12).count.packets == 3
    send(second, (frames[0x10], 0))
    assert receive(link.near, 1) == [(frames[0x10], 0)]


@needs_xsk
@pytest.mark.parametrize("first_goes", [True, False])
def test_one_of_two_may_go(few_chunks: None, link: Link, first_goes: bool) -> None:
    """The memory lasts as long as the last socket in it, and none of its chunks is lost."""
    with link.far_ns.entered():
        second = link.stack.enter_context(open_xsk("far", beside=link.far))
    stays, goes = (second, link.far) if first_goes else (link.far, second)
    goes.close()
    link.far_steering.add_xsk(stays.fileno(), target=0)
    for lap in range(40):
        frame = roce(pattern(4100, lap))
        for source, sink in ((link.near, stays), (stays, link.near)):
            send(source, *[(frame, 0)] * 4)
            assert receive(sink, 4) == [(frame, 0)] * 4


@needs_xsk
def test_a_closed_port_gets_nothing(link: Link) -> None:
    link.far_steering.add(B, 0x11, Rule.to_socket(1))
    with link.far_ns.entered():
        second = link.stack.enter_context(open_xsk("far", beside=link.far))
    link.far_steering.add_xsk(second.fileno(), target=1)
    link.far.close()
    send(link.near, (roce(bth(0x10)), 0), (roce(bth(0x11)), 0))
    assert receive(second, 1) == [(roce(bth(0x11)), 0)]
    assert link.far_steering.counters()[Counter.NO_SOCKET].packets == 1


# --- opening and closing


@needs_xsk
def test_nothing_is_left_open(wire: tuple[Namespace, Namespace]) -> None:
    def held() -> tuple[int, int]:
        return len(os.listdir("/proc/self/fd")), Path("/proc/self/maps").read_text().count("socket:")

    with wire[0].entered():
        before = held()
        for _ in range(3):
            with open_xsk("near") as first, open_xsk("near", beside=first):
                assert held()[1] == before[1] + 8
            first.close()
        assert held() == before


@needs_xsk
def test_a_queue_has_one_owner(wire: tuple[Namespace, Namespace]) -> None:
    with wire[0].entered(), open_xsk("near"):
        before = len(os.listdir("/proc/self/fd"))
        with pytest.raises(IoError, match="near queue 0") as refused:
            open_xsk("near")
        assert refused.value.errno == errno.EBUSY
        assert len(os.listdir("/proc/self/fd")) == before


@needs_xsk
def test_no_such_queue(wire: tuple[Namespace, Namespace]) -> None:
    with wire[0].entered(), pytest.raises(IoError, match="queue 7") as refused:
        open_xsk("near", 7)
    assert refused.value.errno == errno.EINVAL


@needs_xsk
def test_no_such_device(wire: tuple[Namespace, Namespace]) -> None:
    with wire[0].entered(), pytest.raises(IoError, match="nosuch"):
        open_xsk("nosuch")


@needs_xsk
def test_zero_copy_is_the_drivers_to_offer(wire: tuple[Namespace, Namespace]) -> None:
    with wire[0].entered():
        with pytest.raises(IoError) as refused:
            open_xsk("near", zero_copy=True)
        assert refused.value.errno == errno.EOPNOTSUPP
        with open_xsk("near", zero_copy=False) as port:
            assert not port.zero_copy


@needs_xsk
def test_before_linux_6_6_packets_fit_a_chunk(
    wire: tuple[Namespace, Namespace], monkeypatch: pytest.MonkeyPatch
) -> None:
    bind = xsk._bind

    def old_bind(sock: socket.socket, flags: int, *address: int) -> None:
        if flags & xsk._Bind.USE_SG:
            raise OSError(errno.EINVAL, "bind")
        bind(sock, flags, *address)

    monkeypatch.setattr(xsk, "_bind", old_bind)
    with contextlib.ExitStack() as stack:
        ports = []
        for ns, ifname in zip(wire, ("near", "far"), strict=True):
            with ns.entered():
                ports.append(stack.enter_context(open_xsk(ifname)))
                steering = stack.enter_context(Steering(ifname, Mode.XDP, default=Rule.to_socket(0)))
            steering.add_xsk(ports[-1].fileno())
        near, far = ports
        assert near.mtu == 4096 - 256 - 18
        longest = roce(pattern(near.mtu - 28))
        send(near, (longest, 0))
        assert receive(far, 1) == [(longest, 0)]


# --- rings that lie: no kernel and no root


CHUNK = 4096


class FakeKernel:
    """A port's tables over plain memory: 8 chunks to receive in, 4 slots of two chunks to send from."""

    RX_CHUNKS, SLOTS = 8, 4

    def __init__(self) -> None:
        self.memory = np.zeros((self.RX_CHUNKS + 2 * self.SLOTS) * CHUNK, np.uint8)
        self.rings = {name: np.zeros(64, np.int64) for name in ("rx", "tx", "fill", "completion")}
        self.umem = np.zeros(Umem.WORDS + 2 * self.SLOTS, np.int64)
        self.umem[: Umem.WORDS] = (
            *(self.memory.ctypes.data, len(self.memory), CHUNK, 2 * CHUNK),
            *(self.SLOTS, self.RX_CHUNKS * CHUNK, self.SLOTS),
        )
        self.umem[Umem.WORDS : Umem.WORDS + self.SLOTS] = range(self.SLOTS)
        self.tables: PortTables = make_tables(Kind.XSK, fd=-1, wake_fd=-1, mtu=MTU, xsk_words=Xsk.WORDS)
        self.tables.xsk[:] = [self.umem.ctypes.data, *(word for name in self.rings for word in self._words(name))]

    def _words(self, name: str) -> list[int]:
        """Counters in words 0 and 1, flags in word 2, eight entries from word 8 on."""
        base = self.rings[name].ctypes.data
        words = {Ring.PRODUCER: base, Ring.CONSUMER: base + 8, Ring.FLAGS: base + 16, Ring.ENTRIES: base + 64}
        return [*(words[each] for each in list(Ring)[:4]), 7]

    def produce_rx(self, *descs: tuple[int, int, int]) -> None:
        """Put descriptors (address, length, options) in the RX ring."""
        ring = self.rings["rx"]
        for address, length, options in descs:
            at = 8 + 2 * (int(ring[0]) % 8)
            ring[at] = address
            ring[at + 1] = length | options << 32
            ring[0] = (int(ring[0]) + 1) & 0xFFFFFFFF

    def receive(self) -> list[bytes]:
        rx = make_ring(4)
        n = int(kernels.recv_burst(self.tables, rx))
        return [frame for frame, _ in ring_frames(rx, n)]

    def counter(self, name: str) -> int:
        return int(self.tables.port[0][name])

    def refilled(self) -> list[int]:
        fill = self.rings["fill"]
        return [int(each) for each in fill[8 : 8 + int(fill[0])]]


def test_chunks_go_back_by_their_start() -> None:
    kernel = FakeKernel()
    kernel.memory[CHUNK + 256 : CHUNK + 320] = 7
    kernel.produce_rx((CHUNK + 256, 64, 0))
    assert kernel.receive() == [b"\x07" * 64]
    assert kernel.refilled() == [CHUNK]
    assert kernel.rings["rx"][1] == 1


@pytest.mark.parametrize(
    ("address", "length"),
    [(16 * CHUNK, 1), (16 * CHUNK - 63, 64), (-1, 64), (1 << 62, 64), (0, 0xFFFFFFFF), (-(1 << 63), 64)],
)
def test_descriptors_outside_the_memory(address: int, length: int) -> None:
    kernel = FakeKernel()
    kernel.produce_rx((address, length, 0), (0, 60, 0))
    assert kernel.receive() == [bytes(60)]
    assert kernel.counter("rx_errors") == 1
    assert kernel.rings["rx"][1] == 2


def test_a_frame_whose_end_is_not_there_waits_for_it() -> None:
    kernel = FakeKernel()
    kernel.produce_rx((0, 100, xskio.CONTINUED), (CHUNK, 100, xskio.CONTINUED))
    assert kernel.receive() == []
    assert kernel.rings["rx"][1] == 0
    kernel.produce_rx((2 * CHUNK, 50, 0))
    assert [len(frame) for frame in kernel.receive()] == [250]


def test_a_frame_longer_than_any_packet() -> None:
    kernel = FakeKernel()
    pieces = [(0, CHUNK, xskio.CONTINUED)] * 2
    assert MTU + 18 < 2 * CHUNK
    kernel.produce_rx(*pieces, (0, 60, 0), (0, 60, 0))
    assert kernel.receive() == [bytes(60)]
    assert kernel.counter("rx_errors") == 1


def test_a_producer_beyond_the_ring() -> None:
    kernel = FakeKernel()
    kernel.produce_rx(*[(0, 60, 0)] * 8)
    kernel.rings["rx"][0] = 0x80000000
    assert len(kernel.receive()) == 4


def test_counters_wrap() -> None:
    kernel = FakeKernel()
    kernel.rings["rx"][:2] = 0xFFFFFFFE
    kernel.produce_rx(*[(0, 60, 0)] * 4)
    assert len(kernel.receive()) == 4
    assert kernel.rings["rx"][1] == 2


def send_into(kernel: FakeKernel, *frames: Frame) -> int:
    tx = make_ring(8)
    for i, (frame, seg) in enumerate(frames):
        off = int(tx.frames[i]["off"])
        tx.slab[off : off + len(frame)] = np.frombuffer(frame, np.uint8)
        tx.frames[i]["len"], tx.frames[i]["seg"] = len(frame), seg
    return int(kernels.send_burst(kernel.tables, tx, len(frames)))


def complete(kernel: FakeKernel, *addresses: int) -> None:
    ring = kernel.rings["completion"]
    for address in addresses:
        ring[8 + int(ring[0]) % 8] = address
        ring[0] += 1


def test_a_kernel_that_keeps_all_slots() -> None:
    kernel = FakeKernel()
    assert send_into(kernel, *[(roce(pattern(64)), 0)] * 6) == 4
    assert kernel.counter("tx_drops") == 2
    assert send_into(kernel, (roce(pattern(64)), 0)) == 0


def test_a_slot_is_free_when_its_last_chunk_is() -> None:
    kernel = FakeKernel()
    assert send_into(kernel, *[(roce(pattern(4100)), 0)] * 4) == 4
    first = kernel.RX_CHUNKS * CHUNK
    complete(kernel, first)
    assert send_into(kernel, (roce(pattern(64)), 0)) == 0
    complete(kernel, first + CHUNK)
    assert send_into(kernel, (roce(pattern(64)), 0)) == 1
    assert kernel.memory[first + 42 : first + 106].tobytes() == pattern(64)


@pytest.mark.parametrize("address", [0, -1, 1 << 62, 16 * CHUNK, 8 * CHUNK - 1])
def test_completions_of_what_was_never_sent(address: int) -> None:
    kernel = FakeKernel()
    complete(kernel, address, address)
    assert send_into(kernel, *[(roce(pattern(64)), 0)] * 5) == 4

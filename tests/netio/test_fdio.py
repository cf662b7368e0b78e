"""Descriptor ports without root: the kernel's side of the virtio-net header is played by a socket pair."""

from __future__ import annotations

import os
import socket
import struct
from collections.abc import Iterator

import numpy as np
import pytest

from netio.bare import BarePort, new_eventfd
from netio.kernels import port_tx_room
from netio.middleware import put_frame
from netio.port import SINGLE_FRAMES, SUPER_FRAMES, Kind, PortFlag, PortTables, Ready, make_tables
from softrnic.jit import kernel
from softrnic.layout import FRAME_LINEAR, FRAME_STRIDE, make_ring
from tests.netio import naive
from tests.netio.frames import drain, pattern, roce

VNET = struct.Struct("<BBHHHH")
NO_OFFLOAD = VNET.pack(0, 0, 0, 0, 0, 0)
NEEDS_CSUM, UDP_L4, TCPV4 = 1, 5, 1


@kernel
def tx_room(pt: PortTables) -> int:
    """kernels.port_tx_room for Python."""
    return port_tx_room(pt)


@pytest.fixture(params=[0, PortFlag.SOCKET], ids=["any descriptor", "a socket"])
def wire(request: pytest.FixtureRequest) -> Iterator[tuple[BarePort, socket.socket]]:
    """A port with offload, and the other side of its descriptor."""
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET | socket.SOCK_NONBLOCK)
    for sock in (ours, theirs):
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 200_000)
    tables = make_tables(Kind.FD, fd=ours.detach(), wake_fd=new_eventfd(), mtu=4200)
    tables.port["flags"] = PortFlag.OFFLOAD | request.param
    with BarePort("test", tables=tables, caps=SUPER_FRAMES, mac=bytes(6)) as port, theirs:
        yield port, theirs


def send(port: BarePort, *frames: tuple[bytes, int]) -> int:
    tx = make_ring(max(1, len(frames)))
    for i, (frame, seg) in enumerate(frames):
        put_frame(tx, i, frame, seg=seg)
    return port.send_burst(tx, len(frames), 0)


def written(sock: socket.socket) -> list[tuple[tuple[int, ...], bytes]]:
    """(virtio-net header, frame) of everything the port has written."""
    messages = []
    while True:
        try:
            message = sock.recv(70_000)
        except BlockingIOError:
            return messages
        messages.append((VNET.unpack(message[:10]), message[10:]))


def pseudo_sum(frame: bytes, version: int) -> int:
    """RFC 768's sum of addresses, protocol and length, folded, by the book."""
    addresses = frame[26:34] if version == 4 else frame[22:54]
    udp_len = len(frame) - (34 if version == 4 else 54)
    total = sum(struct.unpack(f"!{len(addresses) // 2}H", addresses)) + 17 + udp_len
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return total


def plain(frame: bytes) -> tuple[int, ...]:
    """The header of a frame that is one packet, with nothing for the kernel to do."""
    return 0, 0, min(FRAME_LINEAR, len(frame)), 0, 0, 0


def with_checksum(frame: bytes, version: int, value: int) -> bytes:
    at = (34 if version == 4 else 54) + 6
    return frame[:at] + value.to_bytes(2, "big") + frame[at + 2 :]


def test_a_packet_goes_out_as_it_is(wire) -> None:
    port, theirs = wire
    frame = roce(pattern(1000))
    assert send(port, (frame, 0)) == 1
    assert written(theirs) == [(plain(frame), frame)]
    assert port.counters()["tx_bytes"] == len(frame)


def test_ipv6_leaves_the_checksum_to_the_kernel(wire) -> None:
    """A host drops IPv6 packets whose UDP checksum is 0 (RFC 8200 8.1)."""
    port, theirs = wire
    frame = roce(pattern(1001), version=6)
    send(port, (frame, 0))
    expected = with_checksum(frame, 6, pseudo_sum(frame, 6))
    assert written(theirs) == [((NEEDS_CSUM, 0, FRAME_LINEAR, 0, 54, 6), expected)]


@pytest.mark.parametrize("version", [4, 6])
def test_a_super_frame_tells_how_to_cut_it(wire, version: int) -> None:
    port, theirs = wire
    frame = roce(pattern(1050), version=version)
    assert send(port, (frame, 100)) == 1
    udp = 34 if version == 4 else 54
    expected = with_checksum(frame, version, pseudo_sum(frame, version))
    assert written(theirs) == [((NEEDS_CSUM, UDP_L4, FRAME_LINEAR, 100, udp, 6), expected)]
    counters = port.counters()
    assert (counters["tx_frames"], counters["tx_segments"]) == (1, 11)


def test_a_super_frame_of_one_packet_is_a_packet(wire) -> None:
    port, theirs = wire
    frame = roce(pattern(100))
    send(port, (frame, 100), (frame, 101))
    assert written(theirs) == [(plain(frame), frame)] * 2


def test_a_super_frame_that_is_no_udp_is_refused(wire) -> None:
    port, theirs = wire
    frame = roce(pattern(100), proto=6)
    assert send(port, (frame, 10)) == 0
    assert written(theirs) == []
    assert port.counters()["tx_errors"] == 1


@pytest.mark.parametrize(("payload", "seg"), [(300, 100), (1050, 100), (100, 16), (17, 16)])
def test_without_offload_packets_go_out_singly(wire, payload: int, seg: int) -> None:
    """In place, so segments shorter than the headers that move over them are the hard case."""
    port, theirs = wire
    port.tables.port["flags"] &= ~PortFlag.OFFLOAD
    frame = roce(pattern(payload), ip_id=7)
    assert send(port, (frame, seg)) == 1
    assert written(theirs) == [(plain(packet), packet) for packet in naive.split(frame, seg)]
    assert port.counters()["tx_segments"] == -(-payload // seg)


def test_without_offload_ipv6_still_leaves_the_checksum_to_the_kernel(wire) -> None:
    port, theirs = wire
    port.tables.port["flags"] &= ~PortFlag.OFFLOAD
    frame = roce(pattern(250), version=6, vlan=9)
    send(port, (frame, 100))
    messages = written(theirs)
    assert [vnet for vnet, _ in messages] == [(NEEDS_CSUM, 0, min(FRAME_LINEAR, len(m)), 0, 58, 6) for _, m in messages]
    assert len(messages) == 3
    blank = [sent[:64] + b"\0\0" + sent[66:] for _, sent in messages]
    assert blank == [packet[:64] + b"\0\0" + packet[66:] for packet in naive.split(frame, 100)]


def test_a_full_queue_drops_and_counts(wire) -> None:
    port, theirs = wire
    frame = roce(pattern(4000))
    total = sum(send(port, *[(frame, 0)] * 16) for _ in range(20))
    counters = port.counters()
    assert 0 < total < 320
    assert (counters["tx_frames"], counters["tx_drops"]) == (total, 320 - total)
    assert len(written(theirs)) == total


def test_room_is_what_the_socket_has_left(wire) -> None:
    """Frames of the greatest length, as many as were promised, are never dropped; then there is no room, then again."""
    port, theirs = wire
    assert tx_room(port.tables) > 1000
    with socket.socket(fileno=os.dup(port.fileno())) as sock:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1 << 20)
        port.tables.port["sndbuf"] = sock.getsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF)
    frame = roce(pattern(65_000))
    promised = 0
    while room := min(4, tx_room(port.tables)):
        assert send(port, *[(frame, 0)] * room) == room
        promised += room
    assert promised >= 3
    assert len(written(theirs)) == promised
    assert tx_room(port.tables) >= 3


def test_a_dead_descriptor_is_an_error_not_a_crash(wire) -> None:
    port, theirs = wire
    os.close(os.dup(theirs.fileno()))
    theirs.shutdown(socket.SHUT_RDWR)
    null = os.open("/dev/null", os.O_WRONLY)
    os.dup2(null, port.fileno())
    os.close(null)
    assert drain(port) == []
    assert port.counters()["rx_errors"] == 1


def test_receives_until_nothing_waits(wire) -> None:
    port, theirs = wire
    frames = [roce(pattern(n, n)) for n in (1, 500, 4000)]
    for frame in frames:
        theirs.send(NO_OFFLOAD + frame)
    assert drain(port) == [(frame, 0) for frame in frames]
    assert drain(port) == []
    counters = port.counters()
    assert (counters["rx_frames"], counters["rx_errors"]) == (3, 0)
    assert counters["rx_bytes"] == sum(len(frame) for frame in frames)


def test_the_first_frame_after_a_lull_is_taken_alone(wire) -> None:
    port, theirs = wire
    rx = make_ring(4)
    assert port.recv_burst(rx, 0) == 0
    for _ in range(2):
        for i in range(4):
            theirs.send(NO_OFFLOAD + roce(bytes([i])))
        assert [port.recv_burst(rx, 0) for _ in range(3)] == [1, 3, 0]


def test_slots_of_a_ring_lie_alike_in_their_pages() -> None:
    ring = make_ring(3)
    assert {(ring.slab.ctypes.data + int(off) + FRAME_LINEAR) % 4096 for off in ring.frames["off"]} == {0}
    assert len(ring.slab) == 3 * FRAME_STRIDE


def test_a_burst_ends_when_the_ring_is_full(wire) -> None:
    port, theirs = wire
    for i in range(5):
        theirs.send(NO_OFFLOAD + roce(bytes([i])))
    rx = make_ring(2)
    assert [port.recv_burst(rx, 0) for _ in range(4)] == [2, 2, 1, 0]


def test_a_super_frame_arrives_whole(wire) -> None:
    port, theirs = wire
    frame = roce(pattern(60_000))
    theirs.send(VNET.pack(NEEDS_CSUM, UDP_L4, 42, 4112, 34, 6) + frame)
    assert drain(port) == [(frame, 4112)]
    assert port.counters()["rx_segments"] == 15


def test_the_congestion_bit_of_the_type_is_no_type(wire) -> None:
    port, theirs = wire
    frame = roce(pattern(200))
    theirs.send(VNET.pack(0, UDP_L4 | 0x80, 42, 100, 34, 6) + frame)
    assert drain(port) == [(frame, 100)]


@pytest.mark.parametrize(
    "message",
    [
        VNET.pack(1, TCPV4, 54, 1448, 34, 16) + roce(pattern(3000)),
        VNET.pack(1, UDP_L4, 42, 0, 34, 6) + roce(pattern(3000)),
        VNET.pack(0, 0xFF, 0, 0, 0, 0) + roce(b""),
        NO_OFFLOAD + bytes(13),
        NO_OFFLOAD,
        b"\0",
    ],
)
def test_what_is_neither_packet_nor_udp_segments_is_dropped(wire, message: bytes) -> None:
    port, theirs = wire
    theirs.send(message)
    theirs.send(NO_OFFLOAD + roce(b"good"))
    assert drain(port) == [(roce(b"good"), 0)]
    assert port.counters()["rx_bad_vnet"] == 1


def test_a_flood_of_bad_frames_does_not_hold_the_kernel(wire) -> None:
    port, theirs = wire
    for _ in range(10):
        theirs.send(NO_OFFLOAD + bytes(13))
    assert port.recv_burst(make_ring(2), 0) == 0
    assert port.counters()["rx_bad_vnet"] == 4


def test_wait_tells_frames_wakes_and_time_apart(wire) -> None:
    port, theirs = wire
    assert port.wait(0) == Ready(0)
    assert port.wait(1000) == Ready(0)
    port.wake()
    assert port.wait(-1) == Ready.WAKE
    assert port.wait(0) == Ready(0)
    theirs.send(NO_OFFLOAD + roce(b""))
    assert port.wait(-1) == Ready.RX
    port.wake()
    assert port.wait(-1) == Ready.RX | Ready.WAKE


def test_close_is_idempotent() -> None:
    ours, theirs = socket.socketpair()
    tables = make_tables(Kind.FD, fd=ours.detach(), wake_fd=new_eventfd(), mtu=1500)
    port = BarePort("test", tables=tables, caps=SINGLE_FRAMES, mac=bytes(6))
    fd = port.fileno()
    port.close()
    port.close()
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.fstat(fd)
    assert theirs.recv(1) == b""
    theirs.close()
    assert np.all(tables.port["fd"] == -1)

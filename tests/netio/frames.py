"""Frames built and read by scapy, so that nothing of ours checks itself, and what tests do with rings."""

from __future__ import annotations

from scapy.layers.inet import IP, UDP
from scapy.layers.inet6 import IPv6
from scapy.layers.l2 import Dot1Q, Ether
from scapy.packet import Packet, Raw

from netio.bare import BarePort
from netio.middleware import frame_bytes, put_frame
from netio.port import Port
from softrnic.layout import FrameRing, make_ring

PATIENCE_NS = 5 * 10**9  # before a test takes silence for loss

MAC_A, MAC_B = "02:00:00:00:00:01", "02:00:00:00:00:02"


def pattern(n: int, start: int = 0) -> bytes:
    """n bytes in which every position tells itself from its neighbours."""
    return bytes((start + i * 7 + (i >> 8)) & 0xFF for i in range(n))


def roce(
    payload: bytes,
    *,
    version: int = 4,
    vlan: int | None = None,
    ip_id: int = 0,
    sport: int = 50000,
    dport: int = 4791,
    src: str | None = None,
    dst: str | None = None,
    src_mac: str = MAC_A,
    dst_mac: str = MAC_B,
    **fields: object,
) -> bytes:
    """A frame as the engine makes it: UDP checksum 0. `fields` go to the IP header."""
    ether: Packet = Ether(src=src_mac, dst=dst_mac)
    if vlan is not None:
        ether = ether / Dot1Q(vlan=vlan)
    if version == 4:
        fields = {"flags": "DF"} | fields
        ip = IP(src=src or "10.0.0.1", dst=dst or "10.0.0.2", id=ip_id, **fields)
    else:
        ip = IPv6(src=src or "fd00::1", dst=dst or "fd00::2", **fields)
    return bytes(ether / ip / UDP(sport=sport, dport=dport, chksum=0) / Raw(payload))


def exchange(source: Port, sink: Port, frames: list[tuple[bytes, int]], *, now: int = 0) -> list[tuple[bytes, int]]:
    """Send (frame, seg) pairs in one burst and return what waits at the other side."""
    tx = make_ring(max(1, len(frames)))
    for i, (frame, seg) in enumerate(frames):
        put_frame(tx, i, frame, seg=seg)
    source.send_burst(tx, len(frames), now)
    return drain(sink, now=now)


def drain(port: Port, *, now: int = 0) -> list[tuple[bytes, int]]:
    """All (frame, seg) pairs that wait at a port."""
    rx = make_ring(16)
    received = []
    while n := port.recv_burst(rx, now):
        received += ring_frames(rx, n)
    return received


def collect(port: BarePort, count: int) -> list[tuple[bytes, int]]:
    """What waits once `count` frames have come: kernels may hand them on from another context, and so later."""
    received: list[tuple[bytes, int]] = []
    while len(received) < count and port.wait(PATIENCE_NS):
        received += drain(port)
    return received + drain(port)


def deliver(
    source: Port, sink: BarePort, frames: list[tuple[bytes, int]], *, count: int | None = None
) -> list[tuple[bytes, int]]:
    """exchange() over the kernel: waits for `count` frames, by default as many as are sent."""
    tx = make_ring(max(1, len(frames)))
    for i, (frame, seg) in enumerate(frames):
        put_frame(tx, i, frame, seg=seg)
    source.send_burst(tx, len(frames), 0)
    return collect(sink, len(frames) if count is None else count)


def ring_frames(ring: FrameRing, n: int) -> list[tuple[bytes, int]]:
    """The first n frames of a ring."""
    return [(frame_bytes(ring, i), int(ring.frames[i]["seg"])) for i in range(n)]

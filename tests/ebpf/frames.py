"""Frames for the tests, made by scapy."""

from __future__ import annotations

import struct

from scapy.contrib.roce import BTH
from scapy.layers.inet import IP, UDP
from scapy.layers.inet6 import IPv6
from scapy.layers.l2 import Dot1Q, Ether
from scapy.packet import Packet, Raw

ROCE = 4791
VNET_BYTES, NEEDS_CSUM, GSO_UDP_L4 = 10, 1, 5  # VIRTIO 1.2, 5.1.6
SRC_MAC, DST_MAC = "02:00:00:00:00:01", "02:00:00:00:00:02"
SRC4, DST4 = "192.0.2.1", "192.0.2.2"
SRC6, DST6 = "2001:db8::1", "2001:db8::2"


def ether(*, vlan: int | None = None, dst: str = DST_MAC, src: str = SRC_MAC) -> Packet:
    frame = Ether(dst=dst, src=src)
    return frame if vlan is None else frame / Dot1Q(vlan=vlan)


def ip(address: str, **fields: object) -> Packet:
    if ":" in address:
        return IPv6(src=SRC6, dst=address, **fields)
    return IP(src=SRC4, dst=address, flags="DF", **fields)


def roce(
    address: str = DST4,
    qpn: int = 0x11,
    *,
    payload: bytes = bytes(32),
    vlan: int | None = None,
    **ip_fields: object,
) -> bytes:
    """A RoCEv2 frame. The kernel's side never looks at the ICRC, which scapy appends."""
    udp = UDP(sport=49152, dport=ROCE)
    return bytes(ether(vlan=vlan) / ip(address, **ip_fields) / udp / BTH(opcode=4, dqpn=qpn) / Raw(payload))


def super_frame(address: str, qpn: int, *, segments: int, segment: int) -> bytes:
    """A virtio-net header and a frame of several RoCEv2 packets of one size, to send as one."""
    one = BTH(opcode=4, dqpn=qpn).build()[:12] + bytes(segment - 12)
    frame = bytes(ether() / ip(address) / UDP(sport=49152, dport=ROCE) / Raw(one * segments))
    csum_start = 54 if ":" in address else 34
    return vnet_header(csum_start=csum_start, segment=segment) + frame


def qpn_of(frame: bytes) -> int | None:
    """The QPN, if the frame is RoCEv2."""
    at = {b"\x08\x00": 34, b"\x86\xdd": 54}.get(frame[12:14])
    if at is None or frame[at + 2 : at + 4] != ROCE.to_bytes(2, "big"):
        return None
    return int.from_bytes(frame[at + 13 : at + 16], "big")


def vnet_header(*, csum_start: int = 0, segment: int = 0) -> bytes:
    """struct virtio_net_hdr: UDP segmentation offload with `segment` bytes of payload, or nothing special."""
    if not segment:
        return bytes(VNET_BYTES)
    return struct.pack("<BBHHHH", NEEDS_CSUM, GSO_UDP_L4, csum_start + 8, segment, csum_start, 6)


def udp(address: str = DST4, port: int = 9, payload: bytes = bytes(32), vlan: int | None = None) -> bytes:
    """Some other datagram."""
    return bytes(ether(vlan=vlan) / ip(address) / UDP(sport=49152, dport=port) / Raw(payload))

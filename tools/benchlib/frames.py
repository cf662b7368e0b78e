"""Frames for the port comparison: RoCEv2 packets that are right in every byte a port or a kernel may look at.

Slow and obvious on purpose: the ICRC is zlib's over a masked copy (IBTA 7.8.1, A17.3.3), so that what `moving.judge`
says of frames that came through a kernel is not the engine's word for its own.
"""

from __future__ import annotations

import ipaddress
import struct
import zlib
from dataclasses import dataclass

import numpy as np

from softrnic.layout import FrameRing
from softrnic.spec import ROCE_UDP_PORT

_WRITE_MIDDLE = 7  # RC RDMA WRITE MIDDLE: a BTH, then nothing but payload
BTH_ICRC = 16


@dataclass(frozen=True)
class Flow:
    """Whose frames these are."""

    src_mac: bytes
    dst_mac: bytes
    src: str
    dst: str
    sport: int = 50000

    @property
    def v6(self) -> bool:
        """The family."""
        return ":" in self.src


def ones_complement(data: bytes) -> int:
    """The Internet checksum (RFC 1071)."""
    total = sum(struct.unpack(f"!{(len(data) + 1) // 2}H", data + bytes(len(data) % 2)))
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return total ^ 0xFFFF


def _ip(flow: Flow, udp_bytes: int, ip_id: int) -> bytes:
    src, dst = (ipaddress.ip_address(a).packed for a in (flow.src, flow.dst))
    if flow.v6:
        return struct.pack("!IHBB", 6 << 28, udp_bytes, 17, 64) + src + dst
    head = struct.pack("!BBHHHBBH", 0x45, 0, 20 + udp_bytes, ip_id, 0x4000, 64, 17, 0) + src + dst
    return head[:10] + struct.pack("!H", ones_complement(head)) + head[12:]


def _masked(ip: bytes, udp: bytes, bth: bytes) -> bytes:
    """What the ICRC covers before the payload: variant fields as ones."""
    head = bytearray(ip)
    if len(ip) == 20:
        head[1] = head[8] = head[10] = head[11] = 0xFF
    else:
        head[0] |= 0x0F
        head[1] = head[2] = head[3] = head[7] = 0xFF
    return b"\xff" * 8 + bytes(head) + udp[:6] + b"\xff\xff" + bth[:4] + b"\xff" + bth[5:]


def packet(flow: Flow, payload: bytes, *, ip_id: int, checksum: bool) -> bytes:
    """One frame with one packet; `checksum`: a real one in the UDP header, else 0."""
    bth = struct.pack("!BBHII", _WRITE_MIDDLE, 0, 0xFFFF, 0x11, ip_id)
    length = 8 + len(bth) + len(payload) + 4
    ip = _ip(flow, length, ip_id)
    udp = struct.pack("!HHHH", flow.sport, ROCE_UDP_PORT, length, 0)
    body = bth + payload
    body += struct.pack("<I", zlib.crc32(_masked(ip, udp, bth) + payload))
    if checksum:
        pseudo = ip[-32:] + struct.pack("!II", length, 17) if flow.v6 else ip[12:20] + struct.pack("!HH", 17, length)
        udp = udp[:6] + struct.pack("!H", ones_complement(pseudo + udp + body) or 0xFFFF)
    return flow.dst_mac + flow.src_mac + (b"\x86\xdd" if flow.v6 else b"\x08\x00") + ip + udp + body


def super_frame(flow: Flow, size: int, count: int, *, ip_id: int = 0) -> bytes:
    """`count` packets of `size` bytes of UDP payload behind one header."""
    packets = [packet(flow, bytes(size - BTH_ICRC), ip_id=ip_id + i, checksum=False) for i in range(count)]
    udp_bytes = 8 + size * count
    headers = 62 if flow.v6 else 42
    ip = _ip(flow, udp_bytes, ip_id)
    udp = struct.pack("!HHHH", flow.sport, ROCE_UDP_PORT, udp_bytes, 0)
    return packets[0][:14] + ip + udp + b"".join(p[headers:] for p in packets)


def fill(tx: FrameRing, frames: list[bytes], seg: int) -> None:
    """Put frames into slots 0, 1, ..."""
    for slot, frame in zip(tx.frames, frames, strict=False):
        off = int(slot["off"])
        tx.slab[off : off + len(frame)] = np.frombuffer(frame, np.uint8)
        slot["len"], slot["seg"] = len(frame), seg

"""The slow and obvious version of what softrnic.wire does: bytes in, bytes out, zlib for the CRC."""

from __future__ import annotations

import zlib


def crc(state: int, data: bytes) -> int:
    """Continue a raw CRC-32 state."""
    return zlib.crc32(data, state ^ 0xFFFFFFFF) ^ 0xFFFFFFFF


def icrc(packet: bytes) -> bytes:
    """The ICRC of an IP packet (from the IP header, including four bytes of ICRC that are not looked at)."""
    b = bytearray(packet[:-4])
    if b[0] >> 4 == 4:
        bth = 28
        ones = [1, 8, 10, 11]  # TOS, TTL, header checksum
    else:
        bth = 48
        b[0] |= 0x0F  # traffic class and flow label begin in the middle of a byte
        ones = [1, 2, 3, 7]
    for i in [*ones, bth - 2, bth - 1, bth + 4]:
        b[i] = 0xFF
    return zlib.crc32(b"\xff" * 8 + bytes(b)).to_bytes(4, "little")


def ip_checksum(header: bytes) -> int:
    """RFC 1071 over a header whose checksum field is zero."""
    total = sum(int.from_bytes(header[i : i + 2], "big") for i in range(0, len(header), 2))
    while total > 0xFFFF:
        total = (total & 0xFFFF) + (total >> 16)
    return total ^ 0xFFFF


def segments(frame: bytes, l3: int, seg: int) -> list[bytes]:
    """What the kernel makes of a super-frame: frames with their own lengths, ids and checksums."""
    is_v4 = frame[l3] >> 4 == 4
    bth = l3 + (28 if is_v4 else 48)
    payload = frame[bth:]
    out = []
    for i, start in enumerate(range(0, len(payload), seg)):
        part = payload[start : start + seg]
        h = bytearray(frame[:bth])
        udp_len = (8 + len(part)).to_bytes(2, "big")
        h[bth - 4 : bth - 2] = udp_len
        if is_v4:
            h[l3 + 2 : l3 + 4] = (28 + len(part)).to_bytes(2, "big")
            ip_id = int.from_bytes(frame[l3 + 4 : l3 + 6], "big")
            h[l3 + 4 : l3 + 6] = (ip_id + i & 0xFFFF).to_bytes(2, "big")
            h[l3 + 10 : l3 + 12] = bytes(2)
            h[l3 + 10 : l3 + 12] = ip_checksum(bytes(h[l3 : l3 + 20])).to_bytes(2, "big")
        else:
            h[l3 + 4 : l3 + 6] = udp_len
        out.append(bytes(h) + part)
    return out

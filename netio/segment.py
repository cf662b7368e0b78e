"""Super-frames into packets: for middleware, captures, and everything else that thinks in packets.

Decides what the headers of segment i say (netio/header.py has the arithmetic): its own lengths, IP
identification id + i, IPv4 header checksum. The UDP checksum is 0 over IPv4 and computed over IPv6. This is
what Linux makes of a super-frame, but for the UDP checksum, so that the ICRCs the engine computed hold.
"""

from __future__ import annotations

from netio.header import (
    ETH_IPV6,
    UDP_BYTES,
    fit_headers,
    get_be16,
    ip_id_of,
    ip_offset,
    put_be16,
    udp_checksum,
    udp_offset,
)
from softrnic.jit import addr_of, inline, kernel, memcpy
from softrnic.layout import FRAME_HEADROOM, FRAME_STRIDE, FrameRing


@kernel
def split(src: FrameRing, i: int, first: int, dst: FrameRing, at: int) -> int:
    """Copy packets first, first + 1, ... of frame i into slots at, at + 1, ...; returns how many were copied.

    0 tells that there are none left; fewer than the free slots, that these were the last. A frame that is no
    super-frame, or pretends to be one, is copied as it is.
    """
    frame = src.frames[i]
    addr = addr_of(src.slab) + int(frame["off"])
    length = int(frame["len"])
    seg = int(frame["seg"])
    udp = udp_offset(addr, length)
    payload = length - udp - UDP_BYTES
    whole = seg <= 0 or udp < 0 or payload <= seg
    count = 1 if whole else (payload + seg - 1) // seg
    n = 0
    while first + n < count and at + n < len(dst.frames):
        out = dst.frames[at + n]
        off = (at + n) * FRAME_STRIDE + FRAME_HEADROOM
        to = addr_of(dst.slab) + off
        if whole:
            memcpy(to, addr, length)
            out["len"] = length
        else:
            part = min(seg, payload - (first + n) * seg)
            out["len"] = _copy_segment(addr, udp, seg, first + n, to, part)
        out["off"] = off
        out["seg"] = 0
        out["flags"] = frame["flags"]
        out["func"] = frame["func"]
        n += 1
    return n


@inline
def _copy_segment(addr: int, udp: int, seg: int, index: int, to: int, part: int) -> int:
    """Packet `index` of the super-frame at addr, `part` bytes of UDP payload; returns its length."""
    headers = udp + UDP_BYTES
    ip = ip_offset(addr, headers)
    memcpy(to, addr, headers)
    memcpy(to + headers, addr + headers + index * seg, part)
    fit_headers(to, ip, udp, part, ip_id_of(addr, ip) + index)
    if get_be16(to + ip - 2) == ETH_IPV6:
        put_be16(to + udp + 6, udp_checksum(to, ip, udp, UDP_BYTES + part))
    return headers + part

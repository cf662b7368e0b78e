"""Header arithmetic on addresses: finding UDP in hostile frames, one's complement sums."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scapy.layers.inet import IP, UDP
from scapy.layers.inet6 import IPv6
from scapy.layers.l2 import Ether

from netio import header
from softrnic.jit import addr_of, kernel
from tests.netio.frames import pattern, roce


@kernel
def udp_offset(data: np.ndarray, length: int) -> int:
    """header.udp_offset for Python."""
    return header.udp_offset(addr_of(data), length)


@kernel
def udp_checksum(data: np.ndarray, ip: int, udp: int, udp_len: int) -> int:
    """header.udp_checksum for Python."""
    return header.udp_checksum(addr_of(data), ip, udp, udp_len)


def offset_in(frame: bytes) -> int:
    return int(udp_offset(np.frombuffer(frame + bytes(64), np.uint8), len(frame)))


@pytest.mark.parametrize(
    ("frame", "offset"),
    [
        (roce(b""), 34),
        (roce(b"", version=6), 54),
        (roce(b"", vlan=5), 38),
        (roce(b"", version=6, vlan=5), 58),
        (roce(b"", options=[b"\x94\x04\x00\x00"]), 38),
        (roce(b"", proto=6), -1),
        (roce(b"", version=6, nh=0), -1),
        (roce(b"", frag=1), -1),
        (roce(b"", ihl=4), -1),
        (roce(b"", ihl=15), -1),
        (roce(b"")[:41], -1),
        (roce(b"", version=6)[:61], -1),
        (b"", -1),
        (bytes(12) + b"\x08\x00", -1),
        (bytes(12) + b"\x81\x00\x00\x05\x08\x00", -1),
    ],
)
def test_udp_offset(frame: bytes, offset: int) -> None:
    assert offset_in(frame) == offset


def test_more_fragments_is_a_fragment() -> None:
    frame = bytearray(roce(b""))
    frame[20] |= 0x20
    assert offset_in(bytes(frame)) == -1


@given(st.binary(max_size=120))
def test_udp_offset_of_anything_lies_inside(frame: bytes) -> None:
    for ethertype in (b"\x08\x00", b"\x86\xdd", b"\x81\x00"):
        data = frame[:12] + ethertype + frame[12:]
        offset = offset_in(data)
        assert offset == -1 or 34 <= offset <= len(data) - 8


@pytest.mark.parametrize("version", [4, 6])
@pytest.mark.parametrize("size", [0, 1, 2, 255, 1000])
def test_udp_checksum(version: int, size: int) -> None:
    frame = roce(pattern(size), version=version)
    packet = Ether(frame)
    packet[UDP].chksum = None
    expected = Ether(bytes(packet))[UDP].chksum
    ip, udp = (14, 34) if version == 4 else (14, 54)
    assert udp_checksum(np.frombuffer(frame, np.uint8), ip, udp, size + 8) == expected


def test_udp_checksum_0_is_sent_as_ffff() -> None:
    """RFC 768: 0 means no checksum. The two bytes of payload are chosen so that the sum is 0xffff."""
    packet = Ether(roce(b"\0\0", version=6))
    packet[UDP].chksum = None
    rest = Ether(bytes(packet))[UDP].chksum
    frame = roce(rest.to_bytes(2, "big"), version=6)
    assert udp_checksum(np.frombuffer(frame, np.uint8), 14, 54, 10) == 0xFFFF
    assert IPv6 in Ether(frame)
    assert IP not in Ether(frame)

"""The slow, obvious classifier that the program in the kernel is compared with: slices, no shared offsets."""

from __future__ import annotations

from ipaddress import IPv4Address, IPv6Address
from typing import NamedTuple

Destination = IPv4Address | IPv6Address


class Verdict(NamedTuple):
    """Whether it is RoCEv2, whether its BTH is there, and the (address, qpn) of the rule that holds."""

    roce: bool
    bth: bool = False
    rule: tuple[Destination | None, int | None] | None = None


NOT_ROCE = Verdict(roce=False)


def judge(frame: bytes, rules: set[tuple[Destination | None, int | None]], *, vlan: bool) -> Verdict:
    if len(frame) < 14:
        return NOT_ROCE
    ethertype, packet = frame[12:14], frame[14:]
    if ethertype == b"\x81\x00":
        if len(packet) < 4 or (not vlan and int.from_bytes(packet[:2], "big") % 4096):
            return NOT_ROCE
        ethertype, packet = packet[2:4], packet[4:]
    if ethertype == b"\x08\x00":
        found = from_ipv4(packet)
    elif ethertype == b"\x86\xdd":
        found = from_ipv6(packet)
    else:
        return NOT_ROCE
    if found is None:
        return NOT_ROCE
    address, datagram = found
    if len(datagram) < 8 or int.from_bytes(datagram[2:4], "big") != 4791:
        return NOT_ROCE
    bth = datagram[8:16]
    qpn = int.from_bytes(bth[5:8], "big") if len(bth) == 8 else None
    candidates = [(address, qpn), (address, None), (None, None)]
    return Verdict(True, qpn is not None, next((each for each in candidates if each in rules), None))


def from_ipv4(packet: bytes) -> tuple[Destination, bytes] | None:
    if len(packet) < 20 or packet[0] >> 4 != 4 or packet[9] != 17:
        return None
    words = packet[0] & 15
    offset = int.from_bytes(packet[6:8], "big") & 0x1FFF
    if words < 5 or offset:
        return None
    return IPv4Address(packet[16:20]), packet[words * 4 :]


def from_ipv6(packet: bytes) -> tuple[Destination, bytes] | None:
    if len(packet) < 40 or packet[0] >> 4 != 6 or packet[6] != 17:
        return None
    address = IPv6Address(packet[24:40])
    return address.ipv4_mapped or address, packet[40:]

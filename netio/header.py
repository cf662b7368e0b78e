"""Ethernet, IP and UDP header arithmetic on raw addresses, as far as segmentation and offload need it.

Decides where the UDP header of a frame is and what the headers of segment i say. Never looks behind UDP.
"""

from __future__ import annotations

from softrnic.jit import bswap16, inline, ld8, ld16, st16

ETH_IPV4, ETH_IPV6, ETH_ARP, ETH_VLAN = 0x0800, 0x86DD, 0x0806, 0x8100
PROTO_UDP, PROTO_ICMPV6 = 17, 58
UDP_BYTES = 8


@inline
def get_be16(addr: int) -> int:
    """Big-endian 16-bit load."""
    return int(bswap16(ld16(addr)))


@inline
def put_be16(addr: int, value: int) -> None:
    """Big-endian 16-bit store."""
    st16(addr, bswap16(value))


@inline
def ip_offset(addr: int, length: int) -> int:
    """Offset of what follows the EtherType, one VLAN tag skipped; -1 if the frame is too short."""
    if length < 18:
        return -1
    return 18 if get_be16(addr + 12) == ETH_VLAN else 14


@inline
def udp_offset(addr: int, length: int) -> int:
    """Offset of the UDP header of an unfragmented IPv4 or IPv6 packet without extension headers, or -1."""
    ip = ip_offset(addr, length)
    if ip < 0:
        return -1
    ethertype = get_be16(addr + ip - 2)
    udp = -1
    if ethertype == ETH_IPV4 and length >= ip + 20:
        whole = (get_be16(addr + ip + 6) & 0x3FFF) == 0
        if whole and int(ld8(addr + ip + 9)) == PROTO_UDP and int(ld8(addr + ip)) >> 4 == 4:
            udp = ip + 4 * (int(ld8(addr + ip)) & 15)
    elif ethertype == ETH_IPV6 and length >= ip + 40 and int(ld8(addr + ip + 6)) == PROTO_UDP:
        udp = ip + 40
    return udp if udp >= ip + 20 and length >= udp + UDP_BYTES else -1


@inline
def segment_count(addr: int, length: int, seg: int) -> int:
    """Packets in a frame: 1, unless it is a well-formed super-frame."""
    if seg <= 0:
        return 1
    payload = length - udp_offset(addr, length) - UDP_BYTES
    return max(1, (payload + seg - 1) // seg)


@inline
def sum16(addr: int, nbytes: int, total: int) -> int:
    """Add big-endian 16-bit words to a one's complement sum, an odd last byte padded with zero."""
    i = 0
    while i + 1 < nbytes:
        total += get_be16(addr + i)
        i += 2
    if i < nbytes:
        total += int(ld8(addr + i)) << 8
    return total


@inline
def fold16(total: int) -> int:
    """Fold a one's complement sum into 16 bits."""
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return total


@inline
def pseudo_sum(addr: int, ip: int, udp_len: int) -> int:
    """Folded, not complemented sum of addresses, protocol and UDP length (RFC 768, RFC 8200 8.1)."""
    if get_be16(addr + ip - 2) == ETH_IPV4:
        return fold16(sum16(addr + ip + 12, 8, PROTO_UDP + udp_len))
    return fold16(sum16(addr + ip + 8, 32, PROTO_UDP + udp_len))


@inline
def udp_checksum(addr: int, ip: int, udp: int, udp_len: int) -> int:
    """The checksum this packet's UDP header should carry, whatever it carries now."""
    total = sum16(addr + udp, 6, pseudo_sum(addr, ip, udp_len))
    total = fold16(sum16(addr + udp + UDP_BYTES, udp_len - UDP_BYTES, total))
    return total ^ 0xFFFF if total != 0xFFFF else 0xFFFF


@inline
def fit_headers(addr: int, ip: int, udp: int, payload: int, ip_id: int) -> None:
    """Make the headers in front of `payload` bytes say so: lengths, IP identification, IPv4 header checksum.

    The UDP checksum becomes 0, which IPv4 allows and IPv6 hosts refuse: see udp_checksum().
    """
    put_be16(addr + udp + 4, UDP_BYTES + payload)
    put_be16(addr + udp + 6, 0)
    if get_be16(addr + ip - 2) == ETH_IPV4:
        put_be16(addr + ip + 2, udp - ip + UDP_BYTES + payload)
        put_be16(addr + ip + 4, ip_id & 0xFFFF)
        put_be16(addr + ip + 10, 0)
        put_be16(addr + ip + 10, fold16(sum16(addr + ip, udp - ip, 0)) ^ 0xFFFF)
    else:
        put_be16(addr + ip + 4, udp - ip - 40 + UDP_BYTES + payload)


@inline
def ip_id_of(addr: int, ip: int) -> int:
    """Identification of an IPv4 packet; 0 for IPv6, which has none."""
    return get_be16(addr + ip + 4) if get_be16(addr + ip - 2) == ETH_IPV4 else 0

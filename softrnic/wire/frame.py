"""Ethernet, IPv4 or IPv6, and UDP port 4791 around a RoCEv2 packet: taking them off and putting them on.

Decides whether a frame is RoCEv2 and whether its outer headers are sound (Annex A17.3), and finds the
segments of a super-frame. Never looks at the BTH, never knows a QP, an address table or a port. A frame
that is not UDP to port 4791 is NOT_ROCE, which is no error: other traffic of the same wire. Any other
LinkError is worth a counter.
"""

from __future__ import annotations

from enum import IntEnum
from typing import Any, NamedTuple

import numpy as np

from softrnic.errors import WireError
from softrnic.jit import addr_of, inline, memcpy
from softrnic.layout import AV_HDR_BYTES
from softrnic.spec import ROCE_UDP_PORT
from softrnic.wire.fields import get8, get16, get32, put16
from softrnic.wire.icrc import icrc_base

ETH_LEN  = 14
VLAN_LEN = 4
IPV4_LEN = 20
IPV6_LEN = 40
UDP_LEN  = 8
MIN_PACKET = 16  # BTH and ICRC: the shortest UDP payload that is a packet

ETHERTYPE_IPV4 = 0x0800
ETHERTYPE_IPV6 = 0x86DD
ETHERTYPE_VLAN = 0x8100
PROTO_UDP = 17


class LinkError(IntEnum):
    """Link.err: why a frame was not taken."""

    NONE           = 0
    NOT_ROCE       = 1  # not UDP port 4791 over plain IP: somebody else's
    TRUNCATED      = 2  # ends before its IP length says
    BAD_IP         = 3  # IP options, a length too small, or a wrong header checksum
    FRAGMENT       = 4  # A17.3.1: RoCEv2 packets are never fragmented
    BAD_UDP_LENGTH = 5  # UDP and IP lengths differ, no room for BTH and ICRC, or no multiple of 4 bytes
    BAD_SEGMENT    = 6  # segment size that no packet can have


class Link(NamedTuple):
    """Where the parts of a received frame are. Everything but `err` is meaningful only when `err` is 0."""

    err: int  # LinkError
    l3_off: int  # IP header
    is_v6: int
    udp_off: int
    bth_off: int  # UDP payload of the first segment
    seg_len: int  # UDP payload bytes (BTH to ICRC) of every segment but the last
    nseg: int
    last_len: int  # UDP payload bytes of the last segment
    ip_id: int  # identification of the first segment; 0 for IPv6
    vlan: int  # VLAN id, -1 without tag
    tclass: int  # IPv4 TOS or IPv6 traffic class: DSCP and ECN


#  Ethernet II, optionally with an 802.1Q tag after the source address
#  +-------------------------------+-------------------------------+
#  |                    destination address (48)                   |
#  +-------------------------------+-------------------------------+
#  |                      source address (48)                      |
#  +-------------------------------+-------------------------------+
#  |       0x8100 (if tagged)      |  PCP, DEI (4), VLAN id (12)   |
#  +-------------------------------+-------------------------------+
#  |           ethertype           |
#  +-------------------------------+
#
#  IPv4 (RFC 791), without options                        IPv6 (RFC 8200)
#  +----+----+---------+-----------------------+          +----+---------+----------------------------+
#  | 4  |ihl |   TOS   |      total length     |          | 6  | tclass  |     flow label (20)        |
#  +----+----+---------+-----+-----------------+          +----+---------+-------+---------+----------+
#  |  identification   |-|D|M| fragment offset |          |   payload length     | next hd | hop lim  |
#  +---------+---------+-----+-----------------+          +----------------------+---------+----------+
#  |   TTL   |protocol |    header checksum    |          |           source address (128)            |
#  +---------+---------+-----------------------+          |         destination address (128)         |
#  |               source address              |          +-------------------------------------------+
#  |            destination address            |
#  +-------------------------------------------+
#  UDP (RFC 768): source port, destination port, length, checksum, 16 bits each


@inline
def _refused(err: int) -> Link:
    return Link(err, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0)


@inline
def parse_link(buf: np.ndarray, off: int, length: int, seg: int) -> Link:
    """Find the packets of a frame of `length` bytes at `off`; `seg` is FRAME["seg"].

    Never reads outside [off, off + length). Bytes after the IP packet are Ethernet padding. Reads what
    `put_link` writes.
    """
    end = off + length
    l3 = off + ETH_LEN
    if l3 > end:
        return _refused(LinkError.NOT_ROCE.value)
    ethertype = get16(buf, off + 12)
    vlan = -1
    if ethertype == ETHERTYPE_VLAN and l3 + VLAN_LEN <= end:
        vlan = get16(buf, off + 14) & 0xFFF
        ethertype = get16(buf, off + 16)
        l3 += VLAN_LEN
    is_v6 = int(ethertype == ETHERTYPE_IPV6)
    if is_v6:
        err = _check_ipv6(buf, l3, end)
    elif ethertype == ETHERTYPE_IPV4:
        err = _check_ipv4(buf, l3, end)
    else:
        err = LinkError.NOT_ROCE.value
    if err:
        return _refused(err)
    udp = l3 + (IPV6_LEN if is_v6 else IPV4_LEN)
    payload = get16(buf, udp + 4) - UDP_LEN
    seg_len, nseg, last_len = payload, 1, payload
    if seg != 0 and seg < payload:
        if seg < MIN_PACKET or seg & 3:
            return _refused(LinkError.BAD_SEGMENT.value)
        seg_len = seg
        nseg = (payload + seg - 1) // seg
        last_len = payload - (nseg - 1) * seg
        if last_len < MIN_PACKET:
            return _refused(LinkError.BAD_SEGMENT.value)
    ip_id = 0 if is_v6 else get16(buf, l3 + 4)
    tclass = get16(buf, l3) >> 4 & 0xFF if is_v6 else get8(buf, l3 + 1)
    return Link(0, l3, is_v6, udp, udp + UDP_LEN, seg_len, nseg, last_len, ip_id, vlan, tclass)


@inline
def _check_ipv4(buf: np.ndarray, l3: int, end: int) -> int:
    """LinkError of an IPv4 packet: first whether it is ours, then whether it is sound."""
    if l3 + IPV4_LEN > end or get8(buf, l3 + 9) != PROTO_UDP:
        return LinkError.NOT_ROCE.value
    header_len = (get8(buf, l3) & 0xF) * 4
    fragment = get16(buf, l3 + 6)
    # A fragment that is not the first carries no port, so it cannot be told to be ours.
    if fragment & 0x1FFF or header_len < IPV4_LEN or not _is_roce(buf, l3 + header_len, end):
        return LinkError.NOT_ROCE.value
    if header_len != IPV4_LEN or get8(buf, l3) >> 4 != 4 or ipv4_sum(buf, l3) != 0xFFFF:
        return LinkError.BAD_IP.value
    if fragment & 0x2000:
        return LinkError.FRAGMENT.value
    return _check_lengths(buf, l3 + IPV4_LEN, end, get16(buf, l3 + 2) - IPV4_LEN)


@inline
def _check_ipv6(buf: np.ndarray, l3: int, end: int) -> int:
    """LinkError of an IPv6 packet. One with an extension header is not ours: RoCEv2 has none (A17.3.1)."""
    udp = l3 + IPV6_LEN
    if udp > end or get8(buf, l3 + 6) != PROTO_UDP or not _is_roce(buf, udp, end):
        return LinkError.NOT_ROCE.value
    if get8(buf, l3) >> 4 != 6:
        return LinkError.BAD_IP.value
    return _check_lengths(buf, udp, end, get16(buf, l3 + 4))


@inline
def _is_roce(buf: np.ndarray, udp: int, end: int) -> bool:
    return udp + UDP_LEN <= end and get16(buf, udp + 2) == ROCE_UDP_PORT


@inline
def _check_lengths(buf: np.ndarray, udp: int, end: int, l4_len: int) -> int:
    """LinkError of the UDP datagram that IP says has `l4_len` bytes with its header."""
    if l4_len < UDP_LEN:
        return LinkError.BAD_IP.value
    if udp + l4_len > end:
        return LinkError.TRUNCATED.value
    if get16(buf, udp + 4) != l4_len or l4_len < UDP_LEN + MIN_PACKET or l4_len & 3:
        return LinkError.BAD_UDP_LENGTH.value
    return LinkError.NONE.value


@inline
def ipv4_sum(buf: np.ndarray, l3: int) -> int:
    """Ones'-complement sum of an option-less IPv4 header: 0xffff when its checksum is right (RFC 1071)."""
    high = get32(buf, l3) + get32(buf, l3 + 4) + get32(buf, l3 + 8)
    return _fold(high + get32(buf, l3 + 12) + get32(buf, l3 + 16))


@inline
def _fold(total: int) -> int:
    total = (total & 0xFFFF) + (total >> 16)
    total = (total & 0xFFFF) + (total >> 16)
    return (total & 0xFFFF) + (total >> 16)


@inline
def put_link(buf: np.ndarray, off: int, avs: np.ndarray, i: int, udp_payload_len: int, ip_id: int = 0) -> int:
    """Write the headers of address vector `i` at `off` and return the offset of the BTH.

    `udp_payload_len` is that of the whole super-frame. Nothing from the BTH on is touched, so the transport
    may be there already.
    """
    av = avs[i]
    hdr_len = int(av["hdr_len"])
    src, dst = addr_of(av["hdr"]), addr_of(buf) + off
    # Two copies of constant size that overlap: 42 (IPv4) to 66 bytes (VLAN, IPv6) without a call.
    memcpy(dst, src, 32)
    memcpy(dst + hdr_len - 34, src + hdr_len - 34, 34)
    l3 = off + int(av["l3_off"])
    bth = off + hdr_len
    udp_len = UDP_LEN + udp_payload_len
    put16(buf, bth - 4, udp_len)
    if av["is_v6"]:
        put16(buf, l3 + 4, udp_len)
    else:
        put16(buf, l3 + 2, IPV4_LEN + udp_len)
        put16(buf, l3 + 4, ip_id)
        put16(buf, l3 + 10, ~_fold(int(av["ip_csum"]) + IPV4_LEN + udp_len + ip_id))
    return bth


def build_av(
    av: Any,
    *,
    smac: bytes,
    dmac: bytes,
    sip: bytes,
    dip: bytes,
    vlan: int | None,
    tclass: int,
    flow_label: int,
    hop_limit: int,
    sport: int,
) -> None:
    """Fill an AV record: headers of zero lengths and id, and the sums that are continued per packet."""
    if len(sip) != len(dip) or len(sip) not in (4, 16) or len(smac) != 6 or len(dmac) != 6:
        raise WireError("addresses of an address vector must be two MACs and two IPs of one family")
    is_v6 = len(sip) == 16
    tag = b"" if vlan is None else ETHERTYPE_VLAN.to_bytes(2, "big") + vlan.to_bytes(2, "big")
    ethertype = ETHERTYPE_IPV6 if is_v6 else ETHERTYPE_IPV4
    ethernet = dmac + smac + tag + ethertype.to_bytes(2, "big")
    if is_v6:
        word = 6 << 28 | tclass << 20 | flow_label
        ip = word.to_bytes(4, "big") + bytes((0, 0, PROTO_UDP, hop_limit)) + sip + dip
    else:
        # A17.3.1.1: DF is set, so the identification means nothing to routers.
        ip = bytes((0x45, tclass, 0, 0, 0, 0, 0x40, 0, hop_limit, PROTO_UDP, 0, 0)) + sip + dip
    udp = sport.to_bytes(2, "big") + ROCE_UDP_PORT.to_bytes(2, "big") + bytes(4)
    header = np.zeros(AV_HDR_BYTES, np.uint8)
    hdr_len = len(ethernet) + len(ip) + len(udp)
    header[:hdr_len] = np.frombuffer(ethernet + ip + udp, np.uint8)
    av["hdr"] = header
    av["hdr_len"] = hdr_len
    av["l3_off"] = len(ethernet)
    av["is_v6"] = is_v6
    av["icrc_base"] = icrc_base(header, len(ethernet), int(is_v6))
    av["ip_csum"] = 0 if is_v6 else ipv4_sum(header, len(ethernet))


def flow_sport(lqpn: int, rqpn: int) -> int:
    """UDP source port of a connection, 0xC000 to 0xFFFF: spreads QP pairs over paths of a fabric (A17.3.2).

    The hash is that of rdma_calc_flow_label and rdma_flow_label_to_udp_sport, so that captures look familiar.
    """
    v = lqpn * rqpn & (1 << 64) - 1
    v ^= v >> 20
    v ^= v >> 40
    label = v & 0xFFFFF
    return 0xC000 | (label & 0x3FFF) ^ (label >> 14)

"""Kernels of UDP socket ports: headers are made up on receive and stripped on send.

The engine always sees Ethernet frames. What a socket does not tell is filled in so that the ICRC comes out
right wherever it can: addresses, ports and traffic class are the packet's own; the IPv4 identification is
taken for 0, as Linux sends it from such sockets, and the frame is flagged ID_UNKNOWN, since other senders
differ.
"""

from __future__ import annotations

from typing import Any

from netio.header import (
    ETH_IPV4,
    ETH_IPV6,
    PROTO_UDP,
    UDP_BYTES,
    fold16,
    get_be16,
    ip_offset,
    put_be16,
    segment_count,
    sum16,
    udp_offset,
)
from netio.libc import AUX_RX, AUX_TX, EAGAIN, EINTR, ENOBUFS, MSG_DONTWAIT, errno, recvmsg, sendmsg
from netio.message import (
    AT_CONTROL,
    AT_NAME,
    CMSG_HEADER,
    CONTROL_BYTES,
    NAME_BYTES,
    control_end,
    control_level,
    control_type,
    next_control,
    prepare_message,
    write_control,
)
from netio.port import FRAME_ROOM, PortTables
from softrnic.jit import addr_of, i64, inline, ld8, ld16, ld32, memcpy, memset, st8, st16, st32, st64
from softrnic.layout import FRAME_HEADROOM, FRAME_STRIDE, FrameFlag, FrameRing

AF_INET = 2
_ETH_BYTES = 14
_TX_TRIES = 4
# linux/in.h, linux/in6.h, linux/udp.h
_IP, _IPV6, _UDP = 0, 41, 17
_IP_TOS, _IP_PKTINFO, _IPV6_PKTINFO, _IPV6_TCLASS, _UDP_SEGMENT, _UDP_GRO = 1, 8, 50, 67, 103, 104


@inline
def udp_recv(pt: PortTables, rx: FrameRing) -> int:
    """Receive datagrams until the socket has no more or the ring is full."""
    port = pt.port[0]
    slab = addr_of(rx.slab)
    message = addr_of(pt.aux) + AUX_RX
    headers = _ETH_BYTES + (20 if i64(port["family"]) == AF_INET else 40) + UDP_BYTES
    slots = 1 if port["quiet"] else len(rx.frames)  # as fd_recv does
    n = 0
    for _ in range(2 * slots):  # refused datagrams take no slot, and must not keep us here for ever
        if n == slots:
            break
        off = n * FRAME_STRIDE + FRAME_HEADROOM
        prepare_message(message, slab + off + headers, FRAME_ROOM - headers, NAME_BYTES, CONTROL_BYTES)
        got = i64(recvmsg(i64(port["fd"]), message, MSG_DONTWAIT))
        if got < 0:
            code = errno()
            if code not in (EAGAIN, EINTR):
                port["rx_errors"] += 1
            break
        seg = _make_headers(port, message, slab + off, got)
        if seg < 0:
            port["rx_errors"] += 1
            continue
        frame = rx.frames[n]
        frame["off"] = off
        frame["len"] = headers + got
        frame["seg"] = seg
        frame["flags"] = FrameFlag.ID_UNKNOWN.value if i64(port["family"]) == AF_INET else 0
        frame["func"] = 0
        port["rx_frames"] += 1
        port["rx_segments"] += segment_count(slab + off, headers + got, seg)
        port["rx_bytes"] += headers + got
        n += 1
    port["quiet"] = n == 0
    return n


@inline
def _make_headers(port: Any, message: int, addr: int, payload: int) -> int:
    """Write the headers of a datagram; its segment size (0: one packet), or -1 if something is missing."""
    v4 = i64(port["family"]) == AF_INET
    ip = addr + _ETH_BYTES
    local, tclass, seg = _read_control(message, v4)
    if local == 0:
        return -1
    peer = message + AT_NAME + (4 if v4 else 8)
    if v4:
        st64(ip, 0x45)
        st8(ip + 1, tclass)
        put_be16(ip + 2, 20 + UDP_BYTES + payload)
        put_be16(ip + 6, 0x4000)
        st32(ip + 8, 64 | PROTO_UDP << 8)
        memcpy(ip + 12, peer, 4)
        memcpy(ip + 16, local, 4)
        put_be16(ip + 10, fold16(sum16(ip, 20, 0)) ^ 0xFFFF)
        udp = ip + 20
    else:
        put_be16(ip, 0x6000 | tclass << 4)
        put_be16(ip + 2, 0)
        put_be16(ip + 4, UDP_BYTES + payload)
        st16(ip + 6, PROTO_UDP | 64 << 8)
        memcpy(ip + 8, peer, 16)
        memcpy(ip + 24, local, 16)
        udp = ip + 40
    _make_mac(addr, udp - 4)
    _make_mac(addr + 6, udp - 8 if v4 else udp - 20)
    put_be16(addr + 12, ETH_IPV4 if v4 else ETH_IPV6)
    st16(udp, ld16(message + AT_NAME + 2))
    put_be16(udp + 2, i64(port["dport"]))
    put_be16(udp + 4, UDP_BYTES + payload)
    st16(udp + 6, 0)
    return seg if payload > seg else 0


@inline
def _make_mac(mac: int, tail: int) -> None:
    """The address that stands for an IP address: 02:00 and its last four bytes. See udp.mac_of()."""
    st16(mac, 0x0002)
    st32(mac + 2, ld32(tail))


@inline
def _read_control(message: int, v4: bool) -> tuple[int, int, int]:
    """(where the local IP address is or 0, traffic class, segment size) from the control messages."""
    at, end = message + AT_CONTROL, control_end(message)
    local = tclass = seg = 0
    while at + CMSG_HEADER <= end:
        level, kind = control_level(at), control_type(at)
        data = at + CMSG_HEADER
        if level == _UDP and kind == _UDP_GRO:
            seg = int(ld32(data))
        elif v4 and level == _IP and kind == _IP_PKTINFO:
            local = data + 8  # ipi_addr: the destination in the header
        elif v4 and level == _IP and kind == _IP_TOS:
            tclass = int(ld8(data))
        elif level == _IPV6 and kind == _IPV6_PKTINFO:
            local = data
        elif level == _IPV6 and kind == _IPV6_TCLASS:
            tclass = int(ld32(data)) & 0xFF
        at = next_control(at, end)
    return local, tclass, seg


@inline
def udp_send(pt: PortTables, tx: FrameRing, n: int) -> int:
    """Send frames 0..n-1; what does not go out now is dropped and counted."""
    port = pt.port[0]
    message = addr_of(pt.aux) + AUX_TX
    slab = addr_of(tx.slab)
    sent = 0
    for i in range(n):
        frame = tx.frames[i]
        addr = slab + i64(frame["off"])
        length = i64(frame["len"])
        udp = udp_offset(addr, length)
        payload = length - udp - UDP_BYTES
        seg = i64(frame["seg"]) if i64(frame["seg"]) < payload else 0
        ip = ip_offset(addr, length)
        ethertype = ETH_IPV4 if i64(port["family"]) == AF_INET else ETH_IPV6
        if udp < 0 or get_be16(addr + ip - 2) != ethertype:
            port["tx_errors"] += 1
            continue
        control = _write_destination(port, message, addr + ip)
        if seg > 0:
            st16(write_control(control, _UDP, _UDP_SEGMENT, 2), seg)
            control += CMSG_HEADER + 8
        name = 16 if ethertype == ETH_IPV4 else NAME_BYTES
        prepare_message(message, addr + udp + UDP_BYTES, payload, name, control - message - AT_CONTROL)
        sent += _send_message(port, message, length, segment_count(addr, length, seg))
    return sent


@inline
def _write_destination(port: Any, message: int, ip: int) -> int:
    """Where to, from which of our addresses, with which traffic class; returns where control messages end."""
    name = message + AT_NAME
    control = message + AT_CONTROL
    memset(name, 0, NAME_BYTES)
    st16(name, i64(port["family"]))
    put_be16(name + 2, i64(port["sport"]))
    if i64(port["family"]) == AF_INET:
        memcpy(name + 4, ip + 16, 4)
        data = write_control(control, _IP, _IP_PKTINFO, 12)
        st64(data, 0)
        memcpy(data + 4, ip + 12, 4)  # ipi_spec_dst: the source address
        st32(data + 8, 0)
        data = write_control(control + 32, _IP, _IP_TOS, 4)
        st32(data, int(ld8(ip + 1)))
    else:
        memcpy(name + 8, ip + 24, 16)
        data = write_control(control, _IPV6, _IPV6_PKTINFO, 20)
        memcpy(data, ip + 8, 16)
        st32(data + 16, 0)
        data = write_control(control + 40, _IPV6, _IPV6_TCLASS, 4)
        st32(data, get_be16(ip) >> 4 & 0xFF)
    return data + 8


@inline
def _send_message(port: Any, message: int, length: int, segments: int) -> int:
    """One sendmsg; 1 if it went out."""
    for _ in range(_TX_TRIES):
        if i64(sendmsg(i64(port["fd"]), message, MSG_DONTWAIT)) >= 0:
            port["tx_frames"] += 1
            port["tx_segments"] += segments
            port["tx_bytes"] += length
            return 1
        code = errno()
        if code not in (EAGAIN, ENOBUFS, EINTR):
            port["tx_errors"] += 1
            return 0
    port["tx_drops"] += 1
    return 0

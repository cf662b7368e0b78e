"""Kernels of ports that are a descriptor with virtio-net headers: AF_PACKET sockets and taps.

The header stands directly in front of the frame, in the slot's headroom, so one read or write moves both.
It tells the kernel how to cut a super-frame (VIRTIO 1.2, 5.1.6: gso_type UDP_L4), and tells us how one was
put together.
"""

from __future__ import annotations

from typing import Any

from netio.header import (
    ETH_IPV6,
    ETH_VLAN,
    UDP_BYTES,
    fit_headers,
    get_be16,
    ip_id_of,
    ip_offset,
    pseudo_sum,
    put_be16,
    segment_count,
    udp_offset,
)
from netio.libc import (
    AUX_HEADERS,
    AUX_RX,
    AUX_TX,
    EAGAIN,
    EINTR,
    ENOBUFS,
    MSG_DONTWAIT,
    errno,
    read,
    recvfrom,
    recvmsg,
    sendmmsg,
    sendto,
    write,
)
from netio.message import (
    AT_CONTROL,
    CMSG_HEADER,
    CONTROL_BYTES,
    control_end,
    control_level,
    control_type,
    next_control,
    prepare_message,
)
from netio.port import FRAME_ROOM, PortFlag, PortTables
from netio.slow import divert, is_slow
from softrnic.jit import addr_of, i64, inline, ld8, ld16, ld32, ld64, memcpy, memset, st8, st16, st32, st64
from softrnic.layout import FRAME_HEADROOM, FRAME_LINEAR, FRAME_STRIDE, FrameRing

#   virtio_net_hdr, little-endian on every machine we run on
#    0       1          2         4          6            8            10
#   +-------+----------+---------+----------+------------+------------+
#   | flags | gso_type | hdr_len | gso_size | csum_start | csum_offset|
#   +-------+----------+---------+----------+------------+------------+
VNET_BYTES = 10
NEEDS_CSUM = 1
GSO_NONE, GSO_UDP_L4, GSO_ECN = 0, 5, 0x80
UDP_CSUM_OFFSET = 6

# linux/if_packet.h: struct tpacket_auxdata is status, len, snaplen u32, mac, net, vlan_tci, vlan_tpid u16
_SOL_PACKET, _PACKET_AUXDATA, _TP_STATUS_VLAN_VALID = 263, 8, 0x10

# struct mmsghdr: msghdr (name, namelen, iov, iovlen, ...), then the length sent; struct iovec. Behind them our own
# table of how many packets each frame has.
_MMSGHDR, _AT_IOV, _AT_IOVLEN, _IOVEC = 64, 16, 24, 16
TX_BATCH = 16  # frames per system call
_AT_IOVECS, _AT_COUNTS = TX_BATCH * _MMSGHDR, TX_BATCH * (_MMSGHDR + _IOVEC)

TX_TRIES = 4  # a full device queue is retried at once this often, then the frame is lost, as on any wire


@inline
def fd_recv(pt: PortTables, rx: FrameRing) -> int:
    """Read frames until the descriptor has no more or the ring is full.

    The first frame after a look that found nothing is taken alone: who waits for it need not wait for the system call
    that would say that there are no more.
    """
    port = pt.port[0]
    fd = i64(port["fd"])
    flags = i64(port["flags"])
    slab = addr_of(rx.slab)
    slots = 1 if port["quiet"] else len(rx.frames)
    n = 0
    for _ in range(2 * slots):  # refused frames take no slot, and must not keep us here for ever
        if n == slots:
            break
        off = n * FRAME_STRIDE + FRAME_HEADROOM
        at, room = slab + off - VNET_BYTES, VNET_BYTES + FRAME_ROOM
        if flags & PortFlag.VLAN.value:
            got = _read_tagged(pt, at, room)
        elif flags & PortFlag.SOCKET.value:
            got = i64(recvfrom(fd, at, room, MSG_DONTWAIT, 0, 0))
        else:
            got = i64(read(fd, at, room))
        if got < 0:
            code = errno()
            if code not in (EAGAIN, EINTR):
                port["rx_errors"] += 1
            break
        n += _take(pt, rx.frames[n], slab, off, got - VNET_BYTES)
    port["quiet"] = n == 0
    return n


@inline
def _read_tagged(pt: PortTables, at: int, room: int) -> int:
    """Read from a packet socket that tells of VLAN tags, which the kernel has taken out of the frame."""
    message = addr_of(pt.aux) + AUX_RX
    prepare_message(message, at, room, 0, CONTROL_BYTES)
    return int(recvmsg(i64(pt.port[0]["fd"]), message, MSG_DONTWAIT))


@inline
def _put_tag_back(pt: PortTables, addr: int) -> bool:
    """Insert the VLAN tag that came as control message, if one did, by moving the addresses 4 bytes down."""
    message = addr_of(pt.aux) + AUX_RX
    at, end = message + AT_CONTROL, control_end(message)
    while at + CMSG_HEADER <= end:
        data = at + CMSG_HEADER
        if control_level(at) == _SOL_PACKET and control_type(at) == _PACKET_AUXDATA:
            if int(ld32(data)) & _TP_STATUS_VLAN_VALID == 0:
                return False
            st64(addr - 4, ld64(addr))
            st32(addr + 4, ld32(addr + 8))
            put_be16(addr + 8, ETH_VLAN)
            put_be16(addr + 10, int(ld16(data + 16)))
            return True
        at = next_control(at, end)
    return False


@inline
def _take(pt: PortTables, frame: Any, slab: int, off: int, length: int) -> int:
    """Describe the frame just read; 1 if it is one for the engine."""
    port = pt.port[0]
    addr = slab + off
    gso_type = int(ld8(addr - VNET_BYTES + 1)) & ~GSO_ECN
    seg = int(ld16(addr - VNET_BYTES + 4)) if gso_type == GSO_UDP_L4 else 0
    if length < 14 or gso_type not in (GSO_NONE, GSO_UDP_L4) or (gso_type == GSO_UDP_L4 and seg == 0):
        port["rx_bad_vnet"] += 1
        return 0
    if i64(port["flags"]) & PortFlag.DIVERT.value and is_slow(addr, length):
        divert(pt, addr, length)
        return 0
    if i64(port["flags"]) & PortFlag.VLAN.value and _put_tag_back(pt, addr):
        off, addr, length = off - 4, addr - 4, length + 4
    frame["off"] = off
    frame["len"] = length
    frame["seg"] = seg
    frame["flags"] = 0
    frame["func"] = 0
    port["rx_frames"] += 1
    port["rx_segments"] += segment_count(addr, length, seg)
    port["rx_bytes"] += length
    return 1


@inline
def fd_send(pt: PortTables, tx: FrameRing, n: int) -> int:
    """Write frames 0..n-1; what does not go out now is dropped and counted.

    A socket takes several frames by one call, a tap one.
    """
    port = pt.port[0]
    slab = addr_of(tx.slab)
    most = TX_BATCH if i64(port["flags"]) & PortFlag.SOCKET.value else 1
    sent = batch = 0
    for i in range(n):
        frame = tx.frames[i]
        addr = slab + i64(frame["off"])
        length = i64(frame["len"])
        seg = i64(frame["seg"])
        udp = udp_offset(addr, length)
        payload = length - udp - UDP_BYTES
        if seg > 0 and payload <= seg:
            seg = 0
        if seg > 0 and udp < 0:
            port["tx_errors"] += 1
        elif seg > 0 and i64(port["flags"]) & PortFlag.OFFLOAD.value == 0:
            sent += _flush(pt, batch) + _send_split(pt, addr, udp, payload, seg)
            batch = 0
        else:
            _vnet_header(addr, udp, length, seg)
            _add(pt, batch, addr, length, max(1, (payload + seg - 1) // seg) if seg else 1)
            batch += 1
            if batch == most:
                sent += _flush(pt, batch)
                batch = 0
    return sent + _flush(pt, batch)


@inline
def _add(pt: PortTables, i: int, addr: int, length: int, segments: int) -> None:
    """Frame i of a batch, with its virtio-net header."""
    message = addr_of(pt.aux) + AUX_TX
    iovec = message + _AT_IOVECS + i * _IOVEC
    st64(iovec, addr - VNET_BYTES)
    st64(iovec + 8, VNET_BYTES + length)
    st64(message + _AT_COUNTS + 8 * i, segments)


@inline
def _flush(pt: PortTables, batch: int) -> int:
    """Send a batch; how many went out. A frame that is refused is given up, those behind it are not."""
    port = pt.port[0]
    message = addr_of(pt.aux) + AUX_TX
    iovecs = message + _AT_IOVECS
    if batch == 1:
        return _write_frame(port, ld64(iovecs) + VNET_BYTES, ld64(iovecs + 8) - VNET_BYTES, ld64(message + _AT_COUNTS))
    memset(message, 0, batch * _MMSGHDR)
    for i in range(batch):
        st64(message + i * _MMSGHDR + _AT_IOV, iovecs + i * _IOVEC)
        st64(message + i * _MMSGHDR + _AT_IOVLEN, 1)
    done, sent, tries = 0, 0, TX_TRIES
    while done < batch:
        got = i64(sendmmsg(i64(port["fd"]), message + done * _MMSGHDR, batch - done, MSG_DONTWAIT))
        for i in range(done, done + max(0, got)):
            port["tx_segments"] += ld64(message + _AT_COUNTS + 8 * i)
            port["tx_bytes"] += ld64(iovecs + i * _IOVEC + 8) - VNET_BYTES
        if got > 0:
            done, sent, tries = done + got, sent + got, TX_TRIES
            continue
        full = errno() in (EAGAIN, ENOBUFS, EINTR)
        tries -= 1
        if full and tries:
            continue
        if full:
            port["tx_drops"] += 1
        else:
            port["tx_errors"] += 1
        done, tries = done + 1, TX_TRIES
    port["tx_frames"] += sent
    return sent


@inline
def _vnet_header(addr: int, udp: int, length: int, seg: int) -> None:
    """Say how to cut a super-frame, and leave a checksum to the kernel where there must be one.

    A host drops IPv6 packets without a UDP checksum (RFC 8200 8.1); over IPv4 the engine's 0 stays. The sum
    so far (pseudo-header) goes in the checksum field: the kernel completes it, or need not where the packet
    stays on this machine. The ICRC covers neither (A17.3.3).
    """
    header = addr - VNET_BYTES
    st64(header, 0)
    st16(header + 2, min(FRAME_LINEAR, length))  # more than headers: what is to lie apart from the rest
    st16(header + 8, 0)
    ip = ip_offset(addr, length)
    if udp >= 0 and (seg > 0 or get_be16(addr + ip - 2) == ETH_IPV6):
        st8(header, NEEDS_CSUM)
        st16(header + 6, udp)
        st16(header + 8, UDP_CSUM_OFFSET)
        put_be16(addr + udp + 6, pseudo_sum(addr, ip, length - udp))
    if seg > 0:
        st8(header + 1, GSO_UDP_L4)
        st16(header + 4, seg)


@inline
def _write_frame(port: Any, addr: int, length: int, segments: int) -> int:
    """One write; 1 if the frame went out."""
    fd = i64(port["fd"])
    at, count = addr - VNET_BYTES, VNET_BYTES + length
    for _ in range(TX_TRIES):
        if i64(port["flags"]) & PortFlag.SOCKET.value:
            gone = i64(sendto(fd, at, count, MSG_DONTWAIT, 0, 0))
        else:
            gone = i64(write(fd, at, count))
        if gone >= 0:
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


@inline
def _send_split(pt: PortTables, addr: int, udp: int, payload: int, seg: int) -> int:
    """Send a super-frame packet by packet, in place: the headers move along, over bytes already sent."""
    port = pt.port[0]
    ip = ip_offset(addr, udp)
    first_id = ip_id_of(addr, ip)
    headers = udp + UDP_BYTES
    kept = addr_of(pt.aux) + AUX_HEADERS
    memcpy(kept, addr, headers)
    sent = 1
    done = 0
    for i in range((payload + seg - 1) // seg):
        part = min(seg, payload - done)
        at = addr + done
        memcpy(at, kept, headers)
        fit_headers(at, ip, udp, part, first_id + i)
        _vnet_header(at, udp, headers + part, 0)
        sent &= _write_frame(port, at, headers + part, 1)
        done += part
    return sent

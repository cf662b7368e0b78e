"""The kernel side of every port: what a compiled pump calls.

`port_recv`, `port_send`, `port_wait` and `port_tx_room` switch on the kind of port and are inlined by their
callers; `recv_burst`, `send_burst` and `wait` are the same as entry points for Python. None of them ever
blocks but the wait.
"""

from __future__ import annotations

from netio.fdio import fd_recv, fd_send
from netio.libc import AUX_EVENT, AUX_POLL, AUX_QUEUED, AUX_TIMEOUT, POLLIN, SIOCOUTQ, ioctl, ppoll, read
from netio.memring import memory_arm, memory_recv, memory_room, memory_send
from netio.port import Kind, PortTables, Ready
from netio.udpio import udp_recv, udp_send
from netio.xskio import xsk_recv, xsk_send
from softrnic.jit import addr_of, i64, inline, kernel, ld16, ld32, st32, st64
from softrnic.layout import FrameRing

NO_LIMIT = 1 << 30
_FRAME_MEMORY = 1 << 17  # what the kernel may account for the longest frame
_LOW_CREDIT = 16  # frames


@inline
def port_recv(pt: PortTables, rx: FrameRing) -> int:
    """Place waiting frames in slots 0..n-1; returns n."""
    kind = i64(pt.port[0]["kind"])
    if kind == Kind.FD:
        return fd_recv(pt, rx)
    if kind == Kind.MEMORY:
        return memory_recv(pt, rx)
    if kind == Kind.UDP:
        return udp_recv(pt, rx)
    if kind == Kind.XSK:
        return xsk_recv(pt, rx)
    return 0


@inline
def port_send(pt: PortTables, tx: FrameRing, n: int) -> int:
    """Send frames 0..n-1, whose bytes may be overwritten; returns how many were not dropped."""
    kind = i64(pt.port[0]["kind"])
    pt.port[0]["tx_credit"] -= n
    if kind == Kind.FD:
        return fd_send(pt, tx, n)
    if kind == Kind.MEMORY:
        return memory_send(pt, tx, n)
    if kind == Kind.UDP:
        return udp_send(pt, tx, n)
    if kind == Kind.XSK:
        return xsk_send(pt, tx, n)
    return 0


@inline
def port_tx_room(pt: PortTables) -> int:
    """Frames of any length that are sure to find room: ask before having the engine make them."""
    port = pt.port[0]
    if i64(port["kind"]) == Kind.MEMORY:
        return memory_room(port)
    return _socket_room(pt) if i64(port["sndbuf"]) else NO_LIMIT


@inline
def _socket_room(pt: PortTables) -> int:
    """By what waits to be sent: the device is slower than the engine, or its queue would lose frames.

    Only we fill the queue, so what had room when the kernel was last asked has it still.
    """
    port = pt.port[0]
    if i64(port["tx_credit"]) < _LOW_CREDIT:
        queued = addr_of(pt.aux) + AUX_QUEUED
        st32(queued, 0)
        ioctl(i64(port["fd"]), SIOCOUTQ, queued)
        port["tx_credit"] = max(0, (i64(port["sndbuf"]) - int(ld32(queued))) // _FRAME_MEMORY)
    return int(port["tx_credit"])


@inline
def port_slow_waiting(pt: PortTables) -> bool:
    """Whether diverted frames wait for Python."""
    return bool(pt.port[0]["slow_head"] != pt.port[0]["slow_tail"])


@inline
def port_wait(pt: PortTables, timeout_ns: int) -> int:
    """Sleep until frames wait, wake_fd is written, or the time is up (negative: no limit). Ready flags.

    RX may be a false alarm, as where the peer's signal comes after its frame was taken.
    """
    port = pt.port[0]
    kind = i64(port["kind"])
    if kind == Kind.CLOSED:
        return 0
    if kind == Kind.MEMORY and not memory_arm(port):
        return Ready.RX.value
    aux = addr_of(pt.aux)
    poll = aux + AUX_POLL
    st32(poll, i64(port["fd"]))
    st32(poll + 4, POLLIN)
    st32(poll + 8, i64(port["wake_fd"]))
    st32(poll + 12, POLLIN)
    st64(aux + AUX_TIMEOUT, timeout_ns // 1_000_000_000)
    st64(aux + AUX_TIMEOUT + 8, timeout_ns % 1_000_000_000)
    if i64(ppoll(poll, 2, aux + AUX_TIMEOUT if timeout_ns >= 0 else 0, 0)) <= 0:
        return 0
    ready = Ready.RX.value if int(ld16(poll + 6)) else 0
    if int(ld16(poll + 14)):
        read(i64(port["wake_fd"]), aux + AUX_EVENT, 8)
        ready |= Ready.WAKE.value
    if ready & Ready.RX.value and kind == Kind.MEMORY:
        read(i64(port["fd"]), aux + AUX_EVENT, 8)
    return ready


@kernel
def recv_burst(pt: PortTables, rx: FrameRing) -> int:
    """port_recv for Python; the memory wire's descriptor is made readable for when frames come next."""
    n = port_recv(pt, rx)
    if n == 0 and i64(pt.port[0]["kind"]) == Kind.MEMORY:
        read(i64(pt.port[0]["fd"]), addr_of(pt.aux) + AUX_EVENT, 8)
        if not memory_arm(pt.port[0]):
            n = port_recv(pt, rx)
    return n


@kernel
def send_burst(pt: PortTables, tx: FrameRing, n: int) -> int:
    """port_send for Python."""
    return port_send(pt, tx, n)


@kernel
def wait(pt: PortTables, timeout_ns: int) -> int:
    """port_wait for Python."""
    return port_wait(pt, timeout_ns)

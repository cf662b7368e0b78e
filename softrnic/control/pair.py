"""Two queue pairs of one process joined without a connection manager: for first steps, demonstrations and tests.

Decides what a connection is like when nobody asks for anything else. Must never know what is sent over it. Between
processes, softrnic.control.cm carries the same attributes as messages.

    with open_pair() as (a, b):
        a.qp.post_send(SendWr(WrOpcode.SEND, inline=b"hello"))
"""

from __future__ import annotations

import contextlib
import errno
import secrets
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from softrnic.control import warm
from softrnic.control.fabric import fabric
from softrnic.control.host import Host
from softrnic.spec import PSN_MASK
from softrnic.verbs import Access, AhAttr, Cq, Mtu, Pd, Qp, QpCap, QpState, QpType, VerbsError
from softrnic.verbs.address import Gid
from softrnic.verbs.device import Device

PEER_ACCESS = Access.LOCAL_WRITE | Access.REMOTE_WRITE | Access.REMOTE_READ | Access.REMOTE_ATOMIC
CAP = QpCap(max_send_wr=128, max_recv_wr=128, max_send_sge=4, max_recv_sge=4, max_inline_data=64)


@dataclass(frozen=True)
class Endpoint:
    """One side of a connection: a host, and the objects on its device that a program begins with."""

    host: Host
    pd: Pd
    cq: Cq
    qp: Qp


@contextlib.contextmanager
def open_pair(
    wire: str = "memory", *, kind: QpType = QpType.RC, cap: QpCap = CAP, **attributes: Any
) -> Iterator[tuple[Endpoint, Endpoint]]:
    """Two hosts on a wire of their own (see `fabric`), one connected queue pair on each.

    `attributes` are those of `connect_pair`. Everything is gone when the context ends. The very first call compiles the
    data path, which takes about a minute.
    """
    warm.prepare()
    with fabric(wire) as hosts:
        a, b = (endpoint(host, kind, cap) for host in hosts)
        connect_pair(a.qp, b.qp, **attributes)
        yield a, b


def endpoint(host: Host, kind: QpType = QpType.RC, cap: QpCap = CAP) -> Endpoint:
    """A PD, a CQ for everything, and an unconnected queue pair on a host."""
    pd = host.device.alloc_pd()
    cq = host.device.create_cq(cap.max_send_wr + cap.max_recv_wr)
    return Endpoint(host, pd, cq, pd.create_qp(kind, cq, cq, cap))


def connect_pair(
    a: Qp,
    b: Qp,
    *,
    mtu: Mtu | None = None,
    psn: tuple[int, int] | None = None,
    access: Access = PEER_ACCESS,
    rd_atomic: int = 16,
    timeout: int = 14,
    retry_cnt: int = 7,
    rnr_retry: int = 7,
    min_rnr_timer: int = 12,
) -> None:
    """Take two RC or UC queue pairs from RESET to RTS, each the other's peer.

    `mtu` is the path MTU, by default the largest both ports carry; `psn` the two starting PSNs, by default random.
    The others are attributes of ibv_modify_qp, the same for both sides.
    """
    if a.type != b.type or a.type not in (QpType.RC, QpType.UC):
        raise VerbsError(errno.EINVAL, f"{a.type.name} and {b.type.name} queue pairs cannot be connected")
    mtu = mtu or path_mtu(a.device, b.device)
    psns = psn or (secrets.randbits(24) & PSN_MASK, secrets.randbits(24) & PSN_MASK)
    for qp in (a, b):
        qp.modify(QpState.INIT, pkey_index=0, port=1, access_flags=access)
    reliable = a.type == QpType.RC
    responder = {"max_dest_rd_atomic": rd_atomic, "min_rnr_timer": min_rnr_timer} if reliable else {}
    requester = {"timeout": timeout, "retry_cnt": retry_cnt, "rnr_retry": rnr_retry, "max_rd_atomic": rd_atomic}
    for qp, peer, rq_psn in ((a, b, psns[1]), (b, a, psns[0])):
        ah = path(qp.device, peer.device)
        qp.modify(QpState.RTR, ah=ah, path_mtu=mtu, dqpn=peer.qpn, rq_psn=rq_psn, **responder)
    for qp, sq_psn in ((a, psns[0]), (b, psns[1])):
        qp.modify(QpState.RTS, sq_psn=sq_psn, **(requester if reliable else {}))


def path_mtu(a: Device, b: Device) -> Mtu:
    """The largest path MTU that the ports of both carry."""
    return max(m for m in Mtu if m.bytes <= min(a.port.active_mtu, b.port.active_mtu))


def path(device: Device, peer: Device) -> AhAttr:
    """The way from one device to another: between their first addresses of the same IP version."""
    for own, other in _addresses(device, peer):
        if own.ip.version == other.ip.version:
            return AhAttr(other.ip, own.index)
    raise VerbsError(errno.EADDRNOTAVAIL, f"{device.name} and {peer.name} have no addresses of the same version")


def _addresses(device: Device, peer: Device) -> Iterator[tuple[Gid, Gid]]:
    for own in device.gids.values():
        for other in peer.gids.values():
            yield own, other

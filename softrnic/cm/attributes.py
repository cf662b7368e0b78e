"""What a connection's REQ and REP mean for the QP of this side: its attributes for RTR and RTS (IBTA 12.9).

Pure functions from messages to numbers. What the device can do is the caller's to compare with.
"""

from __future__ import annotations

from typing import NamedTuple

from softrnic.cm.conversation import Connection, Role
from softrnic.cm.messages import Path, Rep, Req


class QpAttributes(NamedTuple):
    """ibv_qp_attr, of the states RTR and RTS, without what the device decides."""

    dqpn: int
    rq_psn: int
    sq_psn: int
    path_mtu: int
    max_dest_rd_atomic: int
    max_rd_atomic: int
    timeout: int
    retry_cnt: int
    rnr_retry: int
    pkey: int
    dgid: bytes
    sgid: bytes
    flow_label: int
    traffic_class: int
    hop_limit: int


def ack_timeout(path_timeout: int, ack_delay: int) -> int:
    """The exponent of the sum of two times of 4.096 us * 2^n, rounded up where they are of a size."""
    return min(max(path_timeout, ack_delay) + (abs(path_timeout - ack_delay) <= 1), 31)


def qp_attributes(connection: Connection, rep: Rep) -> QpAttributes:
    """The attributes of the QP of a connection that is accepted with `rep`.

    What a side says of itself is what the other uses: it sends from the PSN it was told, and initiates as many READs
    as the other serves.
    """
    if connection.role is Role.ACTIVE:
        return _active(connection, connection.req, rep)
    return _passive(connection.req, rep)


def _active(connection: Connection, req: Req, rep: Rep) -> QpAttributes:
    path = req.primary
    return QpAttributes(
        dqpn=connection.qpn_in(rep),
        rq_psn=req.starting_psn,
        sq_psn=rep.starting_psn,
        path_mtu=req.path_mtu,
        max_dest_rd_atomic=rep.initiator_depth,
        max_rd_atomic=rep.responder_resources,
        timeout=ack_timeout(path.local_ack_timeout, rep.target_ack_delay),
        retry_cnt=req.retry_count,
        rnr_retry=rep.rnr_retry_count,
        pkey=req.pkey,
        dgid=path.remote_gid,
        sgid=path.local_gid,
        **_route(path),
    )


def _passive(req: Req, rep: Rep) -> QpAttributes:
    path = req.primary
    return QpAttributes(
        dqpn=req.local_qpn,
        rq_psn=rep.starting_psn,
        sq_psn=req.starting_psn,
        path_mtu=req.path_mtu,
        max_dest_rd_atomic=rep.responder_resources,
        max_rd_atomic=rep.initiator_depth,
        timeout=path.local_ack_timeout,
        retry_cnt=req.retry_count,
        rnr_retry=req.rnr_retry_count,
        pkey=req.pkey,
        dgid=path.local_gid,
        sgid=path.remote_gid,
        **_route(path),
    )


def _route(path: Path) -> dict[str, int]:
    return {
        "flow_label": path.flow_label,
        "traffic_class": path.traffic_class,
        "hop_limit": path.hop_limit,
    }

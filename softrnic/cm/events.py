"""What the CM tells its consumer, named as in rdma_cm_event_type. Each event belongs to one conversation."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from softrnic.cm.messages import Rej, Rep, Req, SidrRep, SidrReq

if TYPE_CHECKING:
    from softrnic.cm.conversation import Connection, Listener, Resolution


@dataclass(frozen=True, slots=True)
class ConnectRequest:
    """A peer wants a connection: accept, reject or delay it."""

    connection: Connection
    listener: Listener
    """The listener whose service id was asked for."""
    req: Req


@dataclass(frozen=True, slots=True)
class ConnectResponse:
    """The peer has accepted: make the QP ready and confirm, or reject."""

    connection: Connection
    rep: Rep


@dataclass(frozen=True, slots=True)
class Established:
    """Both QPs are ready."""

    connection: Connection
    private_data: bytes
    """Of the RTU; empty on the active side, and where a packet on the QP came in before the RTU did."""


@dataclass(frozen=True, slots=True)
class Rejected:
    """The peer does not want the connection, or has lost patience (reason TIMEOUT)."""

    connection: Connection
    rej: Rej


@dataclass(frozen=True, slots=True)
class Unreachable:
    """The peer did not answer, however often it was asked."""

    conversation: Connection | Resolution


@dataclass(frozen=True, slots=True)
class ConnectError:
    """We ourselves did not answer the peer's REQ or REP in time; it was rejected."""

    connection: Connection


@dataclass(frozen=True, slots=True)
class Disconnected:
    """The connection is over. If the peer ended it, it waits for our `disconnect` to answer."""

    connection: Connection
    private_data: bytes
    """Of the peer's DREQ or DREP, if there was one."""


@dataclass(frozen=True, slots=True)
class TimewaitExit:
    """No packet of the connection is left in the network: its QP may be used for another."""

    connection: Connection


@dataclass(frozen=True, slots=True)
class ResolveRequest:
    """A peer asks which UD QP serves a service id: answer it."""

    resolution: Resolution
    listener: Listener
    sidr_req: SidrReq


@dataclass(frozen=True, slots=True)
class ResolveResponse:
    """The peer's answer, whatever its status."""

    resolution: Resolution
    sidr_rep: SidrRep


Event = (
    ConnectRequest
    | ConnectResponse
    | Established
    | Rejected
    | Unreachable
    | ConnectError
    | Disconnected
    | TimewaitExit
    | ResolveRequest
    | ResolveResponse
)

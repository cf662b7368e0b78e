"""The messages a connection sends, made from what is known of it. Knows nothing of when they are sent."""

from __future__ import annotations

import msgspec

from softrnic.cm.conversation import Connection
from softrnic.cm.machine import State
from softrnic.cm.messages import (
    Apr,
    AprStatus,
    Drep,
    Dreq,
    Mra,
    Reason,
    Rej,
    Rep,
    Req,
    Rtu,
    SidrRep,
    SidrReq,
    Subject,
)

# What a REJ sent from this state is about.
_REJECTED = {
    State.REQ_RCVD:     Subject.REQ,
    State.MRA_REQ_SENT: Subject.REQ,
    State.REP_RCVD:     Subject.REP,
    State.MRA_REP_SENT: Subject.REP,
}  # fmt: skip


def rep(connection: Connection, proposal: Rep, ca_guid: int) -> Rep:
    """The consumer's REP, with the connection's ids."""
    return msgspec.structs.replace(
        proposal,
        local_comm_id=connection.local_comm_id,
        remote_comm_id=connection.remote_comm_id,
        local_ca_guid=ca_guid,
    )


def rtu(connection: Connection, private_data: bytes) -> Rtu:
    return Rtu(
        local_comm_id=connection.local_comm_id,
        remote_comm_id=connection.remote_comm_id,
        private_data=private_data,
    )


def mra(connection: Connection, subject: Subject, service_timeout: int, private_data: bytes) -> Mra:
    return Mra(
        local_comm_id=connection.local_comm_id,
        remote_comm_id=connection.remote_comm_id,
        message_mraed=subject,
        service_timeout=service_timeout,
        private_data=private_data,
    )


def rej(
    connection: Connection,
    reason: int,
    information: bytes = b"",
    private_data: bytes = b"",
    subject: Subject | None = None,
) -> Rej:
    """A REJ of what the connection's state answers, unless the subject is given."""
    return Rej(
        local_comm_id=connection.local_comm_id,
        remote_comm_id=connection.remote_comm_id,
        message_rejected=_REJECTED.get(connection.state, Subject.OTHER) if subject is None else subject,
        reason=reason,
        ari_length=len(information),
        ari=information,
        private_data=private_data,
    )


def rej_timeout(connection: Connection, ca_guid: int) -> Rej:
    """12.6.7: a peer that has not told us its comm id yet recognises us by our CA GUID."""
    return rej(connection, Reason.TIMEOUT, ca_guid.to_bytes(8, "big"))


def rej_of(message: Req | Rep, reason: int, information: bytes = b"") -> Rej:
    """A REJ of a message that belongs to no connection."""
    is_rep = isinstance(message, Rep)
    return Rej(
        local_comm_id=message.remote_comm_id if isinstance(message, Rep) else 0,
        remote_comm_id=message.local_comm_id,
        message_rejected=Subject.REP if is_rep else Subject.REQ,
        reason=reason,
        ari_length=len(information),
        ari=information,
    )


def dreq(connection: Connection, private_data: bytes) -> Dreq:
    return Dreq(
        local_comm_id=connection.local_comm_id,
        remote_comm_id=connection.remote_comm_id,
        remote_qpn=connection.remote_qpn,
        private_data=private_data,
    )


def drep(connection: Connection, private_data: bytes) -> Drep:
    return Drep(
        local_comm_id=connection.local_comm_id,
        remote_comm_id=connection.remote_comm_id,
        private_data=private_data,
    )


def drep_of(message: Dreq) -> Drep:
    """The answer to a DREQ for a connection that is already forgotten."""
    return Drep(local_comm_id=message.remote_comm_id, remote_comm_id=message.local_comm_id)


def apr(connection: Connection) -> Apr:
    """Alternate paths are not supported, as nowhere over RoCE."""
    return Apr(
        local_comm_id=connection.local_comm_id,
        remote_comm_id=connection.remote_comm_id,
        status=AprStatus.UNSUPPORTED,
    )


def sidr_rep(request: SidrReq, answer: SidrRep) -> SidrRep:
    """The consumer's answer, with the request's ids."""
    return msgspec.structs.replace(answer, request_id=request.request_id, service_id=request.service_id)

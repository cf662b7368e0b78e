"""The CM messages, field by field in the order of the specification's tables (IBTA 12.6.5 to 12.6.13, 12.11).

Decides where each field lies. Whether a value is acceptable is decided in manager.py; a value no table names
is carried as it came. "Local" is always the sender of the message, "remote" its receiver.
"""

from __future__ import annotations

from enum import IntEnum
from typing import Any

import msgspec

from softrnic.cm.bits import Field, Record, nested, octets, reserved
from softrnic.cm.mad import Attr, Mad
from softrnic.spec import DEFAULT_PKEY, Mtu

PERMISSIVE_LID = 0xFFFF  # 4.1.3; what a routed path, and so every RoCEv2 path, says in place of a LID


class Transport(IntEnum):
    """Transport service type of a REQ (12.7). EXTENDED is named by the extended transport type."""

    RC       = 0
    UC       = 1
    RD       = 2
    EXTENDED = 3


EXTENDED_XRC = 1  # annex A14: the extended transport type of XRC


class Subject(IntEnum):
    """Which message a MRA or a REJ is about (12.7)."""

    REQ   = 0
    REP   = 1
    OTHER = 2


class Reason(IntEnum):
    """Reason of a REJ (12.6.7, table 109)."""

    NO_QP                        = 1
    NO_EEC                       = 2
    NO_RESOURCES                 = 3
    TIMEOUT                      = 4
    UNSUPPORTED                  = 5
    INVALID_COMM_ID              = 6
    INVALID_COMM_INSTANCE        = 7
    INVALID_SERVICE_ID           = 8
    INVALID_TRANSPORT_TYPE       = 9
    STALE_CONN                   = 10
    RDC_NOT_EXIST                = 11
    INVALID_GID                  = 12
    INVALID_LID                  = 13
    INVALID_SL                   = 14
    INVALID_TRAFFIC_CLASS        = 15
    INVALID_HOP_LIMIT            = 16
    INVALID_PACKET_RATE          = 17
    INVALID_ALT_GID              = 18
    INVALID_ALT_LID              = 19
    INVALID_ALT_SL               = 20
    INVALID_ALT_TRAFFIC_CLASS    = 21
    INVALID_ALT_HOP_LIMIT        = 22
    INVALID_ALT_PACKET_RATE      = 23
    PORT_CM_REDIRECT             = 24
    PORT_REDIRECT                = 25
    INVALID_MTU                  = 26
    INSUFFICIENT_RESP_RESOURCES  = 27
    CONSUMER_DEFINED             = 28
    INVALID_RNR_RETRY            = 29
    DUPLICATE_LOCAL_COMM_ID      = 30
    INVALID_CLASS_VERSION        = 31
    INVALID_FLOW_LABEL           = 32
    INVALID_ALT_FLOW_LABEL       = 33


class AprStatus(IntEnum):
    """AP status of an APR (12.8.2)."""

    SUCCESS         = 0
    INVALID_COMM_ID = 1
    UNSUPPORTED     = 2  # alternate paths not supported
    REJECT          = 3


class SidrStatus(IntEnum):
    """Status of a SIDR_REP (12.11.2)."""

    SUCCESS     = 0
    UNSUPPORTED = 1  # no such service id
    REJECT      = 2
    NO_QP       = 3
    REDIRECT    = 4
    VERSION     = 5


_NO_GID = bytes(16)


class Path(msgspec.Struct, frozen=True, kw_only=True):
    """One end-to-end path, as its initiator sees it (12.6.5: primary and alternate path of a REQ)."""

    local_lid: int = PERMISSIVE_LID
    remote_lid: int = PERMISSIVE_LID
    local_gid: bytes = _NO_GID
    remote_gid: bytes = _NO_GID
    flow_label: int = 0
    packet_rate: int = 0
    traffic_class: int = 0
    hop_limit: int = 0
    sl: int = 0
    subnet_local: int = 0
    local_ack_timeout: int = 0  # 4.096 us * 2^n: the transport timeout the receiver shall use


NO_PATH = Path(local_lid=0, remote_lid=0)


class Req(msgspec.Struct, frozen=True, kw_only=True):
    """Request for communication (12.6.5, table 106)."""

    local_comm_id: int = 0
    service_id: int
    local_ca_guid: int = 0
    local_qkey: int = 0
    local_qpn: int
    responder_resources: int = 0  # READs and atomics the sender can serve at once
    local_eecn: int = 0
    initiator_depth: int = 0  # READs and atomics the sender wants to have under way at once
    remote_eecn: int = 0
    remote_cm_response_timeout: int = 0  # 4.096 us * 2^n: what the receiver has for its answer
    transport: int = Transport.RC
    flow_control: int = 1
    starting_psn: int  # from which the receiver shall send: the sender's rq_psn
    local_cm_response_timeout: int = 0  # and what the sender needs for its own
    retry_count: int = 7
    pkey: int = DEFAULT_PKEY
    path_mtu: int = Mtu.MTU_1024
    rdc_exists: int = 0
    rnr_retry_count: int = 7
    max_cm_retries: int = 15
    srq: int = 0
    extended_transport: int = 0
    primary: Path = NO_PATH
    alternate: Path = NO_PATH
    sap_supported: int = 0
    private_data: bytes = b""

    @property
    def is_xrc(self) -> bool:
        """The sender's QP is an XRC initiator."""
        return self.transport == Transport.EXTENDED and self.extended_transport == EXTENDED_XRC


class Mra(msgspec.Struct, frozen=True, kw_only=True):
    """Message receipt acknowledgement: the answer takes longer (12.6.6, table 107)."""

    local_comm_id: int
    remote_comm_id: int
    message_mraed: int
    service_timeout: int  # 4.096 us * 2^n
    private_data: bytes = b""


class Rej(msgspec.Struct, frozen=True, kw_only=True):
    """Reject (12.6.7, table 108)."""

    local_comm_id: int = 0
    remote_comm_id: int = 0
    message_rejected: int
    ari_length: int = 0
    reason: int
    ari: bytes = b""  # additional reject information: what would have been acceptable
    private_data: bytes = b""

    @property
    def information(self) -> bytes:
        """The valid part of the additional reject information."""
        return self.ari[: self.ari_length]


class Rep(msgspec.Struct, frozen=True, kw_only=True):
    """Reply to a REQ (12.6.8, table 110)."""

    local_comm_id: int = 0
    remote_comm_id: int = 0
    local_qkey: int = 0
    local_qpn: int
    local_eecn: int = 0
    starting_psn: int  # as in the REQ
    responder_resources: int = 0
    initiator_depth: int = 0
    target_ack_delay: int = 0  # 4.096 us * 2^n
    failover_accepted: int = 0
    flow_control: int = 1
    rnr_retry_count: int = 7
    srq: int = 0
    local_ca_guid: int = 0
    private_data: bytes = b""


class Rtu(msgspec.Struct, frozen=True, kw_only=True):
    """Ready to use (12.6.9, table 111)."""

    local_comm_id: int
    remote_comm_id: int
    private_data: bytes = b""


class Dreq(msgspec.Struct, frozen=True, kw_only=True):
    """Request for communication release (12.6.10, table 112)."""

    local_comm_id: int
    remote_comm_id: int
    remote_qpn: int
    private_data: bytes = b""


class Drep(msgspec.Struct, frozen=True, kw_only=True):
    """Reply to a DREQ (12.6.11, table 113)."""

    local_comm_id: int
    remote_comm_id: int
    private_data: bytes = b""


class Lap(msgspec.Struct, frozen=True, kw_only=True):
    """Load alternate path (12.8.1, table 115)."""

    local_comm_id: int
    remote_comm_id: int
    remote_qpn: int = 0
    remote_cm_response_timeout: int = 0
    alternate: Path = NO_PATH
    private_data: bytes = b""


class Apr(msgspec.Struct, frozen=True, kw_only=True):
    """Alternate path response (12.8.2, table 116)."""

    local_comm_id: int
    remote_comm_id: int
    information_length: int = 0
    status: int
    information: bytes = b""
    private_data: bytes = b""


class SidrReq(msgspec.Struct, frozen=True, kw_only=True):
    """Service id resolution request: which UD QP serves this? (12.11.1, table 119)."""

    request_id: int = 0
    pkey: int = DEFAULT_PKEY
    service_id: int
    private_data: bytes = b""


class SidrRep(msgspec.Struct, frozen=True, kw_only=True):
    """Service id resolution response (12.11.2, table 120)."""

    request_id: int = 0
    status: int
    information_length: int = 0
    qpn: int = 0
    service_id: int = 0
    qkey: int = 0
    information: bytes = b""
    private_data: bytes = b""


Message = Req | Mra | Rej | Rep | Rtu | Dreq | Drep | Lap | Apr | SidrReq | SidrRep

_IDS = (Field("local_comm_id", 32), Field("remote_comm_id", 32))
_LIDS_AND_GIDS = (
    Field("local_lid", 16),
    Field("remote_lid", 16),
    octets("local_gid", 16),
    octets("remote_gid", 16),
)
_SL_AND_TIMEOUT = (
    Field("sl", 4),
    Field("subnet_local", 1),
    reserved(3),
    Field("local_ack_timeout", 5),
)

# Both stop short of their last byte's low bits, which differ from message to message.
PATH = Record(
    Path,
    *_LIDS_AND_GIDS,
    Field("flow_label", 20),
    reserved(6),
    Field("packet_rate", 6),
    Field("traffic_class", 8),
    Field("hop_limit", 8),
    *_SL_AND_TIMEOUT,
)
LAP_PATH = Record(
    Path,
    *_LIDS_AND_GIDS,
    Field("flow_label", 20),
    reserved(4),
    Field("traffic_class", 8),
    Field("hop_limit", 8),
    reserved(2),
    Field("packet_rate", 6),
    *_SL_AND_TIMEOUT,
)

RECORDS: dict[Attr, Record[Any]] = {
    Attr.REQ: Record(
        Req,
        Field("local_comm_id", 32),
        reserved(32),
        Field("service_id", 64),
        Field("local_ca_guid", 64),
        reserved(32),
        Field("local_qkey", 32),
        Field("local_qpn", 24),
        Field("responder_resources", 8),
        Field("local_eecn", 24),
        Field("initiator_depth", 8),
        Field("remote_eecn", 24),
        Field("remote_cm_response_timeout", 5),
        Field("transport", 2),
        Field("flow_control", 1),
        Field("starting_psn", 24),
        Field("local_cm_response_timeout", 5),
        Field("retry_count", 3),
        Field("pkey", 16),
        Field("path_mtu", 4),
        Field("rdc_exists", 1),
        Field("rnr_retry_count", 3),
        Field("max_cm_retries", 4),
        Field("srq", 1),
        Field("extended_transport", 3),
        nested("primary", PATH),
        reserved(3),
        nested("alternate", PATH),
        Field("sap_supported", 1),
        reserved(2),
        octets("private_data", 92),
    ),
    Attr.MRA: Record(
        Mra,
        *_IDS,
        Field("message_mraed", 2),
        reserved(6),
        Field("service_timeout", 5),
        reserved(3),
        octets("private_data", 222),
    ),
    Attr.REJ: Record(
        Rej,
        *_IDS,
        Field("message_rejected", 2),
        reserved(6),
        Field("ari_length", 7),
        reserved(1),
        Field("reason", 16),
        octets("ari", 72),
        octets("private_data", 148),
    ),
    Attr.REP: Record(
        Rep,
        *_IDS,
        Field("local_qkey", 32),
        Field("local_qpn", 24),
        reserved(8),
        Field("local_eecn", 24),
        reserved(8),
        Field("starting_psn", 24),
        reserved(8),
        Field("responder_resources", 8),
        Field("initiator_depth", 8),
        Field("target_ack_delay", 5),
        Field("failover_accepted", 2),
        Field("flow_control", 1),
        Field("rnr_retry_count", 3),
        Field("srq", 1),
        reserved(4),
        Field("local_ca_guid", 64),
        octets("private_data", 196),
    ),
    Attr.RTU: Record(Rtu, *_IDS, octets("private_data", 224)),
    Attr.DREQ: Record(Dreq, *_IDS, Field("remote_qpn", 24), reserved(8), octets("private_data", 220)),
    Attr.DREP: Record(Drep, *_IDS, octets("private_data", 224)),
    Attr.SIDR_REQ: Record(
        SidrReq,
        Field("request_id", 32),
        Field("pkey", 16),
        reserved(16),
        Field("service_id", 64),
        octets("private_data", 216),
    ),
    Attr.SIDR_REP: Record(
        SidrRep,
        Field("request_id", 32),
        Field("status", 8),
        Field("information_length", 8),
        reserved(16),
        Field("qpn", 24),
        reserved(8),
        Field("service_id", 64),
        Field("qkey", 32),
        octets("information", 72),
        octets("private_data", 136),
    ),
    Attr.LAP: Record(
        Lap,
        *_IDS,
        reserved(32),
        Field("remote_qpn", 24),
        Field("remote_cm_response_timeout", 5),
        reserved(35),
        nested("alternate", LAP_PATH),
        reserved(3),
        octets("private_data", 168),
    ),
    Attr.APR: Record(
        Apr,
        *_IDS,
        Field("information_length", 8),
        Field("status", 8),
        reserved(16),
        octets("information", 72),
        octets("private_data", 148),
    ),
}

_ATTR_OF = {record.cls: attr for attr, record in RECORDS.items()}


def decode(mad: Mad) -> Message:
    """The message in a datagram. Byte strings come at their full length, padded as the sender padded them."""
    message: Message = RECORDS[mad.attr].parse(mad.data)
    return message


def encode(message: Message, tid: int) -> Mad:
    """The datagram that carries `message`; EINVAL if a field does not fit."""
    attr = _ATTR_OF[type(message)]
    return Mad(attr, tid, RECORDS[attr].emit(message))


def private_data_room(message: type[Message]) -> int:
    """Bytes of private data the message carries."""
    return RECORDS[_ATTR_OF[message]].room("private_data")

"""Management datagrams of class CM: 256 bytes, the first 24 a common header (IBTA 13.4.2, 12.6.1).

Decides whether bytes that came in on QP1 are a CM datagram and which message it carries. Knows nothing of
what the message says (messages.py) or of who sent it (manager.py).
"""

from __future__ import annotations

import struct
from enum import IntEnum, StrEnum
from typing import NamedTuple

from softrnic.errors import WireError

MAD_BYTES = 256
HEADER_BYTES = 24
DATA_BYTES = MAD_BYTES - HEADER_BYTES

BASE_VERSION = 1
CLASS_CM = 0x07
CLASS_VERSION = 2
METHOD_SEND = 0x03


class Attr(IntEnum):
    """Attribute id: which CM message this is (12.6.2, table 101)."""

    REQ      = 0x0010
    MRA      = 0x0011
    REJ      = 0x0012
    REP      = 0x0013
    RTU      = 0x0014
    DREQ     = 0x0015
    DREP     = 0x0016
    SIDR_REQ = 0x0017
    SIDR_REP = 0x0018
    LAP      = 0x0019
    APR      = 0x001A


class Drop(StrEnum):
    """Why a datagram was not acted upon. The values are counter names."""

    LENGTH        = "length"  # not 256 bytes
    BASE_VERSION  = "base_version"
    CLASS         = "class"  # of another management class
    CLASS_VERSION = "class_version"
    METHOD        = "method"
    ATTRIBUTE     = "attribute"  # no such CM message
    UNKNOWN_ID    = "unknown_id"  # names no conversation of ours
    WRONG_PEER    = "wrong_peer"  # names one, but comes from elsewhere than its peer
    WRONG_ROLE    = "wrong_role"  # a message only the other side of this connection sends
    WRONG_QPN     = "wrong_qpn"  # a DREQ for another QP
    WRONG_STATE   = "wrong_state"  # not legal now
    DUPLICATE     = "duplicate"  # legal, and has been said before
    REFUSED       = "refused"  # answered with a REJ or a SIDR_REP, nothing kept
    BUSY          = "busy"  # no room; the peer will try again


class MadError(WireError):
    """Not a CM datagram; `drop` says why."""

    def __init__(self, drop: Drop, message: str) -> None:
        super().__init__(message)
        self.drop = drop


#    0       1       2       3
#   +-------+-------+-------+-------+
#  0| base  | class | class | R|    |
#   |version|  0x07 |version|method |
#   +-------+-------+-------+-------+
#  4| status        | class specific|
#   +-------+-------+-------+-------+
#  8| transaction id                |
#   |                               |
#   +-------+-------+-------+-------+
# 16| attribute id  | reserved      |
#   +-------+-------+-------+-------+
# 20| attribute modifier            |
#   +-------+-------+-------+-------+
_HEADER = struct.Struct(">BBBBHHQHHI")


class Mad(NamedTuple):
    """A CM datagram without the parts that are the same in all of them."""

    attr: Attr
    tid: int  # transaction id: an answer carries that of what it answers
    data: bytes  # DATA_BYTES


def parse(datagram: bytes) -> Mad:
    """The datagram, or MadError. Status, class specific field and modifier mean nothing to the CM."""
    if len(datagram) != MAD_BYTES:
        raise MadError(Drop.LENGTH, f"a MAD has {MAD_BYTES} bytes, not {len(datagram)}")
    base, mgmt_class, version, method, _, _, tid, attr, _, _ = _HEADER.unpack_from(datagram)
    if base != BASE_VERSION:
        raise MadError(Drop.BASE_VERSION, f"MAD base version {base}")
    if mgmt_class != CLASS_CM:
        raise MadError(Drop.CLASS, f"management class 0x{mgmt_class:02x}")
    if version != CLASS_VERSION:
        raise MadError(Drop.CLASS_VERSION, f"CM class version {version}")
    if method != METHOD_SEND:
        raise MadError(Drop.METHOD, f"CM method 0x{method:02x}")
    try:
        return Mad(Attr(attr), tid, datagram[HEADER_BYTES:])
    except ValueError:
        raise MadError(Drop.ATTRIBUTE, f"CM attribute 0x{attr:04x}") from None


def emit(mad: Mad) -> bytes:
    """The datagram as it goes into a SEND on QP1."""
    if len(mad.data) != DATA_BYTES:
        raise MadError(Drop.LENGTH, f"CM data has {DATA_BYTES} bytes, not {len(mad.data)}")
    header = _HEADER.pack(BASE_VERSION, CLASS_CM, CLASS_VERSION, METHOD_SEND, 0, 0, mad.tid, mad.attr, 0, 0)
    return header + mad.data

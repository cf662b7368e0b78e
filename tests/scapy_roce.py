"""RoCEv2 in scapy: the extension headers its contrib layer lacks, and which opcode carries which.

An oracle: written from the specification (IBTA 9.2 to 9.5), it shares nothing with softrnic.wire. Importing
it makes scapy dissect every RC, UC and UD packet down to its payload.
"""

from __future__ import annotations

from typing import Any, ClassVar

from scapy.contrib.roce import AETH, BTH, CNPPadding
from scapy.fields import IntField, XBitField, XByteField, XIntField, XLongField
from scapy.layers.inet import IP, UDP
from scapy.layers.inet6 import IPv6
from scapy.layers.l2 import Dot1Q, Ether
from scapy.packet import Packet, Raw

__all__ = [
    "AETH", "BTH", "DETH", "EXTENSIONS", "IETH", "IP", "RETH", "UDP", "AtomicAckETH", "AtomicETH",
    "CNPPadding", "Dot1Q", "Ether", "IPv6", "ImmDt", "Raw", "extensions",
]  # fmt: skip


class RETH(Packet):
    name = "RETH"
    fields_desc: ClassVar[list[Any]] = [XLongField("va", 0), XIntField("rkey", 0), IntField("dmalen", 0)]


class AtomicETH(Packet):
    name = "AtomicETH"
    fields_desc: ClassVar[list[Any]] = [
        XLongField("va", 0),
        XIntField("rkey", 0),
        XLongField("swap", 0),
        XLongField("compare", 0),
    ]


class AtomicAckETH(Packet):
    name = "AtomicAckETH"
    fields_desc: ClassVar[list[Any]] = [XLongField("orig", 0)]


class ImmDt(Packet):
    name = "ImmDt"
    fields_desc: ClassVar[list[Any]] = [XIntField("imm", 0)]


class IETH(Packet):
    name = "IETH"
    fields_desc: ClassVar[list[Any]] = [XIntField("rkey", 0)]


class DETH(Packet):
    name = "DETH"
    fields_desc: ClassVar[list[Any]] = [
        XIntField("qkey", 0),
        XByteField("reserved", 0),
        XBitField("sqpn", 0, 24),
    ]


_BOTH = {
    0x00: (), 0x01: (), 0x02: (), 0x03: (ImmDt,), 0x04: (), 0x05: (ImmDt,),
    0x06: (RETH,), 0x07: (), 0x08: (), 0x09: (ImmDt,), 0x0A: (RETH,), 0x0B: (RETH, ImmDt),
}  # fmt: skip
_RC = {
    0x0C: (RETH,), 0x0D: (AETH,), 0x0E: (), 0x0F: (AETH,), 0x10: (AETH,), 0x11: (AETH,),
    0x12: (AETH, AtomicAckETH), 0x13: (AtomicETH,), 0x14: (AtomicETH,), 0x16: (IETH,), 0x17: (IETH,),
}  # fmt: skip
EXTENSIONS: dict[int, tuple[type[Packet], ...]] = {
    **_BOTH,
    **_RC,
    **{0x20 | op: headers for op, headers in _BOTH.items()},
    0x64: (DETH,),
    0x65: (DETH, ImmDt),
    0x81: (CNPPadding,),
}


def extensions(opcode: int) -> tuple[type[Packet], ...]:
    """The headers after the BTH, in order."""
    return EXTENSIONS.get(opcode, ())


def _next_header(self: Packet, payload: bytes) -> type[Packet]:
    """What follows this header: the next extension of the packet's opcode, then the payload."""
    above = 0
    layer: Packet | None = self
    while layer is not None and not isinstance(layer, BTH):
        layer, above = layer.underlayer, above + 1
    following = extensions(layer.opcode)[above:] if layer is not None else ()
    return following[0] if following else Raw


for _layer in (BTH, RETH, AETH, AtomicETH, AtomicAckETH, ImmDt, IETH, DETH):
    _layer.guess_payload_class = _next_header

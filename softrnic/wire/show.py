"""Frames for people: a list of layers, one line, or a tree, with tshark's field names and number formats.

For captures and traces, not for the data path: a second reading of the formats, which shares the opcode
table with the kernels but none of their code, and compiles nothing. One packet per frame: cut super-frames
into segments first. Whatever the bytes, the answer is layers; what does not parse ends in a layer
"Malformed" that says why.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable, Iterator
from ipaddress import IPv4Address, IPv6Address
from typing import NamedTuple

from softrnic.errors import WireError
from softrnic.spec import CREDITS_INVALID, RNR_TIMER_US, ROCE_UDP_PORT, AethKind, Nak
from softrnic.wire.opcodes import OPCODES, OpFlag

# Fields that tshark prints in hexadecimal, and with how many digits. The others are decimal.
_HEX_DIGITS = {
    "eth.type": 4,
    "vlan.etype": 4,
    "ip.dsfield": 2,
    "ip.id": 4,
    "ip.checksum": 4,
    "ipv6.tclass": 8,
    "ipv6.flow": 6,
    "udp.checksum": 4,
    "infiniband.bth.destqp": 6,
    "infiniband.deth.q_key": 16,
    "infiniband.deth.srcqp": 8,
    "infiniband.reth.va": 16,
    "infiniband.reth.r_key": 8,
    "infiniband.invariant.crc": 8,
}


class Field(NamedTuple):
    """One field: tshark's name, the value, and what it means if the number does not say."""

    name: str
    value: int | str | bytes
    note: str = ""

    @property
    def text(self) -> str:
        """The value as `tshark -T fields` prints it."""
        if isinstance(self.value, bytes):
            return self.value.hex()
        if isinstance(self.value, int) and self.name in _HEX_DIGITS:
            return f"0x{self.value:0{_HEX_DIGITS[self.name]}x}"
        return str(self.value)


class Layer(NamedTuple):
    """One header of a frame."""

    title: str
    fields: tuple[Field, ...]


def dissect(frame: bytes) -> list[Layer]:
    """The layers of a frame, outermost first. Of a frame that is not RoCEv2, as many as are known here."""
    layers: list[Layer] = []
    try:
        for layer in _ethernet(_Reader(frame)):
            layers.append(layer)  # one by one: those before an error stay
    except WireError as error:
        layers.append(Layer("Malformed", (Field("_ws.malformed", str(error)),)))
    return layers


def tree(frame: bytes) -> str:
    """Every field on its own line, under the title of its layer."""
    lines = []
    for layer in dissect(frame):
        lines.append(layer.title)
        for field in layer.fields:
            lines.append(f"    {field.name}: {field.text}" + (f" ({field.note})" if field.note else ""))
    return "\n".join(lines)


def one_line(frame: bytes) -> str:
    """Source, destination, opcode and the fields one looks for in a trace."""
    fields = {field.name: field for layer in dissect(frame) for field in layer.fields}
    family = next((name for name in ("ip", "ipv6", "eth") if f"{name}.src" in fields), None)
    words = [f"{fields[f'{family}.src'].text} > {fields[f'{family}.dst'].text}"] if family else []
    subject = next((fields[name] for name in _SUBJECTS if name in fields), None)
    if subject:
        words.append(subject.note or f"{subject.name} {subject.text}")
    for name, word in _IN_ONE_LINE.items():
        if field := fields.get(name):
            words.append(f"{word} {field.text}")
    if syndrome := fields.get("infiniband.aeth.syndrome"):
        words.append(syndrome.note)
    words += [word for name, word in _FLAGS_IN_ONE_LINE.items() if name in fields and fields[name].value]
    if payload := fields.get("infiniband.payload"):
        words.append(f"payload {len(payload.text) // 2}")
    icrc = fields.get("infiniband.invariant.crc")
    if icrc and icrc.note != _CORRECT:
        words.append(f"[ICRC {icrc.note}]")
    if malformed := fields.get("_ws.malformed"):
        words.append(f"[malformed: {malformed.text}]")
    return " ".join(words)


# What a frame is, best answer first.
_SUBJECTS = ("infiniband.bth.opcode", "udp.dstport", "ip.proto", "ipv6.nxt", "vlan.etype", "eth.type")
_IN_ONE_LINE = {
    "infiniband.bth.destqp": "qp",
    "infiniband.bth.psn": "psn",
    "infiniband.deth.srcqp": "from",
    "infiniband.deth.q_key": "qkey",
    "infiniband.reth.va": "va",
    "infiniband.reth.r_key": "rkey",
    "infiniband.reth.dmalen": "len",
    "infiniband.atomiceth.swapdt": "swap",
    "infiniband.atomiceth.cmpdt": "compare",
    "infiniband.aeth.msn": "msn",
    "infiniband.atomicacketh.origremdt": "original",
    "infiniband.immdt": "imm",
    "infiniband.ieth": "invalidate",
}
_FLAGS_IN_ONE_LINE = {"infiniband.bth.se": "solicited", "infiniband.bth.a": "ackreq"}
_CORRECT = "correct"


class _Reader:
    """A position in the frame and where the innermost length field says it ends."""

    def __init__(self, frame: bytes) -> None:
        self.frame = frame
        self.pos = 0
        self.end = len(frame)

    def take(self, n: int, what: str) -> bytes:
        """The next `n` bytes, which are `what`."""
        if self.end - self.pos < n:
            raise WireError(f"{what} of {n} bytes in the last {self.end - self.pos}")
        self.pos += n
        return self.frame[self.pos - n : self.pos]

    def limit(self, n: int, what: str) -> None:
        """`what` has `n` bytes from here."""
        if not 0 <= n <= self.end - self.pos:
            raise WireError(f"{what} of {n} bytes where {self.end - self.pos} are left")
        self.end = self.pos + n


def _int(data: bytes) -> int:
    return int.from_bytes(data, "big")


# --- link layers --------------------------------------------------------------------------------------------


def _ethernet(r: _Reader) -> Iterator[Layer]:
    header = r.take(14, "Ethernet header")
    ethertype = _int(header[12:])
    mac = [Field(f"eth.{name}", part.hex(":")) for name, part in (("dst", header[:6]), ("src", header[6:12]))]
    yield Layer("Ethernet II", (*mac, Field("eth.type", ethertype)))
    if ethertype == 0x8100:
        tag = r.take(4, "VLAN tag")
        ethertype = _int(tag[2:])
        yield Layer("802.1Q Virtual LAN", _vlan(_int(tag[:2]), ethertype))
    if ethertype == 0x0800:
        yield from _ipv4(r)
    elif ethertype == 0x86DD:
        yield from _ipv6(r)


def _vlan(tci: int, ethertype: int) -> tuple[Field, ...]:
    return (
        Field("vlan.priority", tci >> 13),
        Field("vlan.dei", tci >> 12 & 1),
        Field("vlan.id", tci & 0xFFF),
        Field("vlan.etype", ethertype),
    )


def _ipv4(r: _Reader) -> Iterator[Layer]:
    start = r.pos
    h = r.take(20, "IPv4 header")
    header_len = (h[0] & 0xF) * 4
    if h[0] >> 4 != 4 or header_len < 20:
        raise WireError(f"IPv4 header of version {h[0] >> 4} and {header_len} bytes")
    options = r.take(header_len - 20, "IPv4 options")
    fragment = _int(h[6:8])
    yield Layer(
        "Internet Protocol Version 4",
        (
            Field("ip.version", 4),
            Field("ip.hdr_len", header_len),
            Field("ip.dsfield.dscp", h[1] >> 2),
            Field("ip.dsfield.ecn", h[1] & 3),
            Field("ip.len", _int(h[2:4])),
            Field("ip.id", _int(h[4:6])),
            Field("ip.flags.df", fragment >> 14 & 1),
            Field("ip.flags.mf", fragment >> 13 & 1),
            Field("ip.frag_offset", fragment & 0x1FFF),
            Field("ip.ttl", h[8]),
            Field("ip.proto", h[9]),
            Field("ip.checksum", _int(h[10:12]), _CORRECT if _sum16(h + options) == 0xFFFF else "wrong"),
            Field("ip.src", str(IPv4Address(h[12:16]))),
            Field("ip.dst", str(IPv4Address(h[16:20]))),
        ),
    )
    r.limit(_int(h[2:4]) - header_len, "IPv4 payload")
    if fragment & 0x3FFF:
        raise WireError("IPv4 fragment")
    if h[9] == 17:
        yield from _udp(r, start)


def _sum16(header: bytes) -> int:
    total = sum(_int(header[i : i + 2]) for i in range(0, len(header), 2))
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return total


def _ipv6(r: _Reader) -> Iterator[Layer]:
    start = r.pos
    h = r.take(40, "IPv6 header")
    first = _int(h[:4])
    if first >> 28 != 6:
        raise WireError(f"IPv6 header of version {first >> 28}")
    yield Layer(
        "Internet Protocol Version 6",
        (
            Field("ipv6.version", 6),
            Field("ipv6.tclass", first >> 20 & 0xFF),
            Field("ipv6.flow", first & 0xFFFFF),
            Field("ipv6.plen", _int(h[4:6])),
            Field("ipv6.nxt", h[6]),
            Field("ipv6.hlim", h[7]),
            Field("ipv6.src", str(IPv6Address(h[8:24]))),
            Field("ipv6.dst", str(IPv6Address(h[24:40]))),
        ),
    )
    r.limit(_int(h[4:6]), "IPv6 payload")
    if h[6] == 17:
        yield from _udp(r, start)


def _udp(r: _Reader, l3: int) -> Iterator[Layer]:
    h = r.take(8, "UDP header")
    yield Layer(
        "User Datagram Protocol",
        (
            Field("udp.srcport", _int(h[0:2])),
            Field("udp.dstport", _int(h[2:4])),
            Field("udp.length", _int(h[4:6])),
            Field("udp.checksum", _int(h[6:8])),
        ),
    )
    if _int(h[2:4]) == ROCE_UDP_PORT:
        r.limit(_int(h[4:6]) - 8, "UDP payload")
        yield from _packet(r, l3)


# --- transport ----------------------------------------------------------------------------------------------


def _packet(r: _Reader, l3: int) -> Iterator[Layer]:
    bth = r.pos
    h = r.take(12, "BTH")
    row = OPCODES.get(h[0])
    yield Layer(
        "Base Transport Header",
        (
            Field("infiniband.bth.opcode", h[0], row.name if row else "unknown opcode"),
            Field("infiniband.bth.se", h[1] >> 7),
            Field("infiniband.bth.m", h[1] >> 6 & 1),
            Field("infiniband.bth.padcnt", h[1] >> 4 & 3),
            Field("infiniband.bth.tver", h[1] & 0xF),
            Field("infiniband.bth.p_key", _int(h[2:4])),
            Field("infiniband.reserved", h[4:5], _congestion(h[4])),
            Field("infiniband.bth.destqp", _int(h[5:8])),
            Field("infiniband.bth.a", h[8] >> 7),
            Field("infiniband.bth.reserved7", h[8] & 0x7F),
            Field("infiniband.bth.psn", _int(h[9:12])),
        ),
    )
    r.limit(r.end - r.pos - 4, "packet without ICRC")
    flags = row.flags if row else 0
    for flag, (n, title, parse) in _EXTENSIONS.items():
        if flags & flag:
            yield Layer(title, parse(r.take(n, title)))
    yield from _payload(r, h[1] >> 4 & 3)
    yield _icrc(r.frame, l3, bth, r.end)


def _congestion(byte: int) -> str:
    return " ".join(name for name, bit in (("FECN", 0x80), ("BECN", 0x40)) if byte & bit)


def _reth(h: bytes) -> tuple[Field, ...]:
    return (
        Field("infiniband.reth.va", _int(h[0:8])),
        Field("infiniband.reth.r_key", _int(h[8:12])),
        Field("infiniband.reth.dmalen", _int(h[12:16])),
    )


def _atomiceth(h: bytes) -> tuple[Field, ...]:
    return (
        Field("infiniband.reth.va", _int(h[0:8])),
        Field("infiniband.reth.r_key", _int(h[8:12])),
        Field("infiniband.atomiceth.swapdt", _int(h[12:20])),
        Field("infiniband.atomiceth.cmpdt", _int(h[20:28])),
    )


def _aeth(h: bytes) -> tuple[Field, ...]:
    kind, value = h[0] >> 5 & 3, h[0] & 0x1F
    name, note = _syndrome(kind, value)
    return (
        Field("infiniband.aeth.syndrome", h[0], note),
        Field("infiniband.aeth.syndrome.opcode", kind),
        Field(f"infiniband.aeth.syndrome.{name}", value),
        Field("infiniband.aeth.msn", _int(h[1:4])),
    )


def _syndrome(kind: int, value: int) -> tuple[str, str]:
    """tshark's name of the five low bits, and the syndrome in words."""
    if kind == AethKind.ACK:
        return "credit_count", "ACK" if value == CREDITS_INVALID else f"ACK, credit count {value}"
    if kind == AethKind.RNR_NAK:
        return "timer", f"RNR NAK, {RNR_TIMER_US[value]} us"
    if kind == AethKind.NAK:
        known = value in Nak.__members__.values()
        return "error_code", f"NAK, {Nak(value).name.lower().replace('_', ' ') if known else f'code {value}'}"
    return "reserved_value", "reserved"


def _deth(h: bytes) -> tuple[Field, ...]:
    return (
        Field("infiniband.deth.q_key", _int(h[0:4])),
        Field("infiniband.reserved", h[4:5]),
        Field("infiniband.deth.srcqp", _int(h[5:8])),
    )


def _atomicacketh(h: bytes) -> tuple[Field, ...]:
    return (Field("infiniband.atomicacketh.origremdt", _int(h)),)


def _one(name: str) -> Callable[[bytes], tuple[Field, ...]]:
    return lambda h: (Field(name, h),)


# In the order in which they follow the BTH.
_EXTENSIONS: dict[OpFlag, tuple[int, str, Callable[[bytes], tuple[Field, ...]]]] = {
    OpFlag.DETH: (8, "Datagram Extended Transport Header", _deth),
    OpFlag.RETH: (16, "RDMA Extended Transport Header", _reth),
    OpFlag.ATOMICETH: (28, "Atomic Extended Transport Header", _atomiceth),
    OpFlag.AETH: (4, "ACK Extended Transport Header", _aeth),
    OpFlag.ATOMICACKETH: (8, "Atomic ACK Extended Transport Header", _atomicacketh),
    OpFlag.IMMDT: (4, "Immediate Data", _one("infiniband.immdt")),
    OpFlag.IETH: (4, "Invalidate Extended Transport Header", _one("infiniband.ieth")),
    OpFlag.CNP: (16, "Congestion Notification", _one("infiniband.vendor")),
}


def _payload(r: _Reader, padcnt: int) -> Iterator[Layer]:
    rest = r.take(r.end - r.pos, "payload")
    if padcnt > len(rest):
        raise WireError(f"{padcnt} bytes of padding in the last {len(rest)}")
    if rest:
        yield Layer("Payload", (Field("infiniband.payload", rest[: len(rest) - padcnt]),))


def _icrc(frame: bytes, l3: int, bth: int, end: int) -> Layer:
    """The ICRC and the verdict on it: CRC-32 of the packet, what may change on the way being ones."""
    masked = bytearray(frame[l3:end])
    if frame[l3] >> 4 == 4:
        ones = [1, 8, 10, 11]
    else:
        masked[0] |= 0x0F
        ones = [1, 2, 3, 7]
    for i in (*ones, bth - l3 - 2, bth - l3 - 1, bth - l3 + 4):
        masked[i] = 0xFF
    expected = zlib.crc32(b"\xff" * 8 + masked).to_bytes(4, "little")
    stored = frame[end : end + 4]
    note = _CORRECT if stored == expected else f"wrong, should be 0x{expected.hex()}"
    return Layer("Invariant CRC", (Field("infiniband.invariant.crc", _int(stored), note),))

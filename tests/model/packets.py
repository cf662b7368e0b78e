"""RC packets as plain values and as frames: a second codec, by struct and zlib, sharing nothing with softrnic.wire.

Decides how a packet is laid out (IBTA 9.2 to 9.3, A17.3); whether it makes sense is the models' business, so every
nonsense can be written down.
"""

from __future__ import annotations

import struct
import zlib
from dataclasses import dataclass

SEND_FIRST, SEND_MIDDLE, SEND_LAST, SEND_LAST_IMM, SEND_ONLY, SEND_ONLY_IMM = range(6)
WRITE_FIRST, WRITE_MIDDLE, WRITE_LAST, WRITE_LAST_IMM, WRITE_ONLY, WRITE_ONLY_IMM = range(6, 12)
READ_REQUEST, READ_FIRST, READ_MIDDLE, READ_LAST, READ_ONLY = range(12, 17)
ACK, ATOMIC_ACK, CAS, FAA = range(17, 21)
SEND_LAST_INV, SEND_ONLY_INV = 22, 23

SENDS = {SEND_FIRST, SEND_MIDDLE, SEND_LAST, SEND_LAST_IMM, SEND_ONLY, SEND_ONLY_IMM, SEND_LAST_INV, SEND_ONLY_INV}
WRITES = {WRITE_FIRST, WRITE_MIDDLE, WRITE_LAST, WRITE_LAST_IMM, WRITE_ONLY, WRITE_ONLY_IMM}
ATOMICS = {CAS, FAA}
REQUESTS = SENDS | WRITES | ATOMICS | {READ_REQUEST}
RESPONSES = {READ_FIRST, READ_MIDDLE, READ_LAST, READ_ONLY, ACK, ATOMIC_ACK}
ONLYS = {SEND_ONLY, SEND_ONLY_IMM, SEND_ONLY_INV, WRITE_ONLY, WRITE_ONLY_IMM, READ_REQUEST, CAS, FAA}
FIRSTS = {SEND_FIRST, WRITE_FIRST} | ONLYS
LASTS = {SEND_LAST, SEND_LAST_IMM, SEND_LAST_INV, WRITE_LAST, WRITE_LAST_IMM} | ONLYS
WITH_IMM = {SEND_LAST_IMM, SEND_ONLY_IMM, WRITE_LAST_IMM, WRITE_ONLY_IMM}
WITH_INV = {SEND_LAST_INV, SEND_ONLY_INV}
WITH_RETH = {WRITE_FIRST, WRITE_ONLY, WRITE_ONLY_IMM, READ_REQUEST}
WITH_AETH = {READ_FIRST, READ_LAST, READ_ONLY, ACK, ATOMIC_ACK}

PSN_MASK = 0xFFFFFF
MASK64 = (1 << 64) - 1


def psn_add(psn: int, n: int) -> int:
    """`psn` moved on by n."""
    return (psn + n) & PSN_MASK


def psn_behind(a: int, b: int) -> int:
    """How far `a` is ahead of `b`, negative when it is behind."""
    ahead = (a - b) & PSN_MASK
    return ahead if ahead < 1 << 23 else ahead - (1 << 24)


@dataclass(frozen=True, slots=True, kw_only=True)
class Packet:
    """One packet. Fields of headers its opcode does not have stay zero."""

    opcode: int
    psn: int
    ackreq: int = 0
    se: int = 0
    va: int = 0
    rkey: int = 0
    dmalen: int = 0
    swap: int = 0
    compare: int = 0
    imm: int = 0
    syndrome: int = 0
    msn: int = 0
    orig: int = 0
    payload: bytes = b""

    @property
    def kind(self) -> str:
        """Of an AETH: "ack", "rnr", "nak", or "reserved"."""
        return ("ack", "rnr", "reserved", "nak")[self.syndrome >> 5 & 3] if self.syndrome < 0x80 else "reserved"

    def without_ackreq(self) -> Packet:
        """The same packet, whether or not it asks for an acknowledgement."""
        return Packet(**{name: getattr(self, name) for name in self.__slots__ if name != "ackreq"})


@dataclass(frozen=True, slots=True)
class Path:
    """One direction between two queue pairs, over IPv4."""

    smac: bytes
    dmac: bytes
    sip: bytes
    dip: bytes
    dqpn: int


def _extension(packet: Packet) -> bytes:
    op, out = packet.opcode, b""
    if op in WITH_RETH:
        out += struct.pack("!QII", packet.va & MASK64, packet.rkey, packet.dmalen)
    if op in ATOMICS:
        out += struct.pack("!QIQQ", packet.va & MASK64, packet.rkey, packet.swap & MASK64, packet.compare & MASK64)
    if op in WITH_AETH:
        out += struct.pack("!I", packet.syndrome << 24 | packet.msn)
    if op == ATOMIC_ACK:
        out += struct.pack("!Q", packet.orig & MASK64)
    if op in WITH_IMM or op in WITH_INV:
        out += struct.pack("!I", packet.imm)
    return out


def icrc(ip_udp: bytes, transport: bytes) -> bytes:
    """The CRC over what no router changes (A17.3.3)."""
    masked = bytearray(b"\xff" * 8 + ip_udp + transport)
    for at in (8 + 1, 8 + 8, 8 + 10, 8 + 11, 8 + 26, 8 + 27, 8 + 28 + 4):  # TOS, TTL, checksums, resv8a
        masked[at] = 0xFF
    return zlib.crc32(masked).to_bytes(4, "little")


def encode(packet: Packet, path: Path) -> bytes:
    """A whole frame."""
    pad = -len(packet.payload) % 4
    flags = packet.se << 7 | 0x40 | pad << 4
    bth = struct.pack("!BBHII", packet.opcode, flags, 0xFFFF, path.dqpn, packet.ackreq << 31 | packet.psn)
    transport = bth + _extension(packet) + packet.payload + bytes(pad)
    udp_len = 8 + len(transport) + 4
    ip = struct.pack("!BBHHHBBH", 0x45, 0, 20 + udp_len, 0, 0x4000, 64, 17, 0) + path.sip + path.dip
    total = sum(struct.unpack("!10H", ip))
    total = (total & 0xFFFF) + (total >> 16)
    checksum = ~((total & 0xFFFF) + (total >> 16)) & 0xFFFF
    ip = ip[:10] + checksum.to_bytes(2, "big") + ip[12:]
    udp = struct.pack("!HHHH", 0xC000, 4791, udp_len, 0)
    return path.dmac + path.smac + b"\x08\x00" + ip + udp + transport + icrc(ip + udp, transport)


def decode(frame: bytes) -> Packet:
    """The packet of a frame that an engine sent; everything around it is checked."""
    ip_udp, transport = frame[14:42], frame[42:-4]
    assert frame[12:14] == b"\x08\x00"
    assert struct.unpack("!H", frame[16:18])[0] == len(frame) - 14
    assert frame[-4:] == icrc(ip_udp, transport)
    opcode, flags, pkey, _, word = struct.unpack("!BBHII", transport[:12])
    assert (pkey, flags & 0x4F) == (0xFFFF, 0x40)
    rest, fields = transport[12:], {}
    if opcode in WITH_RETH:
        fields["va"], fields["rkey"], fields["dmalen"] = struct.unpack("!QII", rest[:16])
        rest = rest[16:]
    if opcode in ATOMICS:
        fields["va"], fields["rkey"], fields["swap"], fields["compare"] = struct.unpack("!QIQQ", rest[:28])
        rest = rest[28:]
    if opcode in WITH_AETH:
        fields["syndrome"], fields["msn"] = rest[0], int.from_bytes(rest[1:4], "big")
        rest = rest[4:]
    if opcode == ATOMIC_ACK:
        fields["orig"] = struct.unpack("!Q", rest[:8])[0]
        rest = rest[8:]
    if opcode in WITH_IMM or opcode in WITH_INV:
        fields["imm"] = struct.unpack("!I", rest[:4])[0]
        rest = rest[4:]
    pad = flags >> 4 & 3
    assert rest[len(rest) - pad :] == bytes(pad)
    payload = rest[: len(rest) - pad]
    return Packet(
        opcode=opcode, psn=word & PSN_MASK, ackreq=word >> 31, se=flags >> 7, payload=payload, **fields
    )  # fmt: skip

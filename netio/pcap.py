"""Captures: a port that writes what passes to a pcapng file, and a reader of pcap and pcapng.

Decides the file format. tcpdump on a port that carries super-frames shows one great frame; here they are
taken apart, so that a dissector sees what a wire would carry. Format: draft-ietf-opsawg-pcapng; times are
nanoseconds.
"""

from __future__ import annotations

import struct
import time
from collections.abc import Iterator
from enum import IntEnum
from pathlib import Path
from typing import BinaryIO, NamedTuple

from netio.middleware import Middleware, Splitter
from netio.port import Port
from softrnic.errors import WireError
from softrnic.layout import FrameRing

_LINKTYPE_ETHERNET = 1
_BYTE_ORDER_MAGIC = 0x1A2B3C4D
_PCAP_MICROSECONDS, _PCAP_NANOSECONDS = 0xA1B2C3D4, 0xA1B23C4D
_MAX_BLOCK = 1 << 20  # longer than any block with one packet: a reader must not believe a length field


class _Block(IntEnum):
    SECTION = 0x0A0D0D0A
    INTERFACE = 1
    SIMPLE_PACKET = 3
    PACKET = 6


class _Option(IntEnum):
    END = 0
    IF_NAME = 2
    IF_TSRESOL = 9
    EPB_FLAGS = 2


class Direction(IntEnum):
    """Bits 0-1 of epb_flags."""

    UNKNOWN = 0
    RX = 1
    TX = 2


class Packet(NamedTuple):
    """One packet of a capture."""

    time_ns: int
    direction: Direction
    data: bytes
    length: int  # on the wire; more than len(data) if it was cut


def _pad(data: bytes) -> bytes:
    return data + bytes(-len(data) % 4)


def _option(code: _Option, value: bytes) -> bytes:
    return struct.pack("<HH", code, len(value)) + _pad(value)


def _block(kind: _Block, body: bytes) -> bytes:
    total = len(body) + 12
    return struct.pack("<II", kind, total) + body + struct.pack("<I", total)


class PcapWriter:
    """A pcapng file with one Ethernet interface. `epoch_ns` is added to every time."""

    def __init__(self, file: BinaryIO, *, name: str = "softrnic", snaplen: int = 65535, epoch_ns: int = 0) -> None:
        self._file = file
        self._snaplen = snaplen
        self._epoch_ns = epoch_ns
        section = struct.pack("<IHHq", _BYTE_ORDER_MAGIC, 1, 0, -1)
        interface = (
            struct.pack("<HHI", _LINKTYPE_ETHERNET, 0, snaplen)
            + _option(_Option.IF_NAME, name.encode())
            + _option(_Option.IF_TSRESOL, b"\x09")
            + _option(_Option.END, b"")
        )
        file.write(_block(_Block.SECTION, section) + _block(_Block.INTERFACE, interface))

    def write(self, packet: bytes, time_ns: int, direction: Direction) -> None:
        """Add a packet."""
        stamp = self._epoch_ns + time_ns
        kept = packet[: self._snaplen]
        body = (
            struct.pack("<IIIII", 0, stamp >> 32 & 0xFFFFFFFF, stamp & 0xFFFFFFFF, len(kept), len(packet))
            + _pad(kept)
            + _option(_Option.EPB_FLAGS, struct.pack("<I", direction))
            + _option(_Option.END, b"")
        )
        self._file.write(_block(_Block.PACKET, body))

    def close(self) -> None:
        """Close the file."""
        self._file.close()


class PcapPort(Middleware):
    """Writes all that passes. Times are `now`; by default moved so that a monotonic clock reads as the
    date.
    """

    def __init__(self, inner: Port, path: Path, *, snaplen: int = 65535, epoch_ns: int | None = None) -> None:
        super().__init__(inner)
        epoch = time.time_ns() - time.monotonic_ns() if epoch_ns is None else epoch_ns
        self._writer = PcapWriter(path.open("wb"), name=inner.name, snaplen=snaplen, epoch_ns=epoch)
        self._splitter = Splitter()

    def recv_burst(self, rx: FrameRing, now: int) -> int:
        n = self.inner.recv_burst(rx, now)
        self._write(rx, n, now, Direction.RX)
        return n

    def send_burst(self, tx: FrameRing, n: int, now: int) -> int:
        self._write(tx, n, now, Direction.TX)  # first: the port may overwrite what it sends
        return self.inner.send_burst(tx, n, now)

    def _write(self, ring: FrameRing, n: int, now: int, direction: Direction) -> None:
        for i in range(n):
            for packet, _ in self._splitter.packets(ring, i):
                self._writer.write(packet, now, direction)

    def close(self) -> None:
        self._writer.close()
        self.inner.close()


def read_packets(file: BinaryIO) -> Iterator[Packet]:
    """The Ethernet packets of a pcap or pcapng file of either byte order; WireError if it is neither or
    broken.
    """
    magic = _exactly(file, 4)
    if struct.unpack("<I", magic)[0] == _Block.SECTION:
        yield from _read_pcapng(file)
        return
    for order in "<>":
        number = struct.unpack(f"{order}I", magic)[0]
        if number in (_PCAP_MICROSECONDS, _PCAP_NANOSECONDS):
            yield from _read_pcap(file, order, 1000 if number == _PCAP_MICROSECONDS else 1)
            return
    raise WireError("neither a pcap nor a pcapng file")


def _exactly(file: BinaryIO, n: int) -> bytes:
    data = file.read(n)
    if len(data) != n:
        raise WireError("capture ends in the middle of a record")
    return data


def _read_pcap(file: BinaryIO, order: str, unit_ns: int) -> Iterator[Packet]:
    link = struct.unpack(f"{order}I", _exactly(file, 20)[16:])[0] & 0xFFFF
    if link != _LINKTYPE_ETHERNET:
        raise WireError(f"capture of link type {link}, not Ethernet")
    while head := file.read(16):
        if len(head) != 16:
            raise WireError("capture ends in the middle of a record")
        seconds, fraction, kept, length = struct.unpack(f"{order}IIII", head)
        if kept > _MAX_BLOCK:
            raise WireError(f"capture record of {kept} bytes")
        data = _exactly(file, kept)
        yield Packet(seconds * 1_000_000_000 + fraction * unit_ns, Direction.UNKNOWN, data, length)


class _Interface(NamedTuple):
    link: int
    units_per_second: int


def _read_pcapng(file: BinaryIO) -> Iterator[Packet]:
    """Blocks of all sections; the type of the first is read already."""
    order = "<"
    interfaces: list[_Interface] = []
    kind_bytes = struct.pack("<I", _Block.SECTION)
    while kind_bytes:
        if len(kind_bytes) != 4:
            raise WireError("capture ends in the middle of a block")
        length_bytes = _exactly(file, 4)
        kind = struct.unpack(f"{order}I", kind_bytes)[0]
        if kind == _Block.SECTION:  # a palindrome, the same in either order
            order_bytes = _exactly(file, 4)
            order = _byte_order(order_bytes)
            interfaces = []
            _body(file, order, length_bytes, already=4)
        else:
            body = _body(file, order, length_bytes, already=0)
            if kind == _Block.INTERFACE:
                interfaces.append(_interface(order, body))
            elif kind == _Block.PACKET:
                packet = _enhanced_packet(order, body, interfaces)
                if packet:
                    yield packet
        kind_bytes = file.read(4)


def _byte_order(magic: bytes) -> str:
    for order in "<>":
        if struct.unpack(f"{order}I", magic)[0] == _BYTE_ORDER_MAGIC:
            return order
    raise WireError("pcapng section without byte order magic")


def _body(file: BinaryIO, order: str, length_bytes: bytes, *, already: int) -> bytes:
    """The rest of a block, of which type, length and `already` bytes are read."""
    total = struct.unpack(f"{order}I", length_bytes)[0]
    if total % 4 or not 12 + already <= total <= _MAX_BLOCK:
        raise WireError(f"pcapng block of {total} bytes")
    body = _exactly(file, total - 12 - already)
    if _exactly(file, 4) != length_bytes:
        raise WireError("pcapng block whose two lengths differ")
    return body


def _options(order: str, data: bytes) -> Iterator[tuple[int, bytes]]:
    while len(data) >= 4:
        code, length = struct.unpack_from(f"{order}HH", data)
        if code == _Option.END:
            return
        if 4 + length > len(data):
            raise WireError("pcapng option beyond its block")
        yield code, data[4 : 4 + length]
        data = data[4 + length + -length % 4 :]


def _interface(order: str, body: bytes) -> _Interface:
    if len(body) < 8:
        raise WireError("pcapng interface description too short")
    units = 1_000_000
    for code, value in _options(order, body[8:]):
        if code == _Option.IF_TSRESOL and len(value) == 1:
            exponent = value[0] & 0x7F
            units = 1 << exponent if value[0] & 0x80 else 10**exponent
    return _Interface(struct.unpack_from(f"{order}H", body)[0], units)


def _enhanced_packet(order: str, body: bytes, interfaces: list[_Interface]) -> Packet | None:
    """The packet of an enhanced packet block; None if its interface is no Ethernet."""
    if len(body) < 20:
        raise WireError("pcapng packet block too short")
    index, high, low, kept, length = struct.unpack_from(f"{order}IIIII", body)
    if index >= len(interfaces) or kept > len(body) - 20:
        raise WireError("pcapng packet of an unknown interface, or longer than its block")
    if interfaces[index].link != _LINKTYPE_ETHERNET:
        return None
    direction = Direction.UNKNOWN
    for code, value in _options(order, body[20 + kept + -kept % 4 :]):
        if code == _Option.EPB_FLAGS and len(value) == 4:
            flags = struct.unpack(f"{order}I", value)[0] & 3
            direction = Direction(flags) if flags < 3 else Direction.UNKNOWN
    stamp = (high << 32 | low) * 1_000_000_000 // interfaces[index].units_per_second
    return Packet(stamp, direction, body[20 : 20 + kept], length)

"""The outside of a saved state: magic, format version, producer, then sections, each with its checksum.

    file     magic 8s | format u16 | sections u16 | producer 16s | crc32 u32 of the above          little-endian
    section  id u16 | version u16 | flags u16 | zero u16 | length u32 | crc32 u32 of the header so far and payload

Knows nothing of what the sections hold. A reader refuses a mandatory section it does not know, or of a version newer
than its own; an optional one (flag 1) it passes over.
"""

from __future__ import annotations

import struct
import zlib
from typing import NamedTuple

from softrnic.errors import StateError
from softrnic.migrate.checksum import crc32

MAGIC = b"SOFTRNIC"
FORMAT = 1
OPTIONAL = 1
PRODUCER = "softrnic 1"  # for people: readers do not look at it

_FILE = struct.Struct("<8sHH16s")
_SECTION = struct.Struct("<HHHHI")
_CRC = struct.Struct("<I")


class Section(NamedTuple):
    """One part of the state."""

    ident: int
    version: int
    flags: int
    payload: bytes | memoryview


def wrap(sections: list[Section], producer: str) -> bytes:
    """The sections in one buffer."""
    return b"".join(wrapped(sections, producer))


def wrapped(sections: list[Section], producer: str) -> list[bytes | memoryview]:
    """The parts of that buffer, payloads as they are."""
    head = _FILE.pack(MAGIC, FORMAT, len(sections), producer.encode("ascii")[:16])
    parts: list[bytes | memoryview] = [head, _CRC.pack(zlib.crc32(head))]
    for s in sections:
        header = _SECTION.pack(s.ident, s.version, s.flags, 0, len(s.payload))
        parts += [header, _CRC.pack(crc32(s.payload, zlib.crc32(header))), s.payload]
    return parts


def unwrap(data: bytes | memoryview, known: dict[int, int]) -> dict[int, Section]:
    """The sections of `known` (id to newest version understood), by id; StateError for anything out of order."""
    head = _take(data, 0, _FILE.size, "$")
    magic, version, count, _ = _FILE.unpack(head)
    if magic != MAGIC:
        raise StateError("$.magic", "this is no saved state of softrnic")
    if _CRC.unpack(_take(data, _FILE.size, 4, "$"))[0] != zlib.crc32(head):
        raise StateError("$.crc", "the file header is damaged")
    if version != FORMAT:
        raise StateError("$.format", f"format {version}, this version reads {FORMAT}")
    at = _FILE.size + 4
    found: dict[int, Section] = {}
    for i in range(count):
        section, at = _section(data, at, f"$.sections[{i}]")
        if section.ident in found:
            raise StateError(f"$.sections[{i}]", f"section {section.ident} comes twice")
        if section.version <= known.get(section.ident, 0):
            found[section.ident] = section
        elif not section.flags & OPTIONAL:
            what = f"section {section.ident} version {section.version}"
            raise StateError(f"$.sections[{i}]", f"{what} is mandatory and not known")
    if at != len(data):
        raise StateError("$", f"{len(data) - at} bytes follow the last section")
    return found


def _section(data: bytes | memoryview, at: int, path: str) -> tuple[Section, int]:
    header = _take(data, at, _SECTION.size, path)
    ident, version, flags, zero, length = _SECTION.unpack(header)
    at += _SECTION.size
    (crc,) = _CRC.unpack(_take(data, at, 4, path))
    payload = _view(data, at + 4, length, path)
    if crc != crc32(payload, zlib.crc32(header)):
        raise StateError(path, "damaged: the checksum does not match")
    if zero or flags & ~OPTIONAL or version == 0:
        raise StateError(path, "reserved bits are set, or the version is 0")
    return Section(ident, version, flags, payload), at + 4 + length


def _take(data: bytes | memoryview, at: int, length: int, path: str) -> bytes:
    return bytes(_view(data, at, length, path))


def _view(data: bytes | memoryview, at: int, length: int, path: str) -> memoryview:
    """Part of the data, not copied: it may be large."""
    if len(data) - at < length:
        raise StateError(path, f"cut short: {length} bytes expected, {max(0, len(data) - at)} left")
    return memoryview(data)[at : at + length]

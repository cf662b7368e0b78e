"""Tables of bit fields: the way the specification prints its messages, read and written.

A `Record` ties a class to the list of its fields in the order of the wire, most significant bit first. Every
bit pattern parses; only a wrong length does not. What the values mean is not decided here.
"""

from __future__ import annotations

import errno
from typing import Any, Generic, NamedTuple, TypeVar

from softrnic.errors import VerbsError, WireError

T = TypeVar("T")


class Field(NamedTuple):
    """A run of bits. An empty name is reserved: ignored when read, zero when written."""

    name: str
    bits: int
    kind: type[int] | type[bytes] | Record[Any] = int


def reserved(bits: int) -> Field:
    """Bits that carry nothing."""
    return Field("", bits)


def octets(name: str, count: int) -> Field:
    """A string of bytes of fixed length; a shorter value is padded with zeros."""
    return Field(name, 8 * count, bytes)


def nested(name: str, record: Record[Any]) -> Field:
    """A record within a record."""
    return Field(name, record.bits, record)


class Record(Generic[T]):
    """A class and its image on the wire."""

    def __init__(self, cls: type[T], *fields: Field) -> None:
        self.cls = cls
        self.fields = tuple(field for field in fields if field.name)
        self.bits = sum(field.bits for field in fields)
        shifts: dict[str, int] = {}  # of a field's lowest bit, from the end
        left = self.bits
        for field in fields:
            left -= field.bits
            shifts[field.name] = left
        self._shifts = shifts

    def parse(self, data: bytes) -> T:
        """The value of `data`, whose length must be right."""
        if 8 * len(data) != self.bits:
            raise WireError(f"{self.cls.__name__} has {self.bits // 8} bytes, not {len(data)}")
        return self.from_int(int.from_bytes(data, "big"))

    def emit(self, value: T) -> bytes:
        """The bytes of `value`; EINVAL if a field of it does not fit."""
        return self.to_int(value).to_bytes(self.bits // 8, "big")

    def room(self, name: str) -> int:
        """Bytes the field called `name` can hold."""
        return next(field.bits for field in self.fields if field.name == name) // 8

    def layout(self) -> dict[str, tuple[int, int]]:
        """(offset in bits, width) of every field."""
        return {f.name: (self.bits - self._shifts[f.name] - f.bits, f.bits) for f in self.fields}

    def from_int(self, number: int) -> T:
        """The value of the record read as one big-endian number."""
        values: dict[str, Any] = {}
        for field in self.fields:
            raw = (number >> self._shifts[field.name]) & ((1 << field.bits) - 1)
            values[field.name] = _value(field, raw)
        return self.cls(**values)

    def to_int(self, value: T) -> int:
        """The record as one big-endian number."""
        return sum(_raw(f, getattr(value, f.name)) << self._shifts[f.name] for f in self.fields)


def _value(field: Field, raw: int) -> Any:
    if isinstance(field.kind, Record):
        return field.kind.from_int(raw)
    return raw.to_bytes(field.bits // 8, "big") if field.kind is bytes else raw


def _raw(field: Field, value: Any) -> int:
    if isinstance(field.kind, Record):
        return field.kind.to_int(value)
    if field.kind is bytes:
        size = field.bits // 8
        if len(value) > size:
            raise VerbsError(errno.EINVAL, f"{field.name} of {len(value)} bytes; {size} fit")
        return int.from_bytes(bytes(value).ljust(size, b"\0"), "big")
    number = int(value)
    if not 0 <= number < 1 << field.bits:
        raise VerbsError(errno.EINVAL, f"{field.name} {number} does not fit {field.bits} bits")
    return number

"""The header of a MAD, and what is not one (IBTA 13.4.2)."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from softrnic.cm import mad
from softrnic.cm.mad import Attr, Drop, Mad, MadError

DATA = bytes(range(232))
#             base class version method
HEADER = bytes((1,  7,    2,      3))  # fmt: skip
HEADER += bytes.fromhex("0000 0000")  # status, class specific
HEADER += bytes.fromhex("0123456789abcdef")  # transaction id
HEADER += bytes.fromhex("0013 0000 00000000")  # attribute, reserved, modifier


def test_emit() -> None:
    assert mad.emit(Mad(Attr.REP, 0x0123456789ABCDEF, DATA)) == HEADER + DATA


def test_parse() -> None:
    assert mad.parse(HEADER + DATA) == Mad(Attr.REP, 0x0123456789ABCDEF, DATA)


@pytest.mark.parametrize(
    ("offset", "value", "drop"),
    [
        (0, 2, Drop.BASE_VERSION),
        (1, 0x03, Drop.CLASS),  # subnet administration
        (1, 0x81, Drop.CLASS),
        (2, 1, Drop.CLASS_VERSION),
        (3, 0x83, Drop.METHOD),  # a response: no CM message is one
        (3, 0x01, Drop.METHOD),
        (17, 0x0F, Drop.ATTRIBUTE),
        (17, 0x1B, Drop.ATTRIBUTE),
        (16, 0x01, Drop.ATTRIBUTE),
    ],
)
def test_what_is_not_a_cm_datagram(offset: int, value: int, drop: Drop) -> None:
    datagram = bytearray(HEADER + DATA)
    datagram[offset] = value
    with pytest.raises(MadError) as error:
        mad.parse(bytes(datagram))
    assert error.value.drop is drop


@pytest.mark.parametrize("size", [0, 1, 23, 24, 255, 257, 4096])
def test_wrong_length(size: int) -> None:
    with pytest.raises(MadError) as error:
        mad.parse((HEADER + DATA + bytes(4096))[:size])
    assert error.value.drop is Drop.LENGTH


@pytest.mark.parametrize("size", [0, 231, 233])
def test_emit_refuses_data_of_a_wrong_length(size: int) -> None:
    with pytest.raises(MadError):
        mad.emit(Mad(Attr.RTU, 0, bytes(size)))


@pytest.mark.parametrize("offset", [4, 5, 6, 7, 18, 19, 20, 23])
def test_status_specific_reserved_and_modifier_are_ignored(offset: int) -> None:
    datagram = bytearray(HEADER + DATA)
    datagram[offset] = 0xFF
    assert mad.parse(bytes(datagram)) == Mad(Attr.REP, 0x0123456789ABCDEF, DATA)


@given(st.binary(max_size=300) | st.binary(min_size=256, max_size=256))
def test_any_bytes_parse_or_are_dropped_for_a_reason(datagram: bytes) -> None:
    try:
        parsed = mad.parse(datagram)
    except MadError:
        return
    assert mad.parse(mad.emit(parsed)) == parsed

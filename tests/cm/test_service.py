"""Service ids, GIDs and the private data header of the RDMA CM (IBTA annex A11)."""

from __future__ import annotations

from ipaddress import IPv4Address, IPv6Address

import pytest
from hypothesis import given
from hypothesis import strategies as st

from softrnic.cm.service import (
    HEADER_BYTES,
    CmaHeader,
    PortSpace,
    gid_from_ip,
    ip_from_gid,
    parse_ip,
    port_of,
    service_id,
)
from softrnic.errors import WireError

V4 = CmaHeader(0xC0DE, IPv4Address("192.0.2.1"), IPv4Address("192.0.2.2"))
V6 = CmaHeader(0xC0DE, IPv6Address("2001:db8::1"), IPv6Address("fe80::2"))
V4_BYTES = bytes.fromhex("0040c0de" + "00" * 12 + "c0000201" + "00" * 12 + "c0000202")
V6_BYTES = bytes.fromhex("0060c0de" + "20010db8" + "00" * 11 + "01" + "fe80" + "00" * 13 + "02")


@pytest.mark.parametrize(
    ("space", "port", "identifier"),
    [
        (PortSpace.TCP, 7174, 0x0000000001061C06),
        (PortSpace.UDP, 7174, 0x0000000001111C06),
        (PortSpace.TCP, 0xFFFF, 0x000000000106FFFF),
    ],
)
def test_service_id(space: PortSpace, port: int, identifier: int) -> None:
    assert service_id(space, port) == identifier
    assert port_of(identifier) == (space, port)


@pytest.mark.parametrize("identifier", [0, 0x01070000, 0x1_0000_0106_1C06, 0xFFFFFFFFFFFFFFFF])
def test_service_ids_of_others(identifier: int) -> None:
    assert port_of(identifier) is None


@pytest.mark.parametrize(("header", "data"), [(V4, V4_BYTES), (V6, V6_BYTES)], ids=["IPv4", "IPv6"])
def test_header_byte_for_byte(header: CmaHeader, data: bytes) -> None:
    assert header.emit() == data
    assert len(data) == HEADER_BYTES
    assert CmaHeader.parse(data + bytes(56)) == header


@pytest.mark.parametrize(
    "data",
    [
        b"",
        V4_BYTES[:-1],
        b"\x01" + V4_BYTES[1:],  # a minor version later
        b"\x10" + V4_BYTES[1:],  # a major one
        b"\x00\x00" + V4_BYTES[2:],  # no IP version: the native service
        b"\x00\x50" + V4_BYTES[2:],
    ],
)
def test_what_is_no_header(data: bytes) -> None:
    with pytest.raises(WireError):
        CmaHeader.parse(data)


def test_both_addresses_are_of_one_version() -> None:
    with pytest.raises(ValueError, match="different IP versions"):
        CmaHeader(1, V4.source, V6.destination).emit()


@given(st.binary(max_size=100))
def test_any_private_data_is_a_header_or_refused(data: bytes) -> None:
    try:
        header = CmaHeader.parse(data)
    except WireError:
        return
    assert CmaHeader.parse(header.emit()) == header


def test_gids_of_ip_addresses() -> None:
    """A17.3.1: IPv4-mapped for IPv4."""
    assert gid_from_ip(IPv4Address("10.1.2.3")) == bytes(10) + b"\xff\xff\x0a\x01\x02\x03"
    assert gid_from_ip(IPv6Address("fe80::1")) == b"\xfe\x80" + bytes(13) + b"\x01"


@given(st.ip_addresses())
def test_gid_and_back(address: IPv4Address | IPv6Address) -> None:
    back = ip_from_gid(gid_from_ip(address))
    mapped = address.ipv4_mapped if isinstance(address, IPv6Address) else None
    assert back == (mapped or address)


@pytest.mark.parametrize(
    ("text", "address"),
    [
        ("192.0.2.1", IPv4Address("192.0.2.1")),
        ("::ffff:192.0.2.1", IPv4Address("192.0.2.1")),
        ("fe80::1%eth0", IPv6Address("fe80::1")),
    ],
)
def test_parse_ip(text: str, address: IPv4Address | IPv6Address) -> None:
    assert parse_ip(text) == address

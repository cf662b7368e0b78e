"""Keys and values of the maps, byte by byte."""

from __future__ import annotations

from ipaddress import IPv4Address, IPv6Address

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ebpf.rules import (
    ANY_ADDRESS,
    MAX_QUEUES,
    MAX_TARGETS,
    Action,
    Count,
    Counter,
    Rule,
    mac_bytes,
    pack_key,
    pack_rule,
    socket_slot,
    unpack_entry,
)

MAC_A, MAC_B = "02:00:00:00:00:0a", "02:00:00:00:00:0b"


def test_ipv4_key_is_the_mapped_gid() -> None:
    assert pack_key("192.0.2.1", 0x11).hex() == "00000000000000000000ffffc000020111000000"


def test_ipv6_key() -> None:
    assert pack_key("2001:db8::2", 1).hex() == "20010db800000000000000000000000201000000"


def test_wildcards() -> None:
    assert pack_key("192.0.2.1", None)[16:].hex() == "ffffffff"
    assert pack_key(None, None) == ANY_ADDRESS + b"\xff" * 4


@pytest.mark.parametrize("qpn", [-1, 1 << 24])
def test_qpn_has_24_bits(qpn: int) -> None:
    with pytest.raises(ValueError, match="24 bits"):
        pack_key("192.0.2.1", qpn)


def test_qpn_without_address_is_refused() -> None:
    with pytest.raises(ValueError, match="needs the address"):
        pack_key(None, 0x11)


@pytest.mark.parametrize("address", ["::", "not an address", "192.0.2.256"])
def test_bad_address(address: str) -> None:
    with pytest.raises(ValueError, match="address"):
        pack_key(address, None)


def test_forward_value() -> None:
    value = pack_rule(Rule.forward(7, MAC_A, MAC_B))
    fields = ["04000000", "07000000", "02000000000a", "02000000000b", "00000000", "00" * 16]
    assert value.hex() == "".join(fields)


@pytest.mark.parametrize("mac", ["02:00:00:00:00", b"1234567", ""])
def test_bad_mac(mac: str | bytes) -> None:
    with pytest.raises(ValueError, match="6 bytes"):
        mac_bytes(mac)


@pytest.mark.parametrize("target", [-1, MAX_TARGETS])
def test_target_out_of_range(target: int) -> None:
    with pytest.raises(ValueError, match="target"):
        Rule.to_socket(target)


@pytest.mark.parametrize("ifindex", [0, -1, 1 << 31])
def test_ifindex_out_of_range(ifindex: int) -> None:
    with pytest.raises(ValueError, match="positive"):
        Rule.forward(ifindex, MAC_A, MAC_B)


def test_socket_slots_are_distinct() -> None:
    slots = {socket_slot(target, queue) for target in range(MAX_TARGETS) for queue in range(MAX_QUEUES)}
    assert slots == set(range(MAX_TARGETS * MAX_QUEUES))


@pytest.mark.parametrize(("target", "queue"), [(-1, 0), (0, -1), (MAX_TARGETS, 0), (0, MAX_QUEUES)])
def test_no_such_slot(target: int, queue: int) -> None:
    with pytest.raises(ValueError, match="no slot"):
        socket_slot(target, queue)


def test_counters_begin_with_the_actions() -> None:
    assert [Counter(action).name for action in Action] == [action.name for action in Action]


RULES = st.one_of(
    st.just(Rule.to_pass()),
    st.just(Rule.drop()),
    st.just(Rule.keep()),
    st.integers(0, MAX_TARGETS - 1).map(Rule.to_socket),
    st.builds(Rule.forward, st.integers(1, 2**31 - 1), st.binary(min_size=6, max_size=6), st.just(MAC_A)),
)
ADDRESSES = st.one_of(st.ip_addresses(v=4), st.ip_addresses(v=6)).filter(lambda each: int(each) != 0)


@given(address=ADDRESSES, qpn=st.none() | st.integers(0, 2**24 - 1), rule=RULES)
def test_entries_survive_the_kernel(address: IPv4Address | IPv6Address, qpn: int | None, rule: Rule) -> None:
    entry = unpack_entry(pack_key(address, qpn), pack_rule(rule))
    mapped = address.ipv4_mapped if isinstance(address, IPv6Address) else None
    assert (entry.address, entry.qpn, entry.rule) == (mapped or address, qpn, rule)
    assert entry.count == Count(packets=0, bytes=0)

"""What people see of a frame: complete, with a verdict on the ICRC, and never an exception."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from softrnic.wire.opcodes import OPCODES
from softrnic.wire.show import dissect, one_line, tree
from tests.wire.packets import V6, build, make_av
from tests.wire.test_frame import OTHERS, V4_FRAME, V6_FRAME, replace, with_checksum


def values(data: bytes) -> dict[str, str]:
    return {field.name: field.text for layer in dissect(data) for field in layer.fields}


def malformed(data: bytes) -> str | None:
    return values(data).get("_ws.malformed")


WRITE = build(make_av(), 0x06, bytes(1024))


def test_one_line() -> None:
    assert one_line(WRITE) == (
        "10.0.0.1 > 10.0.0.2 RC RDMA Write First qp 0x123456 psn 16777214 va 0x7f0123456789abc0 "
        "rkey 0x89abcdef len 66051 solicited ackreq payload 1024"
    )
    ack = build(make_av(**V6), 0x11, b"", se=0, ackreq=0, psn=7, msn=3, syndrome=0x1F)
    assert one_line(ack) == "fd00::200:ff:fe00:1 > fd00::200:ff:fe00:2 RC Acknowledge qp 0x123456 psn 7 msn 3 ACK"


@pytest.mark.parametrize(
    ("syndrome", "words"),
    [
        (0x05, "ACK, credit count 5"),
        (0x1F, "ACK"),
        (0x2C, "RNR NAK, 640 us"),
        (0x20, "RNR NAK, 655360 us"),
        (0x60, "NAK, psn sequence error"),
        (0x64, "NAK, invalid rd request"),
        (0x7F, "NAK, code 31"),
        (0x41, "reserved"),
    ],
)
def test_syndromes_in_words(syndrome: int, words: str) -> None:
    assert one_line(build(make_av(), 0x11, b"", syndrome=syndrome, se=0, ackreq=0)).endswith(f" {words}")


def test_tree_has_every_field_once_under_its_layer() -> None:
    lines = tree(WRITE).splitlines()
    assert [line for line in lines if not line.startswith(" ")] == [
        "Ethernet II",
        "Internet Protocol Version 4",
        "User Datagram Protocol",
        "Base Transport Header",
        "RDMA Extended Transport Header",
        "Payload",
        "Invariant CRC",
    ]
    assert "    infiniband.bth.opcode: 6 (RC RDMA Write First)" in lines
    assert "    infiniband.reth.va: 0x7f0123456789abc0" in lines
    assert "    ip.checksum: " + values(WRITE)["ip.checksum"] + " (correct)" in lines
    assert lines[-1].endswith("(correct)")


def test_wrong_sums_are_said() -> None:
    broken = WRITE[:-1] + bytes((WRITE[-1] ^ 1,))
    assert one_line(broken).endswith(f"[ICRC wrong, should be 0x{WRITE[-4:].hex()}]")
    assert "(wrong)" in tree(replace(WRITE, 22, b"\x01"))


@pytest.mark.parametrize("row", OPCODES.values(), ids=lambda row: row.name)
def test_every_opcode_is_shown_whole(row) -> None:
    data = build(make_av(vlan=5), row.value, bytes(8))
    assert malformed(data) is None
    assert row.name in one_line(data)
    assert "[" not in one_line(data)
    # Cut anywhere, with the link headers still right, it says so.
    for n in range(46, len(data)):
        assert malformed(data[:n])


def test_congestion_marks() -> None:
    marked = replace(WRITE, 46, b"\xc0")
    assert "infiniband.reserved: c0 (FECN BECN)" in tree(marked)
    assert "[ICRC" not in one_line(marked)


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"", "Ethernet header of 14 bytes in the last 0"),
        (V4_FRAME[:30], "IPv4 header of 20 bytes in the last 16"),
        (replace(V4_FRAME, 14, b"\x65"), "IPv4 header of version 6 and 20 bytes"),
        (replace(V4_FRAME, 14, b"\x43"), "IPv4 header of version 4 and 12 bytes"),
        (replace(V4_FRAME, 16, b"\xff\xff"), "IPv4 payload of 65515 bytes where 88 are left"),
        (with_checksum(replace(V4_FRAME, 20, b"\x20")), "IPv4 fragment"),
        (replace(V6_FRAME, 14, b"\x46"), "IPv6 header of version 4"),
        (replace(V4_FRAME, 38, b"\x00\x04"), "UDP payload of -4 bytes where 80 are left"),
        (replace(V4_FRAME, 38, b"\x00\x0c"), "BTH of 12 bytes in the last 4"),
        (replace(V4_FRAME, 38, b"\x00\x16"), "packet without ICRC of -2 bytes where 2 are left"),
        (replace(V4_FRAME[:-40], 38, b"\x00\x18"), "IPv4 payload of 88 bytes where 48 are left"),
        (replace(replace(V4_FRAME, 38, b"\x00\x18"), 43, b"\x70"), "3 bytes of padding in the last 0"),
        (
            replace(replace(V4_FRAME, 38, b"\x00\x20"), 42, b"\x06"),
            "RDMA Extended Transport Header of 16 bytes in the last 8",
        ),
    ],
)
def test_reasons(data: bytes, reason: str) -> None:
    assert malformed(data) == reason
    assert one_line(data).endswith(f"[malformed: {reason}]")


@pytest.mark.parametrize("name", OTHERS)
def test_traffic_of_others(name: str) -> None:
    assert "infiniband.bth.opcode" not in values(OTHERS[name])
    assert one_line(OTHERS[name])


def test_unknown_opcode() -> None:
    assert "unknown opcode" in one_line(replace(V4_FRAME, 42, b"\xff"))


@given(
    st.binary(max_size=150) | st.sampled_from([V4_FRAME, V6_FRAME, WRITE[:200]]),
    st.lists(st.tuples(st.integers(0, 110), st.integers(0, 255)), max_size=8),
    st.integers(0, 200),
)
def test_any_bytes(data: bytes, mutations: list[tuple[int, int]], length: int) -> None:
    mutated = bytearray(data)
    for at, value in mutations:
        if at < len(mutated):
            mutated[at] = value
    shown = bytes(mutated[:length])
    assert one_line(shown)
    assert tree(shown).count("\n") >= len(dissect(shown))

"""The models' codec against scapy, which shares nothing with it."""

from __future__ import annotations

import pytest

from tests import scapy_roce as sr
from tests.model import packets as p
from tests.model.packets import Packet, Path, decode, encode, psn_add, psn_behind

PATH = Path(b"\x02\0\0\0\0\x0b", b"\x02\0\0\0\0\x0a", bytes((10, 0, 0, 2)), bytes((10, 0, 0, 1)), 0x123456)
VALUES = {
    "va": 0x7F01_2345_6789_ABC0, "rkey": 0x89ABCDEF, "dmalen": 0x10203, "swap": 0x1122334455667788, "compare": 0xFEDC,
    "imm": 0xDEADBEEF, "syndrome": 0x61, "msn": 0xABCDEF, "orig": 0x0FEDCBA987654321,
}  # fmt: skip
HEADERS = {
    ("va", "rkey", "dmalen"): p.WITH_RETH,
    ("va", "rkey", "swap", "compare"): p.ATOMICS,
    ("imm",): p.WITH_IMM | p.WITH_INV,
    ("syndrome", "msn"): p.WITH_AETH,
    ("orig",): {p.ATOMIC_ACK},
}


def example(opcode: int, payload: bytes) -> Packet:
    names = {name for fields, opcodes in HEADERS.items() if opcode in opcodes for name in fields}
    return Packet(
        opcode=opcode, psn=0xFFFFFE, ackreq=1, se=1, payload=payload, **{name: VALUES[name] for name in names}
    )  # fmt: skip


@pytest.mark.parametrize("opcode", sorted(p.REQUESTS | p.RESPONSES))
@pytest.mark.parametrize("length", [0, 1, 4, 255])
def test_frames_are_what_scapy_would_write(opcode: int, length: int) -> None:
    bare = opcode in p.ATOMICS | {p.READ_REQUEST, p.ACK, p.ATOMIC_ACK}
    packet = example(opcode, b"" if bare else bytes(range(length)))
    frame = encode(packet, PATH)
    read = sr.Ether(frame)
    bth = read[sr.BTH]
    assert (bth.opcode, bth.psn, bth.ackreq, bth.dqpn, bth.solicited) == (opcode, 0xFFFFFE, 1, 0x123456, 1)
    del bth.icrc, read[sr.UDP].len, read[sr.IP].len, read[sr.IP].chksum
    assert bytes(read) == frame
    assert decode(frame) == packet


def test_psns_go_round() -> None:
    assert psn_add(0xFFFFFF, 2) == 1
    assert psn_behind(1, 0xFFFFFF) == 2
    assert psn_behind(0xFFFFFF, 1) == -2
    assert psn_behind(0x800000, 0) == -0x800000

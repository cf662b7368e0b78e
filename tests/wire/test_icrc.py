"""ICRC: captured packets of real NICs, the naive computation, super-frames, and ports that hide the IP id."""

from __future__ import annotations

import random

import numpy as np
import pytest

from softrnic.wire import frame, icrc
from softrnic.wire.opcodes import OPCODES
from tests.wire import naive
from tests.wire.packets import FAMILIES, V4, VALUES, build, check, make_av, place, put_transport

SEND_MIDDLE, SEND_ONLY, WRITE_FIRST = 0x01, 0x04, 0x06
VLANS = (None, 0x2005)
LAYOUTS = {(family, vlan): FAMILIES[family] | {"vlan": vlan} for family in FAMILIES for vlan in VLANS}

# From mlx5 hardware: a UC SEND Only (scapy's regression test, ICRC 0x78f353f3), and a CNP of a ConnectX-4 Lx.
UC_SEND = bytes.fromhex(
    "248a07a8fa22 248a07a8fa22 0800 4501 0040 0478 4000 40 11 b4d5 c0a80007 c0a80007"
    "c000 12b7 002c 0000 24 60 ffff 00 0000d3 00 cf1710"
    "463081 8be28935d90e9a95505401be885e5000 00 78f353f3"
)
CNP = bytes.fromhex(
    "e41d2dab2bc2 7cfe90643b32 0800 45c2 003c 718c 4000 40 11 9161 0a001101 0a001201"
    "0000 12b7 0028 0000 81 00 ffff 40 000118 00 000000 00000000000000000000000000000000 82fd002a"
)
# Offsets in an untagged frame: TOS, TTL, header checksum (IPv6: traffic class, flow label, hop limit), UDP
# checksum, BTH byte 4.
VARIANT_BYTES_V4 = (15, 22, 24, 25, 40, 41, 46)
VARIANT_BYTES_V6 = (15, 16, 17, 21, 60, 61, 66)


@pytest.mark.parametrize("data", [UC_SEND, CNP], ids=["uc send only", "cnp"])
def test_captured_packets(data: bytes) -> None:
    assert naive.icrc(data[14:]) == data[-4:]
    assert check(data)
    for at in range(14, len(data)):
        changed = bytearray(data)
        changed[at] ^= 0x10
        if at in VARIANT_BYTES_V4:
            buf = place(bytes(changed))
            base = icrc.icrc_base(buf, 5 + 14, 0)
            ip_id = int.from_bytes(changed[18:20], "big")
            assert icrc.icrc_check(buf, 5 + 42, len(data) - 42, base, 0, ip_id, 0)
        elif at >= 42:
            assert not check(bytes(changed)), at


@pytest.mark.parametrize("layout", LAYOUTS, ids=lambda key: f"{key[0]} {'vlan' if key[1] else 'untagged'}")
def test_against_naive(layout: tuple[str, int | None]) -> None:
    avs = make_av(**LAYOUTS[layout])
    l3 = int(avs[1]["l3_off"])
    rng = random.Random(6)
    for opcode in OPCODES:
        for n in (0, 1, 3, 4, 63, 64, 65, 255, 256, 1024, 4096):
            data = build(avs, opcode, rng.randbytes(n), ip_id=0 if layout[0] == "v6" else rng.getrandbits(16))
            assert naive.icrc(data[l3:]) == data[-4:], (opcode, n)
            assert check(data), (opcode, n)


@pytest.mark.parametrize("family", FAMILIES)
def test_variant_bytes_do_not_matter_and_others_do(family: str) -> None:
    """A17.3.3: what routers may change is not covered; every other byte from the IP header on is."""
    data = build(make_av(**FAMILIES[family]), WRITE_FIRST, bytes(range(32)))
    variant = VARIANT_BYTES_V4 if family == "v4" else VARIANT_BYTES_V6
    is_v6 = int(family == "v6")
    bth = 62 if is_v6 else 42
    lengths_and_id = {16, 17, 18, 19, 38, 39} if not is_v6 else {18, 19, 58, 59}
    for at in range(14, len(data)):
        for bit in range(8):
            changed = bytearray(data)
            changed[at] ^= 1 << bit
            buf = place(bytes(changed))
            base = icrc.icrc_base(buf, 5 + 14, is_v6)
            right = bool(icrc.icrc_check(buf, 5 + bth, len(data) - bth, base, is_v6, 0, 0))
            # Lengths and id are arguments of their own; the rest of byte 14 of IPv6 is its version.
            covered = at not in variant and at not in lengths_and_id
            if is_v6 and at == 14:
                covered = bit >= 4
            assert right is not covered, (at, bit)


def test_seed_is_linear_in_lengths_and_id() -> None:
    rng = random.Random(7)
    for family, is_v6 in (("v4", 0), ("v6", 1)):
        avs = make_av(**FAMILIES[family])
        base = int(avs[1]["icrc_base"])
        buf = np.zeros(200, np.uint8)
        for _ in range(300):
            length = rng.choice((16, 80, 4112, 65500, 4 * rng.randrange(4, 16370)))
            ip_id = 0 if is_v6 else rng.getrandbits(16)
            bth = frame.put_link(buf, 0, avs, 1, length, ip_id)
            ones = np.array([1, 2, 3, 7] if is_v6 else [1, 8, 10, 11]) + 14
            masked = buf[:bth].copy()
            masked[ones] = masked[bth - 2 : bth] = 0xFF
            if is_v6:
                masked[14] |= 0x0F
            want = naive.crc(0xFFFFFFFF, b"\xff" * 8 + masked[14:].tobytes())
            assert icrc.icrc_seed(base, is_v6, ip_id, length) == want
            assert icrc.icrc_base(buf, 14, is_v6) == base


@pytest.mark.parametrize("layout", LAYOUTS, ids=lambda key: f"{key[0]} {'vlan' if key[1] else 'untagged'}")
@pytest.mark.parametrize("first_id", [0, 0xFFFD])
@pytest.mark.parametrize("tail", [4096, 64, 0])
def test_super_frame_segment_by_segment(layout: tuple[str, int | None], first_id: int, tail: int) -> None:
    """Each segment checks out in the super-frame, and as the packet that the kernel makes of it."""
    is_v6 = int(layout[0] == "v6")
    ip_id = 0 if is_v6 else first_id
    avs = make_av(**LAYOUTS[layout])
    base = int(avs[1]["icrc_base"])
    rng = random.Random(8)
    buf = np.zeros(65536, np.uint8)
    at = start = int(avs[1]["hdr_len"])
    for i, n in enumerate((4096, 4096, 4096, 4096, tail)):
        end = put_transport(buf, at, SEND_MIDDLE, rng.randbytes(n), {**VALUES, "psn": i})
        seed = icrc.icrc_seed(base, is_v6, ip_id + i if not is_v6 else 0, end + 4 - at)
        icrc.put_icrc(buf, end, icrc.icrc_finish(icrc.icrc_bth(seed, buf, at, end - at)))
        at = end + 4
    frame.put_link(buf, 0, avs, 1, at - start, ip_id)
    link = frame.parse_link(buf, 0, at, 4112)
    assert (link.err, link.nseg) == (0, 5)
    l3 = int(avs[1]["l3_off"])
    base = icrc.icrc_base(buf, l3, is_v6)
    packets = naive.segments(buf[:at].tobytes(), l3, 4112)
    for i, packet in enumerate(packets):
        length = link.seg_len if i < link.nseg - 1 else link.last_len
        assert naive.icrc(packet[l3:]) == packet[-4:]
        assert check(packet)
        # The id of segment i may run over 65535.
        assert icrc.icrc_check(buf, link.bth_off + i * 4112, length, base, is_v6, link.ip_id + i, 0)
    assert icrc.icrc_check(buf, link.bth_off, 4112, base, is_v6, link.ip_id + 1, 0) == bool(is_v6)


def test_copy_and_header_pieces_make_the_same_icrc() -> None:
    """The way the requester does it: headers first, then payload copied from elsewhere, then padding."""
    payload = random.Random(9).randbytes(1021)
    avs = make_av()
    want = build(avs, WRITE_FIRST, payload)
    source = np.frombuffer(payload, np.uint8).copy()
    buf = np.zeros(2000, np.uint8)
    length = len(want) - 42
    end = put_transport(buf, 42, WRITE_FIRST, payload, VALUES)
    buf[70 : 70 + len(payload)] = 0
    crc = icrc.icrc_bth(icrc.icrc_seed(int(avs[1]["icrc_base"]), 0, 0, length), buf, 42, 28)
    crc = icrc.crc32_copy(crc, buf, 70, source.ctypes.data, 1000)
    crc = icrc.crc32_copy(crc, buf, 1070, source.ctypes.data + 1000, 21)
    crc = icrc.crc32_update(crc, buf, end - 3, 3)
    icrc.put_icrc(buf, end, icrc.icrc_finish(crc))
    assert buf[42 : end + 4].tobytes() == want[42:]
    assert icrc.get_icrc(buf, end) == int.from_bytes(want[-4:], "little")


# --- id unknown ---------------------------------------------------------------------------------------------


def hide_id(data: bytes, seen_id: int, seen_df: bool) -> bytes:
    """What a port that does not see the IP header makes up: the ICRC stays that of the true id and DF."""
    hidden = bytearray(data)
    hidden[18:20] = seen_id.to_bytes(2, "big")
    hidden[20] = 0x40 if seen_df else 0
    hidden[24:26] = bytes(2)
    hidden[24:26] = naive.ip_checksum(bytes(hidden[14:34])).to_bytes(2, "big")
    return bytes(hidden)


@pytest.mark.parametrize("n", [0, 4, 64, 1000, 4096])
def test_unknown_id_accepts_every_true_packet(n: int) -> None:
    rng = random.Random(n)
    avs = make_av()
    ids = [0, 1, 0x8000, 0xFFFF, *(rng.getrandbits(16) for _ in range(100))]
    for true_id in ids:
        data = build(avs, SEND_ONLY, rng.randbytes(n), ip_id=true_id)
        for seen_id, seen_df in ((0, True), (0, False), (rng.getrandbits(16), True)):
            hidden = hide_id(data, seen_id, seen_df)
            assert check(hidden, id_unknown=1)
            assert check(hidden) == ((seen_id, seen_df) == (true_id, True))


def test_unknown_id_refuses_corrupted_packets() -> None:
    """Fifteen check bits remain: of random corruptions one in 32768 passes, so of 4000 hardly one."""
    rng = random.Random(10)
    avs = make_av()
    passed = 0
    for _ in range(4000):
        payload = rng.randbytes(rng.choice((0, 64, 1024)))
        data = bytearray(build(avs, SEND_ONLY, payload, ip_id=rng.getrandbits(16)))
        for _ in range(rng.choice((1, 2, 9))):
            at = rng.choice([i for i in range(42, len(data)) if i != 46])
            data[at] ^= rng.randrange(1, 256)
        passed += check(hide_id(bytes(data), 0, True), id_unknown=1)
    assert passed <= 2


def test_unknown_id_refuses_every_single_bit() -> None:
    data = build(make_av(), SEND_ONLY, bytes(64), ip_id=0x1234)
    hidden = hide_id(data, 0, True)
    for at in (*range(42, 46), *range(47, len(data))):
        for bit in range(8):
            changed = bytearray(hidden)
            changed[at] ^= 1 << bit
            assert not check(bytes(changed), id_unknown=1), (at, bit)


def test_unknown_id_means_nothing_for_ipv6() -> None:
    data = build(make_av(**FAMILIES["v6"]), SEND_ONLY, bytes(64))
    assert check(data, id_unknown=1)
    changed = data[:-1] + bytes((data[-1] ^ 1,))
    assert not check(changed, id_unknown=1)


def test_other_addresses_are_not_hidden() -> None:
    """Only id and DF are forgiven: an address or a port that differs is a wrong packet."""
    data = build(make_av(), SEND_ONLY, bytes(64), ip_id=7)
    for at in (23, 26, 29, 30, 33, 34, 35):
        changed = bytearray(hide_id(data, 0, True))
        changed[at] ^= 1
        buf = place(bytes(changed))
        base = icrc.icrc_base(buf, 5 + 14, 0)
        assert not icrc.icrc_check(buf, 5 + 42, len(data) - 42, base, 0, 0, 1), at
    assert len(V4["dip"]) == 4

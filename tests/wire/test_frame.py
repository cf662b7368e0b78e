"""Link headers: what is taken, what is refused and as what, and that hostile bytes change nothing else."""

from __future__ import annotations

import random

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from softrnic.errors import WireError
from softrnic.layout import AV
from softrnic.wire import frame
from softrnic.wire.frame import Link, LinkError, flow_sport, parse_link
from tests.wire import naive
from tests.wire.packets import DMAC, FAMILIES, GUARD, SMAC, V4, V6, build, make_av, place

SEND_ONLY = 0x04
VLANS = {"untagged": None, "vlan": 0x6123}


def parse(data: bytes, seg: int = 0, off: int = 5) -> Link:
    return Link(*parse_link(place(data, off), off, len(data), seg))


def replace(data: bytes, at: int, new: bytes) -> bytes:
    return data[:at] + new + data[at + len(new) :]


def with_checksum(data: bytes, l3: int = 14) -> bytes:
    """The same frame with the checksum its IPv4 header should have."""
    blank = replace(data, l3 + 10, bytes(2))
    return replace(blank, l3 + 10, naive.ip_checksum(blank[l3 : l3 + 20]).to_bytes(2, "big"))


@pytest.mark.parametrize("vlan", VLANS)
@pytest.mark.parametrize("family", FAMILIES)
def test_what_is_put_is_parsed(family: str, vlan: str) -> None:
    avs = make_av(**FAMILIES[family], vlan=VLANS[vlan])
    data = build(avs, SEND_ONLY, bytes(64), ip_id=0xFFFE)
    l3 = 18 if VLANS[vlan] else 14
    is_v6 = int(family == "v6")
    udp = 5 + l3 + (40 if is_v6 else 20)
    assert parse(data) == Link(
        err=0,
        l3_off=5 + l3,
        is_v6=is_v6,
        udp_off=udp,
        bth_off=udp + 8,
        seg_len=80,
        nseg=1,
        last_len=80,
        ip_id=0 if is_v6 else 0xFFFE,
        vlan=0x123 if VLANS[vlan] else -1,
        tclass=0x6A,
    )


def test_every_byte_of_the_ipv4_headers() -> None:
    data = build(make_av(vlan=0x6123, hop_limit=7), SEND_ONLY, bytes(4), ip_id=0x1234)
    ip = bytes.fromhex("456a0030 1234 4000 07 11 0000 0a000001 0a000002")
    ip = ip[:10] + naive.ip_checksum(ip).to_bytes(2, "big") + ip[12:]
    udp = bytes.fromhex("c001 12b7 001c 0000")
    assert data[:46] == DMAC + SMAC + bytes.fromhex("8100 6123 0800") + ip + udp


def test_every_byte_of_the_ipv6_headers() -> None:
    data = build(make_av(**V6), SEND_ONLY, bytes(4))
    ip = bytes.fromhex("66a12345 001c 11 40") + V6["sip"] + V6["dip"]
    assert data[:62] == DMAC + SMAC + bytes.fromhex("86dd") + ip + bytes.fromhex("c001 12b7 001c 0000")


def test_ipv4_checksum_of_every_length_and_id() -> None:
    """The template's partial sum is continued right, carries included."""
    rng = random.Random(5)
    buf = np.zeros(200, np.uint8)
    for _ in range(300):
        sip, dip = rng.randbytes(4), rng.choice((rng.randbytes(4), b"\xff" * 4, bytes(4)))
        avs = make_av(sip=sip, dip=dip, tclass=rng.randrange(256), hop_limit=rng.randrange(256))
        ip_id = rng.choice((0, 0xFFFF, rng.randrange(65536)))
        frame.put_link(buf, 0, avs, 1, rng.choice((16, 80, 4112, 65504, 65507)), ip_id)
        assert naive.ip_checksum(buf[14:34].tobytes()) == 0


@pytest.mark.parametrize("family", FAMILIES)
def test_put_link_touches_only_the_headers(family: str) -> None:
    """The transport may have been written before: packets are laid out first, the frame is closed last."""
    avs = make_av(**FAMILIES[family])
    buf = np.full(200, GUARD, np.uint8)
    bth = frame.put_link(buf, 33, avs, 1, 100)
    assert (buf[:33] == GUARD).all()
    assert (buf[bth:] == GUARD).all()


def test_build_av_refuses_mixed_addresses() -> None:
    for changes in ({"sip": V6["sip"]}, {"sip": bytes(5), "dip": bytes(5)}, {"smac": bytes(5)}):
        with pytest.raises(WireError):
            make_av(**changes)


@pytest.mark.parametrize("family", FAMILIES)
def test_ethernet_padding_is_not_payload(family: str) -> None:
    data = build(make_av(**FAMILIES[family]), 0x11, b"")
    for pad in (1, 4, 18):
        assert parse(data + bytes(pad)) == parse(data)


V4_FRAME = build(make_av(), SEND_ONLY, bytes(64))
V6_FRAME = build(make_av(**V6), SEND_ONLY, bytes(64))
TAGGED = build(make_av(vlan=1), SEND_ONLY, bytes(64))

OTHERS = {
    "empty": b"",
    "runt": V4_FRAME[:13],
    "ethernet only": V4_FRAME[:14],
    "arp": replace(V4_FRAME, 12, b"\x08\x06"),
    "vlan without type": TAGGED[:15],
    "two vlan tags": replace(TAGGED, 16, b"\x81\x00"),
    "cut ipv4 header": V4_FRAME[:33],
    "tcp": with_checksum(replace(V4_FRAME, 23, b"\x06")),
    "other port": replace(V4_FRAME, 36, b"\x12\xb8"),
    "cut udp header": V4_FRAME[:41],
    "later fragment": with_checksum(replace(V4_FRAME, 20, b"\x00\x05")),
    "ihl 4": with_checksum(replace(V4_FRAME, 14, b"\x44")),
    "ihl beyond the end": replace(V4_FRAME[:50], 14, b"\x4f"),
    "cut ipv6 header": V6_FRAME[:53],
    "hop-by-hop header": replace(V6_FRAME, 20, b"\x00"),
    "ipv6 tcp": replace(V6_FRAME, 20, b"\x06"),
    "ipv6 other port": replace(V6_FRAME, 56, b"\x00\x35"),
}

OPTIONS = V4_FRAME[:34] + bytes(4) + V4_FRAME[34:]
REFUSED = {
    "checksum": (LinkError.BAD_IP, replace(V4_FRAME, 24, b"\x00\x01")),
    "version 5": (LinkError.BAD_IP, with_checksum(replace(V4_FRAME, 14, b"\x55"))),
    "options": (LinkError.BAD_IP, with_checksum(replace(OPTIONS, 14, b"\x46"))),
    "total length 27": (LinkError.BAD_IP, with_checksum(replace(V4_FRAME, 16, b"\x00\x1b"))),
    "total length 0": (LinkError.BAD_IP, with_checksum(replace(V4_FRAME, 16, b"\x00\x00"))),
    "first fragment": (LinkError.FRAGMENT, with_checksum(replace(V4_FRAME, 20, b"\x20\x00"))),
    "one byte short": (LinkError.TRUNCATED, V4_FRAME[:-1]),
    "headers only": (LinkError.TRUNCATED, V4_FRAME[:42]),
    "udp longer than ip": (LinkError.BAD_UDP_LENGTH, replace(V4_FRAME, 38, b"\x00\x5c")),
    "udp shorter than ip": (LinkError.BAD_UDP_LENGTH, replace(V4_FRAME, 38, b"\x00\x54")),
    "udp length 0": (LinkError.BAD_UDP_LENGTH, replace(V4_FRAME, 38, b"\x00\x00")),
    "ipv6 version 5": (LinkError.BAD_IP, replace(V6_FRAME, 14, b"\x56")),
    "ipv6 payload length 7": (LinkError.BAD_IP, replace(V6_FRAME, 18, b"\x00\x07")),
    "ipv6 jumbo": (LinkError.BAD_IP, replace(V6_FRAME, 18, b"\x00\x00")),
    "ipv6 one byte short": (LinkError.TRUNCATED, V6_FRAME[:-1]),
    "ipv6 udp length": (LinkError.BAD_UDP_LENGTH, replace(V6_FRAME, 58, b"\x00\x54")),
}


@pytest.mark.parametrize("name", OTHERS)
def test_traffic_of_others_is_not_an_error_of_ours(name: str) -> None:
    assert parse(OTHERS[name]).err == LinkError.NOT_ROCE


@pytest.mark.parametrize("name", REFUSED)
def test_broken_frames_are_refused_by_name(name: str) -> None:
    error, data = REFUSED[name]
    assert LinkError(parse(data).err) == error


@pytest.mark.parametrize("payload", [0, 4, 12, 15, 17, 18, 19, 21, 65])
def test_udp_payload_that_no_packet_has(payload: int) -> None:
    """A packet is BTH and ICRC at least, and a multiple of four bytes."""
    length = (28 + payload).to_bytes(2, "big"), (8 + payload).to_bytes(2, "big")
    data = with_checksum(replace(replace(V4_FRAME, 16, length[0]), 38, length[1]))
    assert parse(data).err == LinkError.BAD_UDP_LENGTH


def super_frame(payload: int, family: str = "v4") -> bytes:
    buf = np.zeros(66000, np.uint8)
    bth = frame.put_link(buf, 0, make_av(**FAMILIES[family]), 1, payload)
    return buf[: bth + payload].tobytes()


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize(
    ("payload", "seg", "shape"),
    [
        (80, 0, (80, 1, 80)),
        (80, 80, (80, 1, 80)),
        (80, 4112, (80, 1, 80)),  # fewer bytes than one full segment
        (160, 80, (80, 2, 80)),
        (176, 80, (80, 3, 16)),
        (15 * 4112, 4112, (4112, 15, 4112)),
        (14 * 4112 + 32, 4112, (4112, 15, 32)),
        (4092 * 16, 16, (16, 4092, 16)),
    ],
)
def test_segments(family: str, payload: int, seg: int, shape: tuple[int, int, int]) -> None:
    link = parse(super_frame(payload, family), seg)
    assert (link.err, link.seg_len, link.nseg, link.last_len) == (0, *shape)


@pytest.mark.parametrize(
    ("payload", "seg"),
    [(160, 12), (160, 1), (160, 82), (160, -80), (160, -1), (172, 80), (84, 80), (160, -(1 << 31))],
)
def test_segments_that_no_packet_has(payload: int, seg: int) -> None:
    assert parse(super_frame(payload), seg).err == LinkError.BAD_SEGMENT


def sound(link: Link, off: int, length: int) -> bool:
    """What a caller relies on when there is no error."""
    return (
        off + 14 <= link.l3_off < link.udp_off < link.bth_off
        and link.bth_off == link.udp_off + 8
        and link.nseg >= 1
        and 16 <= link.last_len <= link.seg_len
        and link.seg_len % 4 == link.last_len % 4 == 0
        and link.bth_off + (link.nseg - 1) * link.seg_len + link.last_len <= off + length
        and 0 <= link.ip_id < 65536
        and -1 <= link.vlan < 4096
        and 0 <= link.tclass < 256
    )


MUTATIONS = st.lists(st.tuples(st.integers(0, 120), st.integers(0, 255)), max_size=6)
FRAMES = st.one_of(st.binary(max_size=120), st.sampled_from([V4_FRAME, V6_FRAME, TAGGED]))


@given(FRAMES, MUTATIONS, st.integers(0, 140), st.integers(-(1 << 31), (1 << 31) - 1) | st.integers(0, 128))
def test_any_bytes_any_length(data: bytes, mutations: list[tuple[int, int]], length: int, seg: int) -> None:
    """No input raises, passes unsound, or depends on a byte outside the frame."""
    mutated = bytearray(data)
    for at, value in mutations:
        if at < len(mutated):
            mutated[at] = value
    mutated = mutated[:length]
    if len(mutated) >= 34 and mutated[23] == 17 and mutated[14] == 0x45:
        mutated = bytearray(with_checksum(bytes(mutated)))
    results = []
    for guard in (0x00, 0xFF, 0x45):
        buf = place(bytes(mutated))
        buf[:5] = buf[5 + len(mutated) :] = guard
        results.append(parse_link(buf, 5, len(mutated), seg))
    assert results[0] == results[1] == results[2]
    link = Link(*results[0])
    assert LinkError(link.err) is not None
    if link.err == 0:
        assert sound(link, 5, len(mutated))


def test_the_frame_may_end_with_its_buffer() -> None:
    """With bounds checks, reading one byte too far would raise."""
    for data in (V4_FRAME, V6_FRAME, TAGGED):
        for n in range(len(data) + 1):
            buf = np.frombuffer(data[:n], np.uint8).copy()
            parse_link(buf, 0, n, 0)


def test_flow_sport() -> None:
    """The port of a pair is the same from both ends, in the dynamic range, and well spread."""
    assert all(flow_sport(a, b) == flow_sport(b, a) for a in range(1, 40) for b in range(1, 40))
    ports = [flow_sport(lqpn, 0x11) for lqpn in range(0x10, 0x410)]
    assert min(ports) >= 0xC000
    assert max(ports) <= 0xFFFF
    assert len(set(ports)) > 900
    assert flow_sport(0xFFFFFF, 0xFFFFFF) in range(0xC000, 0x10000)
    assert flow_sport(0, 5) == 0xC000


def test_av_record_has_room() -> None:
    assert AV["hdr"].shape == (frame.AV_HDR_BYTES,)
    assert frame.AV_HDR_BYTES >= 14 + 4 + 40 + 8
    assert len(V4["sip"]) == 4

"""Splitting super-frames: the kernel against scapy."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from netio.middleware import Splitter, put_frame
from netio.segment import split
from softrnic.layout import FrameFlag, make_ring
from tests.netio import naive
from tests.netio.frames import pattern, ring_frames, roce

RING, OUT = make_ring(1), make_ring(4)


def split_all(frame: bytes, seg: int) -> list[bytes]:
    put_frame(RING, 0, frame, seg=seg)
    return [packet for packet, _ in Splitter(4).packets(RING, 0)]


@pytest.mark.parametrize("version", [4, 6])
@pytest.mark.parametrize("vlan", [None, 5])
@pytest.mark.parametrize(
    ("payload", "seg"),
    [(300, 100), (301, 100), (299, 100), (100, 100), (99, 100), (101, 100), (64, 16), (0, 16), (65000, 4112)],
)
def test_kernel_does_as_scapy(version: int, vlan: int | None, payload: int, seg: int) -> None:
    frame = roce(pattern(payload), version=version, vlan=vlan)
    assert split_all(frame, seg) == naive.split(frame, seg)


def test_ip_id_wraps() -> None:
    frame = roce(pattern(60), ip_id=0xFFFE)
    packets = split_all(frame, 20)
    assert [packet[18:20] for packet in packets] == [b"\xff\xfe", b"\xff\xff", b"\x00\x00"]
    assert packets == naive.split(frame, 20)


def test_ip_options_are_part_of_every_header() -> None:
    frame = roce(pattern(100), options=[b"\x94\x04\x00\x00"])
    assert split_all(frame, 40) == naive.split(frame, 40)


def test_seg_0_is_one_packet() -> None:
    frame = roce(pattern(3000))
    assert split_all(frame, 0) == [frame]


@given(st.binary(max_size=200), st.integers(0, 65535))
def test_what_is_no_udp_stays_whole(frame: bytes, seg: int) -> None:
    """14 bytes that make no EtherType we know, then anything."""
    frame = bytes(12) + b"\x88\xcc" + frame
    assert split_all(frame, seg) == [frame]


@given(st.data())
def test_damaged_headers_do_no_harm(data: st.DataObject) -> None:
    """Whatever the header says, packets stay within the frame, and all its payload comes out in order."""
    frame = bytearray(roce(pattern(200), version=data.draw(st.sampled_from([4, 6]))))
    for _ in range(3):
        frame[data.draw(st.integers(12, 60))] = data.draw(st.integers(0, 255))
    packets = split_all(bytes(frame), data.draw(st.integers(-1, 300)))
    assert all(len(packet) <= len(frame) for packet in packets)
    assert packets[-1][-1:] == frame[-1:]


def test_goes_on_where_the_ring_was_full() -> None:
    frame = roce(pattern(1000))
    put_frame(RING, 0, frame, seg=100, flags=FrameFlag.ID_UNKNOWN)
    packets = []
    for first, expected in ((0, 4), (4, 4), (8, 2), (10, 0)):
        n = split(RING, 0, first, OUT, 0)
        assert n == expected
        assert all(OUT.frames[i]["flags"] == FrameFlag.ID_UNKNOWN for i in range(n))
        packets += ring_frames(OUT, n)
    assert packets == [(packet, 0) for packet in naive.split(frame, 100)]


def test_starts_at_a_slot() -> None:
    frame = roce(pattern(1000))
    put_frame(RING, 0, frame, seg=500)
    assert split(RING, 0, 0, OUT, 3) == 1
    assert ring_frames(OUT, 4)[3] == (naive.split(frame, 500)[0], 0)

"""Captures: round trips, readers we did not write, files that are not what they claim."""

from __future__ import annotations

import io
import struct
import subprocess
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from scapy.utils import RawPcapNgReader, RawPcapReader, RawPcapWriter

from netio import memory
from netio.pcap import Direction, Packet, PcapPort, PcapWriter, read_packets
from softrnic.errors import WireError
from tests.netio import naive
from tests.netio.frames import drain, exchange, pattern, roce

PACKETS = [
    Packet(0, Direction.TX, roce(b""), 42),
    Packet(1, Direction.RX, roce(pattern(1)), 43),
    Packet(1_700_000_000_123_456_789, Direction.UNKNOWN, roce(pattern(1000)), 1042),
    Packet((1 << 64) - 1, Direction.TX, b"", 0),
]


def capture(packets: list[Packet] = PACKETS, **options: int) -> bytes:
    class Kept(io.BytesIO):
        def close(self) -> None:
            pass

    file = Kept()
    writer = PcapWriter(file, **options)
    for packet in packets:
        writer.write(packet.data, packet.time_ns, packet.direction)
    writer.close()
    return file.getvalue()


def read(data: bytes) -> list[Packet]:
    return list(read_packets(io.BytesIO(data)))


def test_what_is_written_is_read() -> None:
    assert read(capture()) == PACKETS


def test_epoch_is_added() -> None:
    assert [packet.time_ns for packet in read(capture(PACKETS[:2], epoch_ns=10**18))] == [10**18, 10**18 + 1]


def test_long_packets_are_cut() -> None:
    packet = read(capture(PACKETS[2:3], snaplen=100))[0]
    assert (packet.data, packet.length) == (PACKETS[2].data[:100], 1042)


def test_scapy_reads_it(tmp_path: Path) -> None:
    path = tmp_path / "a.pcapng"
    path.write_bytes(capture(PACKETS[:3]))
    with RawPcapNgReader(str(path)) as reader:
        read_by_scapy = list(reader)
    assert [data for data, _ in read_by_scapy] == [packet.data for packet in PACKETS[:3]]
    times = [(meta.tshigh << 32 | meta.tslow, meta.tsresol) for _, meta in read_by_scapy]
    assert times == [(packet.time_ns, 10**9) for packet in PACKETS[:3]]


@pytest.mark.tshark
def test_tshark_reads_it(tmp_path: Path) -> None:
    path = tmp_path / "a.pcapng"
    path.write_bytes(capture(PACKETS[:3]))
    fields = ["frame.time_epoch", "frame.len", "frame.interface_name", "frame.packet_flags_direction"]
    command = ["tshark", "-n", "-r", str(path), "-T", "fields", *(f"-e{field}" for field in fields)]
    lines = subprocess.run(command, capture_output=True, text=True, check=True).stdout.splitlines()
    rows = [line.split("\t") for line in lines]
    assert [row[:3] for row in rows] == [
        ["0.000000000", "42", "softrnic"],
        ["0.000000001", "43", "softrnic"],
        ["1700000000.123456789", "1042", "softrnic"],
    ]
    assert [int(row[3], 0) for row in rows] == [2, 1, 0]


@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize("nano", [False, True])
def test_reads_pcap(tmp_path: Path, order: str, nano: bool) -> None:
    path = tmp_path / "a.pcap"
    with RawPcapWriter(str(path), linktype=1, endianness=order, nano=nano) as writer:
        writer.write_header(None)
        writer.write_packet(PACKETS[2].data, sec=1_700_000_000, usec=123_456)
    time_ns = 1_700_000_000_000_000_000 + 123_456 * (1 if nano else 1000)
    with RawPcapReader(str(path)) as reader:
        assert next(reader)[0] == PACKETS[2].data
    with path.open("rb") as file:
        assert list(read_packets(file)) == [Packet(time_ns, Direction.UNKNOWN, PACKETS[2].data, 1042)]


def test_reads_big_endian_pcapng_and_foreign_blocks() -> None:
    section = struct.pack(">IIIHHqI", 0x0A0D0D0A, 28, 0x1A2B3C4D, 1, 0, -1, 28)
    interface = struct.pack(">IIHHII", 1, 20, 1, 0, 0, 20)
    unknown = struct.pack(">III", 0xBAD, 12, 12)
    serial = struct.pack(">IIHHII", 1, 20, 50, 0, 0, 20)
    body = struct.pack(">IIIII", 0, 0, 1_500_000, 14, 14) + bytes(range(14)) + b"\0\0"
    other = struct.pack(">IIIII", 1, 0, 0, 0, 0)
    blocks = [struct.pack(">II", 6, len(b) + 12) + b + struct.pack(">I", len(b) + 12) for b in (body, other)]
    data = section + interface + unknown + serial + blocks[0] + blocks[1]
    assert read(data) == [Packet(1_500_000_000, Direction.UNKNOWN, bytes(range(14)), 14)]
    assert read(data + capture()) == [*read(data), *PACKETS]


def test_resolution_in_powers_of_two() -> None:
    data = bytearray(capture(PACKETS[:1]))
    at = data.index(b"\x09\x00\x01\x00\x09")
    data[at + 4] = 0x80 | 10
    stamp = data.index(struct.pack("<II", 42, 42)) - 4
    struct.pack_into("<I", data, stamp, 2048)
    assert read(bytes(data))[0].time_ns == 2_000_000_000


@pytest.mark.parametrize("data", [b"", b"\x0a", b"hello world, no capture", bytes(100), struct.pack("<I", 0xA1B2C3D4)])
def test_other_files_are_refused(data: bytes) -> None:
    with pytest.raises(WireError):
        read(data)


def test_other_link_types_are_refused() -> None:
    with pytest.raises(WireError, match="link type 101"):
        read(struct.pack("<IHHiIII", 0xA1B2C3D4, 2, 4, 0, 0, 65535, 101))


def test_a_capture_cut_short_is_an_error_but_for_whole_blocks() -> None:
    data = capture()
    refused = 0
    for n in range(len(data)):
        try:
            read(data[:n])
        except WireError:
            refused += 1
    assert refused == len(data) - 2 - len(PACKETS) + 1  # behind the section, the interface and each packet but the last


@given(st.data())
def test_damaged_captures_are_read_or_refused(data: st.DataObject) -> None:
    raw = bytearray(capture())
    for _ in range(data.draw(st.integers(1, 4))):
        raw[data.draw(st.integers(0, len(raw) - 1))] = data.draw(st.integers(0, 255))
    try:
        packets = read(bytes(raw))
    except WireError:
        return
    assert sum(len(packet.data) for packet in packets) <= len(raw)


@given(st.binary(max_size=200))
def test_any_bytes_after_a_good_start_are_read_or_refused(tail: bytes) -> None:
    for start in (capture([]), struct.pack("<IHHiIII", 0xA1B23C4D, 2, 4, 0, 0, 65535, 1)):
        try:
            read(start + tail)
        except WireError:
            continue


def test_the_port_writes_packets_both_ways(tmp_path: Path) -> None:
    a, b = memory.pair()
    path = tmp_path / "port.pcapng"
    port = PcapPort(a, path, epoch_ns=1000)
    there, back = roce(pattern(300)), roce(pattern(50))
    assert exchange(port, b, [(there, 100)], now=5) == [(there, 100)]
    exchange(b, port, [(back, 0)], now=6)
    assert drain(port, now=7) == []
    port.close()
    b.close()
    with path.open("rb") as file:
        packets = list(read_packets(file))
    expected = [(1005, Direction.TX, packet) for packet in naive.split(there, 100)]
    assert [packet[:3] for packet in packets] == [*expected, (1006, Direction.RX, back)]

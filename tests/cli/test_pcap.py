"""`softrnic pcap` on captures of scapy's making."""

from __future__ import annotations

import io
import json
import subprocess
from pathlib import Path

import pytest

from softrnic.control.cli import main
from tests.cli.captures import arp, many, send, write

Capsys = pytest.CaptureFixture[str]


def fields(capsys: Capsys) -> list[dict[str, str]]:
    return [json.loads(line) for line in capsys.readouterr().out.splitlines()]


@pytest.mark.parametrize("name", ["frames.pcap", "frames.pcapng"])
def test_one_line_per_packet(name: str, tmp_path: Path, capsys: Capsys) -> None:
    write(tmp_path / name, [bytes(send(7)), arp(), bytes(send(8, b"12345", qpn=0x123456))])
    assert main(["pcap", str(tmp_path / name)]) == 0
    out, err = capsys.readouterr()
    lines = out.splitlines()
    assert lines[0] == "     1     0.000000 10.0.0.1 > 10.0.0.2 RC Send Only qp 0x000011 psn 7 payload 4"
    assert lines[1].startswith("     2     1.000000 02:00:00:00:00:01 > ff:ff:ff:ff:ff:ff")
    assert lines[2] == "     3     2.000000 10.0.0.1 > 10.0.0.2 RC Send Only qp 0x123456 psn 8 payload 5"
    assert err == "3 packets, 2 RoCEv2, 0 malformed, 0 with a wrong ICRC\n"


def test_tree(tmp_path: Path, capsys: Capsys) -> None:
    write(tmp_path / "a.pcap", many(1))
    main(["pcap", "-V", str(tmp_path / "a.pcap")])
    assert "Base Transport Header\n    infiniband.bth.opcode: 4 (RC Send Only)\n" in capsys.readouterr().out


def test_malformed(tmp_path: Path, capsys: Capsys) -> None:
    """A UDP length that lies makes the exit status 1."""
    lying = bytearray(bytes(send(1)))
    lying[14 + 20 + 5] += 1
    write(tmp_path / "a.pcap", [*many(2), bytes(lying)])
    assert main(["pcap", str(tmp_path / "a.pcap")]) == 1
    out, err = capsys.readouterr()
    assert "[malformed: " in out.splitlines()[2]
    assert err.startswith("3 packets, 2 RoCEv2, 1 malformed, ")


def test_wrong_icrc_is_counted_and_is_no_malformed_packet(tmp_path: Path, capsys: Capsys) -> None:
    damaged = bytearray(bytes(send(1)))
    damaged[-6] ^= 1
    write(tmp_path / "a.pcap", [bytes(damaged)])
    assert main(["pcap", str(tmp_path / "a.pcap")]) == 0
    assert capsys.readouterr().err == "1 packets, 1 RoCEv2, 0 malformed, 1 with a wrong ICRC\n"


def test_cut_short_by_the_capture(tmp_path: Path, capsys: Capsys) -> None:
    write(tmp_path / "a.pcap", [bytes(send(1, bytes(1000)))], snaplen=64)
    assert main(["pcap", str(tmp_path / "a.pcap")]) == 0
    assert capsys.readouterr().err.endswith("0 malformed, 0 with a wrong ICRC, 1 cut short by the capture\n")


@pytest.mark.parametrize(
    ("filters", "psns"),
    [
        (["infiniband.bth.psn==3"], [3]),
        (["bth.psn == 3"], [3]),
        (["bth.psn>=0x8"], [8, 9]),
        (["bth.psn>2", "bth.psn<5"], [3, 4]),
        (["bth.psn!=0", "bth.psn<=2"], [1, 2]),
        (["bth.destqp==0x11", "bth.psn==4"], [4]),
        (["ip.src==10.0.0.1", "bth.psn==5"], [5]),
        (["ip.src!=10.0.0.1"], []),
        (["aeth.syndrome"], []),
        (["!aeth.syndrome", "bth.psn==6"], [6]),
        (["! bth.psn < 9"], [9]),
        (["infiniband.payload==0x61626364", "bth.psn==7"], [7]),
    ],
)
def test_filters(filters: list[str], psns: list[int], tmp_path: Path, capsys: Capsys) -> None:
    write(tmp_path / "a.pcap", many(10))
    options = [word for text in filters for word in ("--filter", text)]
    main(["pcap", "--json", str(tmp_path / "a.pcap"), *options])
    assert [int(packet["infiniband.bth.psn"]) for packet in fields(capsys)] == psns


def test_count(tmp_path: Path, capsys: Capsys) -> None:
    """The first that the filter lets through; their numbers are those of the file."""
    write(tmp_path / "a.pcap", many(10))
    main(["pcap", "--json", str(tmp_path / "a.pcap"), "-n", "2", "--filter", "bth.psn>4"])
    assert [packet["frame.number"] for packet in fields(capsys)] == [6, 7]


def test_standard_input(tmp_path: Path, capsys: Capsys, monkeypatch: pytest.MonkeyPatch) -> None:
    write(tmp_path / "a.pcap", many(3))
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper((tmp_path / "a.pcap").open("rb")))
    assert main(["pcap", "-"]) == 0
    assert capsys.readouterr().err.startswith("3 packets")


@pytest.mark.parametrize(
    ("data", "sentence"),
    [
        (b"", "capture ends in the middle of a record"),
        (b"GIF89a", "neither a pcap nor a pcapng file"),
    ],
)
def test_not_a_capture(data: bytes, sentence: str, tmp_path: Path, capsys: Capsys) -> None:
    (tmp_path / "a.pcap").write_bytes(data)
    assert main(["pcap", str(tmp_path / "a.pcap")]) == 1
    assert capsys.readouterr().err == f"softrnic pcap: {sentence}\n"


@pytest.mark.tshark
def test_json_has_the_values_tshark_prints(tmp_path: Path, capsys: Capsys) -> None:
    write(tmp_path / "a.pcap", [bytes(send(psn, b"softrnic" * 16)) for psn in range(3)])
    main(["pcap", "--json", str(tmp_path / "a.pcap")])
    ours = fields(capsys)
    names = ["eth.src", "ip.id", "ip.checksum", "udp.length", "infiniband.bth.opcode", "infiniband.bth.destqp",
             "infiniband.bth.psn", "infiniband.invariant.crc"]  # fmt: skip
    command = ["tshark", "-n", "-r", str(tmp_path / "a.pcap"), "-T", "fields"]
    for name in names:
        command += ["-e", name]
    theirs = subprocess.run(command, capture_output=True, text=True, check=True).stdout.splitlines()
    assert [[packet[name] for name in names] for packet in ours] == [line.split("\t") for line in theirs]

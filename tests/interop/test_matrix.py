"""What judges the cases: the captures' judge, and the matrix. No guest, no NIC."""

from __future__ import annotations

from pathlib import Path

import pytest

from netio.pcap import Direction, PcapWriter
from tests.interop.captures import BadCaptureError, check
from tests.interop.matrix import BEGIN, END, Matrix, Outcome, Row, write_into

# An ACK of rxe's.
CAPTURED = bytes.fromhex(
    "debb0bd8ec01 525400d9b410 0800 45000030 2ccc4000 4011f9dc 0a090001 0a090002 c12112b7 001c0000"
    "1100ffff 00000011 000a48e1 1f000001 14ab2947"
)

# --- captures -----------------------------------------------------------------------------------------------


def capture(folder: Path, *frames: bytes) -> Path:
    path = folder / "frames.pcapng"
    writer = PcapWriter(path.open("wb"))
    for number, frame in enumerate(frames):
        writer.write(frame, number, Direction.TX)
    writer.close()
    return path


def test_good_packets_are_counted(tmp_path: Path) -> None:
    arp = bytes(12) + b"\x08\x06" + bytes(46)
    assert check(capture(tmp_path, CAPTURED, arp, CAPTURED)) == 2


def test_wrong_icrc_is_found(tmp_path: Path) -> None:
    damaged = CAPTURED[:-5] + bytes([CAPTURED[-5] ^ 1]) + CAPTURED[-4:]
    with pytest.raises(BadCaptureError, match=r"2 TX .*ICRC wrong"):
        check(capture(tmp_path, CAPTURED, damaged))


def test_cut_packet_is_found(tmp_path: Path) -> None:
    with pytest.raises(BadCaptureError, match=r"1 TX .*\[malformed: "):
        check(capture(tmp_path, CAPTURED[:50]))


def test_long_lists_are_cut(tmp_path: Path) -> None:
    with pytest.raises(BadCaptureError, match=r"more$"):
        check(capture(tmp_path, *[CAPTURED[:50]] * 12))


# --- the matrix ---------------------------------------------------------------------------------------------


ROWS = [
    Row("pingpong", "size, 1 B", "serve", Outcome.SUCCEEDED, "", 1.25, 40),
    Row("pingpong", "size, 1 B", "call", Outcome.FAILED, "nothing has happened", 10.0, 2),
    Row("multicast", "a group of ipv6", "", Outcome.UNSUPPORTED, "refused", 0.5, 0),
]


@pytest.fixture
def matrix() -> Matrix:
    return Matrix({"Linux": "6.12", "perftest": "6.24"}, list(ROWS))


def test_json_round_trip(matrix: Matrix) -> None:
    assert Matrix.parse(matrix.emit()) == matrix


def test_text(matrix: Matrix) -> None:
    lines = matrix.text().splitlines()
    assert lines[0].split() == ["pingpong:", "size,", "1", "B", "serve", "SUCCEEDED"]
    assert lines[1].endswith("FAILED       nothing has happened")
    assert lines[3] == "3 cases: 1 SUCCEEDED, 1 FAILED, 1 UNSUPPORTED; 42 packets judged; 12 s"


def test_markdown(matrix: Matrix) -> None:
    text = matrix.markdown()
    assert "Linux 6.12, perftest 6.24" in text
    assert "| pingpong | softrnic serves | softrnic calls |" in text
    assert "| size, 1 B | yes | **no** |" in text
    assert "| multicast | outcome |" in text
    assert "| a group of ipv6 | n/a |" in text
    assert "* multicast, a group of ipv6: UNSUPPORTED: refused" in text


def test_document_is_rewritten_between_its_marks(matrix: Matrix, tmp_path: Path) -> None:
    document = tmp_path / "doc.md"
    document.write_text(f"before\n{BEGIN}\nold\n{END}\nafter\n")
    write_into(document, matrix)
    write_into(document, matrix)
    text = document.read_text()
    assert text == f"before\n{BEGIN}\n{matrix.markdown()}\n{END}\nafter\n"
    document.write_text("nothing")
    with pytest.raises(ValueError, match="no place for a matrix"):
        write_into(document, matrix)

"""`softrnic qp survive` with the attributes of a peer: arithmetic, without a daemon."""

from __future__ import annotations

import json

import pytest

from softrnic.control.cli import main


@pytest.mark.parametrize(
    ("words", "status", "until_ns"),
    [
        ("400ms --timeout 14", 0, 7 * 4096 << 14),
        ("500ms --timeout 14 --retry-cnt 7", 1, 7 * 4096 << 14),
        ("500ms --timeout 0", 0, None),
        ("1s --rnr-retry 7 --policy rnr", 0, None),
        ("1s --rnr-retry 6 --rnr-timer 26 --policy rnr", 1, 6 * 81_920_000),
        ("1s --retry-cnt 0 --policy stop", 0, None),
    ],
)
def test_reckoned(words: str, status: int, until_ns: int | None, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["qp", "survive", *words.split(), "--json", "--socket", "/nowhere"]) == status
    (row,) = json.loads(capsys.readouterr().out)
    assert (row["survives"], row["until_ns"]) == (status == 0, until_ns)
    assert bool(row["advice"]) == (status == 1)


def test_for_people(capsys: pytest.CaptureFixture[str]) -> None:
    main(["qp", "survive", "500ms", "--timeout", "12"])
    assert "survives false" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("words", "says"),
    [("1s lqpn 5 --timeout 3", "either a live QP"), ("1s --timeout 3 --policy shout", "not one of silence, rnr, stop")],
)
def test_refused(words: str, says: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["qp", "survive", *words.split()]) == 1
    assert says in capsys.readouterr().err

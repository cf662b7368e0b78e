"""One lab for all cases of a session, and the matrix of how they went."""

from __future__ import annotations

import contextlib
import os
import re
from collections.abc import Generator, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from tests.interop.matrix import Matrix, Outcome, Row
from tools.vmlib import GuestError

if TYPE_CHECKING:
    from softrnic.control.host import Host
    from tests.interop.lab import Lab

JSON_VARIABLE = "SOFTRNIC_INTEROP_JSON"
MATRIX = pytest.StashKey[Matrix]()


class Case:
    """One case of the matrix: hosts on the wire, whose captures are judged when they leave it."""

    def __init__(self, lab: Lab, folder: Path) -> None:
        self.lab = lab
        self.guest = lab.guest
        self.reason = ""
        self.packets = 0
        self._folder = folder
        self._hosts = 0

    @contextlib.contextmanager
    def host(self, *, judged: bool = True, **conditions: Any) -> Iterator[Host]:
        """A host of ours, as Lab.host takes it, with a capture. What fails leaves the capture in its folder.

        judged: whether all that is on the wire must be well formed.
        """
        from tests.interop import captures

        self._hosts += 1
        capture = self._folder / f"{self._hosts}.pcapng"
        before = self.guest.counters()
        with self.lab.host(capture=capture, **conditions) as host:
            try:
                yield host
            except Exception as error:
                error.add_note(f"softrnic: {_changes({}, host.device.counters())}")
                with contextlib.suppress(GuestError):
                    error.add_note(f"rxe0: {_changes(before, self.guest.counters())}")
                raise
        if judged:
            self.packets += captures.check(capture)
        capture.unlink()

    def unsupported(self, reason: str) -> None:
        """The case cannot be, which the test has just shown."""
        self.reason = reason


def _changes(before: dict[str, int], after: dict[str, int]) -> dict[str, int]:
    return {name: value - before.get(name, 0) for name, value in after.items() if value != before.get(name, 0)}


@pytest.fixture(scope="session")
def lab() -> Iterator[Lab]:
    from softrnic.control import warm
    from tests.interop.lab import open_lab

    warm.prepare()
    with open_lab() as lab:
        yield lab
        said = lab.guest.check("dmesg")
        assert not re.search(r"WARNING|BUG:|Call Trace", said), said


@pytest.fixture
def case(lab: Lab, tmp_path: Path, request: pytest.FixtureRequest) -> Case:
    matrix = request.config.stash.setdefault(MATRIX, Matrix())
    if not matrix.peer:
        matrix.peer = lab.versions()
    return Case(lab, tmp_path)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Function, call: pytest.CallInfo[None]
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    report = yield
    if "case" in getattr(item, "fixturenames", ()) and (report.when == "call" or report.failed):
        item.config.stash.setdefault(MATRIX, Matrix()).rows.append(_row(item, report, call))
    return report


def _row(item: pytest.Function, report: pytest.TestReport, call: pytest.CallInfo[None]) -> Row:
    """Named by the test and its parameters; a parameter `role` is the column."""
    case = item.funcargs.get("case")
    parameters = dict(getattr(item, "callspec", None).params) if hasattr(item, "callspec") else {}
    role = parameters.pop("role", "")
    label = ", ".join([item.originalname.removeprefix("test_").replace("_", " "), *_ids(item, role)])
    outcome, reason = Outcome.SUCCEEDED, getattr(case, "reason", "")
    if report.failed:
        error = str(call.excinfo.value) if call.excinfo else ""
        outcome, reason = Outcome.FAILED, error.strip().partition("\n")[0]
    elif reason:
        outcome = Outcome.UNSUPPORTED
    packets = getattr(case, "packets", 0)
    return Row(item.module.SECTION, label, role, outcome, reason, round(report.duration, 2), packets)


def _ids(item: pytest.Function, role: str) -> list[str]:
    match = re.search(r"\[(.*)\]$", item.name)
    return [part for part in match[1].split("-") if part != role] if match else []


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    matrix = config.stash.get(MATRIX, None)
    if matrix is None:
        return
    terminalreporter.section("interoperability")
    terminalreporter.write_line(matrix.text())
    if path := os.environ.get(JSON_VARIABLE):
        Path(path).write_text(matrix.emit(), encoding="utf-8")

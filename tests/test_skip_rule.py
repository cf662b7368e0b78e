"""The rule of conftest.py about skips: under SOFTRNIC_CI=1 a guarded test must not skip if it could run."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent

# Skipped by a decorator, so before the probes of conftest.py: the verdicts are the same on every machine.
SOURCE = """
import pytest

@pytest.mark.{marker}
@pytest.mark.skip(reason="machine lacks: a kernel with RDMA")
def test_excused(): pass

@pytest.mark.{marker}
@pytest.mark.skip(reason="needs a tool (Debian package tool)")
def test_guarded(): pass

@pytest.mark.skip(reason="needs a tool (Debian package tool)")
def test_unmarked(): pass

def test_unknown_feature(require): require("no-such-feature")
"""


def outcomes(folder: Path, source: str, *, ci: bool) -> dict[str, str]:
    """{test: outcome} of a file, run with this project's conftest and configuration."""
    (folder / "test_one.py").write_text(source, encoding="utf-8")
    command = [sys.executable, "-m", "pytest", "-vv", "-p", "tests.conftest", "-p", "no:cacheprovider"]
    run = subprocess.run(
        [*command, "-c", str(ROOT / "pyproject.toml"), "--rootdir", str(folder), str(folder)],
        env={**os.environ, "SOFTRNIC_CI": str(int(ci)), "PYTHONPATH": str(ROOT)},
        cwd=folder,
        stdout=subprocess.PIPE,
        text=True,
        check=False,
    )
    lines = re.finditer(r"^(?:test_one.py::(\w+) (\w+)|(ERROR) (test_one.py) )", run.stdout, re.MULTILINE)
    return {line[1] or line[4]: line[2] or line[3] for line in lines}


@pytest.mark.parametrize("marker", ["tshark", "qemu", "privileged"])
def test_marked(tmp_path: Path, marker: str) -> None:
    verdicts = outcomes(tmp_path, SOURCE.format(marker=marker), ci=True)
    assert verdicts == {
        "test_excused": "SKIPPED",
        "test_guarded": "ERROR",
        "test_unmarked": "SKIPPED",
        "test_unknown_feature": "FAILED",
    }


def test_outside_ci_all_may_skip(tmp_path: Path) -> None:
    verdicts = outcomes(tmp_path, SOURCE.format(marker="tshark"), ci=False)
    assert verdicts["test_guarded"] == verdicts["test_unmarked"] == "SKIPPED"


def test_a_whole_file_is_guarded(tmp_path: Path) -> None:
    source = "import pytest\npytest.skip('tool absent', allow_module_level=True)"
    assert outcomes(tmp_path, source, ci=True) == {"test_one.py": "ERROR"}

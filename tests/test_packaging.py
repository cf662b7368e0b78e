"""pyproject.toml and the lock files say the same thing."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).resolve().parent.parent
PYPROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
PIN = re.compile(r"([A-Za-z0-9._-]+)==([A-Za-z0-9.]+)")


def pins(name: str) -> dict[str, str]:
    """Package and release of every line; a line that is neither a pin, a comment nor -r fails."""
    found: dict[str, str] = {}
    for line in (ROOT / name).read_text(encoding="utf-8").splitlines():
        if line.startswith("-r "):
            found |= pins(line.removeprefix("-r "))
        elif line and not line.startswith("#"):
            match = PIN.fullmatch(line)
            assert match, f"{name}: not a pin: {line}"
            found[canonicalize_name(match[1])] = match[2]
    return found


def groups(*names: str) -> list[Requirement]:
    return [Requirement(entry) for name in names for entry in PYPROJECT["dependency-groups"][name]]


@pytest.mark.parametrize(
    ("lock", "wanted"),
    [
        ("requirements.lock", [Requirement(r) for r in PYPROJECT["project"]["dependencies"]]),
        ("requirements.lock", [Requirement(r) for r in PYPROJECT["build-system"]["requires"]]),
        ("requirements-dev.lock", groups("test", "lint")),
    ],
)
def test_lock_satisfies_pyproject(lock: str, wanted: list[Requirement]) -> None:
    pinned = pins(lock)
    assert [str(r) for r in wanted if pinned.get(canonicalize_name(r.name), "") not in r.specifier] == []


def test_scapy_is_no_runtime_dependency() -> None:
    """It is GPL-2.0-only, and the independent oracle."""
    assert "scapy" not in pins("requirements.lock")

"""Idle QPs cost memory, little of it, and nothing else."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.timeout(600)  # the first one compiles
ROOT = Path(__file__).resolve().parent.parent.parent
BUDGET = 2048  # bytes of memory per idle QP


def run(count: int) -> tuple[int, int, int]:
    """What tests/engine/idle.py reports: bytes per QP, packets exchanged, pages out of reach."""
    done = subprocess.run(
        [sys.executable, "-m", "tests.engine.idle", str(count)],
        cwd=ROOT, env={**os.environ, "PYTHONPATH": str(ROOT)}, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, f"{done.returncode}: {done.stderr[-2000:]}"
    per_qp, packets, pages = map(int, done.stdout.split())
    return per_qp, packets, pages


def test_idle_qps_are_never_looked_at() -> None:
    """No burst, timer or retry of a busy QP touches the records of idle ones: they are out of reach meanwhile."""
    _, packets, pages = run(1000)
    assert packets > 20
    assert pages > 100


@pytest.mark.jit_only
def test_sixteen_thousand_qps() -> None:
    """As many QPs as a device has, in RTS: at most two KiB each, all told."""
    per_qp, _, _ = run(16_000)
    assert per_qp <= BUDGET

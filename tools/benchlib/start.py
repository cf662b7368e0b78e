"""How long it takes to begin: imports, the command line, a device on a wire."""

from __future__ import annotations

import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

SOFTRNIC = Path(sys.executable).parent / "softrnic"
_DEVICE = """
import time
start = time.perf_counter()
from softrnic.control.fabric import fabric
imported = time.perf_counter()
with fabric("memory"):
    print(imported - start, time.perf_counter() - imported)
"""


def _seconds(command: list[str], runs: int, env: dict[str, str] | None = None) -> float:
    """Median wall time of a process."""
    samples = []
    for _ in range(runs):
        start = time.perf_counter()
        subprocess.run(command, check=True, capture_output=True, timeout=600, env=env)
        samples.append(time.perf_counter() - start)
    return statistics.median(samples)


def _inside(code: str, runs: int) -> list[float]:
    """Medians of the seconds that a script prints."""
    times = []
    for _ in range(runs):
        done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True, timeout=600)
        times.append([float(word) for word in done.stdout.split()])
    return [statistics.median(column) for column in zip(*times, strict=True)]


def start(runs: int, *, cold: bool) -> dict[str, float]:
    """Seconds by name. `cold`: also the first ever compile, with a cache of its own."""
    nothing = _seconds([sys.executable, "-c", "pass"], runs)
    imports, devices = _inside(_DEVICE, runs)
    found = {
        "import softrnic, beyond Python": _seconds([sys.executable, "-c", "import softrnic"], runs) - nothing,
        "softrnic --help": _seconds([str(SOFTRNIC), "--help"], runs),
        "imports of a program that opens a device": imports,
        "two devices on a wire, warm": devices,
    }
    if cold:
        with tempfile.TemporaryDirectory() as cache:
            env = {**os.environ, "XDG_CACHE_HOME": cache}
            command = [sys.executable, "-c", "from softrnic.control.warm import prepare; prepare()"]
            found["first compile of everything"] = _seconds(command, 1, env)
    return found

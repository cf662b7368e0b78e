"""tools/bench runs, with next to no work, and what it writes has the shape that is promised. No figure is looked at."""

from __future__ import annotations

import json
import subprocess
import sys
import xml.etree.ElementTree as ET
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "tools"))

from benchlib import svg  # noqa: E402
from benchlib.cases import cases_of  # noqa: E402
from benchlib.loss import LOSSES, TESTS, bound, goodput  # noqa: E402
from benchlib.polling import LIMITS, RATES  # noqa: E402

from softrnic.jit import JIT  # noqa: E402

SVG = "{http://www.w3.org/2000/svg}"


@pytest.mark.skipif(not JIT, reason="processes of their own, compiled")
def test_every_part(tmp_path: Path) -> None:
    out, plots = tmp_path / "bench.json", tmp_path / "plots"
    command = [sys.executable, str(ROOT / "tools/bench"), "--quick", "--wire", "memory", "--json", str(out)]
    done = subprocess.run([*command, "--plots", str(plots)], capture_output=True, text=True, timeout=900, check=False)
    assert done.returncode == 0, done.stderr
    results = json.loads(out.read_text())
    assert set(results) == {"wire", "runs", "table", "cost", "scale", "polling", "loss", "ports", "start", "limits"}
    assert set(results["table"]["softrnic"]) == {case.name for case in cases_of("memory", "")}
    assert all(len(samples) == 1 and samples[0] > 0 for samples in results["table"]["softrnic"].values())
    assert {row["name"] for row in results["cost"]["memory"]} >= {"WRITE 64 B", "SEND 1 MiB, PMTU 4096"}
    assert set(results["scale"]["QPs"]) == {"1", "16"}
    assert {(row["polling"], row["rate"]) for row in results["polling"]} == {(p, r) for p in LIMITS for r in RATES}
    assert [(row["test"], row["loss"]) for row in results["loss"]] == [(t, p) for t in TESTS for p in LOSSES]
    assert {"import softrnic, beyond Python", "softrnic --help"} <= set(results["start"])
    assert "ratio" in done.stdout
    assert "ns per packet, both ends, processor time" in " ".join(done.stdout.split())
    for name in ("bandwidth", "messages", "latency", "loss", "scale"):
        assert ET.parse(plots / f"{name}.svg").getroot().tag == f"{SVG}svg"


def test_no_such_part() -> None:
    done = subprocess.run(
        [sys.executable, str(ROOT / "tools/bench"), "tabel"], capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode == 2
    assert "no such part: tabel" in done.stderr


def test_bound() -> None:
    assert bound(0.0) == pytest.approx(24.65, abs=0.01)
    assert bound(0.01) == pytest.approx(24.65 * 0.99 / (0.99 + 0.01 * (1 + 100_000 / (4154 * 8 / 25))), abs=0.01)


@pytest.mark.jit_only
@pytest.mark.parametrize("test", list(TESTS))
@pytest.mark.parametrize(("loss", "share"), [(0.001, 0.8), (0.01, 0.8), (0.05, 0.7)])
def test_goodput_comes_near_the_bound(test: str, loss: float, share: float) -> None:
    """Virtual time and seeds, so no measurement of the machine; single seeds scatter widely at 5 %."""
    ratios = [goodput(test, loss, messages=20, seed=seed).ratio for seed in range(1, 7)]
    assert sum(ratios) / len(ratios) > share
    assert min(ratios) > 0.4  # no collapse


@pytest.mark.jit_only
@pytest.mark.parametrize("test", list(TESTS))
@pytest.mark.parametrize("service_us", [20, 120, 300, 1000])
def test_a_slow_peer_that_loses_nothing_is_not_asked_twice(test: str, service_us: int) -> None:
    """It takes longer over a packet than a round trip lasts; asked for all again each time, it would never end."""
    assert goodput(test, 0.0, messages=1, service_ns=1000 * service_us).retransmitted < 0.05


def test_curves_keep_their_points() -> None:
    root = ET.fromstring(svg.lines("t", {"a": [(1, 1.0), (10, 2.0)], "b": [(1, 0.5), (10, 0.1)]}, "x", "y"))
    drawn = [len((line.get("points") or "").split()) for line in root.iter(f"{SVG}polyline")]
    assert drawn == [2, 2]


def test_bars_leave_out_what_is_not_known() -> None:
    root = ET.fromstring(svg.bars("t", [("a", {"us": 2.0, "them": None}), ("b", {"us": 1.0, "them": 3.0})], "Gb/s"))
    widths = [float(rect.get("width") or 0) for rect in root.iter(f"{SVG}rect") if rect.get("height") == "15"]
    assert len(widths) == 3
    assert max(widths) == widths[2]


@pytest.mark.jit_only  # processes of their own, compiled
@pytest.mark.privileged("netns", "tun", "bpf", "xsk")
def test_ports_compared() -> None:
    """Every wire carries every shape, whichever way its frames go, and nothing is merged that was not one flow's."""
    command = [sys.executable, str(ROOT / "tools/bench_ports.py"), "--json", "--seconds", "0.02", "--runs", "1"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=280, check=False)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    for kind in ("memory", "raw", "raw-mmsg", "raw-ring", "xsk", "tap", "udp", "udp-veth"):
        assert found[f"{kind} alone, us"] > 0
        for size in (4112, 1040, 80):
            rates = [rate for name, rate in found.items() if name.startswith(f"{kind} {size} x") and "cpu" in name]
            assert len(rates) == 2
            assert min(rates) > 0
    assert not any(value for name, value in found.items() if name.endswith("ICRC wrong"))
    assert found["IPv4, super-frames cut on the way; GRO, packets a frame"] > 10
    assert found["IPv4, checksum 0; GRO, held, packets a frame"] == 1

"""softrnic perf: every test on the wire in memory, the table, the JSON, and two processes that agree over TCP."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from softrnic.control.perf.exchange import Exchange
from softrnic.control.perf.run import KINDS, BwResult, Options, PerfError, _bandwidth, _latency

SOFTRNIC = Path(sys.executable).parent / "softrnic"
pytestmark = pytest.mark.jit_only


def perf(*args: str, timeout: float = 300) -> subprocess.CompletedProcess[str]:
    return subprocess.run([SOFTRNIC, "perf", *args], capture_output=True, text=True, timeout=timeout, check=False)


@pytest.mark.timeout(600)
@pytest.mark.parametrize("test", KINDS)
def test_every_test_runs_and_verifies(test: str) -> None:
    done = perf(test, "--wire", "memory", "-n", "200", "--json", "--cpu", "none")
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout)
    assert report["test_info"]["verified"] is True
    row = report["results"][0]
    assert row["n_iterations"] == 200
    if test.endswith("bw"):
        assert 0 < row["BW_average"] <= row["BW_peak"] * 1.0001
        assert set(row) == {"MsgSize", "n_iterations", "BW_peak", "BW_average", "MsgRate"}
    else:
        assert 0 < row["t_min"] <= row["t_typical"] <= row["t_99"] <= row["t_max"]


def test_table_has_perftests_columns() -> None:
    done = perf("write_bw", "--wire", "memory", "-n", "50", "-s", "1000", "--report_gbits", "--cpu", "none")
    lines = done.stdout.splitlines()
    header = next(line for line in lines if line.startswith(" #bytes"))
    assert header.split()[:2] == ["#bytes", "#iterations"]
    assert "BW peak[Gb/sec]" in header
    assert "MsgRate[Mpps]" in header
    assert lines[-1].split()[:2] == ["1000", "50"]


@pytest.mark.timeout(600)
def test_server_and_client_over_udp() -> None:
    """Two processes without any privilege, on two loopback addresses."""
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = str(probe.getsockname()[1])
    server = subprocess.Popen(
        [SOFTRNIC, "perf", "send_bw", "-d", "udp:127.0.0.11", "-p", port, "--cpu", "none"],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=os.environ,
    )  # fmt: skip
    try:
        client = ["send_bw", "127.0.0.1", "-d", "udp:127.0.0.12", "-p", port, "-n", "100", "--json", "--cpu", "none"]
        for _ in range(100):  # until the server listens; each try costs a start of Python
            done = perf(*client)
            if done.returncode == 0 or "refused" not in done.stderr:
                break
        assert done.returncode == 0, done.stderr
        assert json.loads(done.stdout)["results"][0]["n_iterations"] == 100
        assert server.wait(60) == 0
    finally:
        server.kill()
        server.communicate()


@pytest.mark.parametrize(
    ("args", "says"),
    [
        (["write_bw", "--wire", "memory", "-s", "0"], "size 0"),
        (["write_bw", "--wire", "memory", "-d", "eth0"], "--wire makes both sides here"),
        (["no_such_test"], "invalid choice"),
    ],
)
def test_wrong_arguments(args: list[str], says: str) -> None:
    done = perf(*args)
    assert done.returncode != 0
    assert says in done.stderr


def test_results_are_computed_as_perftest_does() -> None:
    options = Options("write_bw", 1000, 400, cq_mod=1)
    stamps = np.arange(1, 401, dtype=np.int64) * 1000
    result = _bandwidth(stamps, 0, options)
    assert isinstance(result, BwResult)
    assert result.average_bytes_per_s == pytest.approx(1e9)
    assert result.messages_per_s == pytest.approx(1e6)
    latency = _latency(np.arange(1, 1001) / 10.0, Options("read_lat", 2, 1000))
    assert (latency.t_min, latency.t_max) == (0.1, 100.0)
    assert latency.t_typical == pytest.approx(50, rel=0.01)
    assert latency.p99 == pytest.approx(99, rel=0.01)


HOSTILE = (b"garbage\n", b"[]\n", b'{"test": "rm_rf", "size": 1, "iters": 1}\n', b'{"size": 1}\n', b"")


@pytest.mark.parametrize("line", HOSTILE)
def test_hostile_exchange_is_refused(line: bytes) -> None:
    ours, theirs = socket.socketpair()
    theirs.sendall(line)
    theirs.shutdown(socket.SHUT_WR)
    with Exchange(ours) as exchange, pytest.raises(PerfError):
        exchange.receive_options()
    theirs.close()

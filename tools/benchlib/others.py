"""What a user would pick instead, over a veth pair of the same MTU, in the same run, one processor per side.

TCP and UDP streams (iperf3), UCX over tcp (ucx_perftest), libfabric over tcp (fi_pingpong), round trips of blocking
sockets (qperf). What is not installed is left out; `--install` of tools/bench gets it from Debian.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
import subprocess
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from netio import netns

PACKAGES = ("iperf3", "qperf", "ucx-utils", "libfabric-bin")
HERE, THERE = "10.9.0.1", "10.9.0.2"
MTU = 4200
SECONDS = 1
PATIENCE = 20  # seconds for one measurement
_TRIES = 40

Client = Callable[[list[str]], str]


@dataclass(frozen=True)
class Other:
    """One measurement: how the server and the client are called, and what in the client's answer counts."""

    name: str
    unit: str
    server: tuple[str, ...]
    client: tuple[str, ...]
    figure: Callable[[str], float]


def _iperf(text: str) -> float:
    return float(json.loads(text)["end"]["sum_received"]["bits_per_second"]) / 1e9


def _iperf_udp(text: str) -> float:
    """What arrived: sent less lost."""
    total = json.loads(text)["end"]["sum"]
    return float(total["bits_per_second"]) * (1 - float(total["lost_percent"]) / 100) / 1e9


def _ucx(column: int, factor: float) -> Callable[[str], float]:
    """A column of the last CSV line: iterations, typical and average latency (us), bandwidth (MB/s), message rate."""
    return lambda text: float(re.findall(r"^[\d.]+(?:,[\d.]+)+$", text, re.M)[-1].split(",")[column]) * factor


def _fi(column: int, factor: float) -> Callable[[str], float]:
    """fi_pingpong: bytes, #sent, #ack, total, time, MB/sec, usec/xfer, Mxfers/sec."""
    return lambda text: float(text.split("\n")[1].split()[column]) * factor


def _qperf(text: str) -> float:
    """latency = 12.3 us; a round trip is two of them."""
    value, unit = re.findall(r"latency\s*=\s*([\d.]+) (\w+)", text)[0]
    return float(value) * {"us": 1.0, "ms": 1000.0, "ns": 0.001}[unit]


def _ucx_case(name: str, unit: str, test: str, size: int, count: int, figure: Callable[[str], float]) -> Other:
    program = ("ucx_perftest", "-p", "13337")
    return Other(
        name, unit, program, (*program, THERE, "-t", test, "-s", str(size), "-n", str(count), "-w", "100", "-f", "-v"),
        figure,
    )  # fmt: skip


def _fi_case(name: str, unit: str, size: int, count: int, figure: Callable[[str], float]) -> Other:
    program = ("fi_pingpong", "-p", "tcp", "-e", "rdm", "-S", str(size), "-I", str(count))
    return Other(name, unit, program, (*program, THERE), figure)


_IPERF_SERVER, _IPERF_CLIENT = ("iperf3", "-s", "-1"), ("iperf3", "-c", THERE, "-t", str(SECONDS), "-J")
_MB = 8 * 1.048576 / 1000  # MiB/s to Gb/s: UCX counts in powers of two
OTHERS = (
    Other("TCP stream (iperf3)", "Gb/s", _IPERF_SERVER, _IPERF_CLIENT, _iperf),
    Other(
        "UDP datagrams of 4096 B (iperf3)", "Gb/s", _IPERF_SERVER, (*_IPERF_CLIENT, "-u", "-b", "0", "-l", "4096"),
        _iperf_udp,
    ),
    _ucx_case("UCX tcp, tag 64 KiB", "Gb/s", "tag_bw", 1 << 16, 20000, _ucx(5, _MB)),
    _ucx_case("UCX tcp, tag 1 MiB", "Gb/s", "tag_bw", 1 << 20, 1500, _ucx(5, _MB)),
    _ucx_case("UCX tcp, put 1 MiB", "Gb/s", "ucp_put_bw", 1 << 20, 1500, _ucx(5, _MB)),
    _ucx_case("UCX tcp, tag 64 B", "M/s", "tag_bw", 64, 200000, _ucx(7, 1e-6)),
    _ucx_case("UCX tcp, tag 64 B latency", "us", "tag_lat", 64, 20000, _ucx(1, 1.0)),
    _fi_case("libfabric tcp, 1 MiB ping-pong", "Gb/s", 1 << 20, 1000, _fi(5, 8 / 1000)),
    _fi_case("libfabric tcp, 64 B latency", "us", 64, 20000, _fi(6, 1.0)),
    Other(
        "TCP 64 B latency, blocking (qperf)", "us", ("qperf",),
        ("qperf", THERE, "-m", "64", "-t", str(SECONDS), "tcp_lat"), _qperf,
    ),
)  # fmt: skip


@contextlib.contextmanager
def _wire() -> Iterator[tuple[netns.Namespace, netns.Namespace]]:
    with netns.namespace() as a, netns.namespace() as b:
        netns.veth(a, "eth0", b, "eth0", mtu=MTU)
        netns.add_address(a, "eth0", f"{HERE}/24")
        netns.add_address(b, "eth0", f"{THERE}/24")
        yield a, b


def _on_cpu(cpu: int, command: tuple[str, ...]) -> list[str]:
    taskset = shutil.which("taskset")
    pinned = taskset is not None and cpu in os.sched_getaffinity(0)
    return ["taskset", "-c", str(cpu), *command] if pinned else list(command)


def measure(other: Other) -> float | None:
    """One measurement; None when the program is not here or does not get through."""
    if shutil.which(other.server[0]) is None:
        return None
    env = {**os.environ, "UCX_TLS": "tcp", "UCX_NET_DEVICES": "eth0", "UCX_WARN_UNUSED_ENV_VARS": "n"}
    with _wire() as (a, b):
        with b.entered():
            server = subprocess.Popen(
                _on_cpu(1, other.server), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, env=env
            )
        try:
            with a.entered():
                for _ in range(_TRIES):  # until the server listens
                    done = subprocess.run(
                        _on_cpu(0, other.client), capture_output=True, text=True, check=False, timeout=PATIENCE, env=env
                    )
                    if done.returncode == 0:
                        return other.figure(done.stdout)
                    time.sleep(0.05)
        except (subprocess.TimeoutExpired, IndexError, KeyError, ValueError):
            return None  # it did not get through, or prints something else in this version
        finally:
            server.kill()
            server.wait()
    return None

"""`softrnic pingpong` and `softrnic rping` as two processes, each a NIC on a UDP socket."""

from __future__ import annotations

import contextlib
import re
import socket
import subprocess
import sys
from collections.abc import Iterator

import pytest

from softrnic.control import warm

SERVER, CLIENT = "127.0.0.21", "127.0.0.22"
SECONDS = 60


def softrnic(*words: str) -> list[str]:
    return [sys.executable, "-c", "from softrnic.control.cli import main; raise SystemExit(main())", *words]


@contextlib.contextmanager
def running(*words: str) -> Iterator[subprocess.Popen[str]]:
    """A command that ends with the context, if not by itself."""
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
    with subprocess.Popen(softrnic(*words), **pipes) as process:
        try:
            yield process
        finally:
            process.kill()


def run(*words: str) -> str:
    done = subprocess.run(softrnic(*words), capture_output=True, text=True, check=False, timeout=SECONDS)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.fixture(scope="module", autouse=True)
def compiled() -> None:
    warm.prepare()


@pytest.fixture
def port() -> int:
    """One that nobody listens to."""
    with socket.create_server(("", 0)) as listener:
        return int(listener.getsockname()[1])


@pytest.mark.jit_only
@pytest.mark.parametrize("kind", ["rc", "uc", "ud", "srq"])
def test_pingpong(kind: str, port: int) -> None:
    flags = ["-p", str(port), "-s", "1000", "-n", "50", "-e", "-c", *(["-q", "3"] if kind == "srq" else [])]
    with running("pingpong", kind, "-d", f"udp:{SERVER}", *flags) as server:
        assert server.stdout
        first = server.stdout.readline()  # said when it listens
        client = run("pingpong", kind, "-d", f"udp:{CLIENT}", *flags, SERVER)
        served = first + server.communicate(timeout=SECONDS)[0]
        assert server.returncode == 0
    for said, own, peer in ((served, SERVER, CLIENT), (client, CLIENT, SERVER)):
        line = r"  {} address:\s+LID 0x0000, QPN 0x[0-9a-f]{{6}}, PSN 0x[0-9a-f]{{6}}, GID ::ffff:{}\n"
        assert re.search(line.format("local", re.escape(own)), said)
        assert re.search(line.format("remote", re.escape(peer)), said)
        assert "100000 bytes in" in said
        assert "50 iters in" in said
        assert "invalid" not in said


@pytest.mark.jit_only
def test_rping() -> None:
    with running("rping", "-s", "-a", SERVER, "--ib-dev", f"udp:{SERVER}", "-P", "-v", "-V") as server:
        for _ in range(2):
            said = run("rping", "-c", "-a", SERVER, "-I", CLIENT, "-C", "3", "-v", "-V", "--ib-dev", f"udp:{CLIENT}")
            assert said.count("ping data: rdma-ping-") == 3
        assert server.stdout
        assert [server.stdout.readline().split(":")[1] for _ in range(6)] == [f" rdma-ping-{i}" for i in (0, 1, 2)] * 2


@pytest.mark.jit_only
@pytest.mark.parametrize("test", ["write_bw", "send_lat"])
def test_perftest(test: str, port: int) -> None:
    flags = ["-p", str(port), "-s", "1000", "-n", "50"]
    with running("perftest", test, "-d", f"udp:{SERVER}", *flags) as server:
        assert server.stdout
        assert server.stdout.readline() == "Waiting for a client\n"
        client = run("perftest", test, "-d", f"udp:{CLIENT}", *flags, SERVER)
        served = server.communicate(timeout=SECONDS)[0]
        assert server.returncode == 0
    assert client.startswith("1000 bytes, 50 iterations: ")
    assert served.startswith("1000 bytes, 50 iterations")


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("pingpong", "rc", "-d", "udp:nowhere"), "'nowhere' is no IP address"),
        (("pingpong", "rc", "-s", "-1"), "size must be 0 to"),
        (("rping", "-c"), "a client needs -a"),
        (("rping", "-s", "-S", "25"), "Invalid size 25"),
        (("rping", "-s", "-a", "192.0.2.1"), "no device with address 192.0.2.1"),
    ],
)
def test_refusals(words: tuple[str, ...], said: str) -> None:
    done = subprocess.run(softrnic(*words), capture_output=True, text=True, check=False, timeout=SECONDS)
    assert done.returncode == 1
    assert said in done.stderr

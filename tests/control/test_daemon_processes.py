"""Daemons as a user runs them: processes with taps in a network namespace, asked by the command line."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import pytest

from netio import netns
from softrnic.control import warm

ROOT = Path(__file__).resolve().parents[2]
CODE = "import sys; from softrnic.control.cli import main; sys.exit(main())"
SECONDS = 120.0

pytestmark = [pytest.mark.jit_only, pytest.mark.timeout(600), pytest.mark.privileged("netns", "tun")]


class Daemon:
    """A daemon process, once it has said that it is ready."""

    def __init__(self, ns: netns.Namespace, directory: Path, number: int, *words: str) -> None:
        self.socket = directory / f"{number}.sock"
        self._ns = ns
        command = [
            sys.executable, "-c", CODE, "daemon", "--tap", f"10.3.0.{number}/24", "--ifname", f"tap{number}",
            "--socket", str(self.socket), *words,
        ]  # fmt: skip
        with ns.entered():
            self.process = subprocess.Popen(
                command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=ROOT
            )  # fmt: skip
        assert self.process.stdout
        lines = 1 + ("--listen" in words) + ("--metrics-port" in words)
        self.said = [self.process.stdout.readline() for _ in range(lines)]
        assert all(self.said), self.process.stderr and self.process.stderr.read()

    def ask(self, *words: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-c", CODE, *words, "--socket", str(self.socket)]
        with self._ns.entered():
            return subprocess.run(command, capture_output=True, text=True, check=False, cwd=ROOT, timeout=SECONDS)

    def functions(self) -> list[Any]:
        return [row["ifname"] for row in json.loads(self.ask("function", "show", "-j").stdout)][1:]

    def close(self) -> None:
        self.process.kill()
        self.process.communicate()


@contextmanager
def daemons(directory: Path) -> Iterator[tuple[netns.Namespace, Daemon, Daemon]]:
    warm.prepare()
    token = directory / "token"
    token.touch(0o600)
    token.write_text("known to both of them")
    with ExitStack() as stack:
        ns = stack.enter_context(netns.namespace())
        listen = ("--listen", "127.0.0.1:7471", "--token-file", str(token), "--metrics-port", "9464")
        there = Daemon(ns, directory, 2, *listen)
        stack.callback(there.close)
        here = Daemon(ns, directory, 1)
        stack.callback(here.close)
        netns.bridge(ns, "br0", ["tap1", "tap2"])
        yield ns, here, there


def test_two_daemons(tmp_path: Path) -> None:
    with daemons(tmp_path) as (ns, here, there):
        assert "10.3.0.1" in here.said[0]
        assert there.said[1] == "functions may come to 127.0.0.1:7471\n"
        assert here.ask("function", "add", "vf0", "address", "10.3.0.77/24").returncode == 0
        assert here.functions() == ["vf0"]
        moved = here.ask("migrate", "vf0", "--to", "127.0.0.1:7471", "--token-file", str(tmp_path / "token"), "--json")
        assert moved.returncode == 0, moved.stderr
        assert json.loads(moved.stdout)["sketched"] is True
        assert there.functions() == ["vf0"]
        gids = json.loads(there.ask("link", "show", "link", "vf0", "-j").stdout)[0]["gids"]
        assert [gid["ip"] for gid in gids] == ["10.3.0.77"]
        with ns.entered(), urllib.request.urlopen("http://127.0.0.1:9464/metrics") as page:
            assert 'softrnic_objects{device="vf0",kind="qp",port="1"} 0.0' in page.read().decode()
        for daemon in (here, there):
            daemon.process.send_signal(signal.SIGTERM)
            _, complaints = daemon.process.communicate(timeout=SECONDS)
            assert daemon.process.returncode == 0, complaints
            assert "Traceback" not in complaints
            assert not daemon.socket.exists()


def test_the_destination_dies(tmp_path: Path) -> None:
    """Before it has the function: the source goes on. A new daemon takes the place of the dead one's socket."""
    with daemons(tmp_path) as (ns, here, there):
        assert here.ask("function", "add", "vf0", "address", "10.3.0.77/24").returncode == 0
        os.kill(there.process.pid, signal.SIGKILL)
        there.process.wait()
        command = [
            sys.executable, "-c", CODE, "migrate", "vf0", "--to", "127.0.0.1:7471", "--token-file",
            str(tmp_path / "token"), "--socket", str(here.socket),
        ]  # fmt: skip
        with ns.entered(), subprocess.Popen(command, stderr=subprocess.PIPE, text=True, cwd=ROOT) as asking:
            limit = time.monotonic() + SECONDS
            while "migration" not in here.ask("function", "show", "-j").stdout:
                assert time.monotonic() < limit
            asking.send_signal(signal.SIGINT)
            assert asking.wait(SECONDS) == 128 + signal.SIGINT
        while "migration" in here.ask("function", "show", "-j").stdout:
            assert time.monotonic() < limit
        assert here.functions() == ["vf0"]
        again = Daemon(ns, tmp_path, 2)
        try:
            assert again.functions() == []
        finally:
            again.close()


def test_what_is_refused_at_once(tmp_path: Path) -> None:
    words = [sys.executable, "-c", CODE, "daemon", "-d", "udp:127.0.0.1", "--socket", str(tmp_path / "s")]
    done = subprocess.run([*words, "--listen", "127.0.0.1:1"], capture_output=True, text=True, check=False, cwd=ROOT)
    assert done.returncode == 1
    assert "needs --token-file" in done.stderr

"""`softrnic demo`: that it proves what it says, that it would notice, and that it leaves nothing behind."""

from __future__ import annotations

import contextlib
import json
import os
import pty
import select
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scapy.contrib.roce import BTH
from scapy.utils import rdpcap

from netio.fault import Faults
from softrnic.control import fabric
from softrnic.control.cli import main
from softrnic.control.demo import job, move
from softrnic.control.demo import run as demo

ROOT = Path(__file__).resolve().parents[2]
SMALL = ["--bytes", "2M", "--bad-bytes", "300k"]
STEPS = ["RDMA WRITE", "RDMA READ", "SEND", "atomics"]
Capsys = pytest.CaptureFixture[str]

pytestmark = [pytest.mark.jit_only, pytest.mark.timeout(600)]  # the first one compiles


def run(tmp_path: Path, *words: str) -> tuple[int, dict[str, Any]]:
    """Exit status and report."""
    status = main(["demo", *SMALL, "--json", str(tmp_path / "demo.json"), *words])
    return status, json.loads((tmp_path / "demo.json").read_text())


WIRES = [
    "memory",
    "udp",
    pytest.param("veth", marks=pytest.mark.privileged("netns")),
    pytest.param("tap", marks=pytest.mark.privileged("netns", "tun")),
]


@pytest.mark.parametrize("wire", WIRES)
def test_everything_arrives(wire: str, tmp_path: Path, capsys: Capsys) -> None:
    status, report = run(tmp_path, "--wire", wire, "--pcap", str(tmp_path / "demo.pcapng"))
    out = capsys.readouterr().out
    assert status == 0
    assert report["ok"] is True
    assert report["wire"] == wire
    assert [(s["wire"], s["name"]) for s in report["steps"]] == [(w, s) for w in ("clean", "faulty") for s in STEPS]
    assert all(s["ok"] and s["wrong_bytes"] == 0 and s["error"] == "" for s in report["steps"])
    assert [s["bytes"] for s in report["steps"][:3]] == [2 << 20, 2 << 20, 4 << 20]
    assert "Everything arrived as it was sent" in out
    move = report["move"]
    assert move["ok"] is True
    assert move["wrong_bytes"] == 0
    assert move["nbytes"] > 2 << 20
    assert move["pages_per_round"][0] >= 2048
    assert 0 < move["downtime_ms"] < 10_000
    assert "a NIC moves to a third host" in out


def test_the_bad_wire_was_bad(tmp_path: Path) -> None:
    _, report = run(tmp_path, "--wire", "memory", "--bad-bytes", "2M")
    clean, faulty = report["counters"]["clean"], report["counters"]["faulty"]
    for name in ("lost", "duplicated", "reordered"):
        assert faulty[f"fault_tx_{name}"] > 0
        assert f"fault_tx_{name}" not in clean
    assert faulty["retransmitted_pkts"] >= faulty["rcvd_seq_err"] > 0


def test_the_capture(tmp_path: Path) -> None:
    """As scapy reads it: whole RoCEv2 packets and nothing else, as many as were said, none larger than a packet."""
    _, report = run(tmp_path, "--wire", "memory", "--pcap", str(tmp_path / "demo.pcapng"))
    packets = rdpcap(str(tmp_path / "demo.pcapng"))
    assert all(BTH in packet for packet in packets)
    assert max(len(packet) for packet in packets) <= 14 + 20 + 8 + 12 + 28 + 4096 + 4
    assert {v["packets"] for v in report["pcap"]["verdicts"]} == {len(packets)}
    ours = report["pcap"]["verdicts"][0]
    assert (ours["roce"], ours["malformed"], ours["bad_icrc"]) == (len(packets), 0, 0)


@pytest.mark.tshark
def test_tshark_finds_nothing_malformed(tmp_path: Path, capsys: Capsys) -> None:
    """In the report, and when asked without any help from us."""
    _, report = run(tmp_path, "--wire", "memory", "--pcap", str(tmp_path / "demo.pcapng"))
    assert report["pcap"]["verdicts"][1]["dissector"] == "tshark"
    assert report["pcap"]["verdicts"][1]["ok"]
    assert "Capture read by tshark" in capsys.readouterr().out
    command = ["tshark", "-n", "-r", str(tmp_path / "demo.pcapng"), "-Y", "_ws.malformed or not infiniband"]
    assert subprocess.run(command, capture_output=True, text=True, check=True).stdout == ""


def test_without_tshark(tmp_path: Path, capsys: Capsys, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("shutil.which", lambda name: None)
    status, report = run(tmp_path, "--wire", "memory")
    assert status == 0
    assert [v["dissector"] for v in report["pcap"]["verdicts"]] == ["softrnic"]
    assert "Capture not read by tshark: it is not installed." in capsys.readouterr().out


def test_without_privileges(tmp_path: Path, capsys: Capsys, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("os.geteuid", lambda: 1000)
    status, report = run(tmp_path)
    assert (status, report["wire"]) == (0, "memory")
    assert report["why_not_tap"] == "not root, so no network namespaces"
    assert "Not on taps and a bridge: not root, so no network namespaces." in capsys.readouterr().out


# --- it would notice ------------------------------------------------------------------------------------------


def test_one_wrong_byte(tmp_path: Path, capsys: Capsys, monkeypatch: pytest.MonkeyPatch) -> None:
    """A byte of each buffer that is changed on arrival is found, and is the verdict."""
    honest = job.Job._one_sided

    def tampered(self: job.Job, opcode: Any, local: job.Buffer, remote: job.Buffer) -> Iterator[Any]:
        yield from honest(self, opcode, local, remote)
        for side in (self._a, self._b):
            side.source.data[12345] ^= 0x40

    monkeypatch.setattr(job.Job, "_one_sided", tampered)
    status, report = run(tmp_path, "--wire", "memory")
    assert status == 1
    assert report["ok"] is False
    assert [s["wrong_bytes"] for s in report["steps"][:2]] == [1, 1]
    assert "FAILED" in capsys.readouterr().out


def test_wrong_atomics(monkeypatch: pytest.MonkeyPatch) -> None:
    """A word that somebody else changes meanwhile."""
    with fabric.fabric("memory") as hosts:
        work = job.Job(hosts, nbytes=1000, seed=5)
        work._b.words.data[3] += np.uint64(1)  # before the plan is made: no harm
        assert work.steps()["atomics"]().ok
        honest = work._plan

        def planned(words: np.ndarray) -> Any:
            plan = honest(words)
            words[3] ^= np.uint64(0xFF)
            return plan

        monkeypatch.setattr(work, "_plan", planned)
        assert work.steps()["atomics"]().wrong_bytes > 0


def test_a_wire_that_carries_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(demo, "FAULTS", Faults(loss=1.0))
    status, report = run(tmp_path, "--wire", "memory")
    assert status == 1
    assert all(s["ok"] for s in report["steps"][:4])
    assert "transport retry counter exceeded" in report["steps"][4]["error"]
    assert all(s["error"] for s in report["steps"][4:])


def test_a_move_that_corrupts(monkeypatch: pytest.MonkeyPatch) -> None:
    """A program that finds other memory at the destination than that of its region sees wrong bytes, and says so."""
    honest = move.Seat

    def elsewhere(qp: Any, cq: Any, mr: Any, data: np.ndarray) -> move.Seat:
        return honest(qp, cq, mr, data if data.flags.owndata else data.copy())

    monkeypatch.setattr(move, "Seat", elsewhere)
    found = move.run_move(privileged=False, nbytes=1 << 20, seed=1, progress=lambda text: contextlib.nullcontext())
    assert found.wrong_bytes > 0
    assert not found.ok


def test_a_move_that_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(move, "POLICY", "shout")
    found = move.run_move(privileged=False, nbytes=1 << 20, seed=1, progress=lambda text: contextlib.nullcontext())
    assert "shout" in found.error
    assert not found.ok


def test_same_seed_same_data() -> None:
    def source(seed: int) -> bytes:
        with fabric.fabric("memory") as hosts:
            return job.Job(hosts, nbytes=5000, seed=seed)._a.source.data.tobytes()

    assert source(3) == source(3) != source(4)


@pytest.mark.parametrize(("edges", "shortest"), [(job.EDGES, 3), ((1023, 4096), 16)])
@pytest.mark.parametrize("nbytes", [1, 3, 31, 32, 1000, 70_000, 300_001])
def test_messages_cover_every_byte_once(nbytes: int, edges: tuple[int, ...], shortest: int) -> None:
    for seed in range(20):
        spans = list(job._spans(np.random.default_rng(seed), nbytes, edges, shortest))
        assert [offset for offset, _ in spans] == [sum(length for _, length in spans[:i]) for i in range(len(spans))]
        assert sum(length for _, length in spans) == nbytes
        assert all(length in edges or length >= min(shortest, nbytes) for _, length in spans)


# --- interrupted ----------------------------------------------------------------------------------------------


@contextmanager
def on_a_terminal(tmp_path: Path, *words: str, **environment: str) -> Iterator[tuple[subprocess.Popen[bytes], int]]:
    """The demonstration as a process, and its terminal."""
    ours, theirs = pty.openpty()
    code = "import sys; from softrnic.control.cli import main; sys.exit(main())"
    (tmp_path / "tmp").mkdir()
    env = os.environ | {"TMPDIR": str(tmp_path / "tmp")} | environment
    child = subprocess.Popen(
        [sys.executable, "-c", code, "demo", *words], stdin=theirs, stdout=theirs, stderr=theirs, cwd=ROOT, env=env
    )
    os.close(theirs)
    try:
        yield child, ours
    finally:
        child.kill()
        child.wait()
        os.close(ours)


def read_until(terminal: int, words: bytes) -> None:
    seen = b""
    while words not in seen:
        seen += os.read(terminal, 1000)


def drain(terminal: int) -> bytes:
    """What is written until nobody has the terminal any more."""
    seen = b""
    try:
        while data := os.read(terminal, 1000):
            seen += data
    except OSError:  # EIO: that is how a terminal ends
        pass
    return seen


@pytest.mark.privileged("netns", "tun")
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize("stage", [b"clean wire: RDMA WRITE", b"faulty wire: SEND"])
def test_interrupted(stage: bytes, number: signal.Signals, tmp_path: Path) -> None:
    """In the midst of it: no file, no device in our namespace, no process, no complaint."""
    devices = os.listdir("/sys/class/net")
    with on_a_terminal(tmp_path, "--wire", "tap", "--bytes", "8M", "--bad-bytes", "16M") as (child, terminal):
        read_until(terminal, stage)
        child.send_signal(number)
        rest = drain(terminal)
        assert child.wait() == 128 + number
    assert b"Traceback" not in rest
    assert os.listdir(tmp_path / "tmp") == []
    assert os.listdir("/sys/class/net") == devices


@pytest.mark.privileged("netns", "tun")
def test_killed(tmp_path: Path) -> None:
    """Without a chance to clean up: all descriptors of the namespaces and taps were its own, and go with it."""
    devices, spaces = os.listdir("/sys/class/net"), namespaces()
    with on_a_terminal(tmp_path, "--wire", "tap", "--bytes", "8M", "--bad-bytes", "16M") as (child, terminal):
        read_until(terminal, b"faulty wire: SEND")
        assert namespaces(child.pid) != []
        child.send_signal(signal.SIGKILL)
        drain(terminal)
        assert child.wait() == -signal.SIGKILL
    assert os.listdir("/sys/class/net") == devices
    assert namespaces() == spaces


def namespaces(pid: int | None = None) -> list[str]:
    """Network namespaces that have a name, or that a process holds open."""
    if pid is None:
        folder = Path("/run/netns")
        return sorted(os.listdir(folder)) if folder.is_dir() else []
    links = [os.readlink(link) for link in Path(f"/proc/{pid}/fd").iterdir()]
    return [link for link in links if link.startswith("net:")]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGKILL])
def test_interrupted_while_compiling(number: signal.Signals, tmp_path: Path) -> None:
    """The processes that compile end with it."""
    with on_a_terminal(tmp_path, "--wire", "memory", XDG_CACHE_HOME=str(tmp_path / "cache")) as (child, terminal):
        read_until(terminal, b"compiling the data path")
        started = compilers(tmp_path)
        assert started != []
        handles = [os.pidfd_open(int(process)) for process in started]
        child.send_signal(number)
        drain(terminal)
        assert child.wait() == (-number if number == signal.SIGKILL else 128 + number)
    for handle in handles:
        assert select.select([handle], [], [], 10)[0], "still compiles"
        os.close(handle)
    assert compilers(tmp_path) == []


def compilers(tmp_path: Path) -> list[str]:
    """Processes that fill the cache of this test."""
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        try:
            command, environment = (process / "cmdline").read_bytes(), (process / "environ").read_bytes()
        except OSError:
            continue
        if b"softrnic.control.warm" in command and str(tmp_path).encode() in environment:
            found.append(process.name)
    return found

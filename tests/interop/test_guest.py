"""The guests that other tests of this folder use as peers: they come up, obey, talk to each other, and go.

Nothing of softrnic is in here. What fails here fails in tools/vmlib or on the machine.
"""

from __future__ import annotations

import os
import select
import signal
import socket
import struct
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Barrier

import pytest
from pyroute2 import IPRoute

from tools.vmlib import (
    SOFT_ROCE,
    CommandError,
    CommandTimeoutError,
    Guest,
    GuestDeadError,
    GuestError,
    QmpError,
    Segment,
    UnavailableError,
    apt,
    booted,
    cache,
)

ROOT = Path(__file__).resolve().parent.parent.parent
GUARD = ROOT / "tools/vmlib/guard.py"
END_TIMEOUT_S = 20
RTMGRP_LINK, RTM_DELLINK = 1, 17

# --- what needs no guest ------------------------------------------------------------------------------------

TWO_STANZAS = """\
Types: deb
# http://snapshot/
URIs: http://m/debian
Suites: bookworm bookworm-updates
Components: main

Types: deb
URIs: http://s/security
Suites: bookworm-security
Components: main
"""
DISABLED_AND_FOLDED = """\
Enabled: no
Types: deb
URIs: http://off/
Suites: bookworm
Components: main

types: deb-src deb
URIs:
 http://m/debian
 http://second/
Suites: bookworm
Components: non-free
 main
"""


@pytest.mark.parametrize(
    ("file", "text"),
    [
        ("sources.list", "deb http://m/debian bookworm main contrib # ours\n"),
        ("sources.list", "deb [arch=amd64 signed-by=/k] http://m/debian bookworm main\n"),
        ("sources.list.d/a.list", "deb-src http://s/ bookworm main\ndeb http://m/debian bookworm main\n"),
        ("sources.list.d/debian.sources", TWO_STANZAS),
        ("sources.list.d/debian.sources", DISABLED_AND_FOLDED),
    ],
)
def test_mirror_is_that_of_the_machine(tmp_path: Path, file: str, text: str) -> None:
    path = tmp_path / "apt" / file
    path.parent.mkdir(parents=True)
    path.write_text(text)
    (tmp_path / "os-release").write_text('ID=debian\nVERSION_CODENAME="bookworm"\n')
    assert apt.debian_mirror(tmp_path) == "http://m/debian"


@pytest.mark.parametrize(
    ("release", "sources", "lacking"),
    [
        ("ID=ubuntu\n", "", "Debian"),
        ("ID=debian\nVERSION_CODENAME=bookworm\n", "deb http://m bookworm-updates main", "apt source"),
        ("ID=debian\nVERSION_CODENAME=bookworm\n", "deb http://m bookworm contrib", "apt source"),
    ],
)
def test_no_mirror(tmp_path: Path, release: str, sources: str, lacking: str) -> None:
    (tmp_path / "apt").mkdir()
    (tmp_path / "apt/sources.list").write_text(sources)
    (tmp_path / "os-release").write_text(release)
    with pytest.raises(UnavailableError, match=f"^machine lacks: .*{lacking}"):
        apt.debian_mirror(tmp_path)


def test_cache_builds_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two that want the same entry at once: one builds it, and the other sees it whole."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    built = []
    both = Barrier(2)

    def build(target: Path) -> None:
        built.append(target)
        (target / "file").write_text("whole")

    def use(_: int) -> str:
        both.wait()
        return (cache.entry("test", "1", build) / "file").read_text()

    with ThreadPoolExecutor(2) as pool:
        assert list(pool.map(use, range(2))) == ["whole", "whole"]
    assert len(built) == 1
    assert len(cache.clean()) == 1
    assert cache.clean() == []


def test_failed_build_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))

    def fail(target: Path) -> None:
        (target / "half").write_text("")
        raise GuestError("no more disk")

    with pytest.raises(GuestError, match="no more disk"):
        cache.entry("test", "1", fail)
    assert [path.name for path in (tmp_path / "softrnic").iterdir()] == ["guest.lock"]


# The owner of a guard, as Machine is; it tells the numbers of the guard and of the command it guards.
OWNER = """
import os, subprocess, sys
report, told = os.pipe()
command = [sys.executable, "-IS", sys.argv[1], str(os.getpid()), str(told), "sleep", "1000"]
guard = subprocess.Popen(command, pass_fds=[told])
os.close(told)
print(guard.pid, os.fdopen(report).readline(), flush=True)
guard.wait()
"""


@pytest.mark.parametrize("victim", ["owner", "guard"])
def test_command_ends_with_its_guard_and_its_owner(victim: str) -> None:
    with subprocess.Popen([sys.executable, "-c", OWNER, str(GUARD)], stdout=subprocess.PIPE, text=True) as owner:
        assert owner.stdout
        guard, command = map(int, owner.stdout.readline().split())
        ends = [os.pidfd_open(guard), os.pidfd_open(command)]
        os.kill({"owner": owner.pid, "guard": guard}[victim], signal.SIGKILL)
        wait_ended(ends)


def wait_ended(pidfds: list[int]) -> None:
    """Wait until these processes have ended, and close the descriptors."""
    for pidfd in pidfds:
        poll = select.poll()
        poll.register(pidfd, select.POLLIN)
        ended = poll.poll(END_TIMEOUT_S * 1000)
        os.close(pidfd)
        assert ended


@pytest.mark.privileged("netns", "tun")
def test_tap_on_a_bridge_that_exists() -> None:
    with Segment.create("lan7") as segment, Segment.join("lan7", segment.path) as joined:
        name, fd = joined.open_tap(1500)
        assert f" {name}: " in segment.run("ip", "-o", "link", "show", "master", "lan7")
        os.close(fd)
        assert name not in segment.run("ip", "link")
        with pytest.raises(GuestError, match="no interface lan8"):
            Segment.join("lan8", segment.path)


# --- a guest's end ------------------------------------------------------------------------------------------

# Whoever runs this is killed while its guest boots.
GUEST_OWNER = """
import sys
from tools.vmlib import Guest, Segment
segment = Segment.create("br0")
guest = Guest(segment, ["10.9.0.1/24"])
guest.start()
print(guest.pid, segment.path, flush=True)
sys.stdin.read()
"""


def add_witness(netns: str) -> None:
    """An interface that lives as long as another namespace: its peer is there."""
    fd = os.open(netns, os.O_RDONLY)
    with IPRoute() as ip:
        ip.link("add", ifname="witness", kind="veth", peer={"ifname": "witness", "net_ns_fd": fd})
    os.close(fd)


def watch_links() -> socket.socket:
    watch = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, socket.NETLINK_ROUTE)
    watch.bind((0, RTMGRP_LINK))
    return watch


def wait_deleted(watch: socket.socket, name: str) -> None:
    """Wait until an interface is gone. struct nlmsghdr: length, type; the name is an attribute behind it."""
    with watch:
        watch.settimeout(END_TIMEOUT_S)
        while True:
            message = watch.recv(65536)
            if struct.unpack_from("=IH", message)[1] == RTM_DELLINK and name.encode() in message:
                return


@pytest.mark.qemu
@pytest.mark.privileged("netns", "tun")
def test_killed_owner_leaves_nothing() -> None:
    """No QEMU, and no namespace with a bridge and a tap in it."""
    with (
        Segment.create() as ours,
        subprocess.Popen(
            [sys.executable, "-c", GUEST_OWNER],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            cwd=ROOT,
            env={**os.environ, "PYTHONPATH": str(ROOT)},
        ) as owner,
    ):
        assert owner.stdout
        pid, netns = owner.stdout.readline().split()
        qemu = os.pidfd_open(int(pid))
        ours.call(add_witness, netns)
        watch = ours.call(watch_links)
        owner.kill()
        wait_ended([qemu])
        wait_deleted(watch, "witness")


@pytest.mark.qemu
@pytest.mark.privileged("netns", "tun")
def test_failed_boot_says_why() -> None:
    with Segment.create() as segment:
        guest = Guest(segment, ["10.9.0.1/24"], files={"/etc/modules": b"no_such_module\n"})
        with pytest.raises(GuestDeadError, match="guest: module no_such_module does not load"), guest:
            pass
        assert "vm-" not in segment.run("ip", "link")


# --- two guests ---------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def guests() -> Iterator[tuple[Guest, Guest]]:
    with Segment.create() as segment:
        files = {"/opt/a file": b"\0\xff\n"}
        one = Guest(segment, ["10.9.0.1/24", "fd00:9::1/64"], mtu=9000, files=files)
        two = Guest(segment, ["10.9.0.2/24", "fd00:9::2/64"], mtu=9000)
        with booted(one, two):
            yield one, two


@pytest.mark.qemu
class TestGuests:
    def test_device(self, guests: tuple[Guest, Guest]) -> None:
        guest = guests[0]
        assert "link rxe0/1 state ACTIVE physical_state LINK_UP netdev eth0" in guest.check("rdma link")
        assert "active_mtu:\t\t4096" in guest.check("ibv_devinfo")
        assert [str(gid) for gid in guest.gids().values()][1:] == ["::ffff:a09:1", "fd00:9::1"]
        assert (guest.gid_index("10.9.0.1"), guest.gid_index("fd00:9::1")) == (1, 2)
        assert guest.gids()[0].is_link_local
        with pytest.raises(GuestError, match=r"no GID for 10\.9\.0\.7"):
            guest.gid_index("10.9.0.7")
        assert {"sent_pkts", "rcvd_pkts", "out_of_seq_request", "rcvd_rnr_err"} <= set(guest.counters())
        assert "WARNING" not in guest.check("dmesg")

    def test_programs_find_their_libraries(self, guests: tuple[Guest, Guest]) -> None:
        for program in SOFT_ROCE.programs:
            libraries = guests[0].check(f"LD_TRACE_LOADED_OBJECTS=1 {program}")
            assert "libc.so.6 => " in libraries
            assert "not found" not in libraries

    def test_command(self, guests: tuple[Guest, Guest]) -> None:
        guest = guests[0]
        assert guest.run("echo out; echo err >&2; exit 3") == (3, "out\n", "err\n")
        assert guest.run("kill -9 $$").rc == 128 + signal.SIGKILL
        tricky = "\\n 'a' \"b\"\t$HOME \u00e9 \\"
        assert guest.check(f"cat <<'END'\n{tricky}\nEND") == f"{tricky}\n"
        assert guest.check("od -An -tx1 '/opt/a file'").split() == ["00", "ff", "0a"]
        assert len(guest.check("seq 30000").split()) == 30000
        with pytest.raises(CommandError, match="'ls /nowhere' exited 1: ls: /nowhere"):
            guest.check("ls /nowhere")

    def test_output_is_there_at_the_end(self, guests: tuple[Guest, Guest]) -> None:
        """Of many small writes to both streams, none is overtaken by the command's end."""
        lines = [f"{number}\n" for number in range(20)]
        for _ in range(20):
            result = guests[0].run("for i in $(seq 0 19); do echo $i; echo $i >&2; done")
            assert result == (0, "".join(lines), "".join(lines))

    def test_command_that_does_not_end(self, guests: tuple[Guest, Guest]) -> None:
        guest = guests[0]
        with pytest.raises(CommandTimeoutError, match=r"did not end within 0\.5 s\nsomething"):
            guest.run("echo something; sleep 1000", timeout=0.5)
        guest.run("sleep 1000 & sleep 1000 &")
        with guest.spawn("sleep 1000") as process:
            guest.wait_until('[ "$(pidof sleep | wc -w)" = 1 ]', process, timeout=10)
        with pytest.raises(CommandError, match=r"'exit 5' ended too early: .*rc=5"):
            guest.wait_until("false", guest.spawn("exit 5"))

    def test_commands_in_the_background(self, guests: tuple[Guest, Guest]) -> None:
        guest = guests[0]
        with guest.spawn("echo started; read line <&- ; sleep 1000") as process:
            assert process.wait_output(r"^start(\w+)$")[1] == "ed"
            assert process.poll() is None
            assert process.stdout == "started\n"
            process.kill(signal.SIGINT)
            assert process.wait().rc == 128 + signal.SIGINT
        with pytest.raises(CommandError, match=r"did not write 'x' and exited 0\ny"):
            guest.spawn("echo y").wait_output("x")
        many = [guest.spawn("sleep 1000") for _ in range(7)]
        with pytest.raises(CommandError, match="7 commands run in the guest already"):
            guest.run("true")
        for process in many:
            process.kill()
        assert {process.wait().rc for process in many} == {128 + signal.SIGTERM}
        assert guest.run("true").rc == 0

    def test_pause(self, guests: tuple[Guest, Guest]) -> None:
        guest = guests[0]
        guest.pause()
        assert guest.qmp.execute("query-status")["status"] == "paused"
        guest.resume()
        assert guest.check("echo on") == "on\n"
        with pytest.raises(QmpError, match="no-such-command"):
            guest.qmp.execute("no-such-command")

    @pytest.mark.parametrize("address", ["10.9.0.1", "fd00:9::1"], ids=["ipv4", "ipv6"])
    def test_rc_pingpong(self, guests: tuple[Guest, Guest], address: str) -> None:
        """The contents are checked, and the counters say that the device did it."""
        server, client = guests
        command = f"ibv_rc_pingpong -e -c -m 4096 -n 50 -g {server.gid_index(address)}"
        before = [guest.counters()["rdma_sends"] for guest in guests]
        with server.spawn(command) as process:
            server.wait_listening(process)
            assert "50 iters in" in client.check(f"{command} 10.9.0.1")
            assert process.wait().rc == 0
        after = [guest.counters()["rdma_sends"] for guest in guests]
        assert [new - old for new, old in zip(after, before, strict=True)] == [50, 50]

    @pytest.mark.parametrize("command", ["ib_write_bw -s 65536 -n 20", "ib_read_lat -n 20", "ib_atomic_lat -n 20"])
    def test_perftest(self, guests: tuple[Guest, Guest], command: str) -> None:
        server, client = guests
        command = f"{command} -F -x {server.gid_index('10.9.0.1')}"
        with server.spawn(command) as process:
            server.wait_listening(process)
            assert "#bytes" in client.check(f"{command} 10.9.0.1")
            assert process.wait().rc == 0

    def test_rping(self, guests: tuple[Guest, Guest]) -> None:
        server, client = guests
        with server.spawn("rping -s -a 10.9.0.1 -C 5 -V") as process:
            server.wait_cm_listening(process)
            assert client.check("rping -c -a 10.9.0.1 -C 5 -v -V").count("ping data: rdma-ping-") == 5
            assert process.wait().rc == 0

    def test_end(self, guests: tuple[Guest, Guest]) -> None:
        """A guest that is gone says so at once, with what it said last."""
        guest = guests[1]
        with pytest.raises(GuestDeadError, match=r"the guest is gone: (.|\n)*sysrq"):
            guest.run("echo c >/proc/sysrq-trigger; sleep 1000")
        with pytest.raises(GuestDeadError):
            guest.run("true")

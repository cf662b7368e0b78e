"""softrnic's command line, as a process of its own, against the programs it is named after."""

from __future__ import annotations

import subprocess

import pytest

from softrnic.control.pingpong import PORT
from tests.interop.conftest import Case
from tests.interop.lab import GUEST, IFNAME, MARKS, MTU, OURS
from tools.vmlib import Process

SECTION = "command line"
pytestmark = MARKS

ROLES = ["serve", "call"]
SECONDS = 60


def ended(program: subprocess.Popen[str]) -> str:
    """All that our program has said, once it has ended well."""
    said, _ = program.communicate(timeout=SECONDS)
    assert program.returncode == 0, said
    return said


def meet(case: Case, role: str, ours: list[str], theirs: str, *, port: int | None, ready: str) -> tuple[str, str]:
    """What both programs have said. `ready`: what our server says first, when it listens."""
    case.lab.set_mtu(MTU)
    if role == "call":
        with case.lab.server(theirs, port=port) as process, case.lab.softrnic(*ours, GUEST[4]) as program:
            return ended(program), output(process)
    with case.lab.softrnic(*ours) as program:
        assert program.stdout
        first = program.stdout.readline()
        assert first.startswith(ready)
        with case.guest.spawn(f"{theirs} {OURS[4]}") as process:
            return first + ended(program), output(process)


def output(process: Process) -> str:
    result = process.wait()
    assert result.rc == 0, result.stderr
    return result.stdout


@pytest.mark.parametrize("role", ROLES)
@pytest.mark.parametrize("kind", ["rc", "ud"])
def test_softrnic_pingpong(case: Case, kind: str, role: str) -> None:
    flags = ["-s", "1000", "-n", "50", "-e", "-c"]
    ours = ["pingpong", kind, "-d", IFNAME, *flags]
    theirs = f"ibv_{kind}_pingpong {' '.join(flags)} -g {case.lab.gid_index(4)}"
    for said in meet(case, role, ours, theirs, port=PORT, ready="  local address:"):
        assert "100000 bytes in" in said
        assert "50 iters in" in said
        assert "invalid" not in said


@pytest.mark.parametrize("role", ROLES)
def test_softrnic_perftest(case: Case, role: str) -> None:
    ours = ["perftest", "write_bw", "-d", IFNAME, "-n", "20"]
    theirs = f"ib_write_bw -F -n 20 -x {case.lab.gid_index(4)}"
    said, _ = meet(case, role, ours, theirs, port=PORT, ready="Waiting for a client")
    assert "65536 bytes, 20 iterations: " in said


@pytest.mark.parametrize("role", ROLES)
def test_softrnic_rping(case: Case, role: str) -> None:
    case.lab.set_mtu(MTU)
    flags = ["-C", "3", "-v", "-V"]
    if role == "call":
        with case.lab.server(f"rping -s -a {GUEST[4]} -v", port=None) as process:
            ours = ["rping", "-c", "-a", GUEST[4], "-I", OURS[4], "--ib-dev", IFNAME, *flags]
            with case.lab.softrnic(*ours) as program:
                said, heard = ended(program), output(process)
    else:
        # rping asks again if nobody listens yet
        with (
            case.lab.softrnic("rping", "-s", "-a", OURS[4], "--ib-dev", IFNAME, *flags) as program,
            case.guest.spawn(f"rping -c -a {OURS[4]} {' '.join(flags)}") as process,
        ):
            heard, said = ended(program), output(process)
    assert said.count("ping data: rdma-ping-") == 3
    assert heard.count("server ping data: rdma-ping-") == 3

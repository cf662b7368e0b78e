"""ib_write_bw, ib_read_lat and the other programs of perftest, each way round."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from softrnic.control.perftest import PORT, TESTS, Options, Perftest, Result
from softrnic.spec import Mtu, WcStatus, WrOpcode
from softrnic.verbs import SendWr
from tests.interop.conftest import Case
from tests.interop.lab import MARKS, MTU, OURS
from tools.vmlib import Result as Ended

SECTION = "perftest"
pytestmark = MARKS

ROLES = ["serve", "call"]


def measure(case: Case, role: str, options: Options, version: int = 4) -> tuple[Perftest, Result, Ended]:
    """Our end after a test, and what both have measured."""
    command = (
        f"ib_{options.test.name} -F -s {options.size} -n {options.iters} -m {options.mtu.bytes} "
        f"-x {case.lab.gid_index(version)}"
    )
    if options.test.opcode == WrOpcode.ATOMIC_FETCH_AND_ADD:
        command = command.replace(f"-s {options.size} ", "")
    if options.test.two_sided:
        command += " -e"
    with case.host() as host:
        gid_index = next(gid.index for gid in host.device.gids.values() if gid.ip.version == version)
        with Perftest(host.device, replace(options, gid_index=gid_index)) as peer:
            if role == "serve":
                with case.lab.listen(PORT) as listener, case.guest.spawn(f"{command} {OURS[4]}") as process:
                    result = peer.serve(listener)
                    ended = process.wait()
            else:
                with case.lab.server(command) as process, case.lab.dial(PORT) as sock:
                    result = peer.call(sock)
                    ended = process.wait()
    assert ended.rc == 0, ended.stderr
    return peer, result, ended


@pytest.mark.parametrize("role", ROLES)
@pytest.mark.parametrize("name", TESTS)
def test_program(case: Case, name: str, role: str) -> None:
    case.lab.set_mtu(1500)
    options = Options(test=TESTS[name], iters=50)
    peer, result, ended = measure(case, role, options)
    assert result.report.iters == options.iters
    if options.test.opcode == WrOpcode.ATOMIC_FETCH_AND_ADD and role == "serve":
        assert peer.room.view(np.int64).sum() == options.iters
    elif options.test.opcode != WrOpcode.RDMA_READ and role == "serve":
        assert peer.inbox.any()
    if role == "serve" or options.test.report:  # servers of other tests print nothing
        shown = next(words for line in ended.stdout.splitlines() if (words := line.split())[:1] == [str(options.size)])
        assert int(shown[1]) == options.iters


@pytest.mark.parametrize("role", ROLES)
@pytest.mark.parametrize("name", ["write_bw", "read_bw", "send_bw"])
def test_large_messages_over_ipv6(case: Case, name: str, role: str) -> None:
    case.lab.set_mtu(MTU)
    measure(case, role, Options(test=TESTS[name], size=1 << 20, iters=8, mtu=Mtu.MTU_4096), version=6)


SIZES = {"1 B": 1, "PMTU less 1": 1023, "PMTU": 1024, "PMTU and 1": 1025}


@pytest.mark.parametrize("role", ROLES)
@pytest.mark.parametrize("size", SIZES.values(), ids=SIZES)
@pytest.mark.parametrize("name", ["write_bw", "read_bw"])
def test_size(case: Case, name: str, size: int, role: str) -> None:
    """Of what needs no receive."""
    case.lab.set_mtu(MTU)
    _, result, _ = measure(case, role, Options(test=TESTS[name], size=size, iters=10))
    assert result.report.iters == 10


class Nothing(Perftest):
    """One request of no bytes in place of the test."""

    status: WcStatus | None = None

    def _run(self) -> Result:
        there = self._there
        self._qp.post_send(SendWr(self.options.test.opcode, remote_addr=there.vaddr, rkey=there.rkey))
        self.status = self._send_cq.wait(5)[0].status
        return Result(self.options, 0.0, [])


@pytest.mark.parametrize("name", ["write_bw", "read_bw"])
def test_empty(case: Case, name: str) -> None:
    """Ours; perftest takes no size of 0."""
    case.lab.set_mtu(MTU)
    with (
        case.host() as host,
        case.lab.server(f"ib_{name} -F -n 5 -x {case.lab.gid_index(4)}"),
        Nothing(host.device, Options(test=TESTS[name], iters=5)) as peer,
        case.lab.dial(PORT) as sock,
    ):
        peer.call(sock)
    assert peer.status == WcStatus.SUCCESS

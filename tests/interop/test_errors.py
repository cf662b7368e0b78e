"""What must not be, tried all the same: each side's answer to the other's mistakes, and what the verbs make of it."""

from __future__ import annotations

import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pytest

from softrnic.control.perftest import TESTS, Keys, Perftest, Result
from softrnic.control.perftest import Options as PerftestOptions
from softrnic.control.pingpong import PORT, Options, Pingpong, PingpongError
from softrnic.control.pingpong.exchange import answer, ask
from softrnic.errors import WireError
from softrnic.spec import WcStatus, WrOpcode
from softrnic.verbs import SendWr
from tests.interop.conftest import Case
from tests.interop.lab import MARKS, MTU, OURS
from tools.vmlib import Process

SECTION = "errors"
pytestmark = MARKS

SECONDS = 5.0
RNR_RETRY_NS = 640_000  # what ibv_rc_pingpong asks for: min_rnr_timer 12
ACK_TIMEOUT_S = 4.096e-6 * (1 << 14)  # its timeout, 14
RETRIES = 7


# --- our mistakes -------------------------------------------------------------------------------------------


class Caller(Pingpong):
    """Connected to ibv_rc_pingpong, which serves; what is sent is decided by the test."""

    def meet(self, case: Case) -> None:
        with case.lab.dial(PORT) as sock:
            self._connect(ask(sock, self._introduce()))

    def post(self, opcode: WrOpcode, length: int, **fields: int) -> None:
        self._qps[0].post_send(SendWr(opcode, [self._regions[0].sge(0, length)], wr_id=2, **fields))

    def status(self, seconds: float = SECONDS) -> WcStatus | None:
        """Of the oldest request that has not been asked for; None if it does not complete."""
        deadline = time.monotonic() + seconds
        while (left := deadline - time.monotonic()) > 0:
            for wc in self._cq.wait(left):
                if wc.wr_id == 2:  # else the guest has answered
                    return wc.status
        return None

    def send(self, opcode: WrOpcode, length: int, **fields: int) -> WcStatus | None:
        """The status of one request."""
        self.post(opcode, length, **fields)
        return self.status()


@contextmanager
def connected(case: Case, flags: str = "") -> Iterator[tuple[Caller, Process]]:
    """A queue pair of ours, and ibv_rc_pingpong with receives of 100 bytes at its other end."""
    case.lab.set_mtu(MTU)
    with (
        case.host() as host,
        case.lab.server(f"ibv_rc_pingpong -e -s 100 -n 100 -g {case.lab.gid_index(4)} {flags}") as process,
        Caller(host.device, Options(size=400, rx_depth=8)) as caller,
    ):
        caller.meet(case)
        yield caller, process


def test_message_too_long_for_rxe(case: Case) -> None:
    """DEVIATION(rxe): the NAK says remote operational error, where 9.9.3 has invalid request."""
    with connected(case) as (caller, _):
        assert caller.send(WrOpcode.SEND, 200) == WcStatus.REM_OP_ERR


ONE_SIDED = {
    "write": WrOpcode.RDMA_WRITE,
    "read": WrOpcode.RDMA_READ,
    "atomic": WrOpcode.ATOMIC_FETCH_AND_ADD,
}


@pytest.mark.parametrize("opcode", ONE_SIDED.values(), ids=ONE_SIDED)
def test_queue_pair_that_gives_no_access(case: Case, opcode: WrOpcode) -> None:
    """9.9.3: the QP is not configured for it: invalid request, whatever the key."""
    with connected(case) as (caller, _):
        assert caller.send(opcode, 8, remote_addr=0x1000, rkey=0x1234) == WcStatus.REM_INV_REQ_ERR


def test_invalidation_of_a_key_that_is_none(case: Case) -> None:
    """DEVIATION(rxe): the request is acknowledged, and the error is a matter of the receiver only."""
    with connected(case) as (caller, process):
        assert caller.send(WrOpcode.SEND_WITH_INV, 100, imm=0x1234) == WcStatus.SUCCESS
        assert "remote invalid request error" in process.wait().stderr


class Prober(Perftest):
    """Connected to a server of perftest; one request of the test's, in place of the test."""

    def __init__(self, *args: object, probe: Callable[[Keys], SendWr]) -> None:
        super().__init__(*args)
        self._probe = probe
        self.status: WcStatus | None = None

    def _run(self) -> Result:
        wr = self._probe(self._there)
        wr.sges = [self._mr.sge(0, 8)]
        self._qp.post_send(wr)
        self.status = self._send_cq.wait(SECONDS)[0].status
        return Result(self.options, 0.0, [])


WRONG = {
    "a key that is none": lambda keys: {"remote_addr": keys.vaddr, "rkey": keys.rkey ^ 0x5500},
    "a place before the region": lambda keys: {"remote_addr": keys.vaddr - (1 << 20), "rkey": keys.rkey},
    "a place behind the region": lambda keys: {"remote_addr": keys.vaddr + (1 << 20), "rkey": keys.rkey},
}


@pytest.mark.parametrize("wrong", WRONG.values(), ids=WRONG)
@pytest.mark.parametrize("opcode", [WrOpcode.RDMA_WRITE, WrOpcode.RDMA_READ], ids=["write", "read"])
def test_access_to(case: Case, opcode: WrOpcode, wrong: Callable[[Keys], dict[str, int]]) -> None:
    """9.9.3: remote access error."""
    case.lab.set_mtu(MTU)
    name = "write_bw" if opcode == WrOpcode.RDMA_WRITE else "read_bw"
    options = PerftestOptions(test=TESTS[name], iters=5)
    with (
        case.host() as host,
        case.lab.server(f"ib_{name} -F -n 5 -x {case.lab.gid_index(4)}"),
        Prober(host.device, options, probe=lambda keys: SendWr(opcode, **wrong(keys))) as prober,
        case.lab.dial(PORT) as sock,
    ):
        prober.call(sock)
    assert prober.status == WcStatus.REM_ACCESS_ERR


# --- mistakes of the guest's --------------------------------------------------------------------------------


def test_message_too_long_for_us(case: Case) -> None:
    """9.9.3: invalid request; the receive completes with a length error."""
    command = f"ibv_rc_pingpong -e -s 200 -n 5 -g {case.lab.gid_index(4)} {OURS[4]}"
    with (
        case.host() as host,
        Pingpong(host.device, Options(size=100, events=True)) as game,
        case.lab.listen(PORT) as listener,
        case.guest.spawn(command) as process,
    ):
        with pytest.raises(PingpongError, match="local length error"):
            game.serve(listener)
        ended = process.wait()
    assert "Failed status remote invalid request error (9)" in ended.stderr


class Liar(Perftest):
    """Tells a key that is none of its own."""

    def _keys(self) -> Keys:
        return super()._keys()._replace(rkey=0x1234)


@pytest.mark.parametrize("name", ["write_bw", "read_bw", "atomic_lat"])
def test_key_that_we_do_not_have(case: Case, name: str) -> None:
    """9.9.3: remote access error."""
    command = f"ib_{name} -F -n 5 -x {case.lab.gid_index(4)} {OURS[4]}"
    with (
        case.host() as host,
        Liar(host.device, PerftestOptions(test=TESTS[name], iters=5)) as liar,
        case.lab.listen(PORT) as listener,
        case.guest.spawn(command) as process,
    ):
        with pytest.raises(WireError, match="hung up"):
            liar.serve(listener)
        ended = process.wait()
    assert ended.rc != 0
    assert "status 10" in ended.stdout + ended.stderr


# --- peers that are not ready, or no more -------------------------------------------------------------------


def test_rxe_is_not_ready(case: Case) -> None:
    """9.7.5.2.8: we ask again no sooner than it wants, as often as it takes."""
    with connected(case, "-r 2") as (caller, process):
        process.kill(signal.SIGSTOP)
        for _ in range(2):
            assert caller.send(WrOpcode.SEND, 100) == WcStatus.SUCCESS
        began = time.monotonic_ns()
        caller.post(WrOpcode.SEND, 100)
        assert caller.status(0.1) is None
        asked = caller.device.counters()["rcvd_rnr_err"]
        assert 2 <= asked <= (time.monotonic_ns() - began) // RNR_RETRY_NS + 1
        process.kill(signal.SIGCONT)
        assert caller.status() == WcStatus.SUCCESS


class Unready(Pingpong):
    """Serves without a receive until it is told to."""

    ready = False

    def _post_receives(self) -> None:
        if self.ready:
            super()._post_receives()


def test_we_are_not_ready(case: Case) -> None:
    """The guest asks again until a receive is there."""
    command = f"ibv_rc_pingpong -e -s 100 -n 5 -g {case.lab.gid_index(4)} {OURS[4]}"
    with case.host() as host, Unready(host.device, Options(size=100, iters=5, events=True)) as game:
        own = game._introduce()
        with case.lab.listen(PORT) as listener, case.guest.spawn(command) as process:
            with listener.accept()[0] as sock:
                answer(sock, own, game._connect)
            deadline = time.monotonic() + SECONDS
            while host.device.counters()["send_rnr_err"] < 3:
                assert time.monotonic() < deadline
                assert process.poll() is None
            game.ready = True
            game._post_receives()
            game._play(first=False)
            ended = process.wait()
    assert ended.rc == 0
    assert "5 iters in" in ended.stdout


def test_peer_that_is_gone(case: Case) -> None:
    """9.9.2.1.1: all retries, each after the whole timeout."""
    with connected(case) as (caller, process):
        process.kill(signal.SIGKILL)
        process.wait()
        began = time.monotonic()
        assert caller.send(WrOpcode.SEND, 100) == WcStatus.RETRY_EXC_ERR
        assert (RETRIES + 1) * ACK_TIMEOUT_S <= time.monotonic() - began < SECONDS

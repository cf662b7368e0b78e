"""A function of ours moves in mid-stream, and soft-RoCE at the other end knows nothing of it but a pause."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

from softrnic.control import cm
from softrnic.control.host import Host
from softrnic.control.perftest import PORT, TESTS, Options, Perftest
from softrnic.control.pingpong import Kind
from softrnic.control.pingpong import Options as PingpongOptions
from softrnic.migrate import Peer, survival
from softrnic.spec import Mtu, WcStatus, WrOpcode
from softrnic.verbs import Access, QpCap, RecvWr, SendFlags, SendWr
from tests.interop.conftest import Case
from tests.interop.lab import GUEST, MARKS, MTU, OURS, Lab
from tests.interop.moving import MOVES, MovingPerftest, MovingPingpong, Traveller, open_places
from tools.vmlib import Process

SECTION = "migration"
pytestmark = MARKS

ROLES = ["serve", "call"]
POLICIES = ["silence", "rnr"]


@pytest.fixture(scope="module")
def places(lab: Lab) -> Iterator[list[Host]]:
    with open_places(lab) as hosts:
        yield hosts


def command(case: Case, options: Options, version: int = 4) -> str:
    flags = f"-F -n {options.iters} -m {options.mtu.bytes} -x {case.lab.gid_index(version)} -u {options.qp_timeout}"
    size = "" if options.test.opcode == WrOpcode.ATOMIC_FETCH_AND_ADD else f" -s {options.size}"
    return f"ib_{options.test.name} {flags}{size}{' -e' if options.test.two_sided else ''}"


@contextlib.contextmanager
def explained(process: Process, traveller: Traveller) -> Iterator[None]:
    """What fails here has the guest's words with it."""
    try:
        yield
    except Exception as error:
        ended = process.wait()
        error.add_note(f"after {traveller.moves} moves the guest said: {ended.stdout} {ended.stderr}")
        for host in traveller.places:
            error.add_note(f"{ {k: v for k, v in host.device.counters().items() if v} }")
        raise


def measure(case: Case, role: str, peer: MovingPerftest, options: Options) -> None:
    """One test to its end, which both sides must call a success."""
    if role == "serve":
        with case.lab.listen(PORT) as listener, case.guest.spawn(f"{command(case, options)} {OURS[4]}") as process:
            with explained(process, peer.traveller):
                peer.serve(listener)
            ended = process.wait()
    else:
        with case.lab.server(command(case, options)) as process, case.lab.dial(PORT) as sock:
            with explained(process, peer.traveller):
                peer.call(sock)
            ended = process.wait()
    assert ended.rc == 0, ended.stderr


@pytest.mark.parametrize("role", ROLES)
@pytest.mark.parametrize("name", ["write_bw", "read_bw", "atomic_bw", "send_bw", "write_lat"])
@pytest.mark.parametrize("policy", POLICIES)
def test_moves_in_mid_stream(case: Case, places: list[Host], policy: str, name: str, role: str) -> None:
    """Twenty times, in both directions; what can be seen of the data is right, and each atomic was done once."""
    case.lab.set_mtu(MTU)
    test = TESTS[name]
    small = test.latency or test.opcode == WrOpcode.ATOMIC_FETCH_AND_ADD
    options = Options(test=test, size=0 if small else 8192, iters=400, tx_depth=32, rx_depth=64)
    with Traveller(places, policy) as traveller, MovingPerftest(traveller, options) as peer:
        measure(case, role, peer, options)
        assert traveller.moves == MOVES
        if name == "atomic_bw" and role == "serve":
            assert peer.room.view(np.int64).sum() == options.iters
        elif name in ("write_bw", "send_bw") and role == "serve":
            assert np.count_nonzero(peer.inbox) > len(peer.inbox) * 0.9
        elif name == "read_bw" and role == "call":
            assert np.count_nonzero(peer.outbox) > 0
        counters = [host.device.counters() for host in places]
    for bad in ("bad_response", "retry_exceeded_err", "retry_rnr_exceeded_err", "cqe_error"):
        assert sum(values[bad] for values in counters) == 0


@pytest.mark.parametrize("role", ROLES)
@pytest.mark.parametrize("policy", POLICIES)
def test_moves_between_messages_compared_by_both(case: Case, places: list[Host], policy: str, role: str) -> None:
    """ibv_rc_pingpong -c: the guest looks at every page it gets, and we compare every byte."""
    from softrnic.control.pingpong import PORT as PINGPONG_PORT

    case.lab.set_mtu(MTU)
    options = PingpongOptions(
        kind=Kind.RC, size=20_000, iters=100, mtu=Mtu.MTU_1024, events=True, check=True, stall_seconds=20
    )  # fmt: skip
    words = f"ibv_rc_pingpong -e -c -s {options.size} -n {options.iters} -m 1024 -g {case.lab.gid_index(4)}"
    with Traveller(places, policy) as traveller, MovingPingpong(traveller, options) as game:
        if role == "serve":
            with case.lab.listen(PINGPONG_PORT) as listener, case.guest.spawn(f"{words} {OURS[4]}") as process:
                result = game.serve(listener)
                ended = process.wait()
        else:
            with case.lab.server(words) as process, case.lab.dial(PINGPONG_PORT) as sock:
                result = game.call(sock)
                ended = process.wait()
        assert traveller.moves == MOVES
    assert (result.invalid_pages, ended.rc) == ([], 0)
    assert "invalid" not in ended.stdout


# --- survival -------------------------------------------------------------------------------------------------


class Pausing(MovingPerftest):
    """Our end of a perftest, away for a while in the middle of it."""

    pause, policy = 0.0, ""

    def _run(self) -> Any:
        self.traveller.wait_for_traffic()
        self.device.suspend(self.policy)
        end = time.monotonic() + self.pause
        while (left := end - time.monotonic()) > 0:
            time.sleep(left)
        self.device.resume()
        return Perftest._run(self)


TIMEOUT = 12  # 16.8 ms


@pytest.mark.parametrize(
    ("policy", "factor"),
    [("silence", 0.9), ("silence", 6.0), ("rnr", 6.0)],
    ids=["silence within the bound", "silence beyond it", "held beyond it"],
)
@pytest.mark.parametrize("name", ["write_bw", "read_bw", "atomic_bw"])
def test_a_pause_with_retries_that_do_not_end(
    case: Case, places: list[Host], name: str, policy: str, factor: float
) -> None:
    """perftest asks for 7 retries of each kind. DEVIATION(rxe): 7 timeouts are without end too, not only 7 RNR NAKs."""
    case.lab.set_mtu(MTU)
    options = Options(test=TESTS[name], size=8192, iters=400, tx_depth=32, qp_timeout=TIMEOUT)
    until = survival(Peer(TIMEOUT, 7, 7), 1).until_ns
    assert until is not None
    assert survival(Peer(TIMEOUT, 7, 7, policy), int(until * factor)).survives == (policy == "rnr" or factor < 1)
    with Traveller(places, policy) as traveller, Pausing(traveller, options) as peer:
        peer.pause, peer.policy = until * factor / 1e9, policy
        measure(case, "serve", peer, options)


MESSAGES, SIZE = 10, 100_000
# A timeout that a busy guest does not exceed by itself: an RNR NAK that comes too late costs soft-RoCE a retry, and
# unlike us it gets none back before something is acknowledged.
BUDGETS = {
    "silence": Peer(14, 3, 7, "silence"),  # 67 ms
    "rnr": Peer(16, 3, 2, "rnr", rnr_timer=26),  # 82 ms
    "rnr without end": Peer(16, 3, 7, "rnr", rnr_timer=20),
}


async def paused(host: Host, guest: Peer, pause_ns: int) -> int:
    """How many messages of the guest's came, when it was made to wait in the midst of them."""
    with host.device.alloc_pd() as pd:
        room = pd.reg_mr(np.zeros(SIZE, np.uint8), Access.LOCAL_WRITE)
        init = cm.QpInit(
            pd=pd, cap=QpCap(MESSAGES, MESSAGES),
            prepare=lambda qp: qp.post_recv([RecvWr([room.sge(0, SIZE)])] * MESSAGES),
        )  # fmt: skip
        param = cm.ConnParam(
            retry_count=guest.retry_cnt, rnr_retry_count=guest.rnr_retry, ack_timeout=guest.timeout
        )  # fmt: skip
        connection = await cm.connect(host.device, (GUEST[4], 7471), qp=init, param=param)
        try:
            connection.qp.suspend(guest.policy, rnr_timer=guest.rnr_timer)
            await asyncio.sleep(pause_ns / 1e9)
            connection.qp.resume()
            came = 0
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(8):
                    while came < MESSAGES:
                        for wc in await connection.recv_cq.next():
                            if wc.status != WcStatus.SUCCESS:
                                return came
                            came += 1
                connection.qp.post_send([SendWr(WrOpcode.SEND, [room.sge(0, SIZE)], flags=SendFlags(0))] * MESSAGES)
                await connection.wait_disconnected()
            return came
        finally:
            await connection.close()


@pytest.mark.parametrize("lives", [True, False], ids=["within the bound", "far beyond it"])
@pytest.mark.parametrize("budget", BUDGETS)
def test_a_pause_with_finite_retries(case: Case, budget: str, lives: bool) -> None:
    """What `survival` says holds for soft-RoCE; beyond the bound it may wait up to four times longer (9.9.1.1)."""
    case.lab.set_mtu(MTU)
    guest = BUDGETS[budget]
    until = survival(guest, 1).until_ns
    pause = int((0.7 if lives else 6) * (until or 200_000_000))
    expected = survival(guest, pause).survives
    assert expected == (lives or until is None)
    with (
        case.host() as host,
        case.lab.server(f"ucmatose -C {MESSAGES} -S {SIZE}", port=None),
    ):
        came = asyncio.run(paused(host, guest, pause))
    assert (came == MESSAGES) == expected, came

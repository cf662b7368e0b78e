"""ibv_rc_pingpong, ibv_uc_pingpong, ibv_ud_pingpong and ibv_srq_pingpong of rdma-core, each way round."""

from __future__ import annotations

from dataclasses import replace
from typing import NamedTuple

import pytest

from softrnic.control.host import Host
from softrnic.control.pingpong import PORT, Kind, Options, Pingpong
from softrnic.spec import Mtu, WrOpcode
from softrnic.verbs import SendWr
from tests.interop.conftest import Case
from tests.interop.lab import MARKS, OURS

SECTION = "ibv_*_pingpong"
pytestmark = MARKS

ROLES = ["serve", "call"]


class Play(NamedTuple):
    """A game, as both sides are told of it."""

    kind: Kind
    size: int
    iters: int
    mtu: int = 1024
    version: int = 4
    events: bool = True

    def flags(self, gid_index: int) -> str:
        """Of the stock program."""
        mtu = "" if self.kind is Kind.UD else f" -m {self.mtu}"
        return f"ibv_{self.kind.value}_pingpong -e -c -s {self.size} -n {self.iters} -g {gid_index}{mtu}"

    def options(self, host: Host) -> Options:
        """Of ours."""
        gid_index = next(gid.index for gid in host.device.gids.values() if gid.ip.version == self.version)
        mtu = next(mtu for mtu in Mtu if mtu.bytes == self.mtu)
        return Options(
            kind=self.kind,
            size=self.size,
            iters=self.iters,
            mtu=mtu,
            gid_index=gid_index,
            events=self.events,
            check=True,
        )


def play(case: Case, host: Host, role: str, play: Play, *, ours: str = OURS[4]) -> None:
    """One game to its end, its contents checked on both sides."""
    command = play.flags(case.lab.gid_index(play.version))
    with Pingpong(host.device, play.options(host)) as game:
        if role == "serve":
            with case.lab.listen(PORT) as listener, case.guest.spawn(f"{command} {ours}") as process:
                result = game.serve(listener)
                ended = process.wait()
        else:
            with case.lab.server(command) as process, case.lab.dial(PORT) as sock:
                result = game.call(sock)
                ended = process.wait()
    assert result.invalid_pages == []
    assert ended.rc == 0
    assert f"{play.iters} iters in" in ended.stdout
    assert "invalid" not in ended.stdout


SIZES = {"1 B": 1, "PMTU less 1": 1023, "PMTU": 1024, "PMTU and 1": 1025, "64 KiB": 65536, "1 MiB": 1 << 20}


@pytest.mark.parametrize("role", ROLES)
@pytest.mark.parametrize("size", SIZES.values(), ids=SIZES)
@pytest.mark.parametrize("kind", [Kind.RC, Kind.UC], ids=["rc", "uc"])
def test_size(case: Case, kind: Kind, size: int, role: str) -> None:
    case.lab.set_mtu(1500)
    with case.host() as host:
        play(case, host, role, Play(kind, size, 20 if size < 65536 else 4))


@pytest.mark.parametrize("role", ROLES)
@pytest.mark.parametrize("size", [1, 1023, 1024], ids=["1 B", "PMTU less 1", "PMTU"])
def test_datagram(case: Case, size: int, role: str) -> None:
    case.lab.set_mtu(1500)
    with case.host() as host:
        play(case, host, role, Play(Kind.UD, size, 20))


@pytest.mark.parametrize("role", ROLES)
@pytest.mark.parametrize("size", [1, 10_000], ids=["1 B", "10000 B"])
def test_shared_receive_queue(case: Case, size: int, role: str) -> None:
    """16 queue pairs at a time."""
    case.lab.set_mtu(1500)
    with case.host() as host:
        play(case, host, role, Play(Kind.SRQ, size, 100))


@pytest.mark.parametrize("role", ROLES)
@pytest.mark.parametrize("kind", Kind, ids=[kind.value for kind in Kind])
def test_ipv6(case: Case, kind: Kind, role: str) -> None:
    case.lab.set_mtu(1500)
    with case.host() as host:
        play(case, host, role, Play(kind, 1000, 20, version=6))


@pytest.mark.parametrize("role", ROLES)
@pytest.mark.parametrize("mtu", [256, 512, 1024, 2048, 4096])
def test_path_mtu(case: Case, mtu: int, role: str) -> None:
    case.lab.set_mtu(9000)
    with case.host() as host:
        play(case, host, role, Play(Kind.RC, 3 * mtu + 1, 20, mtu))


@pytest.mark.parametrize("role", ROLES)
def test_largest_datagram(case: Case, role: str) -> None:
    case.lab.set_mtu(9000)
    with case.host() as host:
        play(case, host, role, Play(Kind.UD, 4096, 20))


@pytest.mark.parametrize("role", ROLES)
def test_polling(case: Case, role: str) -> None:
    """Ours; the guest sleeps, or its one processor would have no time for soft-RoCE."""
    case.lab.set_mtu(9000)
    with case.host() as host:
        play(case, host, role, Play(Kind.RC, 5000, 20, events=False))


@pytest.mark.parametrize("role", ROLES)
@pytest.mark.parametrize("version", [4, 6], ids=["IPv4", "IPv6"])
def test_tap(case: Case, version: int, role: str) -> None:
    """Our NIC is the user side of a tap: it answers ARP and neighbour solicitations itself."""
    case.lab.set_mtu(9000)
    with case.host(tap=True, version=version) as host:
        play(case, host, role, Play(Kind.RC, 5000, 20, version=version))


@pytest.mark.parametrize("role", ROLES)
def test_compiled_pump(case: Case, role: str) -> None:
    """As in earnest: a bare port, nothing but compiled code between it and the engine. No capture."""
    case.lab.set_mtu(9000)
    with case.lab.host() as host:
        play(case, host, role, Play(Kind.RC, 1 << 20, 10, 4096))


@pytest.mark.parametrize("role", ROLES)
def test_empty_datagram(case: Case, role: str) -> None:
    case.lab.set_mtu(9000)
    with case.host() as host:
        play(case, host, role, Play(Kind.UD, 0, 20))


@pytest.mark.parametrize("kind", [Kind.RC, Kind.UC], ids=["rc", "uc"])
def test_empty_message_from_the_stock_program(case: Case, kind: Kind) -> None:
    ended = case.guest.run(Play(kind, 0, 20).flags(1))
    assert ended.rc != 0
    assert "Couldn't register MR" in ended.stderr
    case.unsupported("rxe registers no region of 0 bytes, and the program has no other")


class Terse(Pingpong):
    """Says nothing, and listens all the same."""

    def _send(self, i: int, first: bool) -> None:
        self._qps[i].post_send(SendWr(WrOpcode.SEND, wr_id=2))


@pytest.mark.parametrize("kind", [Kind.RC, Kind.UC], ids=["rc", "uc"])
def test_empty_message(case: Case, kind: Kind) -> None:
    """Ours are empty; what the guest answers with is its whole buffer."""
    play = Play(kind, 100, 20)
    with case.host() as host:
        options = replace(play.options(host), check=False)
        with (
            Terse(host.device, options) as game,
            case.lab.server(play.flags(case.lab.gid_index(4))) as process,
            case.lab.dial(PORT) as sock,
        ):
            game.call(sock)
            ended = process.wait()
    assert ended.rc == 0
    assert "20 iters in" in ended.stdout

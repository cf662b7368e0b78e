"""ibv_rc_pingpong, ibv_uc_pingpong, ibv_ud_pingpong and ibv_srq_pingpong of rdma-core, each way round."""

from __future__ import annotations

from typing import NamedTuple

import pytest

from softrnic.control.host import Host
from softrnic.control.pingpong import PORT, Kind, Options, Pingpong
from softrnic.spec import Mtu
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


def play(case: Case, host: Host, role: str, play: Play) -> None:
    """One game to its end, its contents checked on both sides."""
    command = play.flags(case.lab.gid_index(play.version))
    with Pingpong(host.device, play.options(host)) as game:
        if role == "serve":
            with case.lab.listen(PORT) as listener, case.guest.spawn(f"{command} {OURS[4]}") as process:
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

"""Super-frames towards a peer that knows none: packets of their own by the time soft-RoCE sees them, every ICRC right.

rxe counts what it takes after it has checked the ICRC, and has no counter for what it refuses: the proof is that it has
taken as many packets as our NIC has sent.
"""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from softrnic.control.pingpong import PORT, Options, Pingpong
from softrnic.spec import Mtu
from tests.interop.conftest import Case
from tests.interop.lab import MARKS, MTU, Lab

SECTION = "super-frames"
pytestmark = MARKS

SIZE, ITERS = 1 << 20, 5


@pytest.fixture
def whole(request: pytest.FixtureRequest, lab: Lab) -> Iterator[bool]:
    """Whether the guest's network device takes super-frames whole, or has the host's kernel cut them."""
    whole = bool(request.param)
    lab.guest.check(f"ethtool -K eth0 rx-gro-hw {'on' if whole else 'off'}")
    yield whole
    lab.guest.check("ethtool -K eth0 rx-gro-hw on")


@pytest.mark.parametrize("version", [4, 6], ids=["IPv4", "IPv6"])
@pytest.mark.parametrize("mtu", [1024, 4096], ids=["PMTU 1024", "PMTU 4096"])
@pytest.mark.parametrize("whole", [True, False], ids=["cut in the guest", "cut on the way"], indirect=True)
def test_super_frames(case: Case, whole: bool, mtu: int, version: int) -> None:
    """A bare port, as in earnest. A switch whose queue is full may drop packets; nobody else may."""
    case.lab.set_mtu(MTU)
    rxe, frames, dropped = case.guest.counters(), frames_received(case.lab), case.lab.switch_drops()
    with case.lab.host() as host:
        gid_index = next(gid.index for gid in host.device.gids.values() if gid.ip.version == version)
        path_mtu = next(m for m in Mtu if m.bytes == mtu)
        options = Options(size=SIZE, iters=ITERS, mtu=path_mtu, gid_index=gid_index, events=True, check=True)
        command = f"ibv_rc_pingpong -e -c -s {SIZE} -n {ITERS} -m {mtu} -g {case.lab.gid_index(version)}"
        with (
            Pingpong(host.device, options) as game,
            case.lab.server(command) as process,
            case.lab.dial(PORT) as sock,
        ):
            result = game.call(sock)
            ended = process.wait()
        ours, port = host.device.counters(), host.port.counters()
    rxe = {name: value - rxe[name] for name, value in case.guest.counters().items()}
    frames, dropped = frames_received(case.lab) - frames, case.lab.switch_drops() - dropped
    assert (result.invalid_pages, ended.rc) == ([], 0)
    assert "invalid" not in ended.stdout
    assert port["tx_frames"] < port["tx_segments"] / 4  # there were super-frames
    assert port["tx_segments"] == ours["sent_pkts"]
    assert rxe["rcvd_pkts"] + dropped == ours["sent_pkts"]
    assert rxe["sent_pkts"] == ours["rcvd_pkts"]
    assert (frames < rxe["rcvd_pkts"] / 4) == whole


def frames_received(lab: Lab) -> int:
    """By the guest's network device; a super-frame counts once."""
    return int(lab.guest.check("cat /sys/class/net/eth0/statistics/rx_packets"))

"""The last act: one of two NICs that talk to each other moves to a third host, in the middle of their messages.

Decides who talks to whom, what moves, and what makes it a success. Says what it is doing to a `Progress`.
"""

from __future__ import annotations

import asyncio
import contextlib
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import uvloop

from softrnic.control.daemon import HostPlace, leave
from softrnic.control.demo.talk import AREA, Seat, Talker
from softrnic.control.fabric import network
from softrnic.control.function import Function
from softrnic.control.host import Host
from softrnic.control.migration import Arrival, Arrivals, Departure, Owner, Report, dial_unix, listen_unix
from softrnic.control.pair import CAP, PEER_ACCESS, connect_pair
from softrnic.errors import SoftRnicError
from softrnic.migrate.precopy import Limits
from softrnic.verbs import Device, QpType

ADDRESS = "10.9.1.99/24"
POLICY = "rnr"
LIMITS = Limits(downtime_ns=50_000_000)
WAIT_SECONDS = 60.0

Progress = Callable[[str], AbstractContextManager[None]]


@dataclass
class Move:
    """What came of it. Packet counts are sums over all hosts."""

    nbytes: int = 0
    wrong_bytes: int = 0
    downtime_ms: float = 0.0
    pages_per_round: list[int] = field(default_factory=list)
    state_bytes: int = 0
    lost: int = 0
    """Packets that arrived where the function was not running, and were dropped."""
    held: int = 0
    """RNR NAKs, by which the peer was asked to wait."""
    retransmitted: int = 0
    forwarded: int = 0
    error: str = ""

    @property
    def ok(self) -> bool:
        """It moved, and every byte is right."""
        return not self.error and self.wrong_bytes == 0 and self.nbytes > 0


class _Moving(Owner):
    """The program whose NIC moves, at the source."""

    def __init__(self, talker: Talker) -> None:
        self._talker = talker

    def pause(self) -> None:
        self._talker.pause()

    def resume(self) -> None:
        self._talker.go_on()


class _Home(HostPlace):
    """The same program at the destination: it goes on with the objects that have come."""

    def __init__(self, host: Host, talker: Talker) -> None:
        super().__init__(host)
        self._talker = talker

    def on_start(self, arrival: Arrival) -> None:
        made = arrival.restored
        self._talker.go_on(
            Seat(
                next(iter(made.qps.values())), next(iter(made.cqs.values())), next(iter(made.mrs.values())),
                next(iter(arrival.memory.values())),
            )
        )  # fmt: skip


@contextlib.contextmanager
def _brisk() -> Iterator[None]:
    """Programs, pumps and migration share one interpreter here: none is to wait 5 ms until another lets go of it."""
    before = sys.getswitchinterval()
    sys.setswitchinterval(0.0002)
    try:
        yield
    finally:
        sys.setswitchinterval(before)


def run_move(*, privileged: bool, nbytes: int, seed: int, progress: Progress) -> Move:
    """Let two hosts talk, move one of them to a third, let them talk on: so many bytes before and after."""
    move = Move()
    try:
        with _brisk(), network(3, privileged=privileged) as hosts:
            with progress("a NIC moves: connecting"):
                function = hosts[0].add_function("nic0", ADDRESS)
                talkers = _talkers(function, hosts[1], seed)
            try:
                with progress("a NIC moves, in the middle of its messages"):
                    uvloop.run(_story(hosts, function, talkers, nbytes, move))
            finally:
                for talker in talkers:
                    talker.stop()
            _judge(hosts, function, talkers, move)
    except (SoftRnicError, TimeoutError) as error:
        move.error = str(error) or type(error).__name__
    return move


def _talkers(function: Function, peer: Host, seed: int) -> tuple[Talker, Talker]:
    """One on each side, each with part of the other's memory to write to."""
    seats = [_seat(device, seed + i) for i, device in enumerate((function.device, peer.device))]
    connect_pair(seats[0].qp, seats[1].qp)
    remotes = [(seat.mr.iova + 2 * AREA, seat.mr.rkey) for seat in reversed(seats)]
    first, second = (Talker(seats[i], remotes[i], seed + i) for i in range(2))
    return first, second


def _seat(device: Device, seed: int) -> Seat:
    pd, cq = device.alloc_pd(), device.create_cq(256)
    data = np.random.default_rng(seed).integers(0, 256, 16 * AREA, np.uint8)  # most of it is never written again
    mr = pd.reg_mr(data, PEER_ACCESS)
    return Seat(pd.create_qp(QpType.RC, cq, cq, CAP), cq, mr, data)


async def _story(
    hosts: list[Host], function: Function, talkers: tuple[Talker, Talker], nbytes: int, move: Move
) -> None:
    for talker in talkers:
        talker.start()
    await _until(talkers, nbytes)
    with tempfile.TemporaryDirectory() as directory:
        door = Path(directory) / "arrivals"
        arrivals = Arrivals(_Home(hosts[2], talkers[0]))
        async with listen_unix(arrivals, door):
            departure = Departure(
                function.device, dial_unix(door), owner=_Moving(talkers[0]), limits=LIMITS, policy=POLICY,
                leave=lambda mac: leave(function, mac),
            )  # fmt: skip
            _take(await departure.run(), move)
    await _until(talkers, nbytes + max(talker.nbytes for talker in talkers))


async def _until(talkers: tuple[Talker, Talker], nbytes: int) -> None:
    """Until both have verified so many bytes, or one has failed."""
    async with asyncio.timeout(WAIT_SECONDS):
        while any(talker.nbytes < nbytes for talker in talkers) and not any(talker.error for talker in talkers):
            await asyncio.sleep(0.005)


def _take(report: Report, move: Move) -> None:
    move.downtime_ms = report.downtime_ns / 1e6
    move.pages_per_round = report.pages
    move.state_bytes = report.state_bytes


def _judge(hosts: list[Host], function: Function, talkers: tuple[Talker, Talker], move: Move) -> None:
    for talker in talkers:
        move.nbytes += talker.nbytes
        move.wrong_bytes += talker.wrong_bytes
        move.error = move.error or talker.error
    for host in hosts:
        counters = host.device.counters()
        move.lost += counters["drop_suspended"] + counters["drop_address"]
        move.held += counters["send_rnr_err"]
        move.retransmitted += counters["retransmitted_pkts"]
    move.forwarded = function.forwarded()

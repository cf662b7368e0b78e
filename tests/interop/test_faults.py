"""A bad wire between softrnic and soft-RoCE: packets lost, doubled, overtaken damaged; in the end no byte is wrong."""

from __future__ import annotations

import asyncio
from typing import NamedTuple

import pytest

from netio.fault import NO_FAULTS, FaultPort, Faults
from softrnic.control import rping
from softrnic.control.host import Host
from softrnic.control.pingpong import PORT, Kind, Options, Pingpong
from softrnic.control.rping import ping_text
from tests.interop.conftest import Case
from tests.interop.lab import GUEST, MARKS, OURS
from tools.vmlib import Guest

SECTION = "bad wire"
pytestmark = MARKS

ROLES = ["serve", "call"]
LOSS = Faults(loss=0.01)
WAYS = {"to rxe": (LOSS, NO_FAULTS), "from rxe": (NO_FAULTS, LOSS), "both ways": (LOSS, LOSS)}


class Tally(NamedTuple):
    """Packets, as both NICs and the wire between them have counted."""

    sent: int
    """By our NIC."""
    arrived: int
    """At our NIC."""
    lost_out: int
    lost_in: int
    rxe_sent: int
    rxe_arrived: int
    repeated_late: int
    """By our NIC, once the wire was good again."""


class Bookkeeper:
    """Counts from now on."""

    def __init__(self, host: Host, guest: Guest) -> None:
        self._host = host
        self._guest = guest
        self._before = guest.counters()
        self._repeated_before_good: int | None = None

    def wire_is_good(self) -> None:
        """What is sent again from now on, was not lost."""
        self._repeated_before_good = self._repeated()

    def _repeated(self) -> int:
        """Requests of ours sent again, and answers to rxe's that were."""
        counters = self._host.device.counters()
        return counters["retransmitted_pkts"] + counters["duplicate_request"]

    def tally(self) -> Tally:
        ours, wire, rxe = self._host.device.counters(), self._host.port.counters(), self._guest.counters()
        rxe = {name: value - self._before[name] for name, value in rxe.items()}
        lost = wire.get("fault_tx_lost", 0), wire.get("fault_rx_lost", 0)
        late = 0 if self._repeated_before_good is None else self._repeated() - self._repeated_before_good
        return Tally(ours["sent_pkts"], ours["rcvd_pkts"], *lost, rxe["sent_pkts"], rxe["rcvd_pkts"], late)


def check(tally: Tally) -> None:
    """Whatever one side has sent, the other has taken, but for what the wire has lost: not one dropped for its ICRC.

    rxe does not count what comes to a QP that it has destroyed. It does so as soon as it has what it waited for, while
    a late timer of ours may send that again.
    """
    assert 0 <= tally.sent - tally.lost_out - tally.rxe_arrived <= tally.repeated_late
    assert tally.arrived == tally.rxe_sent - tally.lost_in


# --- SEND ---------------------------------------------------------------------------------------------------


def pingpong(case: Case, host: Host, role: str, size: int, iters: int) -> None:
    """Messages there and back, compared by us and looked at by the guest."""
    options = Options(kind=Kind.RC, size=size, iters=iters, events=True, check=True, stall_seconds=30)
    command = f"ibv_rc_pingpong -e -c -s {size} -n {iters} -g {case.lab.gid_index(4)}"
    with Pingpong(host.device, options) as game:
        if role == "serve":
            with case.lab.listen(PORT) as listener, case.guest.spawn(f"{command} {OURS[4]}") as process:
                result = game.serve(listener)
                ended = process.wait()
        else:
            with case.lab.server(command) as process, case.lab.dial(PORT) as sock:
                result = game.call(sock)
                ended = process.wait()
    assert (result.invalid_pages, ended.rc) == ([], 0)
    assert "invalid" not in ended.stdout


@pytest.mark.parametrize("role", ROLES)
@pytest.mark.parametrize("way", WAYS.values(), ids=WAYS)
def test_loss_of_1_percent_send(case: Case, way: tuple[Faults, Faults], role: str) -> None:
    case.lab.set_mtu(1500)
    with case.host(faults=way) as host:
        book = Bookkeeper(host, case.guest)
        pingpong(case, host, role, 200_000, 4)
        tally = book.tally()
    assert bool(tally.lost_out) == bool(way[0].loss)
    assert bool(tally.lost_in) == bool(way[1].loss)
    check(tally)


# --- READ and WRITE -----------------------------------------------------------------------------------------


def ping(case: Case, host: Host, role: str, faults: tuple[Faults, Faults], count: int, book: Bookkeeper) -> None:
    """Text there by RDMA READ and back by RDMA WRITE. The wire is bad from the first ping to the last."""
    size, texts = 65535, []
    port = host.port
    assert isinstance(port, FaultPort)

    def say(text: str) -> None:
        texts.append(text.partition("ping data: ")[2])
        good = len(texts) == count
        port.tx.faults, port.rx.faults = (NO_FAULTS, NO_FAULTS) if good else faults
        if good:
            book.wire_is_good()

    async def limited(ours: object, command: str) -> int:
        async with asyncio.timeout(60):
            task = asyncio.ensure_future(ours)
            await asyncio.sleep(0)
            if role == "call":
                return await task
            with await asyncio.to_thread(case.guest.spawn, command) as process:
                await task
                return (await asyncio.to_thread(process.wait)).rc

    options = rping.Options(size=size, count=count, validate=True)
    flags = f"-C {count} -S {size} -V"
    if role == "serve":
        ours = rping.serve(host.device, OURS[4], rping.PORT, options, say)
        assert asyncio.run(limited(ours, f"rping -c -a {OURS[4]} {flags}")) == 0
    else:
        with case.lab.server(f"rping -s -a {GUEST[4]} {flags}", port=None) as process:
            ours = rping.call(host.device, GUEST[4], rping.PORT, options, say)
            asyncio.run(limited(ours, ""))
            assert process.wait().rc == 0
    assert texts == [ping_text(number, size)[:-1].decode() for number in range(count)]


@pytest.mark.parametrize("role", ROLES)
@pytest.mark.parametrize("way", WAYS.values(), ids=WAYS)
def test_loss_of_1_percent_read_and_write(case: Case, way: tuple[Faults, Faults], role: str) -> None:
    case.lab.set_mtu(1500)
    with case.host(faults=(NO_FAULTS, NO_FAULTS)) as host:
        book = Bookkeeper(host, case.guest)
        ping(case, host, role, way, 16, book)
        tally = book.tally()
    assert bool(tally.lost_out) == bool(way[0].loss)
    assert bool(tally.lost_in) == bool(way[1].loss)
    check(tally)


# --- other faults -------------------------------------------------------------------------------------------


FAULTS = {
    "doubled": Faults(duplicate=0.05),
    "overtaken": Faults(reorder=0.02, reorder_ns=2_000_000),
    "damaged": Faults(corrupt=0.01),
}


@pytest.mark.parametrize("role", ROLES)
@pytest.mark.parametrize("faults", FAULTS.values(), ids=FAULTS)
def test_packets_are(case: Case, faults: Faults, role: str) -> None:
    case.lab.set_mtu(1500)
    with case.host(faults=(faults, faults), judged=not faults.corrupt) as host:
        pingpong(case, host, role, 100_000, 4)

"""A function of ours that goes to and fro between two hosts on the lab's wire, while a stock program talks to it.

Each host has a network device of its own on the bridge. The function has an address and a MAC of its own, which it
takes along; the bridge learns of it from its announcements, and what comes late is sent on from the old place.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator
from typing import Any

from netio import netns
from softrnic.control.function import Function
from softrnic.control.host import Host, open_raw
from softrnic.control.perftest import Perftest
from softrnic.control.pingpong import Pingpong
from softrnic.counters import C
from softrnic.migrate import Restored, restore, save
from softrnic.verbs import Cq
from tests.interop.lab import MTU, Lab, interface

ADDRESS = {4: "10.9.0.7", 6: "fd00:9::7"}
HOMES = ("10.9.0.5/24", "10.9.0.6/24")
MOVES = 20
PATIENCE = 20.0
PACKETS = 12  # of the peer, between one move and the next at least


@contextlib.contextmanager
def open_places(lab: Lab) -> Iterator[list[Host]]:
    """Two hosts."""
    with contextlib.ExitStack() as stack:
        bridged = stack.enter_context(contextlib.closing(lab.segment.call(netns.current)))
        hosts = []
        for i, home in enumerate(HOMES):
            space = stack.enter_context(netns.namespace())
            netns.veth(space, "eth0", bridged, f"place{i}", mtu=MTU)
            lab.segment.run("ip", "link", "set", f"place{i}", "master", lab.segment.bridge)
            netns.add_address(space, "eth0", home)
            hosts.append(stack.enter_context(open_raw("eth0", name=f"place{i}", ns=space)))
        yield hosts


class Traveller:
    """The function, and how it moves."""

    def __init__(self, places: list[Host], policy: str, version: int = 4) -> None:
        self.places = places
        self.policy = policy
        self.moves = self.forwarded = 0
        self.function = places[0].add_function("vf0", interface(ADDRESS, version))
        self._left: list[Function] = []
        self._seen = 0

    def packets(self) -> int:
        """From the peer, at either place."""
        return sum(host.device.counter(C.RCVD_PKTS) for host in self.places)

    def wait_for_traffic(self) -> None:
        """Let the peer get a little further."""
        deadline = time.monotonic() + PATIENCE
        while self.packets() < self._seen + PACKETS:
            assert time.monotonic() < deadline, f"no more traffic after {self.moves} moves"
            time.sleep(0)

    def move(self, memory: dict[int, Any]) -> Restored:
        """To the other place; `memory` are buffers by key, which stay where they are."""
        old = self.function
        target = self.places[old.host is self.places[0]]
        self.settle_down()
        old.device.suspend(self.policy)
        deadline = time.monotonic() + PATIENCE
        while not old.device.settled:
            assert time.monotonic() < deadline
            time.sleep(0)
        data = save(old.device)
        new = target.add_function("vf0")
        made = restore(new.device, data, {f"{key:#x}": buffer for key, buffer in memory.items()})
        old.forward(target.mac)
        new.appear()
        new.device.resume()
        self.function, self._left = new, [old]
        self.moves += 1
        self._seen = self.packets()
        return made

    def settle_down(self) -> None:
        """Nothing is sent on any more from where it was."""
        for function in self._left:
            self.forwarded += function.forwarded()
            function.close()
        self._left.clear()

    def close(self) -> None:
        """Gone from the wire."""
        self.settle_down()
        self.function.close()

    def __enter__(self) -> Traveller:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()


class MovingPerftest(Perftest):
    """Our end of a perftest, on a function that moves so many times, evenly spread over the test."""

    def __init__(self, traveller: Traveller, *args: Any) -> None:
        super().__init__(traveller.function.device, *args)
        self.traveller = traveller
        self._memory = self.outbox.base if self.outbox.base is not None else self.outbox
        self._done = 0

    def _move(self) -> None:
        made = self.traveller.move({self._mr.key: self._memory})
        self._pd, self._mr, self._qp = made.pds[0], made.mrs[self._mr.key], made.qps[self._qp.qpn]
        self._send_cq, self._recv_cq = (made.cqs[cq.cqn] for cq in (self._send_cq, self._recv_cq))
        self.device = self.traveller.function.device

    def _run(self) -> Any:
        if not self._client and not self.options.test.two_sided and not self.options.test.latency:
            for _ in range(MOVES):  # data merely passes
                self.traveller.wait_for_traffic()
                self._move()
        return super()._run()

    def _completed(self, cq: Cq) -> int:
        sends = cq is self._send_cq
        if self.traveller.moves < MOVES and self._done * MOVES >= self.traveller.moves * self.options.iters:
            self._move()
        count = super()._completed(self._send_cq if sends else self._recv_cq)
        self._done += count
        return count


class MovingPingpong(Pingpong):
    """Our end of ibv_rc_pingpong, on a function that moves between messages in mid-air."""

    def __init__(self, traveller: Traveller, *args: Any) -> None:
        super().__init__(traveller.function.device, *args)
        self.traveller = traveller
        self._sent = 0

    def _send(self, i: int, first: bool) -> None:
        super()._send(i, first)
        if self.traveller.moves < MOVES and self._sent * MOVES >= self.traveller.moves * self.options.iters:
            self._move()
        self._sent += 1

    def _move(self) -> None:
        boxes = {mr.key: mr._view for mr in self._regions}
        made = self.traveller.move(boxes)
        self._pd, self._cq = made.pds[0], made.cqs[self._cq.cqn]
        self._regions = [made.mrs[mr.key] for mr in self._regions]
        self._qps = [made.qps[qp.qpn] for qp in self._qps]
        self.device = self.traveller.function.device

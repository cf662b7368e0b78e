"""Moves at every boundary there is: between any two packets, before and after any timer, while packets get lost.

The script holds every opcode of RC, both ways at once. Whatever moves when, each message is done exactly once: the
completions and both memories are those of a run in which nobody moves and nothing is lost.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator

import pytest

from softrnic.migrate import restore, save
from softrnic.verbs import Device, QpType
from tests.migrate.moving import Everything, Results, all_good, move, settle
from tests.pairs import Pair, Side

Then = Callable[["Walk"], None]

# Of the boundaries one in so many is tried, all of them by the slow form.
EVERY = pytest.mark.parametrize("stride", [11, pytest.param(1, marks=[pytest.mark.slow, pytest.mark.timeout(1800)])])


MOVES = 60


class Walk(Everything):
    """The script with a boundary after every packet, lost or not, and before and after every timer."""

    def __init__(self, loss: float = 0.0, seed: int = 1, *, stop: bool = False) -> None:
        self.count = self.moves = 0
        self.timers: list[int] = []
        self.plan: dict[int, Then] = {}
        self.repeat: tuple[int, Then] | None = None
        self._rng, self._loss = random.Random(seed), 0.0
        super().__init__(kinds=(QpType.RC,), stop=stop)
        self._loss = loss
        self.count = 0
        self.timers.clear()

    def boundary(self) -> None:
        at, self.count = self.count, self.count + 1
        if at in self.plan:
            self.plan[at](self)
        if self.repeat and at % self.repeat[0] == 0 and self.moves < MOVES:
            self.moves += 1
            self.repeat[1](self)

    def run(self, at: int = -1, then: Callable[[], None] | None = None) -> int:
        """To the end: the number of boundaries."""
        p = self.pair
        self.boundary()
        while True:
            busy = [self._carry(p, a) for a in (True, False)]
            p.now += 1000
            if any(busy):
                continue
            deadlines = [d for s in (p.a, p.b) if (d := s.device.engine.next_deadline()) is not None]
            if not deadlines:
                return self.count
            p.now = max(p.now, min(deadlines))
            self.timers.append(self.count)
            self.boundary()
            for side in (p.a, p.b):
                side.device.engine.on_timer(p.now)
            self.boundary()

    def _carry(self, p: Pair, from_a: bool) -> bool:
        src, dst = (p.a, p.b) if from_a else (p.b, p.a)
        n = src.device.engine.transmit(src.tx, p.now)
        if n:
            if self._rng.random() >= self._loss:
                dst.device.engine.receive(src.tx, n, p.now)
            self.boundary()
        return bool(n)


def walked(loss: float, seed: int) -> tuple[int, list[int]]:
    walk = Walk(loss, seed)
    count = walk.run()
    assert all_good(walk.outcome())
    return count, walk.timers


@pytest.fixture(scope="module")
def expected() -> Results:
    """What comes of it when nobody moves and nothing is lost."""
    walk = Walk()
    walk.run()
    outcome = walk.outcome()
    assert all_good(outcome)
    return outcome


def moving(who: str, policy: str) -> Then:
    def go(walk: Walk) -> None:
        if walk.count % 2:
            walk.poll()
        for name in who:
            move(walk.pair, getattr(walk.pair, name), policy)

    return go


def both_at_once(walk: Walk) -> None:
    """Neither asks something of one that is silent already."""
    p = walk.pair
    sides = (p.a, p.b)
    for side in sides:
        side.device.suspend_egress()
    for side in sides:
        side.device.suspend()
    while not all(side.device.settled for side in sides):
        for src, dst in ((p.a, p.b), (p.b, p.a)):
            dst.device.engine.receive(src.tx, src.device.engine.transmit(src.tx, p.now), p.now)
    saved = [save(side.device, {side.mr.key: "buf"}) for side in sides]
    for side, data in zip(sides, saved, strict=True):
        old = side.device
        side.device, side.buf = Device(old.name), side.buf.copy()
        made = restore(side.device, data, {"buf": side.buf})
        side.pd, side.cq, side.mr = made.pds[0], made.cqs[side.cq.cqn], made.mrs[side.mr.key]
        side.qps = [made.qps[qp.qpn] for qp in side.qps]
        old.close()
    for side in sides:
        side.device.resume()


def plans(stride: int, loss: float, seed: int) -> Iterator[int]:
    """Boundaries to try: one in `stride`, and around timers all of the slow form, the first ones of the quick one."""
    count, timers = walked(loss, seed)
    chosen = set(range(seed % stride, count, stride))
    around = [at + k for at in timers for k in (0, 1)]
    chosen.update(around if stride == 1 else around[:6])
    yield from sorted(chosen)


@EVERY
@pytest.mark.parametrize("policy", ["silence", "rnr", "stop"])
@pytest.mark.parametrize("who", ["a", "b", "ab"])
@pytest.mark.parametrize(("loss", "seed"), [(0.0, 1), (0.08, 2), (0.2, 3)])
def test_at_every_boundary(who: str, policy: str, stride: int, loss: float, seed: int, expected: Results) -> None:
    for at in plans(stride, loss, seed):
        walk = Walk(loss, seed, stop=policy == "stop")
        walk.plan[at] = moving(who, policy)
        walk.run()
        assert walk.outcome() == expected, f"moved at boundary {at}"


@EVERY
@pytest.mark.parametrize("stop", [False, True])
@pytest.mark.parametrize(("loss", "seed"), [(0.0, 1), (0.15, 4)])
def test_both_ends_at_once(stride: int, loss: float, seed: int, stop: bool, expected: Results) -> None:
    for at in plans(stride, loss, seed):
        walk = Walk(loss, seed, stop=stop)
        walk.plan[at] = both_at_once
        walk.run()
        assert walk.outcome() == expected, f"moved at boundary {at}"


@pytest.mark.parametrize("policy", ["silence", "rnr", "stop"])
@pytest.mark.parametrize(("loss", "seed"), [(0.0, 1), (0.1, 5), (0.25, 6)])
@pytest.mark.parametrize("every", [1, 2, 5, 17])
def test_there_and_back_again_and_again(every: int, loss: float, seed: int, policy: str, expected: Results) -> None:
    """A to B to A to B: at every boundary, at every second one, and so on, each time both sides.

    Not without end: the local ACK timeout begins anew with each move, so who moved at every timer would wait for ever.
    """
    walk = Walk(loss, seed, stop=policy == "stop")
    walk.repeat = every, moving("ab", policy)
    walk.run()
    assert walk.outcome() == expected


STEPS = ("egress", "ingress", "settled", "saved", "restored")


def given_up(side_name: str, step: str, policy: str) -> Then:
    def go(walk: Walk) -> None:
        side: Side = getattr(walk.pair, side_name)
        device = side.device
        device.suspend_egress()
        if step != "egress":
            device.suspend(policy)
        if step in ("settled", "saved", "restored"):
            settle(walk.pair, side)
        if step in ("saved", "restored"):
            data = save(device, {side.mr.key: "buf"})
        if step == "restored":
            other = Device("elsewhere")
            restore(other, data, {"buf": side.buf.copy()})
            other.close()
        device.abort()

    return go


@EVERY
@pytest.mark.parametrize("step", STEPS)
@pytest.mark.parametrize("stop", [False, True])
@pytest.mark.parametrize(("loss", "seed"), [(0.0, 1), (0.15, 7)])
def test_given_up_at_every_step(
    step: str, stride: int, loss: float, seed: int, stop: bool, expected: Results
) -> None:
    for at in plans(stride, loss, seed):
        walk = Walk(loss, seed, stop=stop)
        for name in "ab":
            walk.plan[at + (name == "b")] = given_up(name, step, "stop" if stop else ("silence", "rnr")[at % 2])
        walk.run()
        assert walk.outcome() == expected, f"given up at boundary {at}"

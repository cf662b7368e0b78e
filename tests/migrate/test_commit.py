"""Source and destination agree on who runs the function, whatever is lost and whenever.

All states that two machines and a connection between them can reach are visited: every order of steps, a cut of the
connection at any of them, messages lost with it, both sides changing their minds. In none do both run the function,
and from each there is a way to an end in which one does.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import product
from typing import NamedTuple

import pytest

from softrnic.errors import StateError
from softrnic.migrate.commit import Event, Source, Target, source_after, target_after


class World(NamedTuple):
    """Both sides, and what is on its way between them (None: no connection)."""

    source: Source
    target: Target
    to_target: tuple[str, ...] | None = None
    to_source: tuple[str, ...] = ()
    greeted: bool = False  # the source knows how far the destination is
    done: bool = False  # the source has given the move up for good


def steps(w: World) -> Iterator[World]:
    """Every world that may come next."""
    if w.to_target is None:
        if not w.done:
            committed = w.source in (Source.COMMITTED, Source.GONE)
            yield w._replace(to_target=("hello, committed" if committed else "hello",), to_source=(), greeted=False)
        if w.target in (Target.RECEIVING, Target.HOLDING):
            yield w._replace(target=target_after(w.target, Event.DROP))  # an orphan
        return
    # the connection breaks, with everything on it
    after = source_after(w.source, Event.RESUME) if w.source in (Source.SUSPENDED, Source.RUNNING) else w.source
    yield w._replace(source=after, to_target=None, to_source=(), greeted=False)
    if len(w.to_target) < 2:
        yield from source_steps(w, w.to_target)
    if w.to_target:
        yield from target_takes(w._replace(to_target=w.to_target[1:]), w.to_target[0])
    if w.to_source:
        yield from source_takes(w._replace(to_source=w.to_source[1:]), w.to_source[0])


def source_steps(w: World, queue: tuple[str, ...]) -> Iterator[World]:
    if w.greeted and w.source is Source.RUNNING and not w.done and not queue and not w.to_source:
        yield w._replace(source=source_after(w.source, Event.SUSPEND), to_target=("state",))
    if w.source in (Source.RUNNING, Source.SUSPENDED) and w.greeted and not w.done:  # cancelled
        yield w._replace(source=source_after(w.source, Event.RESUME), to_target=(*queue, "drop"), done=True)
    if w.source is Source.GONE and w.greeted and not queue:
        yield w._replace(to_target=("the rest of the memory",))


def target_takes(w: World, message: str) -> Iterator[World]:
    if message.startswith("hello"):
        fresh = w.target is Target.UNKNOWN and "committed" not in message
        w = w._replace(target=target_after(w.target, Event.BEGIN)) if fresh else w
        yield w._replace(to_source=(*w.to_source, f"welcome {w.target.value}"))
    elif message == "state":
        yield w._replace(target=target_after(w.target, Event.HOLD), to_source=(*w.to_source, "ready"))
        yield w._replace(to_source=(*w.to_source, "refused"))
    elif message == "retract":
        yield w._replace(target=target_after(w.target, Event.RETRACT))
    elif message == "drop":
        yield w._replace(target=target_after(w.target, Event.DROP), to_source=(*w.to_source, "dropped"))
    elif message == "commit":
        after = target_after(w.target, Event.COMMIT)
        w = w._replace(to_source=(*w.to_source, "runs"))
        yield w._replace(target=after)
        if after is Target.RUNNING:  # nothing is missing
            yield w._replace(target=target_after(after, Event.FINISH))
    elif w.target is Target.RUNNING:
        yield w._replace(target=target_after(w.target, Event.FINISH))
    else:
        yield w


def source_takes(w: World, message: str) -> Iterator[World]:
    assert w.to_target is not None
    if message.startswith("welcome"):
        status = Target(message.split()[1])
        w = w._replace(greeted=True)
        if w.source is Source.COMMITTED:
            if status in (Target.RUNNING, Target.COMPLETE):
                yield w._replace(source=source_after(w.source, Event.RUNS))
            elif status is Target.HOLDING:
                yield w._replace(source=source_after(w.source, Event.COMMIT), to_target=("commit",))
            else:
                yield w._replace(source=source_after(w.source, Event.DROPPED), done=True)
        elif status is Target.HOLDING:
            yield w._replace(to_target=("retract",))
        else:
            yield w
    elif message == "ready":
        if w.source is Source.SUSPENDED:
            yield w._replace(source=source_after(w.source, Event.COMMIT), to_target=(*w.to_target, "commit"))
        else:
            yield w  # it was cancelled meanwhile
    elif message == "refused":
        if w.source in (Source.SUSPENDED, Source.RUNNING):
            yield w._replace(source=source_after(w.source, Event.RESUME), to_target=(*w.to_target, "drop"), done=True)
    elif message == "runs":
        yield w._replace(source=source_after(w.source, Event.RUNS))
    else:
        yield w


def all_worlds() -> dict[World, set[World]]:
    start = World(Source.RUNNING, Target.UNKNOWN)
    found: dict[World, set[World]] = {}
    todo = [start]
    while todo:
        world = todo.pop()
        if world in found:
            continue
        found[world] = set(steps(world))
        todo += found[world]
    return found


def test_never_both_and_always_one_in_the_end() -> None:
    worlds = all_worlds()
    assert len(worlds) > 50
    runs_there = (Target.RUNNING, Target.COMPLETE)
    assert [w for w in worlds if w.source in (Source.RUNNING, Source.SUSPENDED) and w.target in runs_there] == []
    good = {
        w
        for w in worlds
        if (w.source is Source.GONE and w.target is Target.COMPLETE)
        or (w.source is Source.RUNNING and w.target is Target.UNKNOWN)
    }
    before: dict[World, set[World]] = {w: set() for w in worlds}
    for world, following in worlds.items():
        for after in following:
            before[after].add(world)
    reached, todo = set(good), list(good)
    while todo:
        for world in before[todo.pop()] - reached:
            reached.add(world)
            todo.append(world)
    assert set(worlds) - reached == set()
    assert {w.target for w in good} == {Target.COMPLETE, Target.UNKNOWN}


@pytest.mark.parametrize(("state", "event"), list(product(Source, Event)))
def test_source_steps_are_those_of_the_argument(state: Source, event: Event) -> None:
    """From COMMITTED only the destination's word leads back."""
    try:
        after = source_after(state, event)
    except StateError:
        return
    if state is Source.COMMITTED and after is Source.RUNNING:
        assert event is Event.DROPPED
    if state is Source.GONE:
        pytest.fail("nothing happens any more")
    assert (after is Source.GONE) <= (event is Event.RUNS)


@pytest.mark.parametrize(("state", "event"), list(product(Target, Event)))
def test_target_steps_are_those_of_the_argument(state: Target, event: Event) -> None:
    """What runs is never dropped, and only COMMIT makes it run."""
    try:
        after = target_after(state, event)
    except StateError:
        return
    runs = (Target.RUNNING, Target.COMPLETE)
    assert (state in runs) <= (after in runs)
    assert (after in runs and state not in runs) <= (event is Event.COMMIT)

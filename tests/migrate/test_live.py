"""A move in two parts gives the same device as a saved state does, and believes as little."""

from __future__ import annotations

import random

import numpy as np
import pytest

from softrnic.errors import StateError, VerbsError
from softrnic.migrate import live, restore, save
from softrnic.migrate.envelope import PRODUCER, Section, unwrap, wrap
from softrnic.migrate.sketch import LIVE, Sketch, draw, fill
from softrnic.verbs import Device, QpType, RecvWr
from tests.migrate.moving import Everything, settle
from tests.pairs import Side

Pairs = list[tuple[bytes, bytes]]
NAMES = {3: 1, 5: 1, 6: 1, LIVE: 1}


def names(side: Side) -> dict[int, str]:
    return {side.mr.key: "buf"}


def in_two_parts(side: Side, sketch: Sketch, device: Device) -> bytes:
    """The device restored from a sketch and what came later, saved."""
    data = sketch.fill_in(side.device)
    assert data is not None
    made = restore(device, sketch.data, {"buf": side.buf.copy()})
    fill(device, made, data)
    return save(device, names(side))


@pytest.mark.parametrize("kinds", [(QpType.RC,), (QpType.RC, QpType.UC)])
@pytest.mark.parametrize("policy", ["silence", "rnr"])
def test_the_same_as_in_one(policy: str, kinds: tuple[QpType, ...]) -> None:
    """At every boundary of the script: sketched at the start, filled in when it stops."""
    script = Everything(kinds=kinds)
    count = script.run()
    filled = 0
    for at in range(0, count + 1, 1 if len(kinds) == 1 else 3):
        script = Everything(kinds=kinds)
        sketches = [draw(side.device, names(side)) for side in (script.pair.a, script.pair.b)]
        found: Pairs = []

        def stop(script: Everything = script, sketches: list[Sketch] = sketches, found: Pairs = found) -> None:
            for side, early in zip((script.pair.a, script.pair.b), sketches, strict=True):
                side.device.suspend(policy)
                settle(script.pair, side)
                late = draw(side.device, names(side))  # windows may have changed hands since the early one
                sketch = late if early.fill_in(side.device) is None else early
                found.append((save(side.device, names(side)), in_two_parts(side, sketch, Device("other"))))

        script.run(at, stop)
        for expected, got in found:
            filled += 1
            assert got == expected, f"at {at}"
        for side in (script.pair.a, script.pair.b):
            side.device.abort()
    assert filled > 40


@pytest.fixture
def suspended() -> tuple[Everything, Sketch]:
    """The script in the middle, its side b suspended, and a sketch of that."""
    script, found = Everything(kinds=(QpType.RC,)), []

    def stop() -> None:
        side = script.pair.b
        side.device.suspend()
        settle(script.pair, side)
        found.append(draw(side.device, names(side)))

    script.run(60, stop)
    return script, found[0]


def test_what_changes_makes_a_sketch_useless(suspended: tuple[Everything, Sketch]) -> None:
    script, sketch = suspended
    side = script.pair.b
    device = side.device
    assert sketch.fill_in(device) is not None
    mr = side.pd.reg_mr(bytearray(5))
    assert sketch.fill_in(device) is None
    mr.dereg()
    with device.create_cq(5):
        assert sketch.fill_in(device) is None
    device.add_gid("10.0.0.77", bytes(6))
    assert sketch.fill_in(device) is None
    sketch = draw(device, names(side))
    side.qps[0].post_recv(RecvWr([], 9))
    assert sketch.fill_in(device) is not None
    side.qps[0].adjust(retry_cnt=side.qps[0].requested["retry_cnt"])  # no record shows it
    assert sketch.fill_in(device) is None
    sketch = draw(device, names(side))
    assert sketch.fill_in(device) is not None
    side.qps[0].destroy()
    assert sketch.fill_in(device) is None


def test_not_while_it_runs(suspended: tuple[Everything, Sketch]) -> None:
    script, sketch = suspended
    script.pair.b.device.resume()
    with pytest.raises(VerbsError, match="not suspended"):
        sketch.fill_in(script.pair.b.device)


def tampered(data: bytes, columns: live.Live) -> bytes:
    parts = [s for s in unwrap(data, NAMES).values() if s.ident != LIVE]
    return wrap([*parts, Section(LIVE, 1, 0, live.to_bytes(columns))], PRODUCER)


def columns_of(data: bytes) -> live.Live:
    return live.from_bytes(unwrap(data, NAMES)[LIVE].payload)


def mutate(rng: random.Random, columns: live.Live) -> None:
    """Change one field of one row."""
    array = rng.choice([a for a in columns if len(a)])
    row, field = rng.randrange(len(array)), rng.choice(array.dtype.names)
    kind = array.dtype[field]
    info = np.iinfo(kind)
    old = int(array[row][field])
    flipped = old ^ (1 << rng.randrange(kind.itemsize * 8 - 1))
    values = [0, 1, 2, info.max, info.min, old + 1, old - 1, flipped, 0xFFFFFF]
    array[row][field] = min(info.max, max(info.min, rng.choice(values)))


@pytest.mark.parametrize("count", [1500, pytest.param(60_000, marks=[pytest.mark.slow, pytest.mark.timeout(3000)])])
def test_mutations(count: int, suspended: tuple[Everything, Sketch]) -> None:
    """Refused, or a device whose state passes all checks that a saved one has to pass."""
    script, sketch = suspended
    side = script.pair.b
    data = sketch.fill_in(side.device)
    assert data is not None
    rng, loaded = random.Random(5), 0
    memory = {"buf": side.buf.copy()}
    device = Device("target")
    again = Device("again")
    for i in range(count):
        columns = columns_of(data)
        for _ in range(rng.choice([1, 1, 2])):
            mutate(rng, columns)
        made = restore(device, sketch.data, memory)
        try:
            fill(device, made, tampered(data, columns))
        except StateError:
            pass
        else:
            loaded += 1
            state = save(device, names(side))
            restore(again, state, memory)  # check.py has the last word
            assert save(again, names(side)) == state, f"mutation {i}"
            _empty(again)
        _empty(device)
    assert 0.02 * count < loaded < 0.9 * count


def _empty(device: Device) -> None:
    device.close()
    for index in list(device.gids):
        device.del_gid(index)


def test_lengths(suspended: tuple[Everything, Sketch]) -> None:
    """Arrays that are longer or shorter than the QPs say, and buffers that are cut."""
    script, sketch = suspended
    side = script.pair.b
    data = sketch.fill_in(side.device)
    assert data is not None
    columns, device = columns_of(data), Device("target")
    made = restore(device, sketch.data, {"buf": side.buf.copy()})
    for i, array in enumerate(columns):
        if not len(array):
            continue
        for changed in (array[:-1], np.concatenate((array, array[-1:]))):
            arrays = list(columns)
            arrays[i] = changed
            with pytest.raises(StateError):
                fill(device, made, tampered(data, live.Live(*arrays)))
    payload = live.to_bytes(columns)
    for cut in (0, 3, 23, 24, len(payload) - 1):
        with pytest.raises(StateError):
            live.from_bytes(payload[:cut])
    with pytest.raises(StateError):
        live.from_bytes(payload + b"\0")
    with pytest.raises(StateError, match="version"):
        live.from_bytes(b"\7" + payload[1:])

"""The timer heap against a dictionary."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from softrnic.cm.deadlines import Deadlines

ITEMS = [object() for _ in range(8)]
OPERATIONS = st.lists(
    st.tuples(st.sampled_from(["set", "cancel", "expire"]), st.integers(0, 7), st.integers(0, 50)),
    max_size=300,
)


@given(OPERATIONS)
def test_agrees_with_a_dictionary(operations: list[tuple[str, int, int]]) -> None:
    deadlines: Deadlines[object] = Deadlines()
    model: dict[int, int] = {}
    for name, index, when in operations:
        if name == "set":
            deadlines.set(ITEMS[index], when)
            model[index] = when
        elif name == "cancel":
            deadlines.cancel(ITEMS[index])
            model.pop(index, None)
        else:
            due = [ITEMS.index(item) for item in deadlines.expired(when)]
            assert sorted(due) == sorted(i for i, t in model.items() if t <= when)
            assert [model[i] for i in due] == sorted(model[i] for i in due)
            model = {i: t for i, t in model.items() if t > when}
        assert len(deadlines) == len(model)
        assert deadlines.next() == min(model.values(), default=None)
        assert [deadlines.of(item) for item in ITEMS] == [model.get(i) for i in range(8)]


def test_equal_deadlines_in_the_order_they_were_set() -> None:
    deadlines: Deadlines[str] = Deadlines()
    for item in "cab":
        deadlines.set(item, 5)
    assert list(deadlines.expired(5)) == ["c", "a", "b"]


def test_a_deadline_set_while_others_expire() -> None:
    deadlines: Deadlines[str] = Deadlines()
    deadlines.set("a", 1)
    deadlines.set("b", 2)
    due = []
    for item in deadlines.expired(10):
        due.append(item)
        if item == "a":
            deadlines.cancel("b")
            deadlines.set("c", 3)
    assert due == ["a", "c"]


def test_replacing_a_deadline_for_ever_keeps_the_heap_small() -> None:
    deadlines: Deadlines[str] = Deadlines()
    for when in range(100_000):
        deadlines.set("a", when)
    assert len(deadlines._heap) < 200

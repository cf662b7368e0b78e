"""The hash table against a dictionary."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from softrnic.hash import hash_insert, hash_remove
from softrnic.layout import HASH
from softrnic.mem.mr import key_of
from softrnic.qp.inbound import qpn_key
from tests.engine.kernels import find

SIZE = 16
keys = st.integers(1, 40) | st.integers(1, (1 << 40) - 1)
steps = st.lists(st.tuples(st.sampled_from("iirf"), keys, st.integers(0, (1 << 31) - 1)), max_size=80)


@given(steps)
def test_against_a_dictionary(script: list[tuple[str, int, int]]) -> None:
    """Any order of insertions, removals and look-ups, with as many collisions as a small table has."""
    table, model = np.zeros(SIZE, HASH), dict[int, int]()
    for step, key, value in script:
        if step == "i" and (key in model or len(model) < SIZE // 2):
            assert hash_insert(table, key, value) == (key not in model)
            model.setdefault(key, value)
        elif step == "r":
            assert hash_remove(table, key) == (key in model)
            model.pop(key, None)
        assert find(table, key) == model.get(key, -1)
    assert {key: find(table, key) for key in model} == model
    assert int((table["key"] != 0).sum()) == len(model)


@given(st.permutations(range(1, SIZE // 2 + 1)), st.integers(0, 1 << 33))
def test_removal_closes_every_gap(order: list[int], base: int) -> None:
    """No entry is lost behind a gap, also where a run of entries goes round the end of the table."""
    table = np.zeros(SIZE, HASH)
    for key in order:
        assert hash_insert(table, base + key, key)
    left = set(order)
    for key in order:
        assert hash_remove(table, base + key)
        left.discard(key)
        assert all(find(table, base + other) == other for other in left)
    assert not table["key"].any()


@pytest.mark.parametrize("func", [0, 1, 255])
def test_keys_of_functions_are_apart(func: int) -> None:
    """Every function has its own QP numbers and memory keys, and no key is 0, which means empty."""
    qpns = {qpn_key(f, qpn) for f in (func, func + 1) for qpn in (0, 1, 0xFFFFFF)}
    keys = {key_of(f, key) for f in (func, func + 1) for key in (0, 1, 0xFFFFFFFF)}
    assert len(qpns) == len(keys) == 6
    assert min(*qpns, *keys) > 0

"""The allocators against sets."""

from __future__ import annotations

import errno

import pytest
from hypothesis import given
from hypothesis import strategies as st

from softrnic.errors import VerbsError
from softrnic.slab import Pool, Slab

SIZE = 32


def rounded(count: int) -> int:
    """What a request takes: the next power of two."""
    return 1 << max(0, count - 1).bit_length()


@given(st.lists(st.tuples(st.booleans(), st.integers(0, SIZE + 3)), max_size=60))
def test_slab_against_a_set(script: list[tuple[bool, int]]) -> None:
    """Runs never overlap and are aligned; a request fails only when no aligned run is free."""
    slab, held, used = Slab(SIZE, "things"), list[tuple[int, int]](), set[int]()
    for allocate, number in script:
        if allocate and number > 0:
            need = rounded(number)
            free = [at for at in range(0, SIZE, need) if need <= SIZE and used.isdisjoint(range(at, at + need))]
            if not free:
                with pytest.raises(VerbsError, match="things") as error:
                    slab.alloc(number)
                assert error.value.errno == errno.ENOMEM
                continue
            base = slab.alloc(number)
            assert base in free
            used |= set(range(base, base + need))
            held.append((base, number))
        elif held:
            base, count = held.pop(number % len(held))
            slab.free(base, count)
            used -= set(range(base, base + rounded(count)))
    for base, count in held:
        slab.free(base, count)
    assert slab.alloc(SIZE) == 0


@given(st.lists(st.booleans() | st.integers(0, 5), max_size=60))
def test_pool_against_a_set(script: list[int]) -> None:
    """A slot has one owner; all can be had; the one freed longest ago comes first."""
    pool, held, freed, fresh = Pool(3, 9, "things"), list[int](), list[int](), 3
    for step in script:
        if step is True or (not held and step is not False):
            if fresh == 9 and not freed:
                with pytest.raises(VerbsError, match="things") as error:
                    pool.alloc()
                assert error.value.errno == errno.ENOMEM
                continue
            slot = pool.alloc()
            if fresh < 9:
                assert slot == fresh
                fresh += 1
            else:
                assert slot == freed.pop(0)
            held.append(slot)
        elif held:
            slot = held.pop(step % len(held))
            pool.free(slot)
            freed.append(slot)
    assert len(set(held)) == len(held)

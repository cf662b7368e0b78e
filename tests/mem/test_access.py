"""Who may touch what: the access checks against the rules written out (IBTA 9.4.1.1, 10.6.3, 10.6.6)."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from softrnic.layout import MrKind
from softrnic.verbs import Access
from tests.mem.kernels import local, remote
from tests.mem.tables import EVERY_RIGHT, PDN, add_mr, fresh

TOP = (1 << 63) - 1
KEY, INDEX = 0x1234, 7
# Where ranges begin and end: around zero, around a region, and at the end of all addresses.
points = st.integers(-3, 3) | st.integers(4090, 4100) | st.integers(TOP - 4, TOP) | st.integers(-TOP - 1, -TOP + 2)
lengths = st.integers(-2, 9) | st.integers(4090, 4100) | st.integers(TOP - 4, TOP)
regions = st.tuples(st.integers(0, 4096) | st.integers(TOP - 4100, TOP), st.integers(0, 4100)).filter(
    lambda r: r[0] + r[1] <= TOP
)


def inside(region: tuple[int, int], va: int, length: int) -> bool:
    """In Python's integers, which have no end."""
    return length >= 0 and region[0] <= va and va + length <= region[0] + region[1]


@given(regions, points, lengths)
def test_range(region: tuple[int, int], va: int, length: int) -> None:
    """Every byte lies in the region, for local and remote access alike, and nothing overflows."""
    engs = fresh()
    add_mr(engs, INDEX, KEY, iova=region[0], length=region[1])
    expected = INDEX if inside(region, va, length) else -1
    assert remote(engs, 0, KEY, va, length, int(Access.REMOTE_READ)) == expected
    assert local(engs, 0, KEY, va, length, False) == expected


@pytest.mark.parametrize("need", [Access.REMOTE_WRITE, Access.REMOTE_READ, Access.REMOTE_ATOMIC])
@pytest.mark.parametrize("missing", [0, Access.REMOTE_WRITE, Access.REMOTE_READ, Access.REMOTE_ATOMIC])
@pytest.mark.parametrize("kind", [MrKind.MR, MrKind.MW1, MrKind.MW2])
def test_remote_rights(kind: MrKind, missing: int, need: Access) -> None:
    """Each right counts for itself, for regions and windows."""
    engs = fresh()
    add_mr(engs, INDEX, KEY, length=8, kind=kind, access=EVERY_RIGHT & ~missing, qp=0)
    assert (remote(engs, 0, KEY, 0, 8, int(need)) == INDEX) == (missing != need)


@pytest.mark.parametrize("write", [False, True])
@pytest.mark.parametrize("access", [0, Access.LOCAL_WRITE, Access.REMOTE_WRITE])
def test_local_rights(access: int, write: bool) -> None:
    """Reading needs nothing, writing needs LOCAL_WRITE."""
    engs = fresh()
    add_mr(engs, INDEX, KEY, length=8, access=access)
    assert (local(engs, 0, KEY, 0, 8, write) == INDEX) == (not write or access == Access.LOCAL_WRITE)


@pytest.mark.parametrize("kind", [MrKind.MR, MrKind.MW1, MrKind.MW2])
@pytest.mark.parametrize("same_pd", [True, False])
@pytest.mark.parametrize("same_qp", [True, False])
@pytest.mark.parametrize("valid", [True, False])
def test_owners(kind: MrKind, same_pd: bool, same_qp: bool, valid: bool) -> None:
    """Regions and type 1 windows belong to a domain, type 2 windows to a QP; invalid ones to nobody."""
    engs = fresh()
    add_mr(engs, INDEX, KEY, length=8, kind=kind, pdn=PDN + (not same_pd), qp=0 if same_qp else 1, valid=valid)
    allowed = valid and (same_qp if kind == MrKind.MW2 else same_pd)
    assert (remote(engs, 0, KEY, 0, 8, int(Access.REMOTE_READ)) == INDEX) == allowed
    assert (local(engs, 0, KEY, 0, 8, False) == INDEX) == (valid and same_pd and kind == MrKind.MR)


def test_keys_of_another_function() -> None:
    """The same number is another key to another function."""
    engs = fresh()
    add_mr(engs, INDEX, KEY, length=8, func=1)
    assert remote(engs, 0, KEY, 0, 8, 0) == -1
    engs[0]["qps"][0]["func"] = 1
    assert remote(engs, 0, KEY, 0, 8, 0) == INDEX


@pytest.mark.parametrize("key", [0, KEY + 1, KEY | 0x100, 0xFFFFFFFF])
def test_unknown_keys(key: int) -> None:
    engs = fresh()
    add_mr(engs, INDEX, KEY, length=8)
    assert remote(engs, 0, key, 0, 0, 0) == local(engs, 0, key, 0, 0, False) == -1

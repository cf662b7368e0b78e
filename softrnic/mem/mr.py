"""Memory keys: who may touch what. Look-up and the access checks of IBTA 9.4.1.1, 10.6.3 and 10.6.7.

Decides yes or no and names the region; never touches memory.
"""

from __future__ import annotations

from softrnic.hash import hash_find
from softrnic.jit import i64, inline
from softrnic.layout import MrKind
from softrnic.spec import Access

_LOCAL_WRITE = int(Access.LOCAL_WRITE)


@inline
def key_of(func, key):
    """The hash key of a memory key of one function; never 0."""
    return ((func << 32) | key) + 1


@inline
def find_mr(eng, func, key):
    """Index of the region or window with this key, or -1."""
    return hash_find(eng["key_hash"], key_of(func, key))


@inline
def _covers(mr, va, length):
    """Whether [va, va + length) lies inside, written so that nothing can overflow."""
    offset = va - i64(mr["iova"])
    return length >= 0 and offset >= 0 and offset <= i64(mr["length"]) and length <= i64(mr["length"]) - offset


@inline
def check_local(eng, qp, lkey, addr, length, write):
    """Index of the region an SGE names, or -1: unknown lkey, other PD, out of range, or not writable."""
    i = find_mr(eng, i64(qp["func"]), lkey)
    if i < 0:
        return -1
    mr = eng["mrs"][i]
    if mr["kind"] != MrKind.MR or mr["valid"] == 0 or mr["pdn"] != qp["pdn"]:
        return -1
    if write and (i64(mr["access"]) & _LOCAL_WRITE) == 0:
        return -1
    if not _covers(mr, addr, length):
        return -1
    return i


@inline
def check_remote(eng, qp, qp_index, rkey, va, length, need):
    """Index of the region or window an rkey names if the peer may do `need` to [va, va + length), else -1."""
    i = find_mr(eng, i64(qp["func"]), rkey)
    if i < 0:
        return -1
    mr = eng["mrs"][i]
    if mr["valid"] == 0 or (i64(mr["access"]) & need) != need:
        return -1
    if mr["kind"] == MrKind.MW2:
        if i64(mr["qp"]) != qp_index:  # o10-36: a type 2 window belongs to the QP it was bound on
            return -1
    elif mr["pdn"] != qp["pdn"]:
        return -1
    if not _covers(mr, va, length):
        return -1
    return i

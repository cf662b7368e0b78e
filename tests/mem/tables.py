"""Engine tables filled by hand: regions and address spaces without the verbs."""

from __future__ import annotations

import mmap
from typing import Any

import numpy as np

from softrnic.hash import hash_insert
from softrnic.layout import MrKind, SpaceKind, make_engine
from softrnic.mem.mr import key_of
from softrnic.mem.space import PAGE_SIZE
from softrnic.verbs import Access

EVERY_RIGHT = sum(Access) & ~(Access.ZERO_BASED | Access.ON_DEMAND)
PDN = 3


def pages(count: int) -> np.ndarray:
    """Page-aligned memory."""
    return np.frombuffer(mmap.mmap(-1, max(1, count) * PAGE_SIZE), np.uint8)


def fresh() -> np.ndarray:
    """An engine with one QP, in PDN, and the address space of this process."""
    engs = make_engine()
    engs[0]["spaces"][0]["kind"] = SpaceKind.IDENTITY
    engs[0]["spaces"][0]["plain"] = 1
    engs[0]["qps"][0]["pdn"] = PDN
    return engs


def add_mr(engs: np.ndarray, index: int, key: int, **fields: Any) -> np.void:
    """One region (or window) record under a key; by default valid, with every right, in PDN."""
    mr = engs[0]["mrs"][index]
    usual = {"kind": MrKind.MR, "valid": 1, "access": EVERY_RIGHT, "pdn": PDN, "nranges": 1, "parent": -1, "qp": -1}
    for name, value in {**usual, "key": key, **fields}.items():
        mr[name] = value
    assert hash_insert(engs[0]["key_hash"], key_of(int(mr["func"]), key), index)
    return mr

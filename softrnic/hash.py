"""Open addressing from a 64-bit key to a record index: QPNs and memory keys.

Linear probing with backward-shift deletion, so there are no tombstones and a look-up never degrades. A key is any
positive integer. Look-ups run in the data path; insertions and removals only while the engine stands still.
"""

from __future__ import annotations

import numpy as np

from softrnic.jit import i64, inline, kernel


@inline
def _home(key, mask):
    return ((key * 0x9E3779B1) >> 12) & mask


@inline
def hash_find(table, key):
    """Value of `key`, or -1."""
    mask = len(table) - 1
    i = _home(key, mask)
    while True:
        k = table[i]["key"]
        if k == key:
            return i64(table[i]["value"])
        if k == 0:
            return -1
        i = (i + 1) & mask


@kernel
def hash_insert(table: np.ndarray, key: int, value: int) -> bool:
    """Add `key`; False when it is there already. The table is kept at most half full by its owner."""
    mask = len(table) - 1
    i = _home(key, mask)
    while table[i]["key"] != 0:
        if table[i]["key"] == key:
            return False
        i = (i + 1) & mask
    table[i]["key"] = key
    table[i]["value"] = value
    return True


@kernel
def hash_remove(table: np.ndarray, key: int) -> bool:
    """Remove `key` and close the gap; False when it is not there."""
    mask = len(table) - 1
    i = _home(key, mask)
    while table[i]["key"] != key:
        if table[i]["key"] == 0:
            return False
        i = (i + 1) & mask
    j = i
    while True:
        j = (j + 1) & mask
        k = i64(table[j]["key"])
        if k == 0:
            break
        # an entry may move back to i unless its home lies cyclically in (i, j]
        if ((j - _home(k, mask)) & mask) >= ((j - i) & mask):
            table[i]["key"] = k
            table[i]["value"] = table[j]["value"]
            i = j
    table[i]["key"] = 0
    return True

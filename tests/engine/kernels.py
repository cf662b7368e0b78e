"""Entry points to helpers that tests want to call one by one."""

from __future__ import annotations

import numpy as np

from softrnic.hash import hash_find
from softrnic.jit import kernel


@kernel
def find(table: np.ndarray, key: int) -> int:
    """hash_find."""
    return hash_find(table, key)

"""Entry points to helpers that tests want to call one by one."""

from __future__ import annotations

import numpy as np

from softrnic.jit import i64, kernel
from softrnic.qp.psn import psn_add, psn_diff
from softrnic.qp.timer import drop_timer, next_deadline, start_timer, stop_timer, take_expired


@kernel
def add(psn: int, n: int) -> int:
    """psn_add."""
    return psn_add(psn, n)


@kernel
def diff(a: int, b: int) -> int:
    """psn_diff."""
    return psn_diff(a, b)


@kernel
def start(engs: np.ndarray, index: int, deadline: int) -> None:
    """start_timer of a QP."""
    eng = engs[0]
    start_timer(eng, eng["qps"][index], index, 1, deadline)


@kernel
def stop(engs: np.ndarray, index: int) -> None:
    """stop_timer of a QP."""
    stop_timer(engs[0]["qps"][index])


@kernel
def drop(engs: np.ndarray, index: int) -> None:
    """drop_timer of a QP."""
    drop_timer(engs[0], engs[0]["qps"][index])


@kernel
def deadline(engs: np.ndarray) -> int:
    """next_deadline."""
    return i64(next_deadline(engs[0]))


@kernel
def expired(engs: np.ndarray, now: int) -> int:
    """take_expired."""
    return i64(take_expired(engs[0], now))

"""Kernel entry points of the control path: what verbs need done to engine records that only the engine may touch.

Called while the engine stands still (between bursts), one object at a time.
"""

from __future__ import annotations

import numpy as np

from softrnic.hash import hash_find
from softrnic.jit import i64, kernel
from softrnic.layout import AckState
from softrnic.qp.finish import enter_error
from softrnic.qp.inbound import qpn_key
from softrnic.qp.sched import ring_doorbell
from softrnic.qp.timer import drop_timer


@kernel
def doorbell(engs: np.ndarray, qp_index: int) -> None:
    """A queue of this QP has grown."""
    ring_doorbell(engs[0], qp_index)


@kernel
def doorbells(engs: np.ndarray, indices: np.ndarray) -> None:
    """The same of many."""
    for i in range(len(indices)):
        ring_doorbell(engs[0], indices[i])


@kernel
def to_error(engs: np.ndarray, qp_index: int) -> None:
    """Take a QP to the error state and flush it; it sends nothing more."""
    eng = engs[0]
    qp = eng["qps"][qp_index]
    qp["ack_state"] = AckState.NONE
    enter_error(eng, qp, qp_index)


@kernel
def forget(engs: np.ndarray, qp_index: int) -> None:
    """Take a QP out of the timer wheel and the run queue, because it is reset or destroyed."""
    eng = engs[0]
    qp = eng["qps"][qp_index]
    drop_timer(eng, qp)
    if qp["sched"] == 0:
        return
    qp["sched"] = 0
    before, index = -1, i64(eng["sched_head"])
    while index != qp_index:
        before = index
        index = i64(eng["qps"][index]["sched_next"])
    after = i64(qp["sched_next"])
    if before < 0:
        eng["sched_head"] = after
    else:
        eng["qps"][before]["sched_next"] = after
    if after < 0:
        eng["sched_tail"] = before


@kernel
def find_qp(engs: np.ndarray, func: int, qpn: int) -> int:
    """Index of the QP with this number, or -1."""
    return hash_find(engs[0]["qpn_hash"], qpn_key(func, qpn))

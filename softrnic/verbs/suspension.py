"""Suspending and resuming all queue pairs of a device in one go, however many: Qp.suspend and Qp.resume for columns."""

from __future__ import annotations

import errno
from typing import TYPE_CHECKING

import numpy as np

from softrnic.errors import VerbsError
from softrnic.layout import Hold, StopFlag, TimerKind
from softrnic.qp import admin
from softrnic.spec import QpState

if TYPE_CHECKING:
    from softrnic.verbs.device import Device

ON_THE_WIRE = (QpState.RTR, QpState.RTS, QpState.SQD, QpState.SQE)
HOLDS = {"silence": Hold.SILENCE, "rnr": Hold.RNR, "stop": Hold.STOP}
HOLD_RNR_TIMER = 20  # 10.24 ms: how long a held peer is asked to wait at a time


def _indices(device: Device) -> np.ndarray:
    return np.fromiter((qp.index for qp in device.qps.values()), np.int64, len(device.qps))


def _standing(device: Device) -> np.ndarray:
    """Those on the wire or suspended already."""
    indices = _indices(device)
    return indices[np.isin(device.record["qps"]["state"][indices], (*ON_THE_WIRE, QpState.SUSPENDED))]


def suspend_egress(device: Device) -> None:
    """No new requests, no timeouts."""
    with device.quiesced():
        device.record["qps"]["quiet"][_standing(device)] = 1


def suspend(device: Device, policy: str, *, rnr_timer: int = HOLD_RNR_TIMER) -> None:
    """Both phases; "stop" is "rnr" for those whose peers have not agreed."""
    if policy not in HOLDS:
        raise VerbsError(errno.EINVAL, f"policy {policy!r} is not one of {', '.join(HOLDS)}")
    if not 0 <= rnr_timer <= 31:
        raise VerbsError(errno.EINVAL, f"rnr_timer must be 0 to 31, not {rnr_timer}")
    qps, hold = device.record["qps"], HOLDS[policy]
    with device.quiesced():
        indices = _standing(device)
        qps["quiet"][indices] = 1
        fresh = indices[qps["state"][indices] != QpState.SUSPENDED]
        qps["resume_to"][fresh] = qps["state"][fresh]
        qps["state"][fresh] = QpState.SUSPENDED
        agreed = qps["stop"][indices] & StopFlag.STOP.value != 0
        qps["hold"][indices] = np.where(agreed, hold, Hold.RNR if hold == Hold.STOP else hold)
        qps["hold_timer"][indices] = rnr_timer
        admin.doorbells(device.engine.tables, indices)
    device.kick()


def resume(device: Device) -> None:
    """All that are suspended, in either phase, go on."""
    qps = device.record["qps"]
    with device.quiesced():
        indices = _indices(device)
        indices = indices[(qps["state"][indices] == QpState.SUSPENDED) | (qps["quiet"][indices] != 0)]
        agreed = qps["stop"][indices] & StopFlag.STOP.value != 0
        for index in indices[agreed].tolist():
            device.qps[index].restart_requester()
        plain = indices[~agreed]
        qps["quiet"][plain] = 0
        waiting = plain[qps["timer"][plain] == TimerKind.ACK]
        qps["timer"][waiting] = TimerKind.NONE  # in full from the next transmit on: no time away counts
        away = indices[qps["state"][indices] == QpState.SUSPENDED]
        qps["state"][away] = qps["resume_to"][away]
        admin.doorbells(device.engine.tables, indices)
    device.kick()


def settled(device: Device) -> bool:
    """Whether none is on the wire and none has anything left to say."""
    indices, qps = _indices(device), device.record["qps"]
    if np.isin(qps["state"][indices], ON_THE_WIRE).any():
        return False
    owing = indices[(qps["rd_head"][indices] != qps["rd_tail"][indices]) | (qps["ack_state"][indices] != 0)]
    return all(device.qps[index].settled for index in owing.tolist())

"""The QP state machine as a table: which transitions are legal and what each needs (IBTA 11.2.5.2, table 91).

Theory of operation. A transition is a row {(from, to): {transport: (required, optional)}}; attributes are named as
`ibv_modify_qp` names them, less the `qp_` prefix. Two rules: everything that decides whether a modify is legal lives in
this file, and this file does not know what a modify does - it checks names, never values or records.

To RESET one may go from every state, and to ERR from every state but RESET, with no attribute at all. SUSPENDED is left
and entered only from RTR, RTS, SQD and SQE: a suspended QP keeps all its state and its queues, but is not on the wire.
"""

from __future__ import annotations

import errno
from typing import NamedTuple

from softrnic.errors import VerbsError
from softrnic.spec import QpState, QpType

RESET, INIT, RTR, RTS, SQD, SQE, ERR, SUSPENDED = QpState


class Needs(NamedTuple):
    """Attributes a transition must have, and may have."""

    required: frozenset[str]
    optional: frozenset[str]


def _needs(required: str = "", optional: str = "") -> Needs:
    return Needs(frozenset(required.split()), frozenset(optional.split()))


def _connected(rc: Needs, uc: Needs, ud: Needs) -> dict[QpType, Needs]:
    return {QpType.RC: rc, QpType.UC: uc, QpType.UD: ud, QpType.GSI: ud}


_RTS_RC = "access_flags min_rnr_timer alt_path path_mig_state cur_state"
_RTS_UC = "access_flags alt_path path_mig_state cur_state"
_RTS_UD = "qkey cur_state"
_ALWAYS = _connected(_needs(), _needs(), _needs())

TRANSITIONS: dict[tuple[QpState, QpState], dict[QpType, Needs]] = {
    (RESET, INIT): _connected(
        _needs("pkey_index port access_flags"),
        _needs("pkey_index port access_flags"),
        _needs("pkey_index port qkey"),
    ),
    (INIT, INIT): _connected(
        _needs("", "pkey_index port access_flags"),
        _needs("", "pkey_index port access_flags"),
        _needs("", "pkey_index port qkey"),
    ),
    (INIT, RTR): _connected(
        _needs(
            "ah path_mtu dqpn rq_psn max_dest_rd_atomic min_rnr_timer",
            "pkey_index access_flags alt_path",
        ),
        _needs("ah path_mtu dqpn rq_psn", "pkey_index access_flags alt_path"),
        _needs("", "pkey_index qkey"),
    ),
    (RTR, RTS): _connected(
        _needs("sq_psn timeout retry_cnt rnr_retry max_rd_atomic", _RTS_RC),
        _needs("sq_psn", _RTS_UC),
        _needs("sq_psn", _RTS_UD),
    ),
    (RTS, RTS): _connected(_needs("", _RTS_RC), _needs("", _RTS_UC), _needs("", _RTS_UD)),
    (RTS, SQD): _connected(*(_needs("", "en_sqd_async_notify"),) * 3),
    (SQD, RTS): _connected(_needs("", _RTS_RC), _needs("", _RTS_UC), _needs("", _RTS_UD)),
    (SQD, SQD): _connected(
        _needs(
            "", "port ah timeout retry_cnt rnr_retry max_rd_atomic max_dest_rd_atomic pkey_index "
            "access_flags min_rnr_timer alt_path path_mig_state",
        ),
        _needs("", "ah pkey_index access_flags alt_path path_mig_state"),
        _needs("", "pkey_index qkey"),
    ),
    (SQE, RTS): {QpType.UC: _needs("", "access_flags cur_state"), QpType.UD: _needs("", _RTS_UD),
                 QpType.GSI: _needs("", _RTS_UD)},
    **{(state, SUSPENDED): _ALWAYS for state in (RTR, RTS, SQD, SQE)},
    **{(SUSPENDED, state): _ALWAYS for state in (RTR, RTS, SQD, SQE)},
    **{(state, RESET): _ALWAYS for state in QpState},
    **{(state, ERR): _ALWAYS for state in QpState if state != RESET},
}  # fmt: skip


def check_modify(kind: QpType, old: QpState, new: QpState, given: frozenset[str]) -> None:
    """Raise EINVAL, saying what is wrong, unless `given` takes a QP of this type from `old` to `new`."""
    needs = TRANSITIONS.get((old, new), {}).get(kind)
    if needs is None:
        raise VerbsError(errno.EINVAL, f"no transition of a {kind.name} QP from {old.name} to {new.name}")
    missing = needs.required - given
    if missing:
        raise VerbsError(errno.EINVAL, f"{old.name} to {new.name} needs {', '.join(sorted(missing))}")
    extra = given - needs.required - needs.optional
    if extra:
        raise VerbsError(errno.EINVAL, f"{old.name} to {new.name} does not take {', '.join(sorted(extra))}")

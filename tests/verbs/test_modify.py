"""ibv_modify_qp: every transition of every transport, with every attribute, on real QPs.

The table is that of the verbs (IBTA table 91 as ib_modify_qp_is_ok has it), written down here a second time.
"""

from __future__ import annotations

import errno
from collections.abc import Iterator
from typing import Any

import pytest

from softrnic.layout import make_ring
from softrnic.spec import GSI_QKEY
from softrnic.verbs import (
    Access,
    AhAttr,
    Device,
    Mtu,
    Pd,
    Qp,
    QpCap,
    QpState,
    QpType,
    SendWr,
    Sge,
    VerbsError,
    WrOpcode,
)
from tests.pairs import MAC

RESET, INIT, RTR, RTS, SQD, SQE, ERR, SUSPENDED = QpState
RC, UC, UD, GSI = QpType.RC, QpType.UC, QpType.UD, QpType.GSI

ALT = "alt_path"
MIG = "path_mig_state"
# (from, to): for each transport the attributes that must, and that may, be given.
LEGAL: dict[tuple[QpState, QpState], dict[QpType, tuple[str, str]]] = {
    (RESET, INIT): {
        RC: ("pkey_index port access_flags", ""),
        UC: ("pkey_index port access_flags", ""),
        UD: ("pkey_index port qkey", ""),
    },
    (INIT, INIT): {
        RC: ("", "pkey_index port access_flags"),
        UC: ("", "pkey_index port access_flags"),
        UD: ("", "pkey_index port qkey"),
    },
    (INIT, RTR): {
        RC: (
            "ah path_mtu dqpn rq_psn max_dest_rd_atomic min_rnr_timer",
            f"pkey_index access_flags {ALT}",
        ),
        UC: ("ah path_mtu dqpn rq_psn", f"pkey_index access_flags {ALT}"),
        UD: ("", "pkey_index qkey"),
    },
    (RTR, RTS): {
        RC: (
            "sq_psn timeout retry_cnt rnr_retry max_rd_atomic",
            f"cur_state access_flags min_rnr_timer {ALT} {MIG}",
        ),
        UC: ("sq_psn", f"cur_state access_flags {ALT} {MIG}"),
        UD: ("sq_psn", "cur_state qkey"),
    },
    (RTS, RTS): {
        RC: ("", f"cur_state access_flags min_rnr_timer {ALT} {MIG}"),
        UC: ("", f"cur_state access_flags {ALT} {MIG}"),
        UD: ("", "cur_state qkey"),
    },
    (RTS, SQD): dict.fromkeys((RC, UC, UD), ("", "en_sqd_async_notify")),
    (SQD, RTS): {
        RC: ("", f"cur_state access_flags min_rnr_timer {ALT} {MIG}"),
        UC: ("", f"cur_state access_flags {ALT} {MIG}"),
        UD: ("", "cur_state qkey"),
    },
    (SQD, SQD): {
        RC: (
            "",
            (
                "port ah timeout retry_cnt rnr_retry max_rd_atomic max_dest_rd_atomic pkey_index access_flags "
                f"min_rnr_timer {ALT} {MIG}"
            ),
        ),
        UC: ("", f"ah pkey_index access_flags {ALT} {MIG}"),
        UD: ("", "pkey_index qkey"),
    },
    (SQE, RTS): {UC: ("", "cur_state access_flags"), UD: ("", "cur_state qkey")},
    **{(state, ERR): dict.fromkeys((RC, UC, UD), ("", "")) for state in QpState if state != RESET},
    **{(state, RESET): dict.fromkeys((RC, UC, UD), ("", "")) for state in QpState},
    # not of the verbs: a QP taken off the wire, and put back into the state it was in
    **{(state, SUSPENDED): dict.fromkeys((RC, UC, UD), ("", "")) for state in (RTR, RTS, SQD)},
    (SQE, SUSPENDED): dict.fromkeys((UC, UD), ("", "")),
    (SUSPENDED, RTS): dict.fromkeys((RC, UC, UD), ("", "")),
}
REACHABLE = {
    kind: [state for state in QpState if state != SQE or kind != RC] for kind in (RC, UC, UD, GSI)
}  # RC has no send queue error

VALUES: dict[str, Any] = {
    "pkey_index": 0, "port": 1, "qkey": GSI_QKEY, "access_flags": Access.REMOTE_READ, "path_mtu": Mtu.MTU_512,
    "ah": AhAttr("10.0.0.2", 0, MAC[1]), "dqpn": 0x77, "rq_psn": 5, "sq_psn": 6, "max_dest_rd_atomic": 3,
    "max_rd_atomic": 2, "min_rnr_timer": 9, "timeout": 10, "retry_cnt": 4, "rnr_retry": 3, "en_sqd_async_notify": 1,
    "alt_path": None, "path_mig_state": 0,
}  # fmt: skip


class Bench:
    """A device on which QPs come and go."""

    def __init__(self) -> None:
        self.device = Device()
        self.device.add_gid("10.0.0.1", MAC[0])
        self.pd: Pd = self.device.alloc_pd()
        self.cq = self.device.create_cq(64)

    def qp(self, kind: QpType, state: QpState) -> Qp:
        """A QP that has come to this state in the usual way."""
        qp = self.pd.create_qp(kind, self.cq, self.cq, QpCap(4, 4))
        table = UD if kind == GSI else kind
        for new in (INIT, RTR, RTS)[: 3 if state > RTS else state]:
            qp.modify(new, **given(LEGAL[qp.state, new][table][0]))
        if state == SQE:
            ah = self.pd.create_ah(VALUES["ah"])
            qp.post_send(SendWr(WrOpcode.SEND, [Sge(0, 1, 0xBAD)], ah=ah))
            self.transmit()
            self.cq.poll()
        elif state > RTS:
            qp.modify(state)
        assert qp.state == state
        return qp

    def transmit(self) -> None:
        self.device.engine.transmit(make_ring(1), 0)


def given(names: str) -> dict[str, Any]:
    return {name: VALUES[name] for name in names.split()}


def snapshot(qp: Qp) -> tuple[Any, ...]:
    """All that a modify could change."""
    device = qp.device
    return (
        qp.record.tobytes(),
        device.record["avs"][qp.index].tobytes(),
        qp.query(),
        [sorted(level) for level in device.slabs.rd_res._free],
        qp.state,
    )


def refused(qp: Qp, state: QpState | None, attr: dict[str, Any], *named: str) -> None:
    """EINVAL that names what is wrong, and a QP that is as it was."""
    before = snapshot(qp)
    with pytest.raises(VerbsError) as error:
        qp.modify(state, **attr)
    assert error.value.errno == errno.EINVAL
    for name in named:
        assert name in str(error.value)
    assert snapshot(qp) == before


@pytest.fixture(scope="module")
def bench() -> Iterator[Bench]:
    made = Bench()
    yield made
    made.device.close()


def cases(kind: QpType) -> Iterator[tuple[QpState, QpState, tuple[str, str] | None]]:
    for old in REACHABLE[kind]:
        for new in QpState:
            yield old, new, LEGAL.get((old, new), {}).get(UD if kind == GSI else kind)


LEGAL_CASES = [
    pytest.param(kind, old, new, row, id=f"{kind.name}-{old.name}-{new.name}")
    for kind in (RC, UC, UD, GSI)
    for old, new, row in cases(kind)
    if row is not None
]
ILLEGAL_CASES = [
    pytest.param(kind, old, new, id=f"{kind.name}-{old.name}-{new.name}")
    for kind in (RC, UC, UD, GSI)
    for old, new, row in cases(kind)
    if row is None
]


@pytest.mark.parametrize(("kind", "old", "new", "row"), LEGAL_CASES)
def test_legal(bench: Bench, kind: QpType, old: QpState, new: QpState, row: tuple[str, str]) -> None:
    """With what is required alone, with each option, and with all of them."""
    required, optional = given(row[0]), row[1].split()
    VALUES["cur_state"] = old
    for options in [[], *[[name] for name in optional], optional]:
        with bench.qp(kind, old) as qp:
            attr = {**required, **given(" ".join(options))}
            qp.modify(new, **attr)
            assert qp.state == new
            query = qp.query()
            if new != RESET:
                stored = {"path_mtu", *attr} - {"cur_state", "en_sqd_async_notify", "ah", "alt_path", "path_mig_state"}
                assert {n: query[n] for n in stored & set(attr)} == {n: attr[n] for n in stored & set(attr)}


@pytest.mark.parametrize(("kind", "old", "new", "row"), LEGAL_CASES)
def test_something_missing(bench: Bench, kind: QpType, old: QpState, new: QpState, row: tuple[str, str]) -> None:
    """EINVAL names the attribute that is missing."""
    with bench.qp(kind, old) as qp:
        for name in row[0].split():
            attr = given(row[0])
            del attr[name]
            refused(qp, new, attr, name)


@pytest.mark.parametrize(("kind", "old", "new", "row"), LEGAL_CASES)
def test_something_extra(bench: Bench, kind: QpType, old: QpState, new: QpState, row: tuple[str, str]) -> None:
    """EINVAL names the attribute that does not belong there."""
    VALUES["cur_state"] = old
    with bench.qp(kind, old) as qp:
        for name in set(VALUES) - set(row[0].split()) - set(row[1].split()):
            refused(qp, new, given(f"{row[0]} {name}"), name)
        refused(qp, new, {**given(row[0]), "colour": 3}, "colour")


@pytest.mark.parametrize(("kind", "old", "new"), ILLEGAL_CASES)
def test_illegal(bench: Bench, kind: QpType, old: QpState, new: QpState) -> None:
    """EINVAL says from where to where, whatever attributes are given."""
    with bench.qp(kind, old) as qp:
        refused(qp, new, {}, old.name, new.name)
        refused(qp, new, given("pkey_index port"), old.name, new.name)


@pytest.mark.parametrize("away", [RTR, RTS, SQD, SQE])
@pytest.mark.parametrize("back", [RTR, RTS, SQD, SQE])
def test_suspended_goes_back_to_where_it_was(bench: Bench, away: QpState, back: QpState) -> None:
    """Or a QP could reach RTS without ever having been given what RTS needs."""
    with bench.qp(UC, away) as qp:
        qp.modify(SUSPENDED)
        if back == away:
            qp.modify(back)
            assert qp.state == back
        else:
            refused(qp, back, {}, away.name)


# --- values -------------------------------------------------------------------------------------------------------

BAD_VALUES = {
    "pkey_index": [1, -1, 1 << 32, None, "0"],
    "port": [0, 2, -1],
    "qkey": [-1, 1 << 32, 1.5],
    "access_flags": [-1, 1 << 30, "rw", None],
    "path_mtu": [0, 6, 256, 4096, -1, None, "1024"],
    "dqpn": [-1, 1 << 24],
    "rq_psn": [-1, 1 << 24],
    "sq_psn": [-1, 1 << 24, 0.5],
    "max_dest_rd_atomic": [-1, 129, 256, "1", None],
    "max_rd_atomic": [-1, 129, 256, "1", None],
    "min_rnr_timer": [-1, 32, 255],
    "timeout": [-1, 32],
    "retry_cnt": [-1, 8],
    "rnr_retry": [-1, 8],
    "ah": [
        None,
        AhAttr("10.0.0.2", 1, MAC[1]),
        AhAttr("10.0.0.2", -1, MAC[1]),
        AhAttr("fd00::2", 0, MAC[1]),
        AhAttr("not an address", 0, MAC[1]),
        AhAttr("10.0.0.2", 0, b"short"),
        AhAttr("10.0.0.2", 0, MAC[1], traffic_class=256),
        AhAttr("10.0.0.2", 0, MAC[1], hop_limit=-1),
        AhAttr("10.0.0.2", 0, MAC[1], flow_label=1 << 20),
    ],
}


def home_of(name: str) -> tuple[QpType, QpState, QpState]:
    """A transition that takes the attribute."""
    for (old, new), rows in LEGAL.items():
        for kind, row in rows.items():
            if name in row[0].split():
                return kind, old, new
    raise AssertionError(name)


@pytest.mark.parametrize(
    ("name", "value"), [pytest.param(n, v, id=f"{n}-{i}") for n, vs in BAD_VALUES.items() for i, v in enumerate(vs)]
)
def test_out_of_range(bench: Bench, name: str, value: Any) -> None:
    """EINVAL, and none of the other attributes given with it has been applied."""
    kind, old, new = home_of(name)
    with bench.qp(kind, old) as qp:
        refused(qp, new, {**given(LEGAL[old, new][kind][0]), name: value}, *([] if name == "ah" else [name]))


@pytest.mark.parametrize(
    ("name", "values"),
    [
        ("dqpn", [0, 1, 0xFFFFFF]), ("rq_psn", [0, 0xFFFFFF]), ("max_dest_rd_atomic", [0, 1, 128]),
        ("max_rd_atomic", [0, 128]), ("min_rnr_timer", [0, 31]), ("timeout", [0, 31]), ("retry_cnt", [0, 7]),
        ("rnr_retry", [0, 7]), ("sq_psn", [0, 0xFFFFFF]), ("path_mtu", list(Mtu)), ("qkey", [0, 0xFFFFFFFF]),
        ("access_flags", [Access(0), Access.REMOTE_READ | Access.REMOTE_WRITE | Access.REMOTE_ATOMIC]),
    ],
)  # fmt: skip
def test_limits_are_in_range(bench: Bench, name: str, values: list[Any]) -> None:
    """The ends of every range."""
    kind, old, new = home_of(name)
    for value in values:
        with bench.qp(kind, old) as qp:
            qp.modify(new, **{**given(LEGAL[old, new][kind][0]), name: value})
            assert qp.query()[name] == value


@pytest.mark.parametrize("state", [RTR, RTS, SQD])
def test_wrong_cur_state(bench: Bench, state: QpState) -> None:
    """A caller that is wrong about the state the QP is in."""
    with bench.qp(RC, state) as qp:
        for wrong in set(QpState) - {state}:
            refused(qp, RTS, {**given(LEGAL[state, RTS][RC][0]), "cur_state": wrong}, "cur_state", state.name)


def test_no_room_for_reads(bench: Bench) -> None:
    """A modify that runs out of something fails as a whole."""
    with bench.qp(RC, INIT) as qp:
        slab = bench.device.slabs.rd_res
        free, slab._free = slab._free, [set() for _ in slab._free]
        before = snapshot(qp)
        try:
            with pytest.raises(VerbsError) as error:
                qp.modify(RTR, **given(LEGAL[INIT, RTR][RC][0]))
            assert error.value.errno == errno.ENOMEM
            assert snapshot(qp) == before
        finally:
            slab._free = free


def test_state_is_the_default(bench: Bench) -> None:
    """A modify that names no state stays where it is."""
    with bench.qp(RC, RTS) as qp:
        qp.modify(min_rnr_timer=3)
        assert (qp.state, qp.query()["min_rnr_timer"]) == (RTS, 3)


def test_query_says_what_was_set(bench: Bench) -> None:
    """ibv_query_qp."""
    with bench.qp(RC, RTS) as qp:
        query = qp.query()
        expected = given(
            "pkey_index port access_flags path_mtu dqpn rq_psn sq_psn max_dest_rd_atomic max_rd_atomic min_rnr_timer "
            "timeout retry_cnt rnr_retry"
        )
        assert {name: query[name] for name in expected} == expected
        assert (query["state"], query["type"], query["qpn"]) == (RTS, RC, qp.qpn)
        assert query["ah"].dgid == VALUES["ah"].dgid
        assert not query["sq_draining"]
        qp.modify(RESET)
        assert "dqpn" not in qp.query()


@pytest.mark.parametrize("state", [8, -1, "RTS"])
def test_no_such_state(bench: Bench, state: Any) -> None:
    """EINVAL."""
    with bench.qp(RC, RTS) as qp:
        refused(qp, state, {})

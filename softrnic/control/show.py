"""Functions, objects and counters as rows, with the keys of rdma(8): read from records, changes nothing.

Keys that rdma(8) does not have come last.
"""

from __future__ import annotations

import errno
from typing import Any

from softrnic.errors import VerbsError
from softrnic.spec import QpState, QpType
from softrnic.verbs import Device, Mr, Mw, Pd, Qp
from softrnic.verbs.survival import POLICIES

Row = dict[str, Any]
KINDS = ("qp", "mr", "cq", "pd", "srq")


def links(functions: list[Device]) -> list[Row]:
    """`rdma link show`."""
    return [
        {
            "ifindex": device.func, "ifname": device.name, "port": 1, "state": device.port.state.removeprefix("PORT_"),
            "physical_state": "LINK_UP", "active_mtu": device.port.active_mtu,
            "gids": [{"index": g.index, "ip": str(g.ip), "mac": g.mac.hex(":")} | _vlan(g.vlan)
                     for g in device.gids.values()],
        }
        for device in functions
    ]  # fmt: skip


def _vlan(vlan: int | None) -> Row:
    return {} if vlan is None else {"vlan": vlan}


def resources(functions: list[Device], kind: str) -> list[Row]:
    """`rdma res show KIND`, or without a kind, how many there are; EINVAL for a kind that is none."""
    if not kind:
        return [
            {
                "ifindex": d.func, "ifname": d.name, "pd": len(d.pds), "cq": len(d.cqs), "qp": len(d.qps),
                "mr": sum(isinstance(m, Mr) for m in d.mrs.values()), "srq": len(d.srqs),
                "mw": sum(isinstance(m, Mw) for m in d.mrs.values()),
            }
            for d in functions
        ]  # fmt: skip
    if kind not in KINDS:
        raise VerbsError(errno.EINVAL, f"{kind!r} is not one of {', '.join(KINDS)}")
    rows = {"qp": _qps, "mr": _mrs, "cq": _cqs, "pd": _pds, "srq": _srqs}[kind]
    return [{"ifindex": d.func, "ifname": d.name} | row for d in functions for row in rows(d)]


def _qps(device: Device) -> list[Row]:
    return [_qp(qp) for qp in list(device.qps.values())]


def _qp(qp: Qp) -> Row:
    q = qp.record
    row: Row = {"port": 1, "lqpn": qp.qpn}
    if qp.type in (QpType.RC, QpType.UC):
        row["rqpn"] = int(q["dqpn"])
    row |= {"type": qp.type.name, "state": qp.state.name, "rq-psn": int(q["epsn"]), "sq-psn": int(q["req_psn"])}
    if qp.type in (QpType.RC, QpType.UC):
        row["path-mig-state"] = "MIGRATED"
    row |= {"pdn": qp.pd.pdn, "scqn": qp.send_cq.cqn, "rcqn": qp.recv_cq.cqn, "una-psn": int(q["una_psn"])}
    if qp.state == QpState.SUSPENDED:
        row["resumes-to"] = qp.resumes_to.name
    return row | {
        "sq-posted": int(q["sq_prod"]) - int(q["sq_head"]), "rq-posted": int(q["rq_prod"]) - int(q["rq_head"]),
        "timeout": int(q["timeout"]), "retry-cnt": int(q["retry_cnt"]), "rnr-retry": int(q["rnr_retry"]),
    }  # fmt: skip


def _mrs(device: Device) -> list[Row]:
    found = [m for m in list(device.mrs.values()) if isinstance(m, Mr)]
    return [
        {
            "mrn": m.index, "rkey": f"{m.rkey:#x}", "lkey": f"{m.lkey:#x}", "iova": f"{m.iova:#x}", "mrlen": m.length,
            "pdn": m.pd.pdn, "valid": m.valid,
        }
        for m in found
    ]  # fmt: skip


def _cqs(device: Device) -> list[Row]:
    records = device.record["cqs"]
    return [
        {
            "cqn": cq.cqn, "cqe": cq.size, "users": cq.users, "unpolled": _length(records[cq.index], "cons"),
            "armed": bool(records[cq.index]["armed"]), "overrun": cq.overrun,
        }
        for cq in list(device.cqs.values())
    ]  # fmt: skip


def _length(record: Any, first: str) -> int:
    return int(record["prod"]) - int(record[first])


def _pds(device: Device) -> list[Row]:
    pds: list[Pd] = list(device.pds.values())
    return [{"pdn": pd.pdn, "users": pd.users, "ahs": len(pd.ahs)} for pd in pds]


def _srqs(device: Device) -> list[Row]:
    records = device.record["srqs"]
    return [
        {
            "srqn": s.srqn, "type": "BASIC", "pdn": s.pd.pdn, "users": s.users, "max_wr": s.max_wr, "limit": s.limit,
            "posted": _length(records[s.index], "head"),
        }
        for s in list(device.srqs.values())
    ]  # fmt: skip


def statistics(functions: list[Device]) -> list[Row]:
    """`rdma statistic show`: the counters of each adapter once, under the name of its first function."""
    first = {id(device.adapter): device for device in reversed(functions)}
    return [
        {"ifname": device.name, "port": 1} | device.counters() for device in reversed(list(first.values()))
    ]


def survivals(functions: list[Device], pause_ns: int, policy: str, lqpn: int | None) -> list[Row]:
    """Whether the peer of each connected QP lives through a pause, and if not, what would help.

    EINVAL for a policy that there is not.
    """
    if policy not in POLICIES:  # also of a function without queue pairs
        raise VerbsError(errno.EINVAL, f"policy {policy!r} is not one of {', '.join(POLICIES)}")
    rows = []
    for device in functions:
        for qp in list(device.qps.values()):
            if qp.state not in (QpState.RTS, QpState.SQD, QpState.RTR, QpState.SUSPENDED) or lqpn not in (None, qp.qpn):
                continue
            found = qp.survival(pause_ns, policy)
            rows.append({
                "ifname": device.name, "lqpn": qp.qpn, "type": qp.type.name, "survives": found.survives,
                "until_ns": found.until_ns, "limit": found.limit, "advice": list(found.advice),
                "if_lost_ns": found.if_lost_ns, "waiting": list(found.waiting),
            })  # fmt: skip
    return rows

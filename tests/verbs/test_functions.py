"""Several functions on one adapter: everything but the engine and the port is each one's own."""

from __future__ import annotations

import errno
from typing import Any

import numpy as np
import pytest

from softrnic import layout
from softrnic.counters import C
from softrnic.errors import VerbsError
from softrnic.verbs import Access, AhAttr, Device, EventType, Mtu, QpState, QpType, RecvWr, SendWr, WcStatus, WrOpcode
from softrnic.verbs.adapter import MAX_FUNCTIONS
from softrnic.verbs.qp import QpCap
from tests.pairs import ALL_ACCESS, IPV4, MAC, Pair, Side

VF_IP, VF_MAC = "10.0.0.9", b"\x02\x00\x00\x00\x00\x19"


class Place(Side):
    """A further function beside a side of a pair, with objects like those the side has."""

    def __init__(self, side: Side, ip: str = VF_IP, *, cqn: int | None = None) -> None:
        self.device = side.device.create_function("vf")
        self.gid = self.device.add_gid(ip, VF_MAC)
        self.ip = ip
        self.peer_ip, self.peer_mac = side.peer_ip, side.peer_mac
        self.pd = self.device.alloc_pd()
        self.cq = self.device.create_cq(256, cqn=cqn)
        self.buf = np.zeros(1 << 14, np.uint8)
        self.mr = self.pd.reg_mr(self.buf, ALL_ACCESS, key=side.mr.key)
        self.tx, self.qps = side.tx, []


def connect(pair: Pair, place: Place, *, qpn: int | None = None) -> tuple[Any, Any]:
    """A QP of the pair's `a` and one of the function, in RTS."""
    a, b = pair.a, place
    qa = a.pd.create_qp(QpType.RC, a.cq, a.cq, QpCap(32, 32, 2, 2))
    qb = b.pd.create_qp(QpType.RC, b.cq, b.cq, QpCap(32, 32, 2, 2), qpn=qpn)
    for qp, peer, ah in ((qa, qb, AhAttr(place.ip, a.gid, VF_MAC)), (qb, qa, b.ah())):
        qp.modify(QpState.INIT, pkey_index=0, port=1, access_flags=ALL_ACCESS)
        qp.modify(
            QpState.RTR, ah=ah, path_mtu=Mtu.MTU_1024, dqpn=peer.qpn, rq_psn=7, max_dest_rd_atomic=4, min_rnr_timer=1
        )  # fmt: skip
        qp.modify(QpState.RTS, sq_psn=7, timeout=10, retry_cnt=1, rnr_retry=1, max_rd_atomic=4)
    return qa, qb


def write(side: Side, to: Side, length: int = 3000, wr_id: int = 1) -> SendWr:
    return SendWr(
        WrOpcode.RDMA_WRITE, [side.mr.sge(0, length)], wr_id, remote_addr=to.mr.iova, rkey=to.mr.rkey
    )  # fmt: skip


def test_numbers_are_each_ones_own() -> None:
    """The same QPN, key, CQN, SRQN and GID index in both, and each reaches its own."""
    p = Pair()
    qa, qb = p.connect()
    vf = Place(p.b, cqn=p.b.cq.cqn)
    va, vb = connect(p, vf, qpn=qb.qpn)
    assert (vf.cq.cqn, vf.gid, vf.mr.key, vb.qpn) == (p.b.cq.cqn, p.b.gid, p.b.mr.key, qb.qpn)
    srqs = [side.pd.create_srq(4, srqn=5) for side in (p.b, vf)]
    assert srqs[0].srqn == srqs[1].srqn
    gsi = [side.pd.create_qp(QpType.GSI, side.cq, side.cq) for side in (p.b, vf)]
    assert [qp.qpn for qp in gsi] == [1, 1]
    p.a.buf[:3000] = 7
    va.post_send(write(p.a, vf))
    p.run()
    assert (vf.buf[:3000] == 7).all()
    assert not p.b.buf.any()
    p.a.buf[:3000] = 9
    qa.post_send(write(p.a, p.b))
    p.run()
    assert (p.b.buf[:3000] == 9).all()
    assert (vf.buf[:3000] == 7).all()
    assert [wc.status for wc in p.a.cq.poll()] == [WcStatus.SUCCESS] * 2


def test_conflicts_are_those_within_one_function() -> None:
    p = Pair()
    vf = Place(p.b, cqn=3)
    for make in (
        lambda: vf.device.create_cq(4, cqn=3),
        lambda: vf.pd.reg_mr(bytearray(8), key=vf.mr.key),
    ):
        with pytest.raises(VerbsError) as error:
            make()
        assert error.value.errno == errno.EEXIST
    with pytest.raises(VerbsError, match="is an address of sr1") as error:
        vf.device.add_gid(IPV4[1], VF_MAC)
    assert error.value.errno == errno.EADDRINUSE
    assert len(vf.device.gids) == 1


def test_objects_of_one_are_nothing_to_another() -> None:
    p = Pair()
    vf = Place(p.b)
    other, srq = p.b.device.create_cq(4), p.b.pd.create_srq(4)
    for queues in ((other, vf.cq, None), (vf.cq, other, None), (vf.cq, vf.cq, srq)):
        with pytest.raises(VerbsError) as error:
            vf.pd.create_qp(QpType.RC, queues[0], queues[1], srq=queues[2])
        assert error.value.errno == errno.EINVAL
    ud = vf.pd.create_qp(QpType.UD, vf.cq, vf.cq)
    ud.modify(QpState.INIT, pkey_index=0, port=1, qkey=1)
    ud.modify(QpState.RTR)
    ud.modify(QpState.RTS, sq_psn=0)
    with pytest.raises(VerbsError, match="of its device"):
        ud.post_send(SendWr(WrOpcode.SEND, ah=p.b.pd.create_ah(p.b.ah())))
    with pytest.raises(VerbsError, match="another device"):
        connect(p, vf)[1].post_send(SendWr(WrOpcode.BIND_MW, bind_mr=p.b.mr))


def test_packets_of_one_do_not_reach_another() -> None:
    """A QP that exists at another address of the same adapter does not exist here; nor does a key."""
    p = Pair()
    vf = Place(p.b)
    va, vb = connect(p, vf, qpn=0x4711)
    p.b.pd.create_qp(QpType.RC, p.b.cq, p.b.cq, qpn=0x4712)
    va.record["dqpn"] = 0x4712
    va.post_send(write(p.a, vf))
    p.run()
    assert p.b.device.counter(C.DROP_QPN) > 0
    assert [wc.status for wc in p.a.cq.poll()] == [WcStatus.RETRY_EXC_ERR]
    only_theirs = p.b.pd.reg_mr(bytearray(8), ALL_ACCESS, key=0x999)
    p2 = Pair()
    vf2 = Place(p2.b)
    va, vb = connect(p2, vf2)
    p2.b.pd.reg_mr(bytearray(8), ALL_ACCESS, key=0x999)
    va.post_send(
        SendWr(WrOpcode.RDMA_WRITE, [p2.a.mr.sge(0, 8)], 1, remote_addr=only_theirs.iova, rkey=only_theirs.rkey)
    )  # fmt: skip
    p2.run()
    assert [wc.status for wc in p2.a.cq.poll()] == [WcStatus.REM_ACCESS_ERR]
    assert vb.state == QpState.ERR


def test_events_go_to_their_owner() -> None:
    p = Pair()
    _, qb = p.connect()
    vf = Place(p.b, cqn=p.b.cq.cqn)
    va, vb = connect(p, vf)
    noticed: list[Any] = []
    vf.cq.notified = lambda: noticed.append(vf)  # type: ignore[method-assign]
    p.b.cq.notified = lambda: noticed.append(p.b)  # type: ignore[method-assign]
    vf.cq.req_notify()
    p.b.cq.req_notify()
    vb.post_recv(RecvWr([vf.mr.sge(0, 100)], 3))
    va.post_send(SendWr(WrOpcode.SEND, [p.a.mr.sge(0, 10)], 1))
    p.run()
    vb.modify(QpState.SQD, en_sqd_async_notify=1)
    qb.modify(QpState.SQD, en_sqd_async_notify=1)
    p.run()
    p.b.device.dispatch_events()
    assert noticed == [vf]
    for device, qp in ((vf.device, vb), (p.b.device, qb)):
        assert [(e.type, e.element) for e in device.async_events] == [(EventType.SQ_DRAINED, qp)]


def test_one_goes_and_the_others_stay() -> None:
    p = Pair()
    qa, _ = p.connect()
    vf, third = Place(p.b), Place(p.b, "10.0.0.10")
    va, _ = connect(p, vf)
    ta, _ = connect(p, third)
    qa.post_send(write(p.a, p.b, wr_id=1))
    va.post_send(write(p.a, vf, wr_id=2))
    p.step()
    vf.device.destroy()
    assert not any((vf.device.gids, vf.device.qps, vf.device.mrs, vf.device.pds, vf.device.cqs))
    ta.post_send(write(p.a, third, wr_id=3))
    va.post_send(write(p.a, vf, wr_id=4))
    p.run()
    done = {wc.wr_id: wc.status for wc in p.a.cq.poll()}
    assert (done[1], done[3], done[4]) == (WcStatus.SUCCESS, WcStatus.SUCCESS, WcStatus.RETRY_EXC_ERR)
    assert p.b.device.counter(C.DROP_ADDRESS) > 0
    again = Place(p.b)
    assert again.device.func == vf.device.func
    p.b.device.close()
    assert third.device.qps


def test_suspension_is_of_one_function() -> None:
    p = Pair()
    qa, qb = p.connect()
    vf = Place(p.b)
    va, _ = connect(p, vf)
    vf.device.suspend("rnr")
    va.modify(QpState.RTS, min_rnr_timer=1)
    va.record["rnr_retry"] = va.record["rnr_left"] = 7
    va.post_send(write(p.a, vf, wr_id=2))
    qa.post_send(write(p.a, p.b, wr_id=1))
    p.run(budget_ns=100_000_000)
    assert [wc.wr_id for wc in p.a.cq.poll()] == [1]
    assert qb.state == QpState.RTS
    vf.device.resume()
    p.run()
    assert [wc.wr_id for wc in p.a.cq.poll()] == [2]


def test_the_gid_table_is_shared_and_kept_short() -> None:
    device = Device()
    device.add_gid("10.0.0.1", MAC[0])
    others = [device.create_function(f"vf{i}") for i in range(3)]
    for i, vf in enumerate(others):
        assert vf.add_gid(f"10.0.1.{i}", VF_MAC, index=200) == 200
    assert device.record["ngid"] == 4
    others[1].destroy()
    others[2].destroy()
    assert device.record["ngid"] == 2
    for i in range(layout.MAX_GID - 2):
        others[0].add_gid(f"10.0.2.{i}", VF_MAC, index=i if i < 200 else i + 1)
    with pytest.raises(VerbsError, match="GID table") as error:
        device.add_gid("10.0.3.1", MAC[0])
    assert error.value.errno == errno.ENOSPC
    others[0].destroy()
    assert device.record["ngid"] == 1


def test_no_more_than_there_are() -> None:
    device = Device()
    functions = [device.create_function(f"vf{i}") for i in range(MAX_FUNCTIONS - 1)]
    assert len({f.node_guid for f in (device, *functions)}) == MAX_FUNCTIONS
    with pytest.raises(VerbsError, match="64 functions"):
        device.create_function("one too many")
    functions[5].destroy()
    assert device.create_function("again").func == functions[5].func


def test_local_access_is_of_ones_own_keys() -> None:
    """An lkey of another function is none."""
    p = Pair()
    vf = Place(p.b)
    _, vb = connect(p, vf)
    theirs = p.b.pd.reg_mr(bytearray(64), Access.LOCAL_WRITE, key=0x777)
    vb.post_send(SendWr(WrOpcode.SEND, [theirs.sge(0, 8)], 1))
    p.run()
    assert [wc.status for wc in vf.cq.poll()] == [WcStatus.LOC_PROT_ERR]

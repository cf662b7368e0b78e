"""UD multicast: mckey of librdmacm, which joins a group as the kernel does (IGMP, MLD) and attaches its queue pair."""

from __future__ import annotations

import numpy as np

from softrnic.control import cm
from softrnic.spec import MULTICAST_QPN, WcStatus, WrOpcode
from softrnic.verbs import Access, AhAttr, QpCap, QpState, QpType, RecvWr, SendWr, Wc
from tests.interop.conftest import Case
from tests.interop.lab import MARKS, MTU

SECTION = "multicast"
pytestmark = MARKS

COUNT, SIZE, GRH = 10, 100, 40
GROUP = "239.1.2.3"
ROUTE = "ip route replace 224.0.0.0/4 dev eth0"


def test_we_send_to_a_group(case: Case) -> None:
    """mckey receives, and ends when it has received all."""
    case.lab.set_mtu(MTU)
    case.guest.check(ROUTE)
    with case.host() as host, case.guest.spawn(f"mckey -m {GROUP} -C {COUNT} -S {SIZE}") as process:
        case.guest.wait_until(f"ip maddr show dev eth0 | grep {GROUP}", process)
        with host.device.create_cq(COUNT) as cq, host.device.alloc_pd() as pd:
            qp = pd.create_qp(QpType.UD, cq, cq, QpCap(max_send_wr=COUNT))
            qp.modify(QpState.INIT, pkey_index=0, port=1, qkey=cm.UDP_QKEY)
            qp.modify(QpState.RTR)
            qp.modify(QpState.RTS, sq_psn=0)
            mr = pd.reg_mr(np.zeros(SIZE, np.uint8), Access.LOCAL_WRITE)
            wr = SendWr(
                WrOpcode.SEND_WITH_IMM, [mr.sge()], imm=qp.qpn, ah=pd.create_ah(AhAttr(GROUP)), dqpn=MULTICAST_QPN,
                qkey=cm.UDP_QKEY,
            )  # fmt: skip
            qp.post_send([wr] * COUNT)
            sent = 0
            while sent < COUNT:
                done = cq.wait(5)
                assert {wc.status for wc in done} == {WcStatus.SUCCESS}
                sent += len(done)
            ended = process.wait()
    assert ended.rc == 0
    assert "data transfers complete" in ended.stdout


def test_the_guest_sends_to_a_group(case: Case) -> None:
    """Two queue pairs of ours are attached, and both have all of it; a third is not, and has nothing."""
    case.lab.set_mtu(MTU)
    case.guest.check(ROUTE)
    with case.host() as host, host.device.create_cq(2 * COUNT) as cq, host.device.alloc_pd() as pd:
        mr = pd.reg_mr(np.zeros(GRH + SIZE, np.uint8), Access.LOCAL_WRITE)
        qps = [pd.create_qp(QpType.UD, cq, cq, QpCap(max_recv_wr=COUNT)) for _ in range(3)]
        for qp in qps:
            qp.modify(QpState.INIT, pkey_index=0, port=1, qkey=cm.UDP_QKEY)
            qp.modify(QpState.RTR)
            qp.post_recv([RecvWr([mr.sge()], qp.qpn)] * COUNT)
        for qp in qps[:2]:
            qp.attach_mcast(GROUP)
        before = case.guest.counters()["sent_pkts"]
        ended = case.guest.run(f"mckey -s -m {GROUP} -C {COUNT} -S {SIZE}")
        assert ended.rc == 0
        sent = case.guest.counters()["sent_pkts"] - before  # mckey ends before all of it has left
        assert 1 <= sent <= COUNT
        done: list[Wc] = []
        while len(done) < 2 * sent:
            more = cq.wait(5)
            assert more, done
            done += more
        qps[0].detach_mcast(GROUP)
    assert {wc.status for wc in done} == {WcStatus.SUCCESS}
    assert {wc.byte_len for wc in done} == {GRH + SIZE}
    assert sorted(wc.wr_id for wc in done) == sorted([qps[0].qpn, qps[1].qpn] * sent)


def test_a_group_of_ipv6(case: Case) -> None:
    case.guest.check("ip -6 route replace ff00::/8 dev eth0")
    ended = case.guest.run("mckey -m ff0e::1:2:3")
    assert ended.rc != 0
    assert "failure joining: Unknown error 524" in ended.stderr
    case.unsupported("Linux's rdma_cm joins no IPv6 group over RoCEv2 (ENOTSUPP)")

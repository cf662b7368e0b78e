"""UD multicast (IBTA 10.5.2; A17.9): a copy for every QP attached to the group, and for nobody else."""

from __future__ import annotations

import ipaddress

import pytest

from softrnic.counters import C
from softrnic.spec import MULTICAST_QPN
from softrnic.verbs import QpCap, QpState, QpType, RecvWr, WcOpcode, WcStatus
from tests.script.harness import QKEY, Op, Script

GROUPS = {"v4": ("239.1.2.3", "239.1.2.4"), "v6": ("ff0e::1:2:3", "ff0e::1:2:4")}
GRH = 40


def to_group(s: Script, data: bytes, group: str, **fields: object) -> None:
    """The peer sends to a group."""
    s.inject(Op.SEND_ONLY, 0, data, **{"dqpn": MULTICAST_QPN, "dst_ip": group, **fields})


@pytest.mark.parametrize("family", GROUPS)
def test_a_member_receives(family: str) -> None:
    """The network header in front says to which group it was sent."""
    group, other = GROUPS[family]
    with Script(QpType.UD, family=family) as s:
        s.post_recv(GRH + 100, wr_id=1)
        s.qp.attach_mcast(group)
        to_group(s, b"to all", group, sqpn=0x123)
        s.received(1, opcode=WcOpcode.RECV, byte_len=GRH + 6, src_qp=0x123)
        assert s.memory(GRH, 6) == b"to all"
        packed = ipaddress.ip_address(group).packed
        assert s.memory(GRH - len(packed), len(packed)) == packed
        to_group(s, b"others", other)
        assert s.count(C.DROP_ADDRESS) == 1
        s.qp.detach_mcast(group)
        to_group(s, b"to all", group)
        assert s.count(C.DROP_ADDRESS) == 2


def test_every_member_has_a_copy() -> None:
    """One that has no room, or another Q_Key, takes nothing from the others."""
    group = GROUPS["v4"][0]
    with Script(QpType.UD) as s:
        pd, cq = s.qp.pd, s.device.create_cq(16)
        members = []
        for qkey, room in ((QKEY, 1), (QKEY + 1, 1), (QKEY, 0), (QKEY, 1)):
            qp, buf = pd.create_qp(QpType.UD, cq, cq, QpCap()), bytearray(GRH + 5)
            qp.modify(QpState.INIT, pkey_index=0, port=1, qkey=qkey)
            qp.modify(QpState.RTR)
            if room:
                qp.post_recv(RecvWr([pd.reg_mr(buf).sge()], qp.qpn))
            qp.attach_mcast(group)
            members.append((qp, buf))
        to_group(s, b"hello", group)
        done = cq.poll(16)
        assert {(wc.status, wc.wr_id) for wc in done} == {
            (WcStatus.SUCCESS, members[i][0].qpn) for i in (0, 3)
        }  # fmt: skip
        assert [bytes(buf[GRH:]) for _, buf in members] == [b"hello", bytes(5), bytes(5), b"hello"]
        assert (s.count(C.DROP_QKEY), s.count(C.DROP_NO_RECV)) == (1, 1)


@pytest.mark.parametrize(
    ("fields", "counter"),
    [({"dqpn": 0x11}, C.DROP_QPN), ({"pkey": 0x1234}, C.DROP_PKEY), ({"service": 0x00}, C.DROP_OPCODE)],
)
def test_what_is_wrong_is_dropped(fields: dict[str, int], counter: C) -> None:
    """9.6.1.1: a group is addressed by QP number 0xFFFFFF, in the partition, and by datagrams."""
    with Script(QpType.UD) as s:
        s.post_recv(GRH + 100, wr_id=1)
        s.qp.attach_mcast(GROUPS["v4"][0])
        to_group(s, b"x", GROUPS["v4"][0], **fields)
        assert s.count(counter) == 1


def test_the_number_of_groups_is_no_number_of_a_qp() -> None:
    with Script(QpType.UD) as s:
        s.qp.attach_mcast(GROUPS["v4"][0])
        s.post_recv(GRH + 100, wr_id=1)
        s.inject(Op.SEND_ONLY, 0, b"x", dqpn=MULTICAST_QPN)
        assert s.count(C.DROP_QPN) == 1


def test_the_longest_datagram() -> None:
    with Script(QpType.UD) as s:
        data = bytes(range(256)) * 16
        s.qp.attach_mcast(GROUPS["v4"][0])
        s.post_recv(GRH + len(data), wr_id=1)
        to_group(s, data, GROUPS["v4"][0])
        s.received(1, byte_len=GRH + len(data))
        assert s.memory(GRH, len(data)) == data

"""Queue pairs of one process joined: the attributes they get, and the ones that are refused."""

from __future__ import annotations

import errno
from ipaddress import ip_address

import pytest

from softrnic.control.fabric import fabric
from softrnic.control.host import make_device
from softrnic.control.pair import connect_pair, open_pair, path, path_mtu
from softrnic.verbs import Access, Device, Mtu, Qp, QpState, QpType, RecvWr, SendWr, VerbsError, WrOpcode

pytestmark = pytest.mark.timeout(600)  # the first one compiles


def device(*addresses: str, mtu: int = 4096) -> Device:
    """On no wire: MACs are made up."""
    made = make_device("sr0", [ip_address(a) for a in addresses], bytes(6))
    made.resolve_mac = lambda gid, ip: bytes(6)
    made.set_active_mtu(mtu)
    return made


def qp_on(made: Device, kind: QpType = QpType.RC) -> Qp:
    cq = made.create_cq(16)
    return made.alloc_pd().create_qp(kind, cq, cq)


@pytest.mark.parametrize("kind", [QpType.RC, QpType.UC])
def test_both_in_rts_each_the_others_peer(kind: QpType) -> None:
    a, b = qp_on(device("10.0.0.1"), kind), qp_on(device("10.0.0.2"), kind)
    connect_pair(a, b, psn=(5, 9))
    asked = a.query(), b.query()
    assert [q["state"] for q in asked] == [QpState.RTS, QpState.RTS]
    assert [(q["sq_psn"], q["rq_psn"]) for q in asked] == [(5, 9), (9, 5)]
    assert [q["dqpn"] for q in asked] == [b.qpn, a.qpn]
    assert [str(q["ah"].dgid) for q in asked] == ["10.0.0.2", "10.0.0.1"]


def test_psns_are_random_unless_given() -> None:
    psns = set()
    for _ in range(4):
        a, b = qp_on(device("10.0.0.1")), qp_on(device("10.0.0.2"))
        connect_pair(a, b)
        assert (a.query()["sq_psn"], b.query()["sq_psn"]) == (b.query()["rq_psn"], a.query()["rq_psn"])
        psns |= {a.query()["sq_psn"], b.query()["sq_psn"]}
    assert len(psns) > 1


def test_attributes_are_passed_on() -> None:
    a, b = qp_on(device("10.0.0.1")), qp_on(device("10.0.0.2"))
    connect_pair(a, b, timeout=9, retry_cnt=3, rnr_retry=2, min_rnr_timer=5, rd_atomic=4, access=Access.REMOTE_READ)
    wanted = {"timeout": 9, "retry_cnt": 3, "rnr_retry": 2, "min_rnr_timer": 5, "max_rd_atomic": 4,
              "max_dest_rd_atomic": 4, "access_flags": Access.REMOTE_READ}  # fmt: skip
    for qp in (a, b):
        assert {name: qp.query()[name] for name in wanted} == wanted


def test_mtu() -> None:
    """The largest both carry, or the one given; one that a port does not carry is refused."""
    small, large = device("10.0.0.1", mtu=1024), device("10.0.0.2", mtu=4096)
    assert path_mtu(small, large) == path_mtu(large, small) == Mtu.MTU_1024
    a, b = qp_on(small), qp_on(large)
    connect_pair(a, b, mtu=Mtu.MTU_256)
    assert a.query()["path_mtu"] == b.query()["path_mtu"] == Mtu.MTU_256
    with pytest.raises(VerbsError, match="path_mtu 2048"):
        connect_pair(qp_on(small), qp_on(large), mtu=Mtu.MTU_2048)


def test_path_is_between_addresses_of_one_version() -> None:
    a, b = device("10.0.0.1", "fd00::1"), device("fd00::2")
    assert (str(path(a, b).dgid), path(a, b).sgid_index) == ("fd00::2", 1)
    assert (str(path(b, a).dgid), path(b, a).sgid_index) == ("fd00::1", 0)
    with pytest.raises(VerbsError) as refused:
        path(device("10.0.0.1"), b)
    assert refused.value.errno == errno.EADDRNOTAVAIL


@pytest.mark.parametrize("kinds", [(QpType.UD, QpType.UD), (QpType.RC, QpType.UC), (QpType.GSI, QpType.GSI)])
def test_what_cannot_be_connected(kinds: tuple[QpType, QpType]) -> None:
    a, b = qp_on(device("10.0.0.1"), kinds[0]), qp_on(device("10.0.0.2"), kinds[1])
    with pytest.raises(VerbsError, match="cannot be connected"):
        connect_pair(a, b)
    assert a.state == b.state == QpState.RESET


@pytest.mark.parametrize("kind", [QpType.RC, QpType.UC])
def test_open_pair(kind: QpType) -> None:
    with open_pair(kind=kind, mtu=Mtu.MTU_512) as (a, b):
        assert (a.host.device.name, b.host.device.name) == ("sr0", "sr1")
        inbox = bytearray(1000)
        with b.pd.reg_mr(inbox) as region:
            b.qp.post_recv(RecvWr([region.sge()]))
            data = a.pd.reg_mr(bytes(range(250)) * 4, Access(0))
            a.qp.post_send(SendWr(WrOpcode.SEND, [data.sge()]))
            assert b.cq.wait(30)[0].raise_for_status().byte_len == 1000
        assert bytes(inbox) == bytes(range(250)) * 4
    assert a.host.device.qps == {}


def test_open_pair_with_attributes_that_are_refused() -> None:
    """The wire does not stay behind."""
    with pytest.raises(VerbsError, match="timeout must be 0 to 0x1f"), open_pair("udp", timeout=32):
        pass
    with fabric("udp") as (a, b):  # would find its addresses in use
        assert a.address != b.address

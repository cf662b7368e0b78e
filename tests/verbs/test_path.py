"""Address vectors: the way to a peer, found before the engine is asked to stand still."""

from __future__ import annotations

import contextlib
import errno
from collections.abc import Iterator

import pytest

from softrnic.verbs import AhAttr, Device, Mtu, QpState, QpType, VerbsError
from softrnic.verbs.address import Gid, IpAddress

MAC, PEER_MAC = b"\x02\x00\x00\x00\x00\x0a", b"\x02\x00\x00\x00\x00\x0b"


class Asker:
    """Somebody who must be able to use the engine while looking for a MAC, as a port that asks on the wire is."""

    def __init__(self, device: Device) -> None:
        self.standing_still = False
        self.asked: list[IpAddress] = []
        device.quiesced = self.quiesced
        device.resolve_mac = self.resolve

    @contextlib.contextmanager
    def quiesced(self) -> Iterator[None]:
        assert not self.standing_still, "not reentrant"
        self.standing_still = True
        yield
        self.standing_still = False

    def resolve(self, _: Gid, ip: IpAddress) -> bytes:
        with self.quiesced():
            self.asked.append(ip)
        return PEER_MAC


@pytest.fixture
def device() -> Device:
    device = Device()
    device.add_gid("10.0.0.1", MAC)
    return device


def to_rtr(device: Device, ah: AhAttr) -> None:
    pd, cq = device.alloc_pd(), device.create_cq(4)
    qp = pd.create_qp(QpType.UC, cq, cq)
    qp.modify(QpState.INIT, pkey_index=0, port=1, access_flags=0)
    qp.modify(QpState.RTR, ah=ah, path_mtu=Mtu.MTU_1024, dqpn=0x11, rq_psn=0)
    assert bytes(device.record["avs"][qp.index]["hdr"][:6]) == PEER_MAC


def test_mac_is_looked_for_while_the_engine_runs(device: Device) -> None:
    asker = Asker(device)
    to_rtr(device, AhAttr("::ffff:10.0.0.2"))
    device.alloc_pd().create_ah(AhAttr("10.0.0.3"))
    assert [str(ip) for ip in asker.asked] == ["10.0.0.2", "10.0.0.3"]


def test_mac_that_is_given_is_not_looked_for(device: Device) -> None:
    asker = Asker(device)
    to_rtr(device, AhAttr("10.0.0.2", dmac=PEER_MAC))
    assert asker.asked == []


def test_nobody_to_ask(device: Device) -> None:
    with pytest.raises(VerbsError, match=r"no MAC for 10\.0\.0\.2") as error:
        to_rtr(device, AhAttr("10.0.0.2"))
    assert error.value.errno == errno.EHOSTUNREACH


def test_versions_that_cannot_meet_are_refused_unasked(device: Device) -> None:
    asker = Asker(device)
    with pytest.raises(VerbsError, match=r"fd00::2 cannot be reached from 10\.0\.0\.1"):
        device.alloc_pd().create_ah(AhAttr("fd00::2"))
    with pytest.raises(VerbsError, match="six bytes"):
        device.alloc_pd().create_ah(AhAttr("10.0.0.2", dmac=b"\x02"))
    assert asker.asked == []

"""Attaching queue pairs to multicast groups: errno of every misuse, and when the port joins and leaves."""

from __future__ import annotations

import errno
import ipaddress
from collections.abc import Iterator

import pytest

from softrnic import layout
from softrnic.errors import IoError, VerbsError
from softrnic.verbs import Device, Qp, QpType

GROUP, OTHER = "239.1.2.3", "ff0e::1"


@pytest.fixture
def device() -> Iterator[Device]:
    with Device() as device:
        yield device


def make(device: Device, kind: QpType = QpType.UD) -> Qp:
    cq = device.create_cq(4)
    return device.alloc_pd().create_qp(kind, cq, cq)


def test_attached_once(device: Device) -> None:
    qp = make(device)
    for _ in range(2):
        qp.attach_mcast(GROUP)
    qp.attach_mcast(OTHER)
    assert qp.groups == [ipaddress.ip_address(GROUP), ipaddress.ip_address(OTHER)]
    assert device.record["ngroup"] == 2
    qp.detach_mcast(GROUP)
    assert qp.groups == [ipaddress.ip_address(OTHER)]
    qp.destroy()
    assert qp.groups == []
    assert device.record["ngroup"] == 0


@pytest.mark.parametrize("kind", [QpType.RC, QpType.UC, QpType.GSI])
def test_only_datagrams(device: Device, kind: QpType) -> None:
    with pytest.raises(VerbsError, match="only UD") as refused:
        make(device, kind).attach_mcast(GROUP)
    assert refused.value.errno == errno.EINVAL


@pytest.mark.parametrize(("group", "says"), [("10.0.0.1", "no multicast"), ("fe80::1", "no multicast"), ("x", "x")])
def test_no_group(device: Device, group: str, says: str) -> None:
    with pytest.raises(VerbsError, match=says) as refused:
        make(device).attach_mcast(group)
    assert refused.value.errno == errno.EINVAL


def test_not_attached(device: Device) -> None:
    with pytest.raises(VerbsError, match="not attached") as refused:
        make(device).detach_mcast(GROUP)
    assert refused.value.errno == errno.EINVAL


def test_a_full_table(device: Device) -> None:
    qp, base = make(device), int(ipaddress.ip_address(GROUP))
    for i in range(layout.MAX_GROUP):
        qp.attach_mcast(ipaddress.IPv4Address(base + i))
    with pytest.raises(VerbsError, match="1024 times") as refused:
        qp.attach_mcast(OTHER)
    assert refused.value.errno == errno.ENOSPC
    qp.detach_mcast(GROUP)
    qp.attach_mcast(OTHER)
    assert device.record["ngroup"] == layout.MAX_GROUP


def test_the_port_hears_what_anybody_hears(device: Device) -> None:
    said: list[tuple[str, bool]] = []
    device.hear_group = lambda group, wanted: said.append((str(group), wanted))
    one, two = make(device), make(device)
    one.attach_mcast(GROUP)
    two.attach_mcast(GROUP)
    one.attach_mcast(OTHER)
    one.detach_mcast(GROUP)
    assert said == [(GROUP, True), (OTHER, True)]
    two.detach_mcast(GROUP)
    one.destroy()
    assert said[2:] == [(GROUP, False), (OTHER, False)]


def test_a_port_that_cannot_hear(device: Device) -> None:
    def hear(group: object, wanted: bool) -> None:
        raise IoError(errno.EOPNOTSUPP, "a UDP port does not hear groups")

    device.hear_group = hear
    qp = make(device)
    with pytest.raises(VerbsError, match="UDP port") as refused:
        qp.attach_mcast(GROUP)
    assert (refused.value.errno, qp.groups, device.record["ngroup"]) == (errno.EOPNOTSUPP, [], 0)

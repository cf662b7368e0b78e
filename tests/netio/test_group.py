"""Membership in IP multicast groups: the kernel's own list says who is in."""

from __future__ import annotations

import errno
import ipaddress
from collections.abc import Iterator

import pytest

from netio import netns
from netio.group import Memberships
from netio.netns import Namespace
from softrnic.errors import IoError

pytestmark = pytest.mark.privileged("netns")


@pytest.fixture
def ns() -> Iterator[Namespace]:
    with netns.namespace() as ns, netns.namespace() as other:
        netns.veth(ns, "eth0", other, "eth0")
        netns.add_address(ns, "eth0", "10.0.0.1/24")
        netns.add_address(ns, "eth0", "fd00::1/64")
        yield ns


def members(ns: Namespace, group: str) -> bool:
    """/proc/thread-self/net/igmp has IPv4 groups in the byte order of the machine, igmp6 as they are."""
    address = ipaddress.ip_address(group)
    word = address.packed[::-1].hex().upper() if address.version == 4 else address.packed.hex()
    with ns.entered(), open(f"/proc/thread-self/net/{'igmp' if address.version == 4 else 'igmp6'}") as lists:
        return word in lists.read()


@pytest.mark.parametrize("group", ["239.1.2.3", "ff0e::1:2:3"])
def test_joined_and_left(ns: Namespace, group: str) -> None:
    held = Memberships(ns, "eth0")
    assert not members(ns, group)
    for _ in range(2):
        held.hear(ipaddress.ip_address(group), True)
        assert members(ns, group)
    held.hear(ipaddress.ip_address(group), False)
    assert not members(ns, group)
    held.hear(ipaddress.ip_address(group), True)
    held.close()
    assert not members(ns, group)


def test_many(ns: Namespace) -> None:
    """One socket may be in 20 groups."""
    held = Memberships(ns, "eth0")
    groups = [f"239.1.2.{i}" for i in range(50)]
    for group in groups:
        held.hear(ipaddress.ip_address(group), True)
    assert all(members(ns, group) for group in groups)
    held.close()


def test_no_such_device(ns: Namespace) -> None:
    with pytest.raises(IoError, match=r"group 239\.1\.2\.3 on nosuch") as refused:
        Memberships(ns, "nosuch").hear(ipaddress.ip_address("239.1.2.3"), True)
    assert refused.value.errno == errno.ENODEV

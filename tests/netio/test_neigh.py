"""What the kernel tells of a device's surroundings."""

from __future__ import annotations

import ipaddress
from collections.abc import Iterator

import pytest

from netio import neigh, netdev, netns
from netio.netns import Namespace
from softrnic.errors import IoError

pytestmark = pytest.mark.privileged("netns")
ip = ipaddress.ip_address


@pytest.fixture
def link() -> Iterator[tuple[Namespace, Namespace]]:
    with netns.namespace() as here, netns.namespace() as there:
        netns.veth(here, "eth0", there, "eth0", mtu=2000)
        for ns, host in ((here, 1), (there, 2)):
            netns.add_address(ns, "eth0", f"10.0.0.{host}/24")
            netns.add_address(ns, "eth0", f"fd00::{host}/64")
        yield here, there


def far_mac(there: Namespace) -> bytes:
    with there.entered():
        return netdev.mac("eth0")


def test_link_info(link) -> None:
    here, _ = link
    info = neigh.link_info(here, "eth0")
    with here.entered():
        assert (info.mac, info.mtu, info.ifindex) == (netdev.mac("eth0"), 2000, netdev.index("eth0"))
    assert (info.ifname, info.up, info.vlan_id) == ("eth0", True, None)
    assert {str(a) for a in info.addresses if not a.ip.is_link_local} == {"10.0.0.1/24", "fd00::1/64"}


def test_gids_are_addresses_the_link_local_one_first(link) -> None:
    gids = neigh.link_info(link[0], "eth0").gids()
    assert gids[0].startswith(b"\xfe\x80")
    assert set(gids[1:]) == {ip("fd00::1").packed, bytes(10) + b"\xff\xff\x0a\0\0\x01"}


@pytest.mark.parametrize("address", ["10.0.0.2", "fd00::2"])
def test_resolves_what_is_near_twice(link, address: str) -> None:
    here, there = link
    assert neigh.resolve(here, "eth0", ip(address)) == far_mac(there)
    assert neigh.resolve(here, "eth0", ip(address), timeout=0) == far_mac(there)


def test_resolves_the_gateway_of_what_is_far(link) -> None:
    here, there = link
    with here.netlink() as ipr:
        ipr.route("add", dst="192.0.2.0/24", gateway="10.0.0.2")
    route = neigh.route_to(here, "eth0", ip("192.0.2.7"))
    assert (route.source, route.next_hop) == (ip("10.0.0.1"), ip("10.0.0.2"))
    assert neigh.resolve(here, "eth0", ip("192.0.2.7")) == far_mac(there)


def test_resolves_itself_and_groups_without_asking(link) -> None:
    here, _ = link
    info = neigh.link_info(here, "eth0")
    assert neigh.resolve(here, "eth0", ip("10.0.0.1"), timeout=0) == info.mac
    assert neigh.resolve(here, "eth0", ip("ff02::1"), timeout=0) == bytes.fromhex("333300000001")


def test_nobody_answers(link) -> None:
    with pytest.raises(IoError, match=r"no answer from 10\.0\.0\.9"):
        neigh.resolve(link[0], "eth0", ip("10.0.0.9"), timeout=0.05)


def test_no_way() -> None:
    with netns.namespace() as ns:
        with pytest.raises(IoError, match="route to"):
            neigh.route_to(ns, "lo", ip("2001:db8::1"))
        with pytest.raises(IoError, match="no network device eth0"):
            neigh.link_info(ns, "eth0")

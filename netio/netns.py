"""Network namespaces, veth pairs, bridges and VLANs: several NICs on one machine. Needs root.

Namespaces have no name: they live by the descriptors held here, so they and all devices in them are gone when
the context ends, when an exception leaves it, and when the process is killed. Synchronous on purpose:
pyroute2's sockets cannot be used inside a running uvloop; call this from a thread of its own
(asyncio.to_thread).

A thread enters a namespace, the other threads stay where they are (one it starts meanwhile starts inside), and
a socket belongs to the namespace it was opened in for good:

    with namespace() as a, namespace() as b:
        veth(a, "eth0", b, "eth0", mtu=4200)
        with a.entered():
            port = raw.open_raw("eth0")
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import threading
import time
from collections.abc import Iterator
from typing import Any

from pyroute2 import IPRoute
from pyroute2.netlink.exceptions import NetlinkError

from softrnic.errors import IoError

_LIBC = ctypes.CDLL(None, use_errno=True)
_CLONE_NEWNET = 0x40000000
_IFA_F_NODAD = 0x02  # linux/if_addr.h: no duplicate address detection, the address is usable at once
_RTN_LOCAL = 2  # linux/rtnetlink.h
_LOCAL_SECONDS = 1.0


def _check(result: int, what: str) -> None:
    if result < 0:
        raise IoError(ctypes.get_errno(), what)


def _own_fd() -> int:
    """A descriptor of the namespace the calling thread is in."""
    return os.open("/proc/thread-self/ns/net", os.O_RDONLY | os.O_CLOEXEC)


class Namespace:
    """A network namespace, alive at least as long as this object is open."""

    def __init__(self, fd: int) -> None:
        self.fd = fd

    @contextlib.contextmanager
    def entered(self) -> Iterator[None]:
        """Put the calling thread, and only that, in this namespace."""
        before = _own_fd()
        try:
            _check(_LIBC.setns(self.fd, _CLONE_NEWNET), "enter network namespace")
            try:
                yield
            finally:
                _check(_LIBC.setns(before, _CLONE_NEWNET), "return to network namespace")
        finally:
            os.close(before)

    @contextlib.contextmanager
    def netlink(self) -> Iterator[Any]:
        """A route netlink socket of this namespace."""
        with self.entered(), IPRoute() as ipr:
            yield ipr

    def close(self) -> None:
        """Let go of the namespace."""
        os.close(self.fd)


def current() -> Namespace:
    """The namespace the calling thread is in."""
    return Namespace(_own_fd())


@contextlib.contextmanager
def namespace() -> Iterator[Namespace]:
    """A new, unnamed namespace with its loopback device up."""
    ns = Namespace(_unshared_fd())
    try:
        with ns.netlink() as ipr:
            ipr.link("set", index=1, state="up")
        yield ns
    finally:
        ns.close()


def _unshared_fd() -> int:
    """Make a namespace in a thread that ends at once, so that no other thread ever was in it."""
    result: list[int | OSError] = []

    def make() -> None:
        try:
            _check(_LIBC.unshare(_CLONE_NEWNET), "new network namespace")
            result.append(_own_fd())
        except OSError as error:
            result.append(error)

    thread = threading.Thread(target=make)
    thread.start()
    thread.join()
    if isinstance(result[0], OSError):
        raise result[0]
    return result[0]


def _index(ipr: Any, ifname: str) -> int:
    found = ipr.link_lookup(ifname=ifname)
    if not found:
        raise IoError(0, f"no network device {ifname}")
    return int(found[0])


def veth(ns: Namespace, ifname: str, peer_ns: Namespace, peer_ifname: str, *, mtu: int = 4200) -> None:
    """Two Ethernet devices joined by a wire, up. They vanish with either namespace."""
    with ns.netlink() as ipr:
        peer = {"ifname": peer_ifname, "net_ns_fd": peer_ns.fd, "mtu": mtu}
        ipr.link("add", ifname=ifname, kind="veth", mtu=mtu, peer=peer)
        ipr.link("set", index=_index(ipr, ifname), state="up")
    with peer_ns.netlink() as ipr:
        ipr.link("set", index=_index(ipr, peer_ifname), state="up")


def bridge(ns: Namespace, ifname: str, members: list[str]) -> None:
    """A bridge of devices that exist, up. It takes the least MTU of its members."""
    with ns.netlink() as ipr:
        ipr.link("add", ifname=ifname, kind="bridge")
        master = _index(ipr, ifname)
        for member in members:
            ipr.link("set", index=_index(ipr, member), master=master)
        ipr.link("set", index=master, state="up")


def vlan(ns: Namespace, link: str, vid: int) -> str:
    """A VLAN device on top of `link`, up; returns its name."""
    ifname = f"{link}.{vid}"
    with ns.netlink() as ipr:
        ipr.link("add", ifname=ifname, kind="vlan", link=_index(ipr, link), vlan_id=vid)
        ipr.link("set", index=_index(ipr, ifname), state="up")
    return ifname


def add_address(ns: Namespace, ifname: str, address: str) -> None:
    """Give a device an address such as 10.0.0.1/24 or fd00::1/64. From then on packets to it are the host's."""
    host, _, prefix = address.partition("/")
    extra = {"flags": _IFA_F_NODAD} if ":" in host else {}
    with ns.netlink() as ipr:
        ipr.addr("add", index=_index(ipr, ifname), address=host, prefixlen=int(prefix), **extra)
        if ":" in host:
            _await_local(ipr, host)


def _await_local(ipr: IPRoute, host: str) -> None:
    """Linux makes an IPv6 address work some time after it is there, even without duplicate detection: a worker does it.

    On a device without a carrier it does not, and we go on after a while.
    """
    deadline = time.monotonic() + _LOCAL_SECONDS
    while time.monotonic() < deadline:
        with contextlib.suppress(NetlinkError):
            if ipr.route("get", dst=host)[0]["type"] == _RTN_LOCAL:
                return
        time.sleep(0.001)


def remove(ns: Namespace, ifname: str) -> None:
    """Delete a device."""
    with ns.netlink() as ipr:
        ipr.link("del", index=_index(ipr, ifname))

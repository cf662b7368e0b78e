"""An Ethernet segment for guests: a bridge in a network namespace, and the taps on it.

Decides how namespaces and taps are made so that none is ever left behind: a namespace of ours has no name
and lives while a descriptor or a process refers to it, and a tap lives while its descriptor is open. Both
end with the processes that use them, in whatever way those end. Knows nothing of what is at the other end
of a tap.
"""

from __future__ import annotations

import ctypes
import fcntl
import os
import secrets
import struct
import subprocess
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple, ParamSpec, Self, TypeVar

from pyroute2 import IPRoute

from .errors import GuestError, UnavailableError

P = ParamSpec("P")
T = TypeVar("T")

CLONE_NEWNET = 0x40000000
TUNSETIFF = 0x400454CA
IFF_TAP, IFF_NO_PI, IFF_VNET_HDR = 0x0002, 0x1000, 0x4000
JUMBO_MTU = 9000

_libc = ctypes.CDLL(None, use_errno=True)


class Tap(NamedTuple):
    """An interface on a bridge, and the descriptor of its other end, where frames have virtio-net headers."""

    name: str
    fd: int


class Segment:
    """A bridge in a network namespace. A context manager, since it is to be closed."""

    def __init__(self, bridge: str, netns: int) -> None:
        """`create` and `join` make one."""
        self.bridge = bridge
        self._netns = netns

    @classmethod
    def create(cls, bridge: str = "br0", *, mtu: int = JUMBO_MTU) -> Self:
        """A new bridge of that name, in a new namespace that holds nothing else."""
        segment = cls(bridge, _in_thread(_new_namespace))
        segment.call(_make_bridge, bridge, mtu)
        return segment

    @classmethod
    def join(cls, bridge: str, netns: str | Path = "/proc/thread-self/ns/net") -> Self:
        """An existing bridge: in the namespace of a file (/run/netns/NAME), or else the calling thread's.

        Taps are added to it, and nothing else is done to it.
        """
        segment = cls(bridge, os.open(netns, os.O_RDONLY | os.O_CLOEXEC))
        try:
            segment.call(_index, bridge)
        except BaseException:
            segment.close()
            raise
        return segment

    @property
    def path(self) -> str:
        """A file that stands for the namespace, for as long as this is open: `nsenter --net=PATH ip link`."""
        return f"/proc/{os.getpid()}/fd/{self._netns}"

    def call(self, function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """Call a function in a thread of its own that is in the namespace.

        Sockets and taps that it opens belong to the namespace for good. The calling thread stays where it is.
        """

        def enter_and_call() -> T:
            _check(_libc.setns(self._netns, CLONE_NEWNET))
            return function(*args, **kwargs)

        return _in_thread(enter_and_call)

    def entering(self, command: Sequence[str]) -> list[str]:
        """The argument vector that runs a command in the namespace."""
        return ["nsenter", f"--net={self.path}", *command]

    def run(self, *command: str) -> str:
        """What a command writes that runs in the namespace, and must not fail."""
        return subprocess.run(self.entering(command), stdout=subprocess.PIPE, text=True, check=True).stdout

    def open_tap(self, mtu: int) -> Tap:
        """A new tap on the bridge, up, of a name nothing else has. The caller closes its descriptor."""
        return self.call(_open_tap, self.bridge, mtu)

    def close(self) -> None:
        """Let go of the namespace. It lives on while there are processes, sockets or taps in it."""
        if self._netns >= 0:
            os.close(self._netns)
            self._netns = -1

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def check_machine() -> None:
    """Raise UnavailableError where there are no namespaces or taps. They are tried, and undone."""
    if os.geteuid() != 0:
        raise UnavailableError("needs root")
    try:
        with Segment.create() as segment:
            os.close(segment.open_tap(JUMBO_MTU).fd)
    except OSError as error:
        lacking = error.filename or "network namespaces"
        raise UnavailableError(f"machine lacks: {lacking} ({error.strerror})") from error


def _in_thread(function: Callable[[], T]) -> T:
    """A namespace belongs to a thread. This one ends with the call, so no other is ever in the wrong one."""
    with ThreadPoolExecutor(1) as pool:
        return pool.submit(function).result()


def _check(result: int) -> None:
    if result < 0:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))


def _new_namespace() -> int:
    _check(_libc.unshare(CLONE_NEWNET))
    with IPRoute() as ip:
        ip.link("set", index=_index("lo"), state="up")
    return os.open("/proc/thread-self/ns/net", os.O_RDONLY | os.O_CLOEXEC)


def _make_bridge(name: str, mtu: int) -> None:
    with IPRoute() as ip:
        # Multicast goes to everyone, as on a plain switch: nobody has to be seen joining a group first.
        ip.link("add", ifname=name, kind="bridge", br_mcast_snooping=0)
        ip.link("set", index=_index(name), mtu=mtu, state="up")


def _open_tap(bridge: str, mtu: int) -> Tap:
    name = f"vm-{secrets.token_hex(4)}"
    fd = os.open("/dev/net/tun", os.O_RDWR | os.O_CLOEXEC)
    try:
        # struct ifreq: char name[16], short flags, and the rest of a union
        flags = IFF_TAP | IFF_NO_PI | IFF_VNET_HDR
        fcntl.ioctl(fd, TUNSETIFF, struct.pack("16sH22x", name.encode(), flags))
        # This end is a port of a switch. It has nothing of its own to say.
        Path(f"/proc/sys/net/ipv6/conf/{name}/disable_ipv6").write_text("1", encoding="ascii")
        with IPRoute() as ip:
            ip.link("set", index=_index(name), mtu=mtu, master=_index(bridge), state="up")
    except BaseException:
        os.close(fd)
        raise
    return Tap(name, fd)


def _index(name: str) -> int:
    with IPRoute() as ip:
        found = ip.link_lookup(ifname=name)
    if not found:
        raise GuestError(f"no interface {name} in the namespace")
    return int(found[0])

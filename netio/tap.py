"""A port that is a tap: the NIC's own side of a virtual Ethernet device, for a bridge or the host.

Decides the device's modes; needs root. The frames are moved by netio/fdio.py. Nobody else answers for the
addresses of a tap's user side: wrap it in netio.arp.NeighbourPort. Opens in the calling thread's network
namespace.
"""

from __future__ import annotations

import errno
import fcntl
import functools
import os
import secrets
import struct

from netio import netdev
from netio.bare import BarePort, new_eventfd
from netio.bpf import attach, roce_filter
from netio.port import SINGLE_FRAMES, SUPER_FRAMES, Kind, PortFlag, make_tables
from softrnic.errors import IoError

# linux/if_tun.h
_TUNSETIFF, _TUNSETOFFLOAD, _TUNATTACHFILTER = 0x400454CA, 0x400454D0, 0x401054D5
_IFF_TAP, _IFF_NO_PI, _IFF_VNET_HDR = 0x0002, 0x1000, 0x4000
_TUN_F_CSUM, _TUN_F_USO4, _TUN_F_USO6 = 0x01, 0x20, 0x40


class TapPort(BarePort):
    """The user side of a tap. The device is gone when the port is closed."""

    def __init__(self, ifname: str, fd: int, *, mac: bytes, mtu: int, offload: bool) -> None:
        tables = make_tables(Kind.FD, fd=fd, wake_fd=new_eventfd(), mtu=mtu)
        tables.port["flags"] = PortFlag.OFFLOAD if offload else 0
        caps = SUPER_FRAMES if offload else SINGLE_FRAMES
        super().__init__(ifname, tables=tables, caps=caps, mac=mac)


def open_tap(ifname: str = "srtap%d", *, mac: bytes | None = None, mtu: int = 4200, offload: bool = True) -> TapPort:
    """Make a tap, bring it up, and return its user side. `mac` is ours, not the device's; by default a random one.

    Where the kernel knows no UDP segmentation on taps (before Linux 6.2), or without `offload`, packets cross singly.
    """
    try:
        fd = os.open("/dev/net/tun", os.O_RDWR | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError as error:
        raise IoError(error.errno or 0, "/dev/net/tun") from error
    try:
        request = struct.pack("16sH22x", ifname.encode(), _IFF_TAP | _IFF_NO_PI | _IFF_VNET_HDR)
        name = bytes(fcntl.ioctl(fd, _TUNSETIFF, request))[:16].rstrip(b"\0").decode()
        offload = offload and _enable_offload(fd)
        attach(roce_filter(vlan=True, neighbours=True), functools.partial(fcntl.ioctl, fd, _TUNATTACHFILTER))
        netdev.set_mtu(name, mtu)
        netdev.set_up(name)
        return TapPort(name, fd, mac=mac or random_mac(), mtu=mtu, offload=offload)
    except OSError as error:
        os.close(fd)
        raise IoError(error.errno or 0, f"tap {ifname}") from error


def _enable_offload(fd: int) -> bool:
    """Ask for UDP segmentation both ways; whether the kernel knows it."""
    try:
        fcntl.ioctl(fd, _TUNSETOFFLOAD, _TUN_F_CSUM | _TUN_F_USO4 | _TUN_F_USO6)
    except OSError as error:
        if error.errno != errno.EINVAL:
            raise
        return False
    return True


def random_mac() -> bytes:
    """A locally administered unicast address that no other host has."""
    return b"\x02" + secrets.token_bytes(5)

"""A network device's own facts and switches, by ioctl: address, MTU, up, offloads.

Acts in the network namespace of the calling thread. Addresses and routes are netio/neigh.py's.
"""

from __future__ import annotations

import ctypes
import errno
import fcntl
import socket
import struct

from softrnic.errors import IoError

# linux/sockios.h
_GIFFLAGS, _SIFFLAGS, _GIFMTU, _SIFMTU, _GIFHWADDR = 0x8913, 0x8914, 0x8921, 0x8922, 0x8927
_IFF_UP = 1
_ARPHRD_ETHER, _ARPHRD_LOOPBACK = 1, 772  # linux/if_arp.h; lo has Ethernet headers too
# linux/ethtool.h
_ETHTOOL = 0x8946
_ETHTOOL_GSTRINGS, _ETHTOOL_GSSET_INFO, _ETHTOOL_GFEATURES, _ETHTOOL_SFEATURES = 0x1B, 0x37, 0x3A, 0x3B
_ETH_SS_FEATURES, _STRING_BYTES = 4, 32


def _ioctl(request: int, ifname: str, value: bytes = b"") -> bytes:
    """A request on struct ifreq: 16 bytes of name, 24 of value."""
    name = ifname.encode()
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        try:
            return bytes(fcntl.ioctl(sock, request, struct.pack("16s24s", name, value)))[16:]
        except OSError as error:
            raise IoError(error.errno or 0, f"network device {ifname}") from error


def index(ifname: str) -> int:
    """Interface index."""
    try:
        return socket.if_nametoindex(ifname)
    except OSError as error:
        raise IoError(error.errno or 0, f"network device {ifname}") from error


def mac(ifname: str) -> bytes:
    """Ethernet address."""
    kind, address = struct.unpack_from("=H6s", _ioctl(_GIFHWADDR, ifname))
    if kind not in (_ARPHRD_ETHER, _ARPHRD_LOOPBACK):
        raise IoError(errno.EINVAL, f"network device {ifname} is no Ethernet device")
    return bytes(address)


def mtu(ifname: str) -> int:
    """Greatest IP packet."""
    return int(struct.unpack_from("=i", _ioctl(_GIFMTU, ifname))[0])


def set_mtu(ifname: str, value: int) -> None:
    """Change the MTU."""
    _ioctl(_SIFMTU, ifname, struct.pack("=i", value))


def set_up(ifname: str) -> None:
    """Bring the device up."""
    flags = struct.unpack_from("=h", _ioctl(_GIFFLAGS, ifname))[0]
    _ioctl(_SIFFLAGS, ifname, struct.pack("=h", flags | _IFF_UP))


def set_feature(ifname: str, feature: str, on: bool) -> bool:
    """Switch an offload by its ethtool name, such as tx-udp-segmentation; returns whether it was on."""
    names = _feature_names(ifname)
    if feature not in names:
        raise IoError(errno.EOPNOTSUPP, f"offload {feature} of {ifname}")
    number = names.index(feature)
    blocks = (len(names) + 31) // 32
    # ethtool_gfeatures: per block of 32 available, requested, active, never changed
    request = struct.pack("=II", _ETHTOOL_GFEATURES, blocks) + bytes(16 * blocks)
    active = struct.unpack_from("=I", _ethtool(ifname, request), 8 + 16 * (number // 32) + 8)[0]
    # ethtool_sfeatures: per block which to set, and to what
    pairs = bytearray(8 * blocks)
    bit = 1 << number % 32
    struct.pack_into("=II", pairs, 8 * (number // 32), bit, bit if on else 0)
    _ethtool(ifname, struct.pack("=II", _ETHTOOL_SFEATURES, blocks) + bytes(pairs))
    return bool(active & bit)


def _feature_names(ifname: str) -> list[str]:
    """Feature number i is called names[i]."""
    request = struct.pack("=IIQI", _ETHTOOL_GSSET_INFO, 0, 1 << _ETH_SS_FEATURES, 0)
    count = struct.unpack_from("=I", _ethtool(ifname, request), 16)[0]
    request = struct.pack("=III", _ETHTOOL_GSTRINGS, _ETH_SS_FEATURES, count) + bytes(_STRING_BYTES * count)
    strings = _ethtool(ifname, request)[12:]
    chunks = (strings[i : i + _STRING_BYTES] for i in range(0, len(strings), _STRING_BYTES))
    return [chunk.partition(b"\0")[0].decode() for chunk in chunks]


def _ethtool(ifname: str, request: bytes) -> bytes:
    """An ethtool command, whose structure the kernel answers in."""
    memory = ctypes.create_string_buffer(request, len(request))
    _ioctl(_ETHTOOL, ifname, struct.pack("@P", ctypes.addressof(memory)))
    return memory.raw

"""Put a program on an interface, and take it off again.

Decides by which of the kernel's mechanisms: a link where there are links, so that the death of the process
detaches; cls_bpf by netlink where tc has no links (before Linux 6.6), which a killed process leaves behind.
Knows nothing of what the program does. The interface index is one of the calling thread's network namespace.
"""

from __future__ import annotations

import errno
from contextlib import suppress
from enum import IntEnum
from typing import Protocol

from pyroute2 import IPRoute
from pyroute2.netlink.exceptions import NetlinkError

from ebpf.bpf import AttachType, BpfError, Fd, Program, link
from softrnic.errors import IoError

# Where our filter is in clsact's list. Fixed, so that the next process replaces what a killed one left.
_PRIORITY, _HANDLE = 4791, 1
_ALL_PROTOCOLS = 0x0003  # ETH_P_ALL
_INGRESS, _EGRESS = 0xFFFFFFF2, 0xFFFFFFF3  # TC_H_MAKE(TC_H_CLSACT, TC_H_MIN_INGRESS or _EGRESS)
_NO_SUCH_ATTACH_TYPE = (errno.EINVAL, errno.EOPNOTSUPP)


class XdpMode(IntEnum):
    """XDP_FLAGS_*: who runs the program."""

    AUTO    = 0  # the driver if it can, else the stack
    GENERIC = 1 << 1  # the stack, after it has made an skb
    NATIVE  = 1 << 2  # the driver


class Attachment(Protocol):
    """A program on an interface, until `close()`."""

    how: str

    def close(self) -> None: ...


class LinkAttachment:
    """Held by a descriptor: gone when the process is."""

    def __init__(self, how: str, held: Fd) -> None:
        self.how = how
        self._link = held

    def close(self) -> None:
        self._link.close()


class FilterAttachment:
    """A direct-action filter in the interface's clsact queueing discipline, made through netlink."""

    how = "tc cls_bpf"

    def __init__(self, program: Program, ifindex: int) -> None:
        self._ifindex = ifindex
        with IPRoute() as ip:
            self._made_clsact = _add_clsact(ip, ifindex)
            ip.tc(
                "replace-filter", "bpf", **_filter_at(ifindex),
                fd=program.fileno(), name="softrnic", direct_action=True,
            )  # fmt: skip

    def close(self) -> None:
        """Take the filter off, and the discipline if it was ours and has no other filter; once."""
        if not self._ifindex:
            return
        with IPRoute() as ip, suppress(NetlinkError):  # the interface may be gone, and all with it
            ip.tc("del-filter", "bpf", **_filter_at(self._ifindex))
            if self._made_clsact and not _has_filters(ip, self._ifindex):
                ip.tc("del", "clsact", self._ifindex)
        self._ifindex = 0


def attach_xdp(program: Program, ifindex: int, mode: XdpMode = XdpMode.AUTO) -> Attachment:
    """Run the program on every frame, before the kernel's stack."""
    return LinkAttachment(f"xdp {mode.name.lower()} link", link(program, ifindex, AttachType.XDP, mode))


def attach_tc(program: Program, ifindex: int) -> Attachment:
    """Run the program on every frame, after AF_PACKET sockets and before IP."""
    try:
        return LinkAttachment("tcx link", link(program, ifindex, AttachType.TCX_INGRESS))
    except BpfError as error:
        if error.errno not in _NO_SUCH_ATTACH_TYPE:
            raise
    try:
        return FilterAttachment(program, ifindex)
    except NetlinkError as error:
        raise IoError(error.code, "tc cls_bpf") from error


def _filter_at(ifindex: int) -> dict[str, int]:
    place = {"parent": _INGRESS, "prio": _PRIORITY, "protocol": _ALL_PROTOCOLS, "handle": _HANDLE}
    return {"index": ifindex, **place}


def _add_clsact(ip: IPRoute, ifindex: int) -> bool:
    """Whether there was none before."""
    try:
        ip.tc("add", "clsact", ifindex)
    except NetlinkError as error:
        if error.code != errno.EEXIST:
            raise
        return False
    return True


def _has_filters(ip: IPRoute, ifindex: int) -> bool:
    return any(list(ip.get_filters(index=ifindex, parent=parent)) for parent in (_INGRESS, _EGRESS))

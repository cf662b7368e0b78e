"""Put a program on an interface, and take it off again.

Decides by which of the kernel's mechanisms: a link where there are links, so that the death of the process
detaches; else what clsact.py does, which a killed process leaves behind. Knows nothing of what the program does.
The interface index is one of the calling thread's network namespace.
"""

from __future__ import annotations

import errno
from enum import IntEnum
from typing import Protocol

from ebpf.bpf import BEFORE, AttachType, BpfError, Fd, Program, link

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


def attach_xdp(program: Program, ifindex: int, mode: XdpMode = XdpMode.AUTO) -> Attachment:
    """Run the program on every frame, before the kernel's stack."""
    return LinkAttachment(f"xdp {mode.name.lower()} link", link(program, ifindex, AttachType.XDP, mode))


def attach_tc(program: Program, ifindex: int) -> Attachment:
    """Run the program on every frame, after AF_PACKET sockets and before IP.

    Ahead of those attached earlier: a shield, which stands there first, lets nothing pass to whoever comes behind it.
    """
    try:
        return LinkAttachment("tcx link", link(program, ifindex, AttachType.TCX_INGRESS, BEFORE))
    except BpfError as error:
        if error.errno not in _NO_SUCH_ATTACH_TYPE:
            raise
    from ebpf.clsact import ClsactAttachment  # and with it pyroute2, which takes its time to import

    return ClsactAttachment(program, ifindex)

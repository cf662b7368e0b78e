"""tc filters by netlink, for kernels whose tc has no links (before Linux 6.6).

Decides where our filter stands in an interface's clsact discipline: always at the same place, so that the next
process replaces what a killed one left behind. Through pyroute2, which must not be called inside a running uvloop:
call this from a thread of its own there (asyncio.to_thread).
"""

from __future__ import annotations

import errno
from contextlib import suppress

from pyroute2 import IPRoute
from pyroute2.netlink.exceptions import NetlinkError

from ebpf.bpf import Program
from softrnic.errors import IoError

_ALL_PROTOCOLS = 0x0003  # ETH_P_ALL
_INGRESS, _EGRESS = 0xFFFFFFF2, 0xFFFFFFF3  # TC_H_MAKE(TC_H_CLSACT, TC_H_MIN_INGRESS or _EGRESS)
_PLACE = {"parent": _INGRESS, "prio": 4791, "protocol": _ALL_PROTOCOLS, "handle": 1}


class ClsactAttachment:
    """A direct-action filter at the ingress of an interface."""

    how = "tc cls_bpf"

    def __init__(self, program: Program, ifindex: int) -> None:
        self._ifindex = ifindex
        self._made_discipline = False
        with IPRoute() as ip:
            try:
                self._made_discipline = _add_discipline(ip, ifindex)
                ip.tc(
                    "replace-filter", "bpf", ifindex, **_PLACE,
                    fd=program.fileno(), name="softrnic", direct_action=True,
                )  # fmt: skip
            except NetlinkError as error:
                self._remove_discipline(ip)
                raise IoError(error.code, "tc cls_bpf") from error

    def close(self) -> None:
        """Take the filter off, and the discipline if it was ours and has no other filter; once."""
        if not self._ifindex:
            return
        with IPRoute() as ip, suppress(NetlinkError):  # the interface may be gone, and all with it
            ip.tc("del-filter", "bpf", self._ifindex, **_PLACE)
            self._remove_discipline(ip)
        self._ifindex = 0

    def _remove_discipline(self, ip: IPRoute) -> None:
        if self._made_discipline and not _has_filters(ip, self._ifindex):
            ip.tc("del", "clsact", self._ifindex)


def _add_discipline(ip: IPRoute, ifindex: int) -> bool:
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

"""Multicast groups: which queue pairs hear which. Over RoCEv2 a group is an IP multicast address (A17.9)."""

from __future__ import annotations

import errno
import ipaddress
from typing import TYPE_CHECKING

import numpy as np

from softrnic import layout
from softrnic.errors import IoError, VerbsError
from softrnic.spec import QpType
from softrnic.verbs.address import gid_bytes

if TYPE_CHECKING:
    from softrnic.verbs.address import IpAddress
    from softrnic.verbs.qp import Qp


class Groups:
    """Who is attached to which group, of all functions of an adapter; the engine's table follows."""

    def __init__(self, record: np.void) -> None:
        self._record = record
        self._slots: dict[tuple[int, IpAddress], int] = {}

    def of(self, qp_index: int) -> list[IpAddress]:
        """The groups that a QP hears, oldest first."""
        return [address for index, address in self._slots if index == qp_index]

    def heard(self, address: IpAddress) -> bool:
        """Whether any QP hears this group."""
        return any(address == group for _, group in self._slots)

    def put(self, qp_index: int, address: IpAddress) -> None:
        """Enter a QP; ENOSPC when the table is full. The engine stands still."""
        taken = set(self._slots.values())
        slot = next((i for i in range(layout.MAX_GROUP) if i not in taken), None)
        if slot is None:
            raise VerbsError(errno.ENOSPC, f"QPs can be attached to groups {layout.MAX_GROUP} times")
        group = self._record["groups"][slot]
        group["ip"], group["qp"], group["valid"] = np.frombuffer(gid_bytes(address), np.uint8), qp_index, 1
        self._slots[qp_index, address] = slot
        self._show()

    def take(self, qp_index: int, address: IpAddress) -> None:
        """The inverse of put."""
        self._record["groups"][self._slots.pop((qp_index, address))]["valid"] = 0
        self._show()

    def _show(self) -> None:
        self._record["ngroup"] = max(self._slots.values(), default=-1) + 1


def attach(qp: Qp, group: str | IpAddress) -> None:
    """Have a UD QP receive what is sent to a group."""
    address = _group(group)
    if qp.type != QpType.UD:
        raise VerbsError(errno.EINVAL, "only UD queue pairs hear multicast groups")
    qp.pd.check_alive()
    adapter = qp.device.adapter
    if address in adapter.groups.of(qp.index):
        return
    first = not adapter.groups.heard(address)
    with qp.device.quiesced():
        adapter.groups.put(qp.index, address)
    if first and adapter.hear_group is not None:
        try:
            adapter.hear_group(address, True)
        except IoError as error:
            with qp.device.quiesced():
                adapter.groups.take(qp.index, address)
            raise VerbsError(error.errno or errno.EIO, str(error)) from error


def detach(qp: Qp, group: str | IpAddress) -> None:
    """The inverse of attach; EINVAL for a group that the QP does not hear."""
    address = _group(group)
    adapter = qp.device.adapter
    if address not in adapter.groups.of(qp.index):
        raise VerbsError(errno.EINVAL, f"the QP is not attached to {address}")
    with qp.device.quiesced():
        adapter.groups.take(qp.index, address)
    if not adapter.groups.heard(address) and adapter.hear_group is not None:
        adapter.hear_group(address, False)


def _group(group: str | IpAddress) -> IpAddress:
    try:
        address = ipaddress.ip_address(group)
    except ValueError as error:
        raise VerbsError(errno.EINVAL, str(error)) from None
    if not address.is_multicast:
        raise VerbsError(errno.EINVAL, f"{address} is no multicast group")
    return address

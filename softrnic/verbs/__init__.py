"""The verbs: Python objects with the semantics of ibv_*, the only place where engine records are made and destroyed.

    dev = Device("sr0"); dev.add_gid("10.0.0.1", mac)
    pd = dev.alloc_pd(); mr = pd.reg_mr(buffer, Access.LOCAL_WRITE | Access.REMOTE_WRITE)
    cq = dev.create_cq(64); qp = pd.create_qp(QpType.RC, cq, cq)
    qp.modify(QpState.INIT, ...); qp.post_send(SendWr(...)); cq.poll()

A device does no I/O: softrnic.control.nic joins it to a port.
"""

from __future__ import annotations

from softrnic.errors import VerbsError
from softrnic.spec import (
    Access,
    EventType,
    Mtu,
    QpState,
    QpType,
    SendFlags,
    WcFlags,
    WcOpcode,
    WcStatus,
    WrOpcode,
)
from softrnic.verbs.adapter import PortAttr
from softrnic.verbs.cq import Cq, Wc
from softrnic.verbs.device import AsyncEvent, Device, DeviceAttr
from softrnic.verbs.forward import Onward
from softrnic.verbs.mr import Mr, PhysicalMr
from softrnic.verbs.mw import Mw
from softrnic.verbs.paging import PageFault, PageSource
from softrnic.verbs.pd import Ah, AhAttr, Pd
from softrnic.verbs.qp import Qp, QpCap
from softrnic.verbs.slot import FileMemory, ProcessMemory, Slot
from softrnic.verbs.space import AddressSpace
from softrnic.verbs.srq import Srq
from softrnic.verbs.wr import RecvWr, SendWr, Sge

__all__ = [
    "Access", "AddressSpace", "Ah", "AhAttr", "AsyncEvent", "Cq", "Device", "DeviceAttr", "EventType", "FileMemory",
    "Mr", "Mtu", "Mw", "Onward", "PageFault", "PageSource", "Pd", "PhysicalMr", "PortAttr", "ProcessMemory", "Qp",
    "QpCap", "QpState", "QpType", "RecvWr", "SendFlags", "SendWr", "Sge", "Slot", "Srq", "VerbsError", "Wc", "WcFlags",
    "WcOpcode", "WcStatus", "WrOpcode",
]  # fmt: skip

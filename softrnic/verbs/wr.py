"""Work requests as the caller writes them. Values only; the queues check and copy them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, NamedTuple

from softrnic.spec import Access, SendFlags, WrOpcode

if TYPE_CHECKING:
    from softrnic.verbs.mr import Mr
    from softrnic.verbs.pd import Ah


class Sge(NamedTuple):
    """ibv_sge: `length` bytes at `addr` of the region with this lkey."""

    addr: int
    length: int
    lkey: int


@dataclass(slots=True)
class SendWr:
    """ibv_send_wr. `inline` data is copied at once and needs no region."""

    opcode: WrOpcode
    sges: Sequence[Sge] = ()
    wr_id: int = 0
    flags: SendFlags = SendFlags.SIGNALED
    remote_addr: int = 0
    rkey: int = 0
    imm: int = 0  # immediate data in host order, or the rkey to invalidate
    compare_add: int = 0
    swap: int = 0
    ah: Ah | None = None  # UD
    dqpn: int = 0
    qkey: int = 0
    inline: bytes | bytearray | memoryview | None = None
    bind_mr: Mr | None = None  # BIND_MW: the region behind the window
    bind_length: int = 0
    access: Access = Access.LOCAL_WRITE  # BIND_MW, REG_MR


@dataclass(slots=True)
class RecvWr:
    """ibv_recv_wr."""

    sges: Sequence[Sge] = field(default=())
    wr_id: int = 0

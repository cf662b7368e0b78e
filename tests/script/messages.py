"""How a SEND or WRITE message is cut into packets, written from IBTA 9.7.3 and table 38 alone."""

from __future__ import annotations

from typing import NamedTuple

from softrnic.spec import Op, WcOpcode, WrOpcode


class Kind(NamedTuple):
    """A message type: opcodes of its packets, what its last packet carries, its completions."""

    wr: WrOpcode
    first: Op
    middle: Op
    last: Op
    only: Op
    tail: str | None  # field of the extension header of the last packet
    wc: WcOpcode
    recv: WcOpcode | None  # None: no receive WQE is used
    write: bool  # has a RETH


_S, _W = (Op.SEND_FIRST, Op.SEND_MIDDLE), (Op.WRITE_FIRST, Op.WRITE_MIDDLE)
SEND = Kind(WrOpcode.SEND, *_S, Op.SEND_LAST, Op.SEND_ONLY, None, WcOpcode.SEND, WcOpcode.RECV, False)
SEND_IMM = Kind(
    WrOpcode.SEND_WITH_IMM, *_S, Op.SEND_LAST_IMM, Op.SEND_ONLY_IMM, "imm", WcOpcode.SEND, WcOpcode.RECV, False
)
SEND_INV = Kind(
    WrOpcode.SEND_WITH_INV, *_S, Op.SEND_LAST_INV, Op.SEND_ONLY_INV, "inv_rkey", WcOpcode.SEND, WcOpcode.RECV, False
)
WRITE = Kind(WrOpcode.RDMA_WRITE, *_W, Op.WRITE_LAST, Op.WRITE_ONLY, None, WcOpcode.RDMA_WRITE, None, True)
WRITE_IMM = Kind(
    WrOpcode.RDMA_WRITE_WITH_IMM, *_W, Op.WRITE_LAST_IMM, Op.WRITE_ONLY_IMM, "imm", WcOpcode.RDMA_WRITE,
    WcOpcode.RECV_RDMA_WITH_IMM, True,
)  # fmt: skip
KINDS = {"send": SEND, "send_imm": SEND_IMM, "send_inv": SEND_INV, "write": WRITE, "write_imm": WRITE_IMM}


class Part(NamedTuple):
    """One packet of a message."""

    op: Op
    start: int  # of its payload in the message
    end: int
    first: bool
    last: bool


def packets(kind: Kind, length: int, pmtu: int) -> list[Part]:
    """The packets of a message: a zero-length one is a single packet without payload (9.7.4.1.5)."""
    starts = range(0, length, pmtu) or range(1)
    parts = []
    for start in starts:
        first, last = start == 0, start + pmtu >= length
        op = {(1, 1): kind.only, (1, 0): kind.first, (0, 0): kind.middle, (0, 1): kind.last}[first, last]
        parts.append(Part(op, start, min(length, start + pmtu), first, last))
    return parts


def edges(pmtu: int) -> list[int]:
    """Lengths on both sides of every change of the packet sequence."""
    return [0, 1, 3, pmtu - 1, pmtu, pmtu + 1, 2 * pmtu - 1, 2 * pmtu, 2 * pmtu + 1, 5 * pmtu]

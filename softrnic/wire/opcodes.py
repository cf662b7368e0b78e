"""The one table of BTH opcodes: what each carries, where in a message it stands, what it asks for.

One row per opcode; kernels read the same rows as two frozen arrays (`op_flags`, `op_ext_len`). An opcode that
is not in the table has no VALID flag. Nothing here knows a QP. IBTA 9.2.1 (table 38), 9.3; A17.9 for the CNP.
"""

from __future__ import annotations

from enum import IntEnum
from typing import NamedTuple

from softrnic.jit import frozen, inline
from softrnic.spec import Op, Service

RETH_LEN         = 16
AETH_LEN         = 4
ATOMICETH_LEN    = 28
ATOMICACKETH_LEN = 8
IMMDT_LEN        = 4
IETH_LEN         = 4
DETH_LEN         = 8
CNP_RESV_LEN     = 16


class OpFlag(IntEnum):
    """What is true of an opcode: bits of `op_flags` (IntEnum, because kernels take no IntFlag)."""

    VALID         = 1 << 0
    REQUEST       = 1 << 1   # goes to the responder
    RESPONSE      = 1 << 2   # goes to the completer
    SEND          = 1 << 3
    WRITE         = 1 << 4
    READ          = 1 << 5   # READ request and READ responses
    ATOMIC        = 1 << 6   # atomic requests and their acknowledge
    ACK           = 1 << 7   # ACKNOWLEDGE: positive or negative, nothing but an AETH
    CNP           = 1 << 8   # congestion notification packet
    FIRST         = 1 << 9   # begins a message
    MIDDLE        = 1 << 10  # neither begins nor ends one
    LAST          = 1 << 11  # ends a message
    ONLY          = FIRST | LAST
    RETH          = 1 << 12
    AETH          = 1 << 13
    ATOMICETH     = 1 << 14
    ATOMICACKETH  = 1 << 15
    IMMDT         = 1 << 16
    IETH          = 1 << 17
    DETH          = 1 << 18
    PAYLOAD       = 1 << 19  # may carry payload
    NEEDS_RWQE    = 1 << 20  # takes a receive WQE: a SEND as it begins, WRITE with immediate as it ends
    COMPLETES_RECV = 1 << 21  # ends a receive WQE: last packet of a SEND, or of a WRITE with immediate
    RESUME        = 1 << 22  # goes to both halves of a QP that knows it


class Opcode(NamedTuple):
    """One row: BTH opcode, Wireshark's name, OpFlag bits, bytes of extension headers after the BTH."""

    value: int
    name: str
    flags: int
    ext_len: int


_EXT_LEN = {
    OpFlag.RETH:         RETH_LEN,
    OpFlag.AETH:         AETH_LEN,
    OpFlag.ATOMICETH:    ATOMICETH_LEN,
    OpFlag.ATOMICACKETH: ATOMICACKETH_LEN,
    OpFlag.IMMDT:        IMMDT_LEN,
    OpFlag.IETH:         IETH_LEN,
    OpFlag.DETH:         DETH_LEN,
    OpFlag.CNP:          CNP_RESV_LEN,
}  # fmt: skip


def _row(service: Service, op: int, name: str, *flags: OpFlag) -> Opcode:
    mask = int(OpFlag.VALID)
    for flag in flags:
        mask |= flag
    if service == Service.UD:
        mask |= OpFlag.DETH
    ext_len = sum(n for flag, n in _EXT_LEN.items() if mask & flag)
    prefix = "" if service == Service.CNP else f"{service.name} "
    return Opcode(service | op, prefix + name, mask, ext_len)


def _send_and_write(service: Service) -> list[Opcode]:
    """The twelve opcodes that RC and UC share."""
    f = OpFlag
    send, write = (f.REQUEST, f.SEND, f.PAYLOAD), (f.REQUEST, f.WRITE, f.PAYLOAD)
    first, last = (f.FIRST, f.NEEDS_RWQE), (f.LAST, f.COMPLETES_RECV)
    only = (f.ONLY, f.NEEDS_RWQE, f.COMPLETES_RECV)
    imm = (f.IMMDT, f.NEEDS_RWQE, f.COMPLETES_RECV)
    return [
        _row(service, Op.SEND_FIRST,     "Send First",                *send, *first),
        _row(service, Op.SEND_MIDDLE,    "Send Middle",               *send, f.MIDDLE),
        _row(service, Op.SEND_LAST,      "Send Last",                 *send, *last),
        _row(service, Op.SEND_LAST_IMM,  "Send Last Immediate",       *send, *last, f.IMMDT),
        _row(service, Op.SEND_ONLY,      "Send Only",                 *send, *only),
        _row(service, Op.SEND_ONLY_IMM,  "Send Only Immediate",       *send, *only, f.IMMDT),
        _row(service, Op.WRITE_FIRST,    "RDMA Write First",          *write, f.FIRST, f.RETH),
        _row(service, Op.WRITE_MIDDLE,   "RDMA Write Middle",         *write, f.MIDDLE),
        _row(service, Op.WRITE_LAST,     "RDMA Write Last",           *write, f.LAST),
        _row(service, Op.WRITE_LAST_IMM, "RDMA Write Last Immediate", *write, f.LAST, *imm),
        _row(service, Op.WRITE_ONLY,     "RDMA Write Only",           *write, f.ONLY, f.RETH),
        _row(service, Op.WRITE_ONLY_IMM, "RDMA Write Only Immediate", *write, f.ONLY, f.RETH, *imm),
    ]  # fmt: skip


def _rows() -> list[Opcode]:
    f, rc, ud = OpFlag, Service.RC, Service.UD
    send = (f.REQUEST, f.SEND, f.PAYLOAD)
    last, only = (f.LAST, f.COMPLETES_RECV), (f.ONLY, f.NEEDS_RWQE, f.COMPLETES_RECV)
    answer = (f.RESPONSE, f.READ, f.PAYLOAD)
    atomic = (f.REQUEST, f.ATOMIC, f.ONLY, f.ATOMICETH)
    return [
        *_send_and_write(rc),
        _row(rc, Op.READ_REQUEST,         "RDMA Read Request",         f.REQUEST, f.READ, f.ONLY, f.RETH),
        _row(rc, Op.READ_RESPONSE_FIRST,  "RDMA Read Response First",  *answer, f.FIRST, f.AETH),
        _row(rc, Op.READ_RESPONSE_MIDDLE, "RDMA Read Response Middle", *answer, f.MIDDLE),
        _row(rc, Op.READ_RESPONSE_LAST,   "RDMA Read Response Last",   *answer, f.LAST, f.AETH),
        _row(rc, Op.READ_RESPONSE_ONLY,   "RDMA Read Response Only",   *answer, f.ONLY, f.AETH),
        _row(rc, Op.ACKNOWLEDGE,          "Acknowledge",               f.RESPONSE, f.ACK, f.ONLY, f.AETH),
        _row(rc, Op.ATOMIC_ACKNOWLEDGE,   "Atomic Acknowledge",
             f.RESPONSE, f.ATOMIC, f.ONLY, f.AETH, f.ATOMICACKETH),
        _row(rc, Op.COMPARE_SWAP,         "Compare Swap",              *atomic),
        _row(rc, Op.FETCH_ADD,            "Fetch Add",                 *atomic),
        _row(rc, Op.SEND_LAST_INV,        "Send Last Invalidate",      *send, *last, f.IETH),
        _row(rc, Op.SEND_ONLY_INV,        "Send Only Invalidate",      *send, *only, f.IETH),
        _row(rc, Op.RESUME,               "Resume",                    f.RESUME, f.ONLY),
        *_send_and_write(Service.UC),
        _row(ud, Op.SEND_ONLY,            "Send Only",                 *send, *only),
        _row(ud, Op.SEND_ONLY_IMM,        "Send Only Immediate",       *send, *only, f.IMMDT),
        _row(Service.CNP, 0x01,           "CNP",                       f.CNP, f.ONLY),
    ]  # fmt: skip


OPCODES = {row.value: row for row in _rows()}
OP_FLAGS = frozen([OPCODES[i].flags if i in OPCODES else 0 for i in range(256)], "i8")
OP_EXT_LEN = frozen([OPCODES[i].ext_len if i in OPCODES else 0 for i in range(256)], "i8")


@inline
def op_flags(opcode: int) -> int:
    """OpFlag bits of a BTH opcode; 0 when there is no such opcode."""
    return int(OP_FLAGS[opcode & 0xFF])


@inline
def op_ext_len(opcode: int) -> int:
    """Bytes of extension headers between the BTH and the payload."""
    return int(OP_EXT_LEN[opcode & 0xFF])

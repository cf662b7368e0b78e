"""The opcode table, against rules that a table cannot break by being edited in one place."""

from __future__ import annotations

import pytest

from softrnic.spec import Service
from softrnic.wire.opcodes import OPCODES, OpFlag, op_ext_len, op_flags

F = OpFlag


def ops(*flags: OpFlag) -> set[int]:
    """The low five bits of all RC opcodes that have these flags."""
    mask = sum(flags)
    return {op & 0x1F for op, row in OPCODES.items() if op < Service.UC and row.flags & mask == mask}


def test_kernels_see_the_rows() -> None:
    for opcode in range(256):
        row = OPCODES.get(opcode)
        assert op_flags(opcode) == (row.flags if row else 0)
        assert op_ext_len(opcode) == (row.ext_len if row else 0)
        assert bool(op_flags(opcode) & F.VALID) == (opcode in OPCODES)


def test_which_opcodes_there_are() -> None:
    """IBTA table 38: RC 0 to 20, 22 and 23; UC the first twelve; UD two; and the CNP. Beyond it, RESUME of MigrOS."""
    rc = [*range(0x15), 0x16, 0x17, 0x19]
    assert sorted(OPCODES) == [*rc, *range(0x20, 0x2C), 0x64, 0x65, 0x81]


@pytest.mark.parametrize("row", OPCODES.values(), ids=lambda row: row.name)
def test_every_row_is_consistent(row) -> None:
    kinds = (F.SEND, F.WRITE, F.READ, F.ATOMIC, F.ACK, F.CNP, F.RESUME)
    assert sum(bool(row.flags & kind) for kind in kinds) == 1
    position = row.flags & (F.FIRST | F.MIDDLE | F.LAST)
    assert position in (F.FIRST, F.MIDDLE, F.LAST, F.ONLY)
    if row.value not in (0x19, 0x81):
        assert bool(row.flags & F.REQUEST) != bool(row.flags & F.RESPONSE)
    assert bool(row.flags & F.DETH) == row.name.startswith("UD ")


def test_uc_is_rc_without_reads_and_atomics() -> None:
    for op in range(0x0C):
        rc, uc = OPCODES[op], OPCODES[0x20 | op]
        assert (rc.flags, rc.ext_len, rc.name[2:]) == (uc.flags, uc.ext_len, uc.name[2:])


def test_receive_wqes() -> None:
    """9.7.4.2: a SEND takes a receive WQE with its first packet, WRITE with immediate with its last."""
    assert ops(F.SEND, F.NEEDS_RWQE) == ops(F.SEND, F.FIRST)
    assert ops(F.WRITE, F.NEEDS_RWQE) == ops(F.WRITE, F.IMMDT) == {0x09, 0x0B}
    assert ops(F.COMPLETES_RECV) == ops(F.SEND, F.LAST) | ops(F.WRITE, F.IMMDT)
    assert not any(row.flags & F.NEEDS_RWQE for row in OPCODES.values() if row.flags & F.RESPONSE)


def test_payload() -> None:
    """Requests that fetch, and answers that only report, carry none."""
    assert ops(F.PAYLOAD) == ops(F.SEND) | ops(F.WRITE) | ops(F.READ, F.RESPONSE)
    assert ops(F.READ, F.REQUEST) == {0x0C}
    assert ops(F.RETH) == {0x06, 0x0A, 0x0B, 0x0C}
    assert ops(F.IETH) == {0x16, 0x17}

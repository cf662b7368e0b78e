"""The longest messages there are: 2^31 bytes (9.7.7.1.3), every one of them compared."""

from __future__ import annotations

import numpy as np
import pytest

from softrnic.spec import MAX_MESSAGE
from softrnic.verbs import Mtu, QpCap, RecvWr, SendFlags, SendWr, WrOpcode
from tests.pairs import ALL_ACCESS, Pair

pytestmark = [pytest.mark.slow, pytest.mark.jit_only, pytest.mark.timeout(600)]  # two gibibytes of memory

PIECES = 32
PIECE = MAX_MESSAGE // PIECES


@pytest.fixture(scope="module")
def far() -> np.ndarray:
    """What one peer writes to and reads from."""
    return np.zeros(MAX_MESSAGE, np.uint8)


@pytest.mark.parametrize("opcode", [WrOpcode.RDMA_WRITE, WrOpcode.SEND, WrOpcode.RDMA_READ])
def test_two_gibibytes(opcode: WrOpcode, far: np.ndarray) -> None:
    """One message, gathered from (or scattered to) the same 64 MiB 32 times over."""
    p = Pair(size=PIECE, offload=True)
    p.a.buf[:] = np.random.default_rng(1).integers(0, 256, PIECE, np.uint8)
    region = p.b.pd.reg_mr(far, ALL_ACCESS)
    qa, qb = p.connect(mtu=Mtu.MTU_4096, cap=QpCap(4, 4, PIECES, PIECES, 0))
    reads = opcode == WrOpcode.RDMA_READ
    if reads:
        far.reshape(PIECES, PIECE)[:] = p.a.buf
        p.a.buf[:] = 0
    else:
        far[:] = 0
    if opcode == WrOpcode.SEND:
        qb.post_recv(RecvWr([region.sge(i * PIECE, PIECE) for i in range(PIECES)]))
    sges = [p.a.mr.sge()] * PIECES
    qa.post_send(SendWr(opcode, sges, 1, SendFlags.SIGNALED, remote_addr=region.addr, rkey=region.rkey))
    p.run()
    done = p.a.cq.poll()
    assert [(wc.ok, wc.byte_len) for wc in done] == [(True, MAX_MESSAGE)]
    if opcode == WrOpcode.SEND:
        assert [(wc.ok, wc.byte_len) for wc in p.b.cq.poll()] == [(True, MAX_MESSAGE)]
    for i in range(PIECES):
        assert np.array_equal(far[i * PIECE : (i + 1) * PIECE], p.a.buf)
    assert p.a.buf.any()

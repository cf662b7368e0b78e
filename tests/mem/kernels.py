"""Entry points to helpers that tests want to call one by one."""

from __future__ import annotations

import numpy as np

from softrnic.jit import i64, kernel
from softrnic.mem.copy import (
    atomic_region,
    gather,
    gather_inline,
    read_region,
    read_space,
    scatter,
    write_region,
    write_space,
)
from softrnic.mem.dirty import mark_dirty
from softrnic.mem.mr import check_local, check_remote
from softrnic.mem.space import resolve


@kernel
def local(engs: np.ndarray, qp: int, lkey: int, addr: int, length: int, write: bool) -> int:
    """check_local."""
    return i64(check_local(engs[0], engs[0]["qps"][qp], lkey, addr, length, write))


@kernel
def remote(engs: np.ndarray, qp: int, rkey: int, va: int, length: int, need: int) -> int:
    """check_remote."""
    return i64(check_remote(engs[0], engs[0]["qps"][qp], qp, rkey, va, length, need))


@kernel
def write(engs: np.ndarray, mr: int, offset: int, buf: np.ndarray, src: int, n: int) -> int:
    """write_region."""
    return i64(write_region(engs[0], mr, offset, buf, src, n))


@kernel
def read(engs: np.ndarray, mr: int, offset: int, buf: np.ndarray, dst: int, n: int, crc: int) -> tuple[int, int]:
    """read_region."""
    status, crc = read_region(engs[0], mr, offset, buf, dst, n, crc)
    return i64(status), i64(crc)


@kernel
def ring_write(engs: np.ndarray, space: int, addr: int, src: int, n: int) -> int:
    """write_space."""
    return i64(write_space(engs[0], space, addr, src, n))


@kernel
def ring_read(engs: np.ndarray, space: int, addr: int, dst: int, n: int) -> int:
    """read_space."""
    return i64(read_space(engs[0], space, addr, dst, n))


@kernel
def put(engs: np.ndarray, nsge: int, offset: int, buf: np.ndarray, src: int, n: int) -> int:
    """Scatter to the first SGEs of the table, for QP 0."""
    return i64(scatter(engs[0], engs[0]["qps"][0], 0, nsge, offset, buf, src, n))


@kernel
def collect(engs: np.ndarray, nsge: int, offset: int, buf: np.ndarray, dst: int, n: int, crc: int) -> tuple[int, int]:
    """Gather from the first SGEs of the table, for QP 0."""
    status, crc = gather(engs[0], engs[0]["qps"][0], 0, nsge, offset, buf, dst, n, crc)
    return i64(status), i64(crc)


@kernel
def collect_inline(engs: np.ndarray, base: int, offset: int, buf: np.ndarray, dst: int, n: int, crc: int) -> int:
    """gather_inline."""
    return i64(gather_inline(engs[0], base, offset, buf, dst, n, crc))


@kernel
def atomic(engs: np.ndarray, mr: int, offset: int, is_cas: bool, operand: int, swap: int) -> tuple[int, int]:
    """atomic_region."""
    status, old = atomic_region(engs[0], mr, offset, is_cas, operand, swap)
    return i64(status), i64(old)


@kernel
def where(engs: np.ndarray, mr: int, offset: int, n: int) -> tuple[int, int]:
    """resolve, of a region that is all there."""
    run = resolve(engs[0], mr, offset, n, False)
    return i64(run.host), i64(run.length)


@kernel
def mark(engs: np.ndarray, space: int, addr: int, n: int) -> int:
    """mark_dirty."""
    mark_dirty(engs[0]["spaces"][space], addr, n)
    return 0

"""Memory that is not ours for certain: another process's, or our own when its owner may unmap it at any moment.

The kernel copies it (process_vm_readv and -writev, also to and from this very process), so that a page which is not
there, must not be written, or belongs to a process that has died is an error code and never a signal.
"""

from __future__ import annotations

import ctypes
import errno as _errno
from typing import Any

from numba import types

from softrnic.jit import JIT, i64, inline, ld32, st64
from softrnic.layout import OFF_IOV

GONE = -1  # the process is dead, or must not be touched
EPERM, ESRCH = _errno.EPERM, _errno.ESRCH


def _function(name: str) -> Any:
    if JIT:
        return types.ExternalFunction(name, types.int64(*[types.int64] * 6))
    function = getattr(ctypes.CDLL(None, use_errno=True), name)
    function.restype = ctypes.c_int64
    function.argtypes = [ctypes.c_int64] * 6
    return function


_readv, _writev = _function("process_vm_readv"), _function("process_vm_writev")

if JIT:
    _errno_location = types.ExternalFunction("__errno_location", types.int64())

    @inline
    def _last_error():
        return i64(ld32(_errno_location()))

else:
    _last_error = ctypes.get_errno


@inline
def _iov(eng, local, remote, n):
    """Two struct iovec in the engine's scratch memory: its address."""
    at = i64(eng["base"]) + OFF_IOV
    st64(at, local)
    st64(at + 8, n)
    st64(at + 16, remote)
    st64(at + 24, n)
    return at


@inline
def _outcome(n):
    """Bytes copied, or GONE."""
    if n >= 0:
        return n
    error = _last_error()
    return GONE if error in (ESRCH, EPERM) else 0


@inline
def read_process(eng, pid, remote, local, n):
    """Copy `n` bytes at `remote` of a process to our address `local`: how many, or GONE."""
    at = _iov(eng, local, remote, n)
    return _outcome(i64(_readv(pid, at, 1, at + 16, 1, 0)))


@inline
def write_process(eng, pid, remote, local, n):
    """Copy `n` bytes of ours to a process: how many, or GONE."""
    at = _iov(eng, local, remote, n)
    return _outcome(i64(_writev(pid, at, 1, at + 16, 1, 0)))

"""libc as kernels see it: system calls by symbol, and where in a port's scratch memory their structures lie.

Every argument is an int64, which the calling conventions of x86-64 and AArch64 pass as they pass an int.
Results must be widened with int(). The Python twins serve NUMBA_DISABLE_JIT=1.
"""

from __future__ import annotations

import ctypes
import errno as _errno
from typing import Any

from numba import types

from softrnic.jit import JIT, inline, ld32

_LIBC = ctypes.CDLL(None, use_errno=True)
_RETURNS = {"int": (types.int32, ctypes.c_int32), "ssize_t": (types.int64, ctypes.c_int64)}

EAGAIN, EINTR, ENOBUFS = _errno.EAGAIN, _errno.EINTR, _errno.ENOBUFS
POLLIN = 1
MSG_DONTWAIT = 0x40
SIOCOUTQ = 0x5411

# Where in PortTables.aux each structure lies. Receiving and sending have their own, so that two threads may.
# fmt: off
AUX_POLL      = 0     # struct pollfd[2]
AUX_TIMEOUT   = 16    # struct timespec
AUX_EVENT     = 32    # the 8 bytes read from an eventfd
AUX_EVENT_OUT = 40    # the 8 bytes written to one
AUX_QUEUED    = 48    # the int of SIOCOUTQ
AUX_RX        = 64    # structures of receive calls
AUX_TX        = 2048  # structures of send calls
AUX_HEADERS   = 3968  # headers of a super-frame being split, at most 18 + 60 + 8 bytes
# fmt: on


def _function(name: str, returns: str, nargs: int) -> Any:
    numba_type, ctypes_type = _RETURNS[returns]
    if JIT:
        return types.ExternalFunction(name, numba_type(*[types.int64] * nargs))
    function = getattr(_LIBC, name)
    function.restype = ctypes_type
    function.argtypes = [ctypes.c_int64] * nargs
    return function


read = _function("read", "ssize_t", 3)
write = _function("write", "ssize_t", 3)
recvmsg = _function("recvmsg", "ssize_t", 3)
recvfrom = _function("recvfrom", "ssize_t", 6)
sendmsg = _function("sendmsg", "ssize_t", 3)
recvmmsg = _function("recvmmsg", "int", 5)
sendmmsg = _function("sendmmsg", "int", 4)
sendto = _function("sendto", "ssize_t", 6)
ppoll = _function("ppoll", "int", 4)
ioctl = _function("ioctl", "int", 3)
sched_yield = _function("sched_yield", "int", 0)

if JIT:
    _errno_location = types.ExternalFunction("__errno_location", types.int64())

    @inline
    def errno() -> int:
        """errno of this thread's last failed call."""
        return int(ld32(_errno_location()))

else:
    errno = ctypes.get_errno

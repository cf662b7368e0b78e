"""What stands behind a stretch of an address space: memory of ours, a mapped file, or memory of another process.

Decides which of it the engine may touch itself. That is what nobody can take away under it: a buffer that we hold, and
a memfd sealed against shrinking. Everything else - other files, which may be truncated, and other processes, which may
unmap or die - is reached through the kernel, so that a page which is gone is an error and no signal.
"""

from __future__ import annotations

import array
import errno
import fcntl
import mmap
import os
import select
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from softrnic.errors import VerbsError

if TYPE_CHECKING:
    from softrnic.verbs.space import AddressSpace

TOP = (1 << 63) - 1
NOBODY = 0x7FFFFFFF  # a process id that is never given: every access to it fails


@dataclass(frozen=True)
class ProcessMemory:
    """`length` bytes at `address` of process `pid`; of this one too, where their owner may unmap them at any time."""

    pid: int
    address: int
    length: int
    writable: bool = True


@dataclass(frozen=True)
class FileMemory:
    """`length` bytes of a file or memfd from `offset` (of a page) on; the descriptor may be closed afterwards."""

    fd: int
    length: int
    offset: int = 0
    writable: bool = True


class Slot:
    """A stretch of an address space with memory behind it. Made by `AddressSpace.add_slot`."""

    def __init__(self, space: AddressSpace, addr: int, memory: Any) -> None:
        self.space = space
        self.addr = addr
        self.memory = memory
        self.pins = 0  # regions that were registered over it and are no on-demand ones
        self._view: np.ndarray | None = None
        self._pidfd: int | None = None
        self.pid = 0
        if isinstance(memory, ProcessMemory):
            self._open_process(memory)
        elif isinstance(memory, FileMemory):
            self._open_file(memory)
        else:
            self._hold_buffer(memory)
        if not 0 <= addr <= TOP - self.length:
            self.close()
            raise VerbsError(errno.EINVAL, f"{self.length} bytes at {addr:#x} wrap around")

    @property
    def end(self) -> int:
        """The address behind it."""
        return self.addr + self.length

    def _hold_buffer(self, memory: Any) -> None:
        self._view = view = view_of(memory)
        self.host, self.length, self.readonly = int(view.ctypes.data), int(view.nbytes), not view.flags.writeable
        if is_file_mapping(memory):
            self.pid = os.getpid()

    def _open_file(self, memory: FileMemory) -> None:
        _check_range(memory.offset, memory.length)
        prot = mmap.PROT_READ | (mmap.PROT_WRITE if memory.writable else 0)
        try:
            mapping = mmap.mmap(memory.fd, memory.length, mmap.MAP_SHARED, prot, offset=memory.offset)
        except (OSError, ValueError) as error:
            code = error.errno if isinstance(error, OSError) and error.errno else errno.EINVAL
            raise VerbsError(code, f"the file cannot be mapped: {error}") from None
        self._view = np.frombuffer(mapping, np.uint8)
        self.host, self.length, self.readonly = int(self._view.ctypes.data), memory.length, not memory.writable
        if not _never_shrinks(memory.fd):
            self.pid = os.getpid()

    def _open_process(self, memory: ProcessMemory) -> None:
        _check_range(memory.address, memory.length)
        self.host, self.length, self.readonly = memory.address, memory.length, not memory.writable
        self.pid = memory.pid
        try:
            self._pidfd = os.pidfd_open(memory.pid)
        except OSError as error:
            raise VerbsError(error.errno or errno.ESRCH, f"process {memory.pid}: {error.strerror}") from None
        if not self.is_ours and not os.access(f"/proc/{memory.pid}/mem", os.R_OK | os.W_OK):
            self.close()
            raise VerbsError(errno.EPERM, f"the memory of process {memory.pid} is out of reach")

    @property
    def is_ours(self) -> bool:
        """Whether it is memory of this process, however it is reached."""
        return self.pid in (0, os.getpid())

    @property
    def lost(self) -> bool:
        """Whether the process behind it has died. Its number must not be used any more: another may get it."""
        if self._pidfd is None or self.pid == NOBODY:
            return self.pid == NOBODY
        poll = select.poll()
        poll.register(self._pidfd, select.POLLIN)
        return bool(poll.poll(0))

    def fileno(self) -> int:
        """Readable once the process behind it has died (a pidfd); EINVAL for memory without one."""
        if self._pidfd is None:
            raise VerbsError(errno.EINVAL, "the memory is not another process's")
        return self._pidfd

    def close(self) -> None:
        """Let go of the memory."""
        self._view = None
        if self._pidfd is not None:
            os.close(self._pidfd)
            self._pidfd = None


def view_of(memory: Any) -> np.ndarray:
    """The bytes of a buffer; EINVAL when there are none, TypeError for what is no buffer."""
    try:
        view = np.frombuffer(memory, np.uint8)
    except (BufferError, ValueError):
        raise VerbsError(errno.EINVAL, "only contiguous memory can be registered") from None
    if not view.nbytes:
        raise VerbsError(errno.EINVAL, "an empty buffer cannot be registered")
    return view


def _check_range(start: int, length: int) -> None:
    if length <= 0 or start < 0 or start > TOP - length:
        raise VerbsError(errno.EINVAL, f"{length} bytes from {start:#x} are none, or wrap around")


def _never_shrinks(fd: int) -> bool:
    """Whether a mapping of the file can never run off its end: a memfd sealed against that, of ordinary pages.

    Huge pages may run out when one is touched, which is a signal too.
    """
    try:
        sealed = fcntl.fcntl(fd, fcntl.F_GET_SEALS) & fcntl.F_SEAL_SHRINK
    except OSError:
        return False
    return bool(sealed) and os.fstat(fd).st_blksize <= mmap.PAGESIZE


def is_heap(memory: Any) -> bool:
    """Whether a buffer is of an object that keeps its memory as long as it lives, and not some mapping."""
    while not isinstance(memory, bytes | bytearray | array.array):
        if isinstance(memory, np.ndarray):
            if memory.flags.owndata:
                return True
            memory = memory.base
        elif isinstance(memory, memoryview):
            memory = memory.obj
        else:
            return False
    return True


def is_file_mapping(memory: Any) -> bool:
    """Whether a buffer is a mapping of a file, which somebody may truncate."""
    base = memory
    while isinstance(base, np.ndarray | memoryview):
        base = base.base if isinstance(base, np.ndarray) else base.obj
    if not isinstance(base, mmap.mmap):
        return False
    address = int(np.frombuffer(base, np.uint8).ctypes.data)
    with open("/proc/self/maps", encoding="ascii", errors="replace") as maps:
        for line in maps:
            span, *_, inode = (fields := line.split(maxsplit=5))[:5]
            low, high = (int(part, 16) for part in span.split("-"))
            if low <= address < high:
                return inode != "0" and not fields[5].startswith("/dev/zero")
    return False

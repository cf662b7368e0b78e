"""userfaultfd(2): one descriptor and its ioctls, and the messages it hands out. linux/userfaultfd.h, API 0xAA.

Does what it is told and reports what the kernel says; which page goes where is decided by whoever reads the messages.
Addresses are those of the process whose memory it is, which need not be this one: a descriptor may be handed over.
"""

from __future__ import annotations

import ctypes
import errno
import fcntl
import os
import platform
import struct
from enum import IntFlag
from typing import NamedTuple

from softrnic.errors import IoError, WireError

API = 0xAA
USER_MODE_ONLY = 1  # a system call that meets a missing page fails with EFAULT instead of waiting
MESSAGE_BYTES = 32

_SYSCALL = {"x86_64": 323, "aarch64": 282}
_libc = ctypes.CDLL(None, use_errno=True)


def _ioctl_number(number: int, size: int, direction: int = 3) -> int:
    """_IOWR (3) or _IOR (2) of type 0xAA."""
    return direction << 30 | size << 16 | API << 8 | number


# fmt: off
UFFDIO_REGISTER     = _ioctl_number(0x00, 32)
UFFDIO_UNREGISTER   = _ioctl_number(0x01, 16, 2)
UFFDIO_WAKE         = _ioctl_number(0x02, 16, 2)
UFFDIO_COPY         = _ioctl_number(0x03, 40)
UFFDIO_ZEROPAGE     = _ioctl_number(0x04, 32)
UFFDIO_MOVE         = _ioctl_number(0x05, 40)
UFFDIO_WRITEPROTECT = _ioctl_number(0x06, 24)
UFFDIO_CONTINUE     = _ioctl_number(0x07, 32)
UFFDIO_POISON       = _ioctl_number(0x08, 32)
UFFDIO_API          = _ioctl_number(0x3F, 24)


class Feature(IntFlag):
    """UFFD_FEATURE_*: what a descriptor may report, and what may be registered with it."""

    PAGEFAULT_FLAG_WP  = 1 << 0
    EVENT_FORK         = 1 << 1
    EVENT_REMAP        = 1 << 2
    EVENT_REMOVE       = 1 << 3
    MISSING_HUGETLBFS  = 1 << 4
    MISSING_SHMEM      = 1 << 5
    EVENT_UNMAP        = 1 << 6
    SIGBUS             = 1 << 7
    THREAD_ID          = 1 << 8
    MINOR_HUGETLBFS    = 1 << 9
    MINOR_SHMEM        = 1 << 10
    EXACT_ADDRESS      = 1 << 11
    WP_HUGETLBFS_SHMEM = 1 << 12
    WP_UNPOPULATED     = 1 << 13
    POISON             = 1 << 14
    WP_ASYNC           = 1 << 15
    MOVE               = 1 << 16


class Mode(IntFlag):
    """UFFDIO_REGISTER_MODE_*: which faults of a range become messages. Events come in any mode."""

    MISSING = 1 << 0
    WP      = 1 << 1
    MINOR   = 1 << 2


class FaultFlag(IntFlag):
    """UFFD_PAGEFAULT_FLAG_*."""

    WRITE = 1 << 0
    WP    = 1 << 1
    MINOR = 1 << 2
# fmt: on


NO_FEATURES = Feature(0)
EVENTS = Feature.EVENT_FORK | Feature.EVENT_REMAP | Feature.EVENT_REMOVE | Feature.EVENT_UNMAP

_DONTWAKE = 1  # bit 0 of every mode word
_COPY_WP, _WRITEPROTECT_WP, _MOVE_SRC_HOLES = 1 << 1, 1 << 0, 1 << 1


class Fault(NamedTuple):
    """UFFD_EVENT_PAGEFAULT: a thread waits for the page at `address`; `tid` is 0 without THREAD_ID."""

    flags: FaultFlag
    address: int
    tid: int


class Fork(NamedTuple):
    """UFFD_EVENT_FORK: a child was made; `fd` is the userfaultfd of its copy of the ranges, open in this process."""

    fd: int


class Remap(NamedTuple):
    """UFFD_EVENT_REMAP: `length` bytes have moved; the registration went along."""

    source: int
    target: int
    length: int


class Remove(NamedTuple):
    """UFFD_EVENT_REMOVE: [start, end) loses its pages soon after this message is read."""

    start: int
    end: int


class Unmap(NamedTuple):
    """UFFD_EVENT_UNMAP: [start, end) is gone."""

    start: int
    end: int


Message = Fault | Fork | Remap | Remove | Unmap

#   struct uffd_msg, packed, 32 bytes
#    0       1                   8                              32
#   +-------+-------------------+------------------------------+
#   | event | reserved          | three u64 that event defines |
#   +-------+-------------------+------------------------------+
_MESSAGE = struct.Struct("=B7xQQQ")
EVENT_PAGEFAULT, EVENT_FORK, EVENT_REMAP, EVENT_REMOVE, EVENT_UNMAP = range(0x12, 0x17)


def parse_messages(data: bytes) -> list[Message]:
    """What a read returned. WireError for what no kernel sends."""
    if len(data) % MESSAGE_BYTES:
        raise WireError(f"{len(data)} bytes are not a number of userfaultfd messages")
    return [_parse(*fields) for fields in _MESSAGE.iter_unpack(data)]


def _parse(event: int, a: int, b: int, c: int) -> Message:
    if event == EVENT_PAGEFAULT:
        if a & ~sum(FaultFlag):
            raise WireError(f"page fault flags {a:#x}")
        return Fault(FaultFlag(a), b, c & 0xFFFFFFFF)
    if event == EVENT_FORK:
        return Fork(a & 0xFFFFFFFF)
    if event == EVENT_REMAP:
        return Remap(a, b, c)
    if event in (EVENT_REMOVE, EVENT_UNMAP):
        if b <= a:
            raise WireError(f"userfaultfd event {event:#x} about an empty range, {a:#x} to {b:#x}")
        return Remove(a, b) if event == EVENT_REMOVE else Unmap(a, b)
    raise WireError(f"userfaultfd event {event:#x}")


class Userfaultfd:
    """A descriptor after its API handshake, never blocking to read. Errors of the kernel are IoError."""

    def __init__(self, fd: int, features: Feature) -> None:
        self._fd = fd
        self.features = features

    @classmethod
    def open(cls, features: Feature = NO_FEATURES, *, user_mode_only: bool = False) -> Userfaultfd:
        """A new descriptor for this process with `features` enabled; EINVAL where the kernel lacks one."""
        fd = _open(USER_MODE_ONLY if user_mode_only else 0)
        try:
            _handshake(fd, features)
        except OSError as error:
            os.close(fd)
            raise IoError(error.errno or errno.EIO, f"userfaultfd with {features!r}") from None
        return cls(fd, features)

    @classmethod
    def adopt(cls, fd: int) -> Userfaultfd:
        """A descriptor that another process opened, did the handshake for, and handed over. EINVAL for any other."""
        try:
            name = os.readlink(f"/proc/self/fd/{fd}")
        except OSError as error:
            raise IoError(error.errno or errno.EBADF, f"descriptor {fd}") from None
        if name != "anon_inode:[userfaultfd]":
            raise IoError(errno.EINVAL, f"descriptor {fd} is {name}, no userfaultfd")
        enabled = int(_fdinfo(fd)["API"].split(":")[1], 16)
        if not enabled & _INITIALIZED:
            raise IoError(errno.EINVAL, f"userfaultfd {fd} has not had its API handshake")
        os.set_blocking(fd, False)
        return cls(fd, Feature(enabled & sum(Feature)))

    def fileno(self) -> int:
        """The descriptor, for poll; -1 once closed."""
        return self._fd

    def close(self) -> None:
        """Every range registered with it becomes ordinary memory again, and whoever waits in one goes on."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1

    def __enter__(self) -> Userfaultfd:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    @property
    def waiting(self) -> tuple[int, int]:
        """How many threads wait for a page: those whose message was not read yet, and all."""
        info = _fdinfo(self._fd)
        return int(info["pending"]), int(info["total"])

    def read(self, limit: int = 64) -> list[Message]:
        """The next messages, at most `limit`, faults first; empty when there are none."""
        try:
            return parse_messages(os.read(self._fd, MESSAGE_BYTES * limit))
        except BlockingIOError:
            return []

    # --- ranges -----------------------------------------------------------------------------------------------

    def register(self, start: int, length: int, mode: Mode) -> int:
        """Report faults in whole pages from `start`; returns the mask of ioctls that the range understands."""
        return self._call("REGISTER", UFFDIO_REGISTER, "QQQQ", start, length, int(mode), 0)

    def unregister(self, start: int, length: int) -> None:
        """Make it ordinary memory again, and wake whoever waits in it."""
        self._call("UNREGISTER", UFFDIO_UNREGISTER, "QQ", start, length)

    def wake(self, start: int, length: int) -> None:
        """Let the threads that wait in it try again."""
        self._call("WAKE", UFFDIO_WAKE, "QQ", start, length)

    def writeprotect(self, start: int, length: int, protect: bool, *, wake: bool = True) -> None:
        """Make the next write to each page a fault, or stop that. EAGAIN while the mapping changes."""
        mode = _WRITEPROTECT_WP if protect else (0 if wake else 2)
        self._call("WRITEPROTECT", UFFDIO_WRITEPROTECT, "QQQ", start, length, mode)

    # --- pages: each returns the bytes placed, which are fewer than asked for when something came between. EEXIST: the
    # first page is there already. EAGAIN: the mapping changes, read the event and try again. ENOENT: no such range any
    # more. ESRCH: the process is gone.

    def copy(self, dst: int, src: int, length: int, *, protect: bool = False, wake: bool = True) -> int:
        """Fill missing pages with bytes at `src` of this process."""
        mode = (0 if wake else _DONTWAKE) | (_COPY_WP if protect else 0)
        return self._call("COPY", UFFDIO_COPY, "QQQQq", dst, src, length, mode, 0)

    def zeropage(self, start: int, length: int, *, wake: bool = True) -> int:
        """Fill missing pages with zeros."""
        return self._call("ZEROPAGE", UFFDIO_ZEROPAGE, "QQQq", start, length, 0 if wake else _DONTWAKE, 0)

    def continue_(self, start: int, length: int, *, wake: bool = True) -> int:
        """Map pages that the page cache has; the answer to a minor fault."""
        return self._call("CONTINUE", UFFDIO_CONTINUE, "QQQq", start, length, 0 if wake else _DONTWAKE, 0)

    def move(self, dst: int, src: int, length: int, *, holes: bool = False, wake: bool = True) -> int:
        """Move pages of the same process under missing ones, without a copy; `holes`: missing sources do not matter."""
        mode = (0 if wake else _DONTWAKE) | (_MOVE_SRC_HOLES if holes else 0)
        return self._call("MOVE", UFFDIO_MOVE, "QQQQq", dst, src, length, mode, 0)

    def poison(self, start: int, length: int, *, wake: bool = True) -> int:
        """Make pages that can never be had a bus error for whoever touches them."""
        return self._call("POISON", UFFDIO_POISON, "QQQq", start, length, 0 if wake else _DONTWAKE, 0)

    def _call(self, what: str, request: int, fields: str, *values: int) -> int:
        """Make an ioctl; the last field is what the kernel answers. A partial success is a success."""
        argument = bytearray(struct.pack("=" + fields, *values))
        try:
            fcntl.ioctl(self._fd, request, argument)
        except OSError as error:
            done: int = struct.unpack_from("=q", argument, len(argument) - 8)[0]
            if error.errno == errno.EAGAIN and fields.endswith("q") and done > 0:
                return done
            raise IoError(error.errno or errno.EIO, f"UFFDIO_{what} at {values[0]:#x}") from None
        return int(struct.unpack_from("=" + fields[-1], argument, len(argument) - 8)[0])


_INITIALIZED = 1 << 31  # the kernel's own mark among a descriptor's features


def _fdinfo(fd: int) -> dict[str, str]:
    with open(f"/proc/self/fdinfo/{fd}", encoding="ascii") as file:
        return dict(line.rstrip("\n").split(":\t", 1) for line in file if ":\t" in line)


def _open(flags: int) -> int:
    number = _SYSCALL.get(platform.machine())
    if number is None:
        raise IoError(errno.ENOSYS, f"userfaultfd on {platform.machine()}")
    fd: int = _libc.syscall(number, os.O_CLOEXEC | os.O_NONBLOCK | flags)
    if fd < 0:
        raise IoError(ctypes.get_errno(), "userfaultfd")
    return fd


def _handshake(fd: int, features: Feature) -> Feature:
    """Enable `features`; returns all the kernel has."""
    argument = bytearray(struct.pack("=QQQ", API, int(features), 0))
    fcntl.ioctl(fd, UFFDIO_API, argument)
    return Feature(struct.unpack("=QQQ", argument)[1] & sum(Feature))


def supported() -> Feature:
    """All features of this kernel that are known here."""
    fd = _open(0)
    try:
        return _handshake(fd, Feature(0))
    finally:
        os.close(fd)

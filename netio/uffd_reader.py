"""Reads userfaultfd messages in a compiled loop, and answers by itself the faults that need no decision.

Whoever caused a message waits in the kernel until it is read, and may hold Python's interpreter lock meanwhile: a
thread that calls mmap.madvise or os.fork, or whose free() unmaps something, does. So the loop never needs that lock,
and returns only to end. Nor does it wait for an engine, which may itself be waiting for a page.

A fault is answered here when its range says how: a missing page is zeros, a page that the page cache has is mapped, a
page written while protected is noted and unprotected. All else is handed to Python.
"""

from __future__ import annotations

import errno as _errno
from enum import IntFlag
from typing import Any, NamedTuple

import numpy as np

from netio.libc import EAGAIN, POLLIN, errno, ioctl, ppoll, read, write
from netio.pagemap import PAGE_BYTES
from netio.uffd import (
    EVENT_PAGEFAULT,
    MESSAGE_BYTES,
    UFFDIO_CONTINUE,
    UFFDIO_COPY,
    UFFDIO_WAKE,
    UFFDIO_WRITEPROTECT,
    UFFDIO_ZEROPAGE,
    FaultFlag,
    Message,
    parse_messages,
)
from softrnic.jit import (
    addr_of,
    atomic_cas64,
    atomic_or64,
    i64,
    inline,
    kernel,
    ld8,
    ld64,
    ld_acq64,
    memcpy,
    pause,
    st64,
    st_rel64,
)


class Policy(IntFlag):
    """RANGE["policy"]: faults of the range that are answered without asking."""

    ZERO = 1  # a missing page
    CONTINUE = 2  # a minor fault
    UNPROTECT = 4  # a write to a protected page


RANGE = np.dtype(
    [
        ("fd", "i8"),
        ("start", "i8"),
        ("end", "i8"),
        ("page", "i8"),  # its page size
        ("policy", "i8"),
        ("log", "i8"),  # address of a bitmap, one bit per page: those unprotected; 0: nobody wants to know
    ]
)

MAX_FDS = 64
MAX_RANGES = 4096
RING = 4096  # messages that Python has not taken yet
BATCH = 64  # messages read from one descriptor at a time
DEFERRED = 1024  # faults that the kernel could not take an answer to just now
RETRY_NS = 50_000

_WP, _MINOR = int(FaultFlag.WP), int(FaultFlag.MINOR)
_NO_FD = 0xFFFFFFFF
_EVENTS = POLLIN << 32  # struct pollfd as one word: fd, events, revents
_ZERO, _CONTINUE, _UNPROTECT = int(Policy.ZERO), int(Policy.CONTINUE), int(Policy.UNPROTECT)

# Words of `scratch`.
_AT_TIME, _AT_ARG, _AT_READ = 0, 2, 8
_SCRATCH_WORDS = _AT_READ + 4 * BATCH

ANSWERED, ASK, AGAIN = 0, 1, 2
UNHEARD = _errno.ENOMSG  # what `place_page` answers while a message waits to be dealt with

# Words of `state`. The lock is for polls and ranges, held for as long as it takes to answer some faults.
N_POLLS, N_RANGES, N_DEFERRED, N_ANSWERED, LOCK, STOP, PRODUCED, CONSUMED, NOTIFY_FD = range(9)


class ReaderTables(NamedTuple):
    """What the loop works on. `ring` has five words per message: the descriptor and struct uffd_msg."""

    polls: np.ndarray
    ranges: np.ndarray
    state: np.ndarray
    deferred: np.ndarray  # three words each: descriptor, address, flags
    ring: np.ndarray
    scratch: np.ndarray


def make_tables(wake_fd: int, notify_fd: int) -> ReaderTables:
    """Tables without a userfaultfd. Both are eventfds: one ends a wait of the loop, one says the ring has grown."""
    polls = np.zeros(MAX_FDS, np.int64)
    polls[0] = wake_fd | _EVENTS
    state = np.zeros(16, np.int64)
    state[N_POLLS], state[NOTIFY_FD] = 1, notify_fd
    return ReaderTables(
        polls, np.zeros(MAX_RANGES, RANGE), state, np.zeros(3 * DEFERRED, np.int64), np.zeros(5 * RING, np.int64),
        np.zeros(_SCRATCH_WORDS, np.int64),
    )  # fmt: skip


@inline
def _lock(rt: ReaderTables) -> None:
    while atomic_cas64(addr_of(rt.state) + 8 * LOCK, 0, 1) != 0:
        pause()


@inline
def _unlock(rt: ReaderTables) -> None:
    st_rel64(addr_of(rt.state) + 8 * LOCK, 0)


@kernel
def change_tables(rt: ReaderTables, fds: np.ndarray, ranges: np.ndarray) -> None:
    """Read from these descriptors, answer for these ranges. Wake the loop afterwards."""
    _lock(rt)
    for i in range(len(fds)):
        rt.polls[1 + i] = i64(fds[i]) | _EVENTS
    rt.state[N_POLLS] = 1 + len(fds)
    for i in range(len(ranges)):
        rt.ranges[i] = ranges[i]
    rt.state[N_RANGES] = len(ranges)
    _unlock(rt)


def take_messages(rt: ReaderTables) -> list[tuple[int, Message]]:
    """What the loop has put into the ring: descriptors and messages, in order."""
    state = rt.state
    taken: list[tuple[int, Message]] = []
    while int(state[CONSUMED]) < int(state[PRODUCED]):
        at = 5 * (int(state[CONSUMED]) % RING)
        fd, data = int(rt.ring[at]), rt.ring[at + 1 : at + 5].tobytes()
        state[CONSUMED] += 1
        taken.append((fd, parse_messages(data)[0]))
    return taken


@inline
def _call(fd: int, request: int, arg: int, start: int, length: int, mode: int) -> int:
    """An ioctl whose argument is a range, a mode and room for an answer: 0, or errno."""
    st64(arg, start)
    st64(arg + 8, length)
    st64(arg + 16, mode)
    st64(arg + 24, 0)
    if i64(ioctl(fd, request, arg)) == 0:
        return 0
    return int(errno())


@inline
def _note(span: Any, address: int) -> None:
    """Record the write to a page."""
    if span["log"] != 0:
        page = (address - i64(span["start"])) // i64(span["page"])
        atomic_or64(i64(span["log"]) + ((page >> 6) << 3), 1 << (page & 63))


@inline
def _answer(span: Any, address: int, flags: int, arg: int) -> int:
    """ANSWERED, ASK whoever decides, or do it AGAIN: the mapping is changing, and says so in a message."""
    policy, page = i64(span["policy"]), i64(span["page"])
    start, fd = address & -page, i64(span["fd"])
    if flags & _WP:
        if policy & _UNPROTECT == 0:
            return ASK
        _note(span, start)
        error = _call(fd, UFFDIO_WRITEPROTECT, arg, start, page, 0)
    elif flags & _MINOR:
        if policy & _CONTINUE == 0:
            return ASK
        error = _call(fd, UFFDIO_CONTINUE, arg, start, page, 0)
    else:
        if policy & _ZERO == 0:
            return ASK
        error = _call(fd, UFFDIO_ZEROPAGE, arg, start, page, 0)
    if error == EAGAIN:
        return AGAIN
    if error != 0:  # EEXIST: somebody was faster. ENOENT: the range is gone. Whoever waits has to look for himself
        _call(fd, UFFDIO_WAKE, arg, start, page, 0)
    return ANSWERED


@inline
def _range_of(rt: ReaderTables, fd: int, address: int) -> int:
    """Index of the range that an address is in, or -1."""
    for i in range(i64(rt.state[N_RANGES])):
        span = rt.ranges[i]
        if i64(span["fd"]) == fd and address >= i64(span["start"]) and address < i64(span["end"]):
            return i
    return -1


@inline
def _fault(rt: ReaderTables, fd: int, address: int, flags: int, arg: int) -> int:
    """Deal with a page fault."""
    i = _range_of(rt, fd, address)
    if i < 0:
        return ASK
    verdict = _answer(rt.ranges[i], address, flags, arg)
    if verdict == ANSWERED:
        rt.state[N_ANSWERED] += 1
    return verdict


@inline
def _defer(rt: ReaderTables, fd: int, address: int, flags: int) -> None:
    """Put a fault off; without room for that, whoever waits has it again from the kernel."""
    n = i64(rt.state[N_DEFERRED])
    if n == DEFERRED:
        _call(fd, UFFDIO_WAKE, addr_of(rt.scratch) + 8 * _AT_ARG, address & -PAGE_BYTES, PAGE_BYTES, 0)
        return
    rt.deferred[3 * n] = fd
    rt.deferred[3 * n + 1] = address
    rt.deferred[3 * n + 2] = flags
    rt.state[N_DEFERRED] = n + 1


@inline
def _hand_out(rt: ReaderTables, fd: int, message: int) -> None:
    """Put a message into the ring."""
    at = addr_of(rt.ring) + 40 * (i64(rt.state[PRODUCED]) % RING)
    st64(at, fd)
    memcpy(at + 8, message, MESSAGE_BYTES)
    st_rel64(addr_of(rt.state) + 8 * PRODUCED, i64(rt.state[PRODUCED]) + 1)


@inline
def _retry(rt: ReaderTables, arg: int) -> None:
    """Try again what was put off. What has become a question meanwhile is put off by the kernel: it asks again."""
    kept = 0
    for k in range(i64(rt.state[N_DEFERRED])):
        fd, address, flags = i64(rt.deferred[3 * k]), i64(rt.deferred[3 * k + 1]), i64(rt.deferred[3 * k + 2])
        verdict = _fault(rt, fd, address, flags, arg)
        if verdict == AGAIN:
            rt.deferred[3 * kept] = fd
            rt.deferred[3 * kept + 1] = address
            rt.deferred[3 * kept + 2] = flags
            kept += 1
        elif verdict == ASK:
            _call(fd, UFFDIO_WAKE, arg, address & -PAGE_BYTES, PAGE_BYTES, 0)
    rt.state[N_DEFERRED] = kept


@inline
def _room(rt: ReaderTables) -> int:
    taken: int = ld_acq64(addr_of(rt.state) + 8 * CONSUMED)
    return RING - (int(rt.state[PRODUCED]) - taken)


@inline
def _drain(rt: ReaderTables, fd: int) -> None:
    """Read one batch from a descriptor, as much as the ring could take."""
    base = addr_of(rt.scratch)
    arg, at = base + 8 * _AT_ARG, base + 8 * _AT_READ
    got = i64(read(fd, at, MESSAGE_BYTES * min(BATCH, _room(rt))))
    for k in range(max(0, got) // MESSAGE_BYTES):
        message = at + MESSAGE_BYTES * k
        verdict = ASK
        if ld8(message) == EVENT_PAGEFAULT:
            verdict = _fault(rt, fd, ld64(message + 16), ld64(message + 8), arg)
        if verdict == ASK:
            _hand_out(rt, fd, message)
        elif verdict == AGAIN:
            _defer(rt, fd, ld64(message + 16), ld64(message + 8))


@inline
def _wait(rt: ReaderTables) -> None:
    """Until a descriptor can be read; while faults are put off, not for long."""
    base = addr_of(rt.scratch)
    st64(base, 0)
    st64(base + 8, RETRY_NS)
    timeout = base if i64(rt.state[N_DEFERRED]) else 0
    ppoll(addr_of(rt.polls), i64(rt.state[N_POLLS]), timeout, 0)


@inline
def _look(rt: ReaderTables, i: int) -> None:
    """Read from descriptor `i` if it can be."""
    word = i64(rt.polls[i])
    fd = word & 0xFFFFFFFF
    if (word >> 48) & POLLIN:
        if i == 0:
            read(fd, addr_of(rt.scratch) + 8 * _AT_READ, 8)
        else:
            _drain(rt, fd)
    elif word >> 48:
        rt.polls[i] = _NO_FD  # closed under us; it would end every wait at once


@kernel
def read_messages(rt: ReaderTables) -> None:
    """Read, answer and hand out until told to STOP."""
    base = addr_of(rt.scratch)
    while ld_acq64(addr_of(rt.state) + 8 * STOP) == 0:
        _wait(rt)
        before = i64(rt.state[PRODUCED])
        _lock(rt)
        for i in range(i64(rt.state[N_POLLS])):
            _look(rt, i)
        _retry(rt, base + 8 * _AT_ARG)
        _unlock(rt)
        if i64(rt.state[PRODUCED]) != before:
            st64(base, 1)
            write(i64(rt.state[NOTIFY_FD]), base, 8)


@kernel
def place_page(rt: ReaderTables, fd: int, dst: int, src: int, length: int, heard: int) -> int:
    """UFFDIO_COPY while no message can be read: 0 or errno; UNHEARD unless `heard` messages are all there were."""
    _lock(rt)
    error = UNHEARD
    if i64(rt.state[PRODUCED]) == heard:
        error = 0
        arg = addr_of(rt.scratch) + 8 * _AT_ARG
        st64(arg, dst)
        st64(arg + 8, src)
        st64(arg + 16, length)
        st64(arg + 24, 0)
        st64(arg + 32, 0)
        if i64(ioctl(fd, UFFDIO_COPY, arg)) != 0:
            error = int(errno())
    _unlock(rt)
    return error


@kernel
def take_bit(words: np.ndarray, bit: int) -> bool:
    """Take one page out of a log that the loop may be writing to: whether it was in it."""
    at, mask = addr_of(words) + ((bit >> 6) << 3), 1 << (bit & 63)
    while True:
        word = ld_acq64(at)
        if word & mask == 0:
            return False
        if atomic_cas64(at, word, word & ~mask) == word:
            return True

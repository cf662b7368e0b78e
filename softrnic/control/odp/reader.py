"""The thread that reads userfaultfds, and what it knows of their ranges.

It runs a compiled loop from beginning to end (netio.uffd_reader), so that whoever waits for a message to be read waits
for this thread alone, whatever holds the interpreter or the engine. Messages that the loop does not answer itself wake
whoever reads `fileno`.
"""

from __future__ import annotations

import contextlib
import errno
import os
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from netio import uffd_reader
from netio.pagemap import PAGE_BYTES
from netio.uffd import Message, Userfaultfd
from netio.uffd_reader import CONSUMED, MAX_FDS, MAX_RANGES, N_ANSWERED, RANGE, RETRY_NS, STOP, Policy
from softrnic.verbs import VerbsError

ASK_ALL = Policy(0)


@dataclass(eq=False)
class Span:
    """A range registered with a descriptor, in the addresses of the process whose memory it is."""

    uffd: Userfaultfd
    start: int
    length: int
    policy: Policy = ASK_ALL
    page_size: int = PAGE_BYTES
    log: int = 0  # address of a bitmap of its pages, for Policy.UNPROTECT

    @property
    def end(self) -> int:
        """The address behind it."""
        return self.start + self.length


class Reader:
    """Reads until closed. Descriptors belong to whoever adds them."""

    def __init__(self) -> None:
        self._wake = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        self._notify = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        self._tables = uffd_reader.make_tables(self._wake, self._notify)
        self._lock = threading.Lock()
        self._heard = threading.Condition()
        self._dealt = 0
        self._uffds: dict[int, Userfaultfd] = {}
        self._spans: list[Span] = []
        self._compile()
        self._thread = threading.Thread(
            target=uffd_reader.read_messages, args=(self._tables,), name="uffd-reader", daemon=True
        )
        self._thread.start()

    def _compile(self) -> None:
        """Before anybody's memory depends on it."""
        self._change()
        uffd_reader.place_page(self._tables, -1, 0, 0, 0, -1)
        self._tables.state[STOP] = 1
        uffd_reader.read_messages(self._tables)
        self._tables.state[STOP] = 0

    def fileno(self) -> int:
        """An eventfd: readable when there are messages to take."""
        return self._notify

    def take(self) -> list[tuple[Userfaultfd, Message]]:
        """The messages that nobody has answered, in the order of each descriptor. For one thread."""
        with contextlib.suppress(BlockingIOError):
            os.eventfd_read(self._notify)
        taken = uffd_reader.take_messages(self._tables)
        return [(self._uffds[fd], message) for fd, message in taken if fd in self._uffds]

    def dealt_with(self) -> None:
        """All that was taken."""
        with self._heard:
            self._dealt = int(self._tables.state[CONSUMED])
            self._heard.notify_all()

    def place(self, uffd: Userfaultfd, dst: int, data: np.ndarray, *, unless: Callable[[], bool]) -> int:
        """UFFDIO_COPY as of a moment when all messages had been dealt with and `unless` was false: 0 or errno.

        ENODATA when it was true. Waits for whoever deals with messages, and while the mapping changes.
        """
        while True:
            dealt = self._dealt
            if unless():
                return errno.ENODATA
            source = int(data.ctypes.data)
            error = int(uffd_reader.place_page(self._tables, uffd.fileno(), dst, source, data.nbytes, dealt))
            if error == uffd_reader.UNHEARD:
                with self._heard:
                    self._heard.wait_for(lambda: self._dealt > dealt)  # noqa: B023
            elif error == errno.EAGAIN:
                time.sleep(RETRY_NS / 1e9)  # the kernel does not say when it has finished
            else:
                return error

    @property
    def answered(self) -> int:
        """How many faults the loop has answered itself."""
        return int(self._tables.state[N_ANSWERED])

    @property
    def spans(self) -> list[Span]:
        """The ranges it answers for."""
        return self._spans

    def add(self, *spans: Span) -> None:
        """Answer for these ranges, and read their descriptors. Before they are registered, so that nobody waits."""
        self._exchange([], list(spans))

    def remove(self, *spans: Span) -> None:
        """Answer no more for these ranges; a descriptor is read until `forget`."""
        self._exchange(list(spans), [])

    def replace(self, old: Span, *new: Span) -> None:
        """A range has moved, shrunk or come apart."""
        self._exchange([old], list(new))

    def _exchange(self, old: list[Span], new: list[Span]) -> None:
        with self._lock:
            uffds = self._uffds | {s.uffd.fileno(): s.uffd for s in new}
            spans = [*(s for s in self._spans if s not in old), *new]
            if len(uffds) >= MAX_FDS or len(spans) > MAX_RANGES:
                raise VerbsError(errno.ENOSPC, f"a resolver reads {MAX_FDS - 1} descriptors with {MAX_RANGES} ranges")
            self._uffds, self._spans = uffds, spans
            self._change()

    def record(self, span: Span, log: int) -> None:
        """Note in a bitmap, at an address, the pages of a range whose protection is lifted; 0: no more."""
        with self._lock:
            span.log = log
            self._change()

    def forget(self, uffd: Userfaultfd) -> None:
        """Read a descriptor no more, and answer for none of its ranges."""
        with self._lock:
            self._uffds = {fd: u for fd, u in self._uffds.items() if u is not uffd}
            self._spans = [s for s in self._spans if s.uffd is not uffd]
            self._change()

    def _change(self) -> None:
        ranges = np.zeros(len(self._spans), RANGE)
        for i, s in enumerate(self._spans):
            ranges[i] = (s.uffd.fileno(), s.start, s.end, s.page_size, int(s.policy), s.log)
        uffd_reader.change_tables(self._tables, np.array(list(self._uffds), np.int64), ranges)
        os.eventfd_write(self._wake, 1)

    def close(self) -> None:
        """Stop. Whoever has memory registered must have let go of it, or waits for ever."""
        if self._tables.state[STOP]:
            return
        self._tables.state[STOP] = 1
        os.eventfd_write(self._wake, 1)
        self._thread.join()
        os.close(self._wake)
        os.close(self._notify)

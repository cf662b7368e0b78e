"""Post-copy: pages that are still elsewhere, asked for by devices and by processors alike, each fetched once.

    postcopy = Postcopy(resolver, space, source)
    postcopy.watch(addr, length, uffd=uffd, host=host)   # registered for missing pages
    postcopy.start()                                     # every page is missing from now on
    ...
    postcopy.arrive(addr, data)                          # from the source's own thread, asked for or not

A page is put in place by UFFDIO_COPY, which does it at once and only where nothing is, and wakes the processors that
wait for it; then the device is told. So what came first stays: a page written meanwhile is not lost to its arrival.

A page that its owner drops (madvise, punched hole) before it came is zeros from then on and must not come back. Its
message may be read while a copy is under way, so a copy is made only while every message read so far has been dealt
with, and none can be read beside it (`Reader.place`): then either we know of the drop, or the kernel zaps what we put.
"""

from __future__ import annotations

import errno
import threading
import time
from typing import TYPE_CHECKING, Any

import numpy as np

from netio.uffd import Mode, Userfaultfd
from netio.uffd_reader import RETRY_NS, Policy
from softrnic.control.odp.watch import Watch
from softrnic.errors import IoError
from softrnic.verbs import VerbsError

if TYPE_CHECKING:
    from softrnic.control.odp.resolver import Resolver
    from softrnic.verbs.paging import PageSource
    from softrnic.verbs.space import AddressSpace


class Postcopy:
    """The page source of a space that is also that of the processors which use its memory."""

    def __init__(self, resolver: Resolver, space: AddressSpace, source: PageSource) -> None:
        self.resolver = resolver
        self.space = space
        self.source = source
        self.arrived = 0  # pages put in place
        self._watches: list[Watch] = []
        self._asked: dict[int, bool] = {}  # page: whether somebody waits for it
        self._here: set[int] = set()
        self._dropped: set[int] = set()
        self._lock = threading.Lock()

    def watch(self, addr: int, length: int, *, uffd: Userfaultfd | None = None, host: int | None = None) -> Watch:
        """Answer for the processors' missing pages in some addresses of the space, as `Resolver.watch`."""
        watch = self.resolver.watch(
            self.space, addr, length, uffd=uffd, host=host, mode=Mode.MISSING, policy=Policy(0), source=self
        )
        self._watches = [*self._watches, watch]
        return watch

    def start(self) -> None:
        """From now on every page of the space is missing to its devices."""
        self.space.page_source = self

    # --- who needs a page; neither blocks ---

    def request(self, addr: int, length: int, urgent: bool) -> None:
        """Ask the source for what nobody has asked for yet, or not urgently; tell again of those that are here."""
        size = self.space.page_size
        for page in range(addr & -size, addr + length, size):
            with self._lock:
                here, dropped = page in self._here, page in self._dropped
                asked = self._asked.get(page, None)
                if not here and not dropped:
                    self._asked[page] = urgent or bool(asked)
            if dropped or here:
                self.resolver.soon(self._settle, page, dropped)
            elif asked is None or (urgent and not asked):
                self.source.request(page, size, urgent)

    def _settle(self, page: int, dropped: bool) -> None:
        """In the keeper: a page that will not come any more, or came before. Zeros where nothing is."""
        for watch in self._of(page):
            if dropped:
                self._zero(watch, page)
            _wake(watch, page, self.space.page_size)
        self.space.resolve(page, self.space.page_size)

    def dropped(self, addr: int, length: int) -> None:
        """Its owner gave up a range, whose pages are zeros from now on."""
        size = self.space.page_size
        with self._lock:
            gone = range(addr & -size, addr + length, size)
            self._dropped.update(gone)
            waiting = [page for page in gone if self._asked.pop(page, None)]
        for page in waiting:
            self.resolver.soon(self._settle, page, True)

    # --- pages come ---

    def arrive(self, addr: int, data: Any) -> int:
        """Whole pages have come: how many of them were still missing. From any thread but a NIC's."""
        view, size = np.frombuffer(data, np.uint8), self.space.page_size
        if addr % size or view.nbytes % size or not view.nbytes:
            raise VerbsError(errno.EINVAL, f"{view.nbytes} bytes at {addr:#x} are not whole pages")
        fresh = sum(self._place(addr + at, view[at : at + size]) for at in range(0, view.nbytes, size))
        self.arrived += fresh
        self.space.resolve(addr, view.nbytes)
        return fresh

    def _place(self, page: int, data: np.ndarray) -> bool:
        if not self._of(page):
            return self.space.land(page, data) == 1
        placed, done = False, set()
        while watch := next((w for w in self._of(page) if id(w) not in done), None):  # a fork may add one meanwhile
            placed |= self._copy(watch, page, data)
            done.add(id(watch))
        with self._lock:
            self._here.add(page)
            self._asked.pop(page, None)
        return placed

    def _copy(self, watch: Watch, page: int, data: np.ndarray) -> bool:
        """Put a page where it is missing; whether it was."""
        error = self.resolver.reader.place(
            watch.span.uffd, watch.host(page), data, unless=lambda: page in self._dropped
        )
        if error == errno.ENODATA:
            return self._zero(watch, page)
        if error not in (0, errno.EEXIST, errno.ENOENT, errno.ESRCH):
            raise IoError(error, f"page {page:#x}")
        if error:
            _wake(watch, page, self.space.page_size)
        return error == 0

    def _zero(self, watch: Watch, page: int) -> bool:
        """Put a page of zeros where one is missing; whether it was."""
        while True:
            try:
                watch.span.uffd.zeropage(watch.host(page), self.space.page_size)
            except IoError as error:
                if error.errno == errno.EAGAIN:
                    time.sleep(RETRY_NS / 1e9)
                    continue
                return False
            return True

    def instead(self, old: Watch, new: list[Watch]) -> None:
        """A watched range has changed, gone, or been copied to a child, which needs what is still to come, too."""
        self._watches = [*(w for w in self._watches if w is not old), *new]

    def _of(self, page: int) -> list[Watch]:
        return [w for w in self._watches if w.addr <= page < w.addr + w.span.length]

    # --- the end ---

    def finish(self) -> None:
        """All has come: memory is ordinary again, and pages that have not come are zeros."""
        self.space.page_source = None
        for watch in self._watches:
            self.resolver.unwatch(watch)
        self._watches = []


def _wake(watch: Watch, page: int, size: int) -> None:
    try:
        watch.span.uffd.wake(watch.host(page), size)
    except IoError:
        return  # nobody is left who could wait

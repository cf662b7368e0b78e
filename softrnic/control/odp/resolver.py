"""Brings the pages that devices need, and takes away those that their owners give up.

    with Resolver() as resolver:
        resolver.serve(space)
        resolver.watch(space, addr, length)

Three threads. The *reader* reads userfaultfds and answers simple faults; it never waits for an engine nor for Python
(softrnic.control.odp.reader). The *listener* passes on what the reader could not answer; it never waits for an engine.
The *keeper* does what may wait: it has the kernel bring pages that devices asked for, and invalidates. A device's fault
costs its own thread one entry in a queue and one eventfd, or nothing but the answer if the page is in memory already.

Why a device never sees a wrong byte, whatever the owner of the memory does:

* Memory that its owner may take away is reached through the kernel at each access (process_vm_readv and -writev), or
  through a mapping of the device's own of the same file. So an access finds what is mapped at that moment, as an access
  of a processor would, and it is ordered against madvise, munmap, mremap, mprotect, fork, swapping and all that moves
  pages by the kernel's own locks. The device's page table decides when it *asks*, never what it reads.
* Hence it does not matter that an invalidation comes late. The kernel sends REMOVE before it zaps the pages, and goes
  on as soon as the message is read; UNMAP and REMAP it sends when all is done. An access between is one that ran
  beside the call. After that, a page that went in spite of its present bit is an error of process_vm_readv, which the
  engine turns into a fault marked `failed`, and we look again. mprotect sends no message at all and is met like that.
* Nor can messages be waited out: the kernel zaps at an unknown time *after* REMOVE was read, so a page that was
  brought in between goes again unheard. Standing the engine still before reading would not help against it - and must
  not be done: an engine may itself be waiting in the kernel for a page (of another process, below), and only the
  reader can end that.

Why nobody waits for ever:

* Faults are answered by the reader, or by way of the listener by a page source, which must not block. So the order is
  reader, listener, engine, keeper: each waits only for those before it.
* A descriptor that we open is for faults in user mode only. The engine's own access to a missing page then fails with
  EFAULT at once instead of waiting, and becomes a fault of the device. (A system call of the application that meets a
  missing page fails likewise. That concerns only who registers private memory of this process for MISSING.)
* Memory that the engine touches directly must not have faults that we answer: `watch` refuses it.
* A descriptor of another process may stop the engine in process_vm_readv, in the one case above: a page brought in
  between REMOVE and the zap. That lasts as long as its answer, and the engine's wait is the reader's next message.
* UFFDIO_COPY and the like fail with EAGAIN while a mapping changes, that is until the message about it was read. The
  reader puts such a fault off and reads on; others (`Reader.place`) let go of what they hold, and try again.
* Whoever waits in a range that has gone (ENOENT) is woken and finds out for himself.

A page that the mapping does not allow (/proc/PID/maps) is refused: the QPs that need it fail. There is no message when
it is allowed again, so a refusal is forgotten after REFUSED_SECONDS and the next access asks anew.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import logging
import os
import select
import threading
import time
from collections import deque
from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from netio.pagemap import PAGE_BYTES
from netio.procmaps import permits
from netio.uffd import EVENTS, FaultFlag, Feature, Fork, Message, Mode, Remap, Unmap, Userfaultfd, supported
from netio.uffd import Fault as UserFault
from netio.uffd_reader import Policy
from softrnic.control.odp.reader import Reader, Span
from softrnic.control.odp.watch import Watch, Watches
from softrnic.errors import IoError
from softrnic.verbs import VerbsError
from softrnic.verbs.slot import ProcessMemory

if TYPE_CHECKING:
    from softrnic.control.odp.postcopy import Postcopy
    from softrnic.verbs.paging import PageFault
    from softrnic.verbs.space import AddressSpace

TRIES = 4
MAX_VAIN = 16  # a page that the mapping allows and yet is not to be had so many times is refused
REFUSED_SECONDS = 1.0  # longer than any RNR timer, so that whoever asked learns of it
ANSWER_ALL = Policy.ZERO | Policy.CONTINUE | Policy.UNPROTECT

_libc = ctypes.CDLL(None, use_errno=True)
_libc.mincore.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_char_p]
_log = logging.getLogger(__name__)


class Resolver:
    """Serves any number of address spaces, of any devices, until closed."""

    def __init__(self) -> None:
        self.reader = Reader()
        self._watches = Watches()
        self._own: Userfaultfd | None = None
        self._adopted: list[Userfaultfd] = []
        self._spaces: list[AddressSpace] = []
        self._work: deque[tuple[Callable[..., object], tuple[Any, ...]]] = deque()
        self._refused: deque[tuple[float, AddressSpace, int, int]] = deque()
        self._ranges: dict[AddressSpace, list[tuple[int, int]]] = {}
        self._listed = threading.Lock()
        self._vain: dict[tuple[int, int], int] = {}
        self._edit = threading.RLock()  # of the watches; whoever holds it waits for no engine
        self._wake = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        self._closing = False
        self._threads = [
            threading.Thread(target=run, name=f"odp-{run.__name__[1:]}", daemon=True)
            for run in (self._listen, self._keep)
        ]
        for thread in self._threads:
            thread.start()

    # --- what is served ---

    def serve(self, space: AddressSpace) -> None:
        """Bring what devices need of a paged space."""
        self._spaces.append(space)
        space.resolver = self._ask

    def watch(
        self, space: AddressSpace, addr: int, length: int, *, uffd: Userfaultfd | None = None, host: int | None = None,
        mode: Mode = Mode.WP, policy: Policy = ANSWER_ALL, source: Postcopy | None = None,
    ) -> Watch:  # fmt: skip
        """Hear what happens to the memory behind some addresses of a space, in whole pages.

        `host`: where it is in its process, by default where the slot says. Without `uffd` it is memory of this process,
        registered here; `mode` WP reports events and no faults. A `uffd` of another process was registered by it.
        """
        slot = space.slot_at(addr)
        if host is None:
            if slot is None or addr + length > slot.end:
                raise VerbsError(errno.EFAULT, f"not all of the {length} bytes at {addr:#x} are in one slot")
            host = slot.host + addr - slot.addr
        direct = uffd is None and slot is not None and slot.pid == 0 and slot.host <= host < slot.host + slot.length
        if direct and mode != Mode.WP:
            raise VerbsError(errno.EINVAL, "the device touches this memory directly: a fault would stop it")
        with self._edit:
            span = Span(uffd or self._own_uffd(), host, length, policy)
            watch = Watch(space, addr, span, source)
            self._watches.add(watch)
            self.reader.add(span)
            if uffd is not None:
                if uffd not in self._adopted:
                    self._adopted.append(uffd)
                return watch
            try:
                span.uffd.register(host, length, mode)
            except IoError:
                self._watches.discard(watch)
                self.reader.remove(span)
                raise
        return watch

    def unwatch(self, watch: Watch) -> None:
        """Hear no more of it; the memory becomes ordinary again."""
        with self._edit:
            _quietly(watch.span.uffd.unregister, watch.span.start, watch.span.length)
            self._watches.discard(watch)
            self.reader.remove(watch.span)

    def _own_uffd(self) -> Userfaultfd:
        if self._own is None:
            have = supported()
            wanted = (
                EVENTS | Feature.PAGEFAULT_FLAG_WP | Feature.WP_HUGETLBFS_SHMEM | Feature.WP_UNPOPULATED
                | Feature.WP_ASYNC | Feature.MISSING_SHMEM | Feature.MINOR_SHMEM
            )  # fmt: skip
            try:
                self._own = Userfaultfd.open(wanted & have, user_mode_only=True)
            except IoError as error:
                if error.errno != errno.EPERM:
                    raise
                # Fork events need CAP_SYS_PTRACE. Without them a child's copy of the memory is ordinary.
                self._own = Userfaultfd.open(wanted & have & ~Feature.EVENT_FORK, user_mode_only=True)
        return self._own

    # --- the device asks ---

    def _ask(self, fault: PageFault) -> None:
        """In the thread of a NIC: what is in memory needs nobody else."""
        space, addr, length, write = fault.space, fault.addr, fault.length, fault.write
        here = not fault.failed and _is_resident(space, addr, length)
        if not (here and space.resolve(addr, length, write, seq=fault.seq)):
            self.soon(self._bring, fault)

    def soon(self, work: Callable[..., object], *args: Any) -> None:
        """Have the keeper do something."""
        if self._closing:
            return
        self._work.append((work, args))
        os.eventfd_write(self._wake, 1)

    # --- the listener: never waits for an engine ---

    def _listen(self) -> None:
        poll = select.poll()
        poll.register(self.reader.fileno(), select.POLLIN)
        while not self._closing:
            poll.poll()
            for uffd, message in self.reader.take():
                try:
                    self._hear(uffd, message)
                except Exception:  # noqa: BLE001  a page source may throw what it likes
                    _log.exception("%s of userfaultfd %d", message, uffd.fileno())
            self.reader.dealt_with()

    def _hear(self, uffd: Userfaultfd, message: Message) -> None:
        if isinstance(message, UserFault):
            self._user_fault(uffd, message)
        elif isinstance(message, Fork):
            self._forked(uffd, Userfaultfd(message.fd, uffd.features))
        elif isinstance(message, Remap):
            self.soon(self._moved, uffd, message)
        else:
            for watch, addr, length in self._watches.hit(uffd, message.start, message.end):
                if watch.source is not None:
                    watch.source.dropped(addr, length)
                self._stale(watch.space, addr, length)
            if isinstance(message, Unmap):
                self.soon(self._unmapped, uffd, message)

    def _user_fault(self, uffd: Userfaultfd, fault: UserFault) -> None:
        """Only a page source could have it. Where there is none, nobody waits for ever."""
        for watch, addr, _ in self._watches.hit(uffd, fault.address, fault.address + 1):
            if watch.source is not None:
                watch.source.request(addr, 1, True)
                return
        page = fault.address & -PAGE_BYTES
        if FaultFlag.WP in fault.flags:
            _quietly(uffd.writeprotect, page, PAGE_BYTES, False)
        else:
            _quietly(uffd.zeropage, page, PAGE_BYTES)
        _quietly(uffd.wake, page, PAGE_BYTES)

    # --- the keeper: may wait for all others ---

    def _keep(self) -> None:
        poll = select.poll()
        poll.register(self._wake, select.POLLIN)
        while not self._closing:
            poll.poll(self._patience())
            with contextlib.suppress(BlockingIOError):
                os.eventfd_read(self._wake)
            while self._work:
                work, args = self._work.popleft()
                try:
                    work(*args)
                except (OSError, ValueError) as error:
                    _log.warning("%s: %s", work.__name__, error)
            self._forget_refusals()

    def _patience(self) -> float | None:
        if not self._refused:
            return None
        return max(0.0, self._refused[0][0] - time.monotonic()) * 1000 + 1

    def _forget_refusals(self) -> None:
        while self._refused and self._refused[0][0] <= time.monotonic():
            _, space, addr, length = self._refused.popleft()
            if space.alive and not space.is_present(addr):
                space.invalidate(addr, length)

    def _bring(self, fault: PageFault) -> None:
        """Have the kernel bring what a device asked for: all at once, or page by page where not all can be had."""
        if not fault.space.alive:
            return
        runs = [(fault.addr, fault.length)]
        if not self._have(fault, *runs[0]):
            size = fault.space.page_size
            runs = [(page, size) for page in range(fault.addr, fault.addr + fault.length, size)]
            for addr, length in runs:
                if not self._have(fault, addr, length):
                    self._vain.pop((fault.space.index, addr), None)
                    fault.space.refuse(addr, length)
                    self._refused.append((time.monotonic() + REFUSED_SECONDS, fault.space, addr, length))

    def _have(self, fault: PageFault, addr: int, length: int) -> bool:
        """Bring a run and say so to the device; False when not all of it can be had."""
        space, seq = fault.space, fault.seq
        for _ in range(TRIES):
            if not self._fetch(fault, addr, length):
                return False
            if space.resolve(addr, length, fault.write, seq=seq):
                return True
            seq = space.seq  # something was taken away meanwhile, perhaps this
        return space.resolve(addr, length, fault.write)  # and if it was, the next access will tell

    def _fetch(self, fault: PageFault, addr: int, length: int) -> bool:
        """Have the kernel bring a run; False when it cannot be had."""
        space, key = fault.space, (fault.space.index, addr)
        placed = self._place_zeros(space, addr, length)
        if space.populate(addr, length, write=fault.write, failed=fault.failed):
            self._vain.pop(key, None)
            return True
        self._vain[key] = 0 if placed else self._vain.get(key, 0) + 1
        return self._vain[key] < MAX_VAIN and _permitted(space, addr, length, fault.write)

    def _place_zeros(self, space: AddressSpace, addr: int, length: int) -> bool:
        """Fill missing pages of ours; False where missing pages are none of our business."""
        watch = self._watches.at(space, addr)
        if watch is None or Policy.ZERO not in watch.span.policy or watch.span.uffd is not self._own:
            return False
        try:
            watch.span.uffd.zeropage(watch.host(addr), length)
        except IoError as error:
            return error.errno in (errno.EEXIST, errno.EAGAIN)
        return True

    # --- what the owner of the memory does ---

    def _stale(self, space: AddressSpace, addr: int, length: int) -> None:
        """In the listener: have a range invalidated, with all others that come until the keeper has time for it."""
        with self._listed:
            fresh = not self._ranges
            self._ranges.setdefault(space, []).append((addr, addr + length))
        if fresh:
            self.soon(self._invalidate)

    def _invalidate(self) -> None:
        with self._listed:
            ranges, self._ranges = self._ranges, {}
        for space, spans in ranges.items():
            for low, high in _union(spans):
                space.invalidate(low, high - low)

    def _unmapped(self, uffd: Userfaultfd, message: Unmap) -> None:
        self._cut(uffd, message.start, message.end)
        _quietly(uffd.wake, message.start, message.end - message.start)

    def _cut(self, uffd: Userfaultfd, start: int, end: int) -> list[Watch]:
        """Nothing is watched there any more; what was."""
        cut = []
        with self._edit:
            for watch, *_ in self._watches.hit(uffd, start, end):
                left = [
                    watch.piece(low, high)
                    for low, high in ((watch.span.start, start), (end, watch.span.end))
                    if low < high
                ]
                self._exchange(watch, left)
                cut.append(watch.piece(max(start, watch.span.start), min(end, watch.span.end)))
        return cut

    def _exchange(self, watch: Watch, new: list[Watch]) -> None:
        self._watches.discard(watch)
        self._watches.add(*new)
        self.reader.replace(watch.span, *(w.span for w in new))
        if watch.source is not None:
            watch.source.instead(watch, new)

    def _moved(self, uffd: Userfaultfd, message: Remap) -> None:
        """The registration went along. So does the watch, at the same addresses of the space or at the target's."""
        for watch in self._cut(uffd, message.source, message.source + message.length):
            watch.space.invalidate(watch.addr, watch.span.length)
            target = message.target + watch.span.start - message.source
            addr = _address_at(watch, target)
            if addr is None:
                _quietly(uffd.unregister, target, watch.span.length)
                continue
            watch.space.invalidate(addr, watch.span.length)
            moved = Watch(watch.space, addr, replace(watch.span, start=target), watch.source)
            with self._edit:
                self._exchange(moved, [moved])

    def _forked(self, uffd: Userfaultfd, child: Userfaultfd) -> None:
        """A child is of no concern to a device: its copy becomes ordinary memory, unless pages are to come yet.

        In the listener: a page that arrives once the message was dealt with must arrive in the child, too.
        """
        with self._edit:
            kept = [w for w in self._watches if w.span.uffd is uffd and w.source is not None]
            if not kept:
                child.close()
                return
            self._adopted.append(child)
            for watch in kept:
                copy = replace(watch, span=replace(watch.span, uffd=child))
                self._exchange(copy, [copy])

    # --- the end ---

    def close(self) -> None:
        """Let go of everything. Spaces then have their pages as without a resolver."""
        if self._closing:
            return
        for space in self._spaces:
            space.resolver = None
        for watch in self._watches:
            self.unwatch(watch)
        self._closing = True
        os.eventfd_write(self._wake, 1)
        os.eventfd_write(self.reader.fileno(), 1)
        for thread in self._threads:
            thread.join()
        for space in self._spaces:
            if space.alive:
                space.look_again()  # what nobody answers any more is asked for anew
        for uffd in [*self._adopted, *([self._own] if self._own else [])]:
            self.reader.forget(uffd)
            uffd.close()
        self.reader.close()
        os.close(self._wake)

    def __enter__(self) -> Resolver:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()


def _quietly(call: Callable[..., object], *args: int) -> None:
    """Ask the kernel for something that may be too late."""
    with contextlib.suppress(IoError):
        call(*args)


def _is_resident(space: AddressSpace, addr: int, length: int) -> bool:
    """Whether the kernel has all pages of a run of this process, so that nobody would wait for them."""
    slot = space.slot_at(addr)
    if slot is None or not slot.is_ours or addr < slot.addr or addr + length > slot.end:
        return False
    host = slot.host + addr - slot.addr
    skip = host % PAGE_BYTES
    vector = ctypes.create_string_buffer((skip + length + PAGE_BYTES - 1) // PAGE_BYTES)
    return _libc.mincore(host - skip, skip + length, vector) == 0 and all(byte & 1 for byte in vector.raw)


def _union(spans: list[tuple[int, int]]) -> list[tuple[int, int]]:
    """Ranges that touch, joined."""
    joined: list[tuple[int, int]] = []
    for low, high in sorted(spans):
        if joined and low <= joined[-1][1]:
            joined[-1] = (joined[-1][0], max(high, joined[-1][1]))
        else:
            joined.append((low, high))
    return joined


def _permitted(space: AddressSpace, addr: int, length: int, write: bool) -> bool:
    """Whether the mappings behind a run allow the access; then it only went again at once."""
    end = addr + length
    while addr < end:
        slot = space.slot_at(addr)
        if slot is None:
            return True
        stop = max(addr + 1, min(end, slot.end))
        start = max(addr, slot.addr)
        if slot.pid and not permits(slot.pid, slot.host + start - slot.addr, stop - start, write=write):
            return False
        addr = stop
    return True


def _address_at(watch: Watch, target: int) -> int | None:
    """Where in its space memory is that has moved, all that was watched, to `target`; None if it is nowhere."""
    slot = watch.space.slot_at(watch.addr)
    if slot is None or not isinstance(slot.memory, ProcessMemory):
        return None
    if slot.host == slot.addr:
        return target
    if slot.addr == watch.addr and slot.length == watch.span.length:
        watch.space.move_slot(slot, target)
        return watch.addr
    return None

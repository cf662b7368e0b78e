"""Which addresses of which space lie in which registered range, as memory moves and goes. Pure bookkeeping."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from netio.uffd import Userfaultfd
from softrnic.control.odp.reader import Span

if TYPE_CHECKING:
    from softrnic.control.odp.postcopy import Postcopy
    from softrnic.verbs.space import AddressSpace


@dataclass(eq=False)
class Watch:
    """A registered range and the addresses of a space that it is behind."""

    space: AddressSpace
    addr: int
    span: Span
    source: Postcopy | None = None

    def overlap(self, start: int, end: int) -> tuple[int, int] | None:
        """The part of [start, end) of the process that is in it: (address in the space, length)."""
        low, high = max(start, self.span.start), min(end, self.span.end)
        return (self.addr + low - self.span.start, high - low) if low < high else None

    def host(self, addr: int) -> int:
        """Address in the process of an address of the space."""
        return self.span.start + addr - self.addr

    def piece(self, start: int, end: int) -> Watch:
        """A watch of [start, end) of the process alone, which is in it."""
        span = replace(self.span, start=start, length=end - start)
        return Watch(self.space, self.addr + start - self.span.start, span, self.source)


class Watches:
    """All watches of a resolver. Changed by one thread at a time, read by any."""

    def __init__(self) -> None:
        self._all: tuple[Watch, ...] = ()

    def __iter__(self) -> Iterator[Watch]:
        return iter(self._all)

    def add(self, *watches: Watch) -> None:
        """Know some more."""
        self._all = (*self._all, *watches)

    def discard(self, watch: Watch) -> None:
        """Know one less."""
        self._all = tuple(w for w in self._all if w is not watch)

    def hit(self, uffd: Userfaultfd, start: int, end: int) -> list[tuple[Watch, int, int]]:
        """Those that a range of the process touches, with (address, length) in their spaces."""
        return [(w, *part) for w in self._all if w.span.uffd is uffd and (part := w.overlap(start, end))]

    def at(self, space: AddressSpace, addr: int) -> Watch | None:
        """The one behind an address of a space."""
        return next((w for w in self._all if w.space is space and w.addr <= addr < w.addr + w.span.length), None)

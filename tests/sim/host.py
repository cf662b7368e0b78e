"""A node of the simulation as its programs see it: a device, an arena of memory, and a picture of what that must hold.

The picture (`image`) is kept by whoever plans an operation. The arena is handed out in pieces with gaps between them
that nothing may ever touch; comparing arena and picture at the end therefore finds every stray byte.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from random import Random
from typing import NamedTuple

import numpy as np

from softrnic.verbs import Access, AhAttr, Cq, Device, Mr, Sge
from tests.sim.paging import PagedArena
from tests.sim.scenario import ARENA, NODES

FAMILIES = (("10.0.0.{}", None), ("fd00::{}", None), ("10.1.0.{}", 100))
ACCESS = (
    Access.LOCAL_WRITE | Access.REMOTE_WRITE | Access.REMOTE_READ | Access.REMOTE_ATOMIC | Access.MW_BIND
)  # fmt: skip
CQ_ENTRIES = 4096

_pattern = np.frombuffer(np.random.default_rng(4791).bytes(ARENA + 4096), np.uint8)
_arenas = [np.zeros(ARENA, np.uint8) for _ in range(NODES)]


class Piece(NamedTuple):
    """A stretch of an arena."""

    offset: int
    length: int


class ArenaFullError(Exception):
    """The arena is full: the plan ends here."""


def _mac(node: int) -> bytes:
    return bytes((2, 0, 0, 0, 0, node))


class Host:
    """One node."""

    def __init__(self, node: int, random: Random, offload: tuple[int, int], *, paged: bool = False) -> None:
        self.node = node
        self.random = random
        self.device = Device(f"sr{node}")
        self.device.engine.set_offload(*offload)
        for pattern, vlan in FAMILIES:
            self.device.add_gid(pattern.format(node + 1), _mac(node), vlan)
        self.pd = self.device.alloc_pd()
        self.cqs: list[Cq] = []
        self.arena = _arenas[node]
        shift = random.randrange(4096)
        self.arena[:] = _pattern[shift : shift + ARENA]
        self.image = self.arena.copy()
        self._used = 64
        # two names for the same memory, neither of them its address
        iovas = [(17 + 16 * i << 32) + random.randrange(512) * 8 for i in range(2)]
        self.paging = PagedArena(self.device, self.pd, self.arena, ACCESS, iovas[1], random) if paged else None
        self.mrs: list[Mr] = [
            self.pd.reg_mr(self.arena, ACCESS, iova=iovas[0]),
            self.paging.mr if self.paging else self.pd.reg_mr(self.arena, ACCESS, iova=iovas[1]),
        ]

    def ah(self, peer: int, family: int) -> AhAttr:
        """The way to another node."""
        return AhAttr(FAMILIES[family][0].format(peer + 1), family, _mac(peer))

    def new_cq(self) -> Cq:
        """A completion queue, shared with earlier ones now and then."""
        if not self.cqs or self.random.random() < 0.6:
            self.cqs.append(self.device.create_cq(CQ_ENTRIES))
        return self.cqs[-1]

    # --- memory ---

    def alloc(self, length: int, align: int = 1) -> Piece:
        """A fresh piece of the arena."""
        offset = -(-(self._used + self.random.randrange(1, 32)) // align) * align
        if offset + length + 64 > ARENA:
            raise ArenaFullError
        self._used = offset + length
        return Piece(offset, length)

    def alloc_split(self, length: int, most: int) -> list[Piece]:
        """Fresh pieces of `length` bytes in all, at most `most` of them; some may be empty."""
        count = self.random.randrange(1, most + 1)
        if count == 1:
            return [self.alloc(length)]
        cuts = sorted(self.random.randrange(length + 1) for _ in range(count - 1))
        bounds = [0, *cuts, length]
        return [self.alloc(b - a) for a, b in pairwise(bounds)]

    def sges(self, pieces: Sequence[Piece]) -> list[Sge]:
        """Scatter/gather entries for pieces, each by one of the region's names."""
        mr = self.mrs[self.random.randrange(2)]
        return [Sge(mr.iova + piece.offset, piece.length, mr.lkey) for piece in pieces]

    def remote(self, piece: Piece) -> tuple[int, int]:
        """Address and rkey by which a peer reaches a piece."""
        mr = self.mrs[self.random.randrange(2)]
        return mr.iova + piece.offset, mr.rkey

    def read(self, pieces: Sequence[Piece], memory: np.ndarray | None = None) -> bytes:
        """What the arena (or the picture) holds in these pieces."""
        memory = self.arena if memory is None else memory
        return b"".join([memory[p.offset : p.offset + p.length].tobytes() for p in pieces])

    def expect(self, pieces: Sequence[Piece], data: bytes) -> None:
        """From now on the pieces must hold `data`, or begin with it."""
        at = 0
        for piece in pieces:
            part = data[at : at + piece.length]
            self.image[piece.offset : piece.offset + len(part)] = np.frombuffer(part, np.uint8)
            at += piece.length

    def accept(self, pieces: Sequence[Piece]) -> None:
        """Whatever the pieces hold now is right."""
        for piece in pieces:
            stretch = slice(piece.offset, piece.offset + piece.length)
            self.image[stretch] = self.arena[stretch]

    def stray_bytes(self) -> list[int]:
        """Offsets at which arena and picture differ, the first few."""
        return [int(i) for i in np.flatnonzero(self.arena != self.image)[:8]]

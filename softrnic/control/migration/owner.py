"""What the program that owns a function, and the host it comes to, have to do when it moves. All of it is optional.

A function is state (the engine's), memory and an owner: the application or front-end that posts, polls and writes into
that memory. The owner stops before the state is saved, and goes on at the other end with the objects it finds there;
what it must tell itself beyond them travels as an opaque section.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np

from softrnic.migrate.load import Restored
from softrnic.migrate.stream import Piece
from softrnic.verbs import Device


class Owner:
    """At the source. The default is a function that nobody here has a hand in."""

    def pause(self) -> None:
        """Stop touching queues and memory: the state is about to be saved. Called again after `resume`."""

    def opaque(self) -> bytes:
        """What the owner at the destination is to be told; called while paused."""
        return b""

    def resume(self) -> None:
        """It stays here after all: go on as if nothing had happened."""

    def gone(self) -> None:
        """It runs at the destination. Its objects here are about to be destroyed."""


@dataclass
class Arrival:
    """A function that has come, or is about to: its device, objects, memory by piece, and what its owner had to say."""

    name: str
    device: Device
    memory: dict[str, np.ndarray] = field(default_factory=dict)
    restored: Restored = field(default_factory=Restored)
    opaque: bytes = b""


class Place(Protocol):
    """A host that functions can come to."""

    @property
    def mac(self) -> bytes:
        """Its own on the wire; empty if late packets cannot be sent on to it."""

    def make(self, name: str) -> Device:
        """An empty function on the wire, with no address; VerbsError if it cannot be."""

    def unmake(self, device: Device) -> None:
        """The function did not come, or has gone."""

    def announce(self, device: Device) -> None:
        """Tell the network that its addresses are here now."""

    def allocate(self, piece: Piece) -> Any:
        """A writable buffer for a piece of its memory, of that length; page-aligned if pages may come later."""

    def on_arrival(self, arrival: Arrival) -> None:
        """Everything is restored, and suspended. VerbsError or StateError refuses it."""

    def on_start(self, arrival: Arrival) -> None:
        """It runs from now on."""

    def on_complete(self, arrival: Arrival) -> None:
        """All of its memory is here. Until then only the device knows which pages are missing (post-copy)."""

    def on_drop(self, arrival: Arrival) -> None:
        """It will not run here; after `on_arrival` only."""

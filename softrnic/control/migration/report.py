"""How a move goes, how it went, and why it did not: what the source tells whoever asked for it."""

from __future__ import annotations

from dataclasses import dataclass, field

from softrnic.errors import SoftRnicError
from softrnic.migrate.precopy import Round


class NotMovedError(SoftRnicError):
    """The function did not move and runs here, as before."""


class CancelledMoveError(NotMovedError):
    """Because somebody said so."""


class InDoubtError(SoftRnicError):
    """COMMIT was sent, and the destination cannot be reached: it may run there. It stays suspended here."""


@dataclass
class Progress:
    """How far it is."""

    phase: str = "connecting"
    round: int = 0
    sent_bytes: int = 0
    memory_bytes: int = 0
    left_bytes: int = 0
    dirty_rate: float = 0.0
    bandwidth: float = 0.0
    downtime_ns: int | None = None
    reconnects: int = 0


@dataclass
class Report:
    """What it took."""

    rounds: list[Round] = field(default_factory=list)
    pages: list[int] = field(default_factory=list)
    """Sent in each round; the last are those sent during the pause."""
    downtime_ns: int = 0
    """From the last packet that could be handled here until the destination said that it runs."""
    postcopy_pages: int = 0
    demanded_pages: int = 0
    """Of those, the ones that somebody waited for."""
    state_bytes: int = 0
    sketched: bool = False
    """Whether the objects were made before the pause."""
    sent_bytes: int = 0
    reconnects: int = 0

"""Moving a device: its saved state, and whether its peers live through the pause.

    device.suspend("rnr"); ...until device.settled...
    data = save(device)
    objects = restore(other, data, {"heap": buffer}); other.resume()

Memory is the caller's to move: a region is saved by name, and finds its bytes again under that name.
"""

from __future__ import annotations

from softrnic.errors import StateError
from softrnic.migrate.load import Restored, restore
from softrnic.migrate.save import save
from softrnic.verbs import Qp
from softrnic.verbs.survival import Peer, Survival, survival

__all__ = ["Peer", "Restored", "StateError", "Survival", "peer_of", "restore", "save", "survival"]


def peer_of(qp: Qp, policy: str = "silence", rnr_timer: int = 20) -> Peer:
    """The peer of a QP, taken to be configured as the QP itself is."""
    return qp.peer(policy, rnr_timer)

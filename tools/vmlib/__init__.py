"""Guests in QEMU with Linux soft-RoCE in them: an independent peer to test softrnic against.

    from tools.vmlib import Guest, Segment

    with Segment.create("br0") as segment, Guest(segment, ["10.9.0.1/24"]) as guest:
        rc, stdout, stderr = guest.run("ibv_devinfo -v")

docs/guest.md tells the rest. Needs root and pyroute2; all else is fetched from the machine's Debian mirror.
"""

from __future__ import annotations

from . import segment, tree
from .errors import CommandError, CommandTimeoutError, GuestDeadError, GuestError, QmpError, UnavailableError
from .guest import Guest, booted
from .initramfs import SOFT_ROCE, Image, Recipe
from .initramfs import get as get_image
from .segment import Segment, Tap
from .shell import Process, Result

__all__ = [
    "SOFT_ROCE",
    "CommandError",
    "CommandTimeoutError",
    "Guest",
    "GuestDeadError",
    "GuestError",
    "Image",
    "Process",
    "QmpError",
    "Recipe",
    "Result",
    "Segment",
    "Tap",
    "UnavailableError",
    "booted",
    "get_image",
    "why_unavailable",
]


def why_unavailable() -> str | None:
    """Why no guest can run here, as the reason to skip a test with; or None, and the image is in the cache.

    The image is built where there is none. GuestError if that fails though the machine could do it.
    """
    try:
        tree.check_machine()
        segment.check_machine()
        get_image()
    except UnavailableError as error:
        return str(error)
    return None

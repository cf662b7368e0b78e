"""What can go wrong with a guest, told apart by who has to act."""

from __future__ import annotations


class GuestError(Exception):
    """Base of all exceptions raised by vmlib. As such: something that should have worked did not."""


class UnavailableError(GuestError):
    """No guest can be built or run here. The text is the reason to skip a test with.

    It starts with "machine lacks: " where no installation would help (no Debian mirror within reach, no
    /dev/net/tun), and with "needs " where something can be done (be root).
    """


class CommandError(GuestError):
    """A command in the guest failed, or could not be started."""


class CommandTimeoutError(GuestError):
    """A command in the guest, or what was awaited of it, took too long."""


class GuestDeadError(GuestError):
    """QEMU is gone though something is expected of the guest: a panic, a failed set-up, a kill from outside.

    The text ends with what QEMU or the guest's console said last.
    """


class QmpError(GuestError):
    """QEMU refused a QMP command, or did not answer."""

"""Anonymous files that QEMU writes and this process reads.

Nothing has to be drained, so no writer in the guest ever blocks; and no name is left behind.
"""

from __future__ import annotations

import os


class Output:
    """A file in memory. What it held can be read after it has been closed."""

    def __init__(self, name: str) -> None:
        self.fd = os.memfd_create(name)
        self._kept: bytes | None = None

    @property
    def path(self) -> str:
        """What QEMU opens, if it has inherited `fd` under the same number."""
        return f"/proc/self/fd/{self.fd}"

    @property
    def size(self) -> int:
        return len(self._kept) if self._kept is not None else os.fstat(self.fd).st_size

    def text(self, start: int = 0) -> str:
        """What was written from that byte on."""
        return self._bytes()[start:].decode(errors="replace")

    def close(self) -> None:
        if self._kept is None:
            self._kept = self._bytes()
            os.close(self.fd)

    def _bytes(self) -> bytes:
        return self._kept if self._kept is not None else os.pread(self.fd, self.size, 0)

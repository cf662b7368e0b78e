"""A writer of cpio archives in the "newc" format, from which Linux unpacks an initramfs.

Format: Documentation/driver-api/early-userspace/buffer-format.rst. The same files give the same bytes.
Archives may be concatenated; a later file replaces an earlier one of the same name.
"""

from __future__ import annotations

import stat
from pathlib import PurePosixPath

MAGIC = "070701"
ALIGNMENT = 4
# The kernel skips zeros between archives; whole blocks are customary.
BLOCK = 512


class Archive:
    """Files in order of addition. The directories above a file are added before it."""

    def __init__(self) -> None:
        self._data = bytearray()
        self._count = 0
        self._directories = {"."}

    def directory(self, path: str) -> None:
        if path not in self._directories:
            self._directories.add(path)
            self._entry(path, stat.S_IFDIR | 0o755)

    def file(self, path: str, data: bytes, *, mode: int = 0o644) -> None:
        self._entry(path, stat.S_IFREG | mode, data)

    def symlink(self, path: str, target: str) -> None:
        self._entry(path, stat.S_IFLNK | 0o777, target.encode())

    def character_device(self, path: str, major: int, minor: int) -> None:
        self._entry(path, stat.S_IFCHR | 0o600, device=(major, minor))

    def finish(self) -> bytes:
        self._entry("TRAILER!!!", 0)
        self._pad(BLOCK)
        return bytes(self._data)

    def _entry(self, path: str, mode: int, data: bytes = b"", device: tuple[int, int] = (0, 0)) -> None:
        self.directory(str(PurePosixPath(path).parent))
        name = path.encode() + b"\0"
        self._count += 1
        # ino mode uid gid nlink mtime filesize devmajor devminor rdevmajor rdevminor namesize check
        fields = (self._count, mode, 0, 0, 1, 0, len(data), 0, 0, *device, len(name), 0)
        self._data += (MAGIC + "".join(f"{field:08X}" for field in fields)).encode() + name
        self._pad(ALIGNMENT)
        self._data += data
        self._pad(ALIGNMENT)

    def _pad(self, multiple: int) -> None:
        self._data += bytes(-len(self._data) % multiple)

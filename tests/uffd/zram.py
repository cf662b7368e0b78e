"""A swap device in compressed memory, for one test."""

from __future__ import annotations

import contextlib
import ctypes
import os
import struct
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.uffd.lab import PAGE, libc

BYTES = 64 << 20
_CONTROL = Path("/sys/class/zram-control")


class Zram:
    """One zram device."""

    def __init__(self, number: int) -> None:
        self.sys = Path(f"/sys/block/zram{number}")
        self.dev = Path(f"/dev/zram{number}")

    def stored_bytes(self) -> int:
        """orig_data_size of mm_stat: what was written to it."""
        return int((self.sys / "mm_stat").read_text().split()[0])


def swap_header(pages: int) -> bytes:
    """The first page of a swap device, version 1, as mkswap writes it (linux/swap.h)."""
    page = bytearray(PAGE)
    struct.pack_into("=III", page, 1024, 1, pages - 1, 0)
    page[-10:] = b"SWAPSPACE2"
    return bytes(page)


@contextlib.contextmanager
def zram_swap() -> Iterator[Zram]:
    """Swap on a device that is made for it and removed."""
    if not _CONTROL.exists():
        pytest.skip("machine lacks: zram (a kernel without CONFIG_ZRAM)")
    number = int((_CONTROL / "hot_add").read_text())
    zram = Zram(number)
    path = str(zram.dev).encode()
    try:
        made = not zram.dev.exists()
        if made:
            major, minor = (int(n) for n in (zram.sys / "dev").read_text().split(":"))
            os.mknod(zram.dev, 0o60600, os.makedev(major, minor))
        (zram.sys / "disksize").write_text(str(BYTES))
        zram.dev.write_bytes(swap_header(BYTES // PAGE))
        if libc.swapon(path, 0):
            pytest.skip(f"machine lacks: swapping ({os.strerror(ctypes.get_errno())})")
        try:
            yield zram
        finally:
            assert libc.swapoff(path) == 0
    finally:
        (zram.sys / "reset").write_text("1")
        (_CONTROL / "hot_remove").write_text(str(number))
        if made and zram.dev.exists():
            zram.dev.unlink()

"""Directories that are built once and kept in the user's cache.

Decides where they are, that one process at a time builds one, that a half-built one is never seen, and when
old ones go. Knows nothing of what is in them. An entry is named by a key of what it is made from, so it
never goes stale; it is safe to delete, and the next use builds it again.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

KEPT_UNUSED_S = 14 * 24 * 3600


def root() -> Path:
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache").resolve() / "softrnic"


def content_key(*parts: str | bytes) -> str:
    """Twelve hexadecimal digits that change when any part does."""
    digest = hashlib.sha256()
    for part in parts:
        data = part.encode() if isinstance(part, str) else part
        digest.update(b"%d:" % len(data) + data)
    return digest.hexdigest()[:12]


def entry(kind: str, key: str, build: Callable[[Path], None]) -> Path:
    """The entry's directory. Where there is none, `build` fills an empty one, which then gets its name."""
    final = root() / f"guest-{kind}-{key}"
    if not final.is_dir():
        with _lock():
            if not final.is_dir():  # it was not built while this process waited
                _build(final, build)
                _forget_unused()
    os.utime(final)
    return final


def clean() -> list[Path]:
    """Remove every entry, whatever its key, and return what was removed."""
    with _lock():
        entries = _entries()
        for path in entries:
            shutil.rmtree(path)
    return entries


def _build(final: Path, build: Callable[[Path], None]) -> None:
    partial = final.with_suffix(".partial")
    shutil.rmtree(partial, ignore_errors=True)  # left by a builder that was killed
    partial.mkdir()
    try:
        build(partial)
        os.utime(partial)
        partial.rename(final)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def _forget_unused() -> None:
    """What was made from other sources, an edit or a release ago, is not asked for again."""
    for path in _entries():
        if time.time() - path.stat().st_mtime > KEPT_UNUSED_S:
            shutil.rmtree(path)


def _entries() -> list[Path]:
    return sorted(path for path in root().glob("guest-*") if path.is_dir())


@contextmanager
def _lock() -> Iterator[None]:
    """Held by one process at a time; the kernel frees it when its holder ends."""
    root().mkdir(parents=True, exist_ok=True)
    with (root() / "guest.lock").open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield

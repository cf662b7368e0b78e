"""`@kernel` for entry points that live in tests: as softrnic.jit's, but its cache also knows the tests' own files."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

from numba import njit

from softrnic import jit

F = TypeVar("F", bound=Callable[..., Any])

_ROOT = Path(__file__).resolve().parents[2]
_IMPORT = re.compile(r"^from (tests[\w.]*) import", re.M)


def _closure(file: Path) -> set[Path]:
    """A file of the tests and all it imports of them."""
    found: set[Path] = set()
    todo = [file]
    while todo:
        path = todo.pop()
        if path not in found:
            found.add(path)
            todo += [_ROOT.joinpath(*name.split(".")).with_suffix(".py") for name in _IMPORT.findall(path.read_text())]
    return found


def _cache_dir(file: Path) -> str:
    h = hashlib.blake2b(digest_size=10)
    for path in sorted(_closure(file)):
        h.update(jit.cache_dir(path).encode())  # a digest of this file and of what it imports of softrnic
    return str(Path(jit.cache_dir(file)).parent / f"numba-tests-{h.hexdigest()}")


def kernel(fn: F) -> F:
    """Entry point called from Python: compiled, cached, without the GIL."""
    jit.config.CACHE_DIR = _cache_dir(Path(fn.__code__.co_filename))  # read by numba as it decorates
    compiled: F = njit(cache=True, nogil=True, error_model="numpy", no_cfunc_wrapper=True)(fn)
    return compiled

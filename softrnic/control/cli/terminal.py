"""What is shown while something goes on: one line on a terminal, nothing elsewhere.

Results go to standard output; this goes to standard error.
"""

from __future__ import annotations

import contextlib
import sys
import threading
import time
from collections.abc import Iterator

_PERIOD_SECONDS = 0.5
_ERASE_LINE = "\r\x1b[K"


@contextlib.contextmanager
def progress(text: str, *, later: str = "", after: float = 3.0) -> Iterator[None]:
    """Show `text` and the seconds it has taken while the context lasts; `later` instead from `after` seconds on."""
    if not sys.stderr.isatty():
        yield
        return
    over = threading.Event()

    def show() -> None:
        start = time.monotonic()
        while True:
            elapsed = time.monotonic() - start
            words = later if later and elapsed >= after else text
            sys.stderr.write(f"{_ERASE_LINE}{words}: {elapsed:.0f} s")
            sys.stderr.flush()
            if over.wait(_PERIOD_SECONDS):
                return

    thread = threading.Thread(target=show, name="progress", daemon=True)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()
        sys.stderr.write(_ERASE_LINE)
        sys.stderr.flush()

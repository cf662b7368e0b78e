"""What a process's mappings allow: /proc/PID/maps."""

from __future__ import annotations


def permits(pid: int, start: int, length: int, *, write: bool) -> bool:
    """Whether all of [start, start + length) of a process is mapped to be read (written). False once it is dead."""
    at, end = start, start + length
    try:
        with open(f"/proc/{pid}/maps", encoding="ascii", errors="replace") as maps:
            for line in maps:
                span, rights, _ = line.split(maxsplit=2)
                low, high = (int(part, 16) for part in span.split("-"))
                if high <= at:
                    continue
                if low > at or "r" not in rights or (write and "w" not in rights):
                    return False
                at = high
                if at >= end:
                    return True
    except OSError:
        return False
    return False

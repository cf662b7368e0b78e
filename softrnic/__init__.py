"""softrnic: a complete RoCEv2 NIC in user space.

    with softrnic.open_pair() as (a, b):    # two hosts, a wire between them, a connected queue pair on each
        a.qp.post_send(...)

The names below are imported when they are first used; `import softrnic` itself loads nothing heavy. What devices and
queue pairs can do is in softrnic.verbs.
"""

from __future__ import annotations

import importlib
from typing import Any

_HOMES = {
    "connect_pair": "softrnic.control.pair",
    "fabric": "softrnic.control.fabric",
    "open_pair": "softrnic.control.pair",
    "open_raw": "softrnic.control.host",
    "open_tap": "softrnic.control.host",
    "open_udp": "softrnic.control.host",
}

__all__ = ["connect_pair", "fabric", "open_pair", "open_raw", "open_tap", "open_udp", "verbs"]


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        return getattr(importlib.import_module(_HOMES[name]), name)
    if name == "verbs":
        return importlib.import_module("softrnic.verbs")
    if name == "__version__":
        from importlib.metadata import version

        return version("softrnic")
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return [*globals(), *__all__, "__version__"]

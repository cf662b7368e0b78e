"""Moving a function to another host while it runs: the two ends of the stream (softrnic/migrate/stream.py).

    arrivals = Arrivals(place, owner)                   # at the destination
    async with listen(arrivals, "192.0.2.2", 7471, token=...):
        ...

    departure = Departure(function, owner, dial("192.0.2.2", 7471, token=...), limits)
    report = await departure.run()                      # at the source

Who runs the function at which time is agreed in softrnic/migrate/commit.py; when to stop copying memory is decided in
precopy.py, what is fetched afterwards in postcopy.py. Here are connections, clocks, and the order of things.
"""

from __future__ import annotations

from softrnic.control.migration.connect import Dial, Token, dial, dial_unix, listen, listen_unix, read_token
from softrnic.control.migration.link import Link, LinkLostError
from softrnic.control.migration.owner import Arrival, Owner, Place
from softrnic.control.migration.report import CancelledMoveError, InDoubtError, NotMovedError, Progress, Report
from softrnic.control.migration.source import Departure
from softrnic.control.migration.target import Arrivals

__all__ = [
    "Arrival", "Arrivals", "CancelledMoveError", "Departure", "Dial", "InDoubtError", "Link", "LinkLostError",
    "NotMovedError", "Owner", "Place", "Progress", "Report", "Token", "dial", "dial_unix", "listen", "listen_unix",
    "read_token",
]  # fmt: skip

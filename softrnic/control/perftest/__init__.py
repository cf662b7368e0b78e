"""Peers of perftest's ib_{write,read,send,atomic}_{bw,lat}, in either role, over one RC queue pair.

    with Perftest(host.device, Options(TESTS["write_bw"])) as peer, socket.create_connection((server, PORT)) as sock:
        print(peer.call(sock))

What they say over TCP is in exchange.py, what they do with their queue pair in peer.py. This is to meet the stock
programs; to measure, use softrnic.control.perf, whose loops are compiled.
"""

from __future__ import annotations

from softrnic.control.perftest.exchange import PORT, Keys, Report
from softrnic.control.perftest.peer import TESTS, Options, Perftest, PerftestError, Result, Test

__all__ = ["PORT", "TESTS", "Keys", "Options", "Perftest", "PerftestError", "Report", "Result", "Test"]

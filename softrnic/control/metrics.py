"""Prometheus metrics of a host: every row of softrnic/counters.py, and how many objects there are."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

from prometheus_client import CollectorRegistry, start_http_server
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily
from prometheus_client.registry import Collector

from softrnic.control import show
from softrnic.counters import COUNTERS
from softrnic.verbs.adapter import Adapter

_LABELS = ("device", "port")


class HostCollector(Collector):
    """Reads the counters when it is scraped; costs nothing between."""

    def __init__(self, adapter: Adapter) -> None:
        self._adapter = adapter

    def collect(self) -> Iterator[CounterMetricFamily | GaugeMetricFamily]:
        """Counters are the adapter's, under the name of its first function; objects are each function's own."""
        functions = list(self._adapter.functions.values())
        if not functions:
            return
        values = functions[0].counters()
        for row in COUNTERS:
            family = CounterMetricFamily(row.prometheus.removesuffix("_total"), row.text, labels=_LABELS)
            family.add_metric((functions[0].name, "1"), values[row.name])
            yield family
        objects = GaugeMetricFamily("softrnic_objects", "objects there are", labels=(*_LABELS, "kind"))
        for counts in show.resources(functions, ""):
            for kind in ("pd", "cq", "qp", "mr", "mw", "srq"):
                objects.add_metric((counts["ifname"], "1", kind), counts[kind])
        yield objects


@contextlib.contextmanager
def exported(adapter: Adapter, address: str, port: int) -> Iterator[int]:
    """Serve them over HTTP while the context lasts; yields the port."""
    registry = CollectorRegistry()
    registry.register(HostCollector(adapter))
    server, thread = start_http_server(port, addr=address, registry=registry)
    try:
        yield int(server.server_address[1])
    finally:
        server.shutdown()
        thread.join()
        server.server_close()

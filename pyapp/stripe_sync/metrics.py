"""Prometheus metrics of `pyapp stripe serve`: deliveries, connections, the process."""

from collections.abc import Iterator
from typing import Any, get_args

from prometheus_client import CollectorRegistry, Counter, Histogram, ProcessCollector
from prometheus_client.core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    InfoMetricFamily,
    Metric,
)
from prometheus_client.registry import Collector
from psycopg_pool import ConnectionPool

from pyapp import __version__
from pyapp.stripe_sync.server import ConnectionCounts
from pyapp.stripe_sync.web import DeliveryResult

RESULTS: tuple[str, ...] = tuple(
    name for part in get_args(DeliveryResult) for name in get_args(part)
)
# Up to the five seconds of a delivery, and the half second until its response.
_BUCKETS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 6)


class ServerMetrics(Collector):
    """The metrics of one server, in a registry of their own."""

    def __init__(self, pool: ConnectionPool[Any], counts: ConnectionCounts) -> None:
        self._pool, self._counts = pool, counts
        self.registry = CollectorRegistry()
        self._deliveries = Counter(
            "pyapp_webhook_deliveries",
            "Deliveries by result.",
            ["result"],
            registry=self.registry,
        )
        for result in RESULTS:
            self._deliveries.labels(result)
        self._seconds = Histogram(
            "pyapp_webhook_delivery_duration_seconds",
            "Time from a request's head to its response.",
            buckets=_BUCKETS,
            registry=self.registry,
        )
        self.registry.register(self)
        ProcessCollector(registry=self.registry)

    def observe(self, result: DeliveryResult, seconds: float) -> None:
        """Count one delivery."""
        self._deliveries.labels(result).inc()
        self._seconds.observe(seconds)

    def collect(self) -> Iterator[Metric]:
        """Yield the metrics that are read when they are asked for."""
        yield InfoMetricFamily(
            "pyapp_build", "The version of pyapp.", {"version": __version__}
        )
        counts, pool = self._counts, self._pool.get_stats()
        yield CounterMetricFamily(
            "pyapp_webhook_connections_closed",
            "Connections closed because there were too many.",
            counts.closed,
        )
        for name, help, value in (
            ("connections", "Open HTTP connections.", len(counts.connections)),
            ("max_connections", "Limit of open HTTP connections.", counts.maximum),
            ("pool_size", "Database connections.", pool["pool_size"]),
            ("pool_max_size", "Limit of database connections.", pool["pool_max"]),
            ("pool_idle", "Idle database connections.", pool["pool_available"]),
            (
                "pool_waiting",
                "Deliveries that wait for a database connection.",
                pool["requests_waiting"],
            ),
        ):
            yield GaugeMetricFamily(f"pyapp_webhook_{name}", help, value)

"""`pyapp stats --prometheus`: the same answers as metrics.

A time is in seconds since 1970, and 0 if there is none, so that a rule also notices
what has never happened. A section without an answer has no metrics of its own, and the
clients of the database have none for a role that may not see them.
"""

import logging
import threading
import time
from collections.abc import Iterator, Mapping
from datetime import UTC, date, datetime
from pathlib import Path
from typing import Any

import psycopg
from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import GaugeMetricFamily, InfoMetricFamily, Metric
from prometheus_client.registry import Collector

from pyapp import __version__
from pyapp._core.connection import connect
from pyapp._core.signals import stopped_by
from pyapp.cli.files import replaced
from pyapp.cli.listening import metrics_served
from pyapp.cli.run import explain
from pyapp.cli.stats_sections import QUESTIONS, Answers, ask_all
from pyapp.errors import PyappError
from pyapp.stats import LastRun

log = logging.getLogger("pyapp.stats")

# By section: the key of the answer, the metric's name and its description.
GAUGES: dict[str, tuple[tuple[str, str, str], ...]] = {
    "messages": (
        ("minute_messages", "messages_last_minute", "Messages of the last minute."),
        ("minute_credits", "credits_last_minute", "Credits of the last minute."),
        ("hour_messages", "messages_last_hour", "Messages of the last hour."),
        ("hour_credits", "credits_last_hour", "Credits of the last hour."),
    ),
    "users": (
        ("users", "users", "Users without the anonymized."),
        ("subscribed", "users_subscribed", "Users with an active subscription."),
        ("blocked", "users_blocked", "Users blocked by their quota."),
    ),
    "events": (
        ("failed", "stripe_events_failed", "Stripe events that are failed."),
        (
            "oldest_failed_at",
            "stripe_events_oldest_failed_timestamp_seconds",
            "Time of the oldest failed event at Stripe.",
        ),
        (
            "hour_received",
            "stripe_events_received_last_hour",
            "Stripe events received in the last hour.",
        ),
        (
            "last_received_at",
            "stripe_events_last_received_timestamp_seconds",
            "Time at which the latest Stripe event was received.",
        ),
    ),
    "payloads": (
        ("partitions", "payload_partitions", "Monthly partitions of payloads."),
        (
            "months_ahead",
            "payload_months_ahead",
            "Partitions after this month's without a gap; -1 if that is missing.",
        ),
        (
            "oldest_month",
            "payload_oldest_month_timestamp_seconds",
            "Begin of the oldest month with a partition.",
        ),
        (
            "has_default_rows",
            "payload_has_default_rows",
            "1 if payloads are in the default partition.",
        ),
        (
            "has_waiting_table",
            "payload_has_waiting_table",
            "1 if payloads are in the waiting table, invisible to queries.",
        ),
        (
            "estimated_waiting",
            "payload_waiting_rows",
            "Payloads without a partition, estimated by the server.",
        ),
        (
            "has_retired_table",
            "payload_has_retired_table",
            "1 if retiring a month was interrupted.",
        ),
    ),
    "server": (
        ("connections", "database_connections", "Clients of this database."),
        (
            "max_connections",
            "database_max_connections",
            "Limit of the server's connections.",
        ),
        (
            "waiting",
            "database_waiting_connections",
            "Clients of this database that wait for a lock.",
        ),
        (
            "oldest_transaction_at",
            "database_oldest_transaction_timestamp_seconds",
            "Start of the oldest open transaction of another client.",
        ),
        (
            "started_at",
            "database_start_timestamp_seconds",
            "Start of the database server.",
        ),
        (
            "counted_since",
            "database_statistics_reset_timestamp_seconds",
            "Time at which the server's statistics were reset.",
        ),
    ),
}
# A role without pg_read_all_stats sees only its own clients.
_CLIENTS = {"connections", "waiting", "oldest_transaction_at"}
# By section with one row for each name: the label, then as above.
LABELLED: dict[str, tuple[str, tuple[tuple[str, str, str], ...]]] = {
    "tables": (
        "table",
        (
            ("estimated_rows", "table_rows", "Rows, estimated by the last vacuum."),
            ("table_bytes", "table_size_bytes", "Size of a table with TOAST."),
            ("index_bytes", "table_index_size_bytes", "Size of a table's indexes."),
        ),
    ),
    "unused_indexes": (
        "index",
        (("bytes", "unused_index_size_bytes", "Size of an index without scans."),),
    ),
}
# Of the latest run of each kind, with the label `kind`.
RUNS = ("reconcile", "replay")
RUN_GAUGES = (
    (
        "started_at",
        "stripe_run_start_timestamp_seconds",
        "Start of the latest run.",
    ),
    (
        "finished_at",
        "stripe_run_end_timestamp_seconds",
        "End of the latest run.",
    ),
    (
        "last_completed_at",
        "stripe_run_last_completed_timestamp_seconds",
        "End of the latest completed run.",
    ),
    ("differences", "stripe_run_differences", "Differences found by the latest run."),
    ("repaired", "stripe_run_repaired", "Differences repaired by the latest run."),
)
# The same of its `counts`.
RUN_COUNTS = (
    ("refused", "stripe_run_refused", "Objects refused in the latest run."),
    ("failed", "stripe_run_failed", "Events failed in the latest run."),
)
OUTCOMES = ("running", "completed", "failed")
# Seconds for which the answers are reused, for any number of scrapers.
_CACHED = 5.0


def collect(answers: Answers | None) -> Iterator[Metric]:
    """Yield the metrics of *answers*; None means that the database did not answer."""
    yield _gauge("database_up", "1 if the database answered.", answers is not None)
    yield InfoMetricFamily(
        "pyapp_build", "The version of pyapp.", {"version": __version__}
    )
    at = answers.at if answers else datetime.now(UTC)
    yield _gauge("stats_timestamp_seconds", "Time of these statistics.", at)
    answered = GaugeMetricFamily(
        "pyapp_stats_section_answered",
        "1 if the section was read; 0 if it took too long or is not permitted.",
        labels=["section"],
    )
    for name in QUESTIONS:
        is_answered = answers is not None and name not in answers.unanswered
        answered.add_metric([name], is_answered)
    yield answered
    if answers is not None:
        yield from _sections(answers)


def _sections(answers: Answers) -> Iterator[Metric]:
    runs: dict[str, LastRun | None] = {}
    for section, found in answers.found.items():
        if section in answers.unanswered:
            continue
        if section in RUNS:
            runs[section] = found
        elif section in GAUGES:
            for key, name, help in GAUGES[section]:
                if key not in _CLIENTS or found.connections is not None:
                    yield _gauge(name, help, getattr(found, key))
        else:
            label, gauges = LABELLED[section]
            for key, name, help in gauges:
                rows = {(row.name,): getattr(row, key) for row in found}
                yield _labelled(name, help, (label,), rows)
    yield from _runs(runs)


def _runs(runs: dict[str, LastRun | None]) -> Iterator[Metric]:
    for key, name, help in RUN_GAUGES:
        values = {(kind,): getattr(run, key, 0) for kind, run in runs.items()}
        yield _labelled(name, help, ("kind",), values)
    for key, name, help in RUN_COUNTS:
        values = {
            (kind,): run.counts.get(key, 0) if run else 0 for kind, run in runs.items()
        }
        yield _labelled(name, help, ("kind",), values)
    outcomes = {
        (kind, outcome): run is not None and run.outcome == outcome
        for kind, run in runs.items()
        for outcome in OUTCOMES
    }
    name, help = "stripe_run_outcome", "1 for the outcome of the latest run."
    yield _labelled(name, help, ("kind", "outcome"), outcomes)


def _gauge(name: str, help: str, value: Any) -> Metric:
    return GaugeMetricFamily(f"pyapp_{name}", help, _number(value))


def _labelled(
    name: str, help: str, labels: tuple[str, ...], values: Mapping[Any, Any]
) -> Metric:
    family = GaugeMetricFamily(f"pyapp_{name}", help, labels=labels)
    for names, value in values.items():
        family.add_metric(names, _number(value))
    return family


def _number(value: Any) -> float:
    if value is None:
        return 0
    if isinstance(value, datetime):
        return value.timestamp()
    if isinstance(value, date):
        return datetime(value.year, value.month, value.day, tzinfo=UTC).timestamp()
    return float(value)


class _Fixed(Collector):
    def __init__(self, answers: Answers | None) -> None:
        self._answers = answers

    def collect(self) -> Iterator[Metric]:
        return collect(self._answers)


def format_metrics(answers: Answers | None) -> str:
    """Return the metrics in Prometheus' text format."""
    registry = CollectorRegistry()
    registry.register(_Fixed(answers))
    return generate_latest(registry).decode()


def write_metrics(file: Path, text: str) -> None:
    """Replace *file*, which every user of the machine may read."""
    with replaced(file, mode=0o644) as part:
        part.write(text)


class _Asked(Collector):
    """Asks the database at each scrape, for all scrapers at once."""

    def __init__(self, seconds: int) -> None:
        self._seconds = seconds
        self._lock = threading.Lock()
        self._answers: Answers | None = None
        self._until = 0.0

    def collect(self) -> Iterator[Metric]:
        with self._lock:
            if time.monotonic() >= self._until:
                self._answers = self._ask()
                self._until = time.monotonic() + _CACHED
            return collect(self._answers)

    def _ask(self) -> Answers | None:
        try:
            with connect() as conn:
                return ask_all(conn, self._seconds)
        except (PyappError, psycopg.Error) as exc:
            reason = explain(exc) if isinstance(exc, psycopg.Error) else exc
            error = str(reason or type(exc).__name__)
            log.error("statistics unavailable", extra={"error": error})
            return None


def serve_metrics(host: str, port: int, seconds: int) -> None:
    """Serve the metrics until SIGTERM or Ctrl-C."""
    is_over = threading.Event()
    with (
        stopped_by(is_over.set),
        metrics_served(make_registry(seconds), host, port),
    ):
        is_over.wait()


def make_registry(seconds: int) -> CollectorRegistry:
    """Return metrics that ask the database; each section may take *seconds*."""
    registry = CollectorRegistry()
    registry.register(_Asked(seconds))
    return registry

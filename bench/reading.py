"""Quota checks and session lookups, against one row by its primary key; reports."""

import statistics
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict
from datetime import UTC, datetime, timedelta
from functools import partial
from uuid import UUID

import psycopg

from bench.contest import (
    Latency,
    Variables,
    in_turn,
    measure_latency,
    median_ratio,
)
from bench.load import query
from bench.measures import (
    Measure,
    at_least,
    at_most,
    brief,
    compare_latency,
    format_latency,
    reported,
)
from pyapp._core.connection import connect
from pyapp._core.queries import QUERIES
from pyapp.usage import UsageKey, list_usage

GROWTH = 1.5
# At most, by group of users.
TARGETS = {"median user": 1.5, "hottest user": 1.75}
# The plain design is at least as many times slower for the hottest user of a database
# of at least this size. The others are reported.
PLAIN_TARGET = 100
PLAIN_SIZE = 10_000_000
LONGEST_REPORT = 2
REPORTS: tuple[UsageKey, ...] = ("model", "client", "payer")


def measure_quota(urls: Mapping[int, str]) -> Iterator[Measure]:
    """Yield quota checks of median users and of the hottest, in databases by size.

    The plain design, a join and a sum over the messages with an index on user_id alone,
    is compared with both. The last line is the growth of the check with the size.
    """
    users = {size: _choose_users(url) for size, url in urls.items()}
    largest = max(urls)
    for group in ("median user", "hottest user"):
        places = {url: users[size][group] for size, url in urls.items()}
        found = measure_latency(
            places,
            {
                "floor": query("select_account"),
                "quota": QUERIES["get_user_quota"],
            },
        )
        # Separately, because it evicts the caches.
        plain = measure_latency(
            places,
            {"plain": query("sum_plain")},
            executions=8,
            rounds=1,
            warm_up=2,
        )
        for size, url in urls.items():
            name = group if size == largest else f"{group}, {size:,}"
            quota = found[url]["quota"]
            yield compare_latency(
                f"quota check, {name}", quota, found[url]["floor"], TARGETS[group]
            )
            against = _compare_plain(name, plain[url]["plain"], quota)
            has_target = group == "hottest user" and size >= PLAIN_SIZE
            yield against if has_target else reported(against)
        if len(urls) > 1:
            yield _grow(group, *(found[urls[n]] for n in (largest, min(urls))))


def measure_session(url: str) -> Iterator[Measure]:
    """Yield the lookup of a session, against its user's row."""
    with psycopg.connect(url) as conn:
        rows = conn.execute(query("list_session_owners").sql).fetchall()
    cases = [
        {
            "user_id": str(user_id),
            "token_hash": rf"\x{token_hash.hex()}",
            "at": "now",
        }
        for token_hash, user_id in rows
    ]
    found = measure_latency(
        {url: cases},
        {
            "floor": query("select_account"),
            "session": QUERIES["find_session"],
        },
    )[url]
    yield compare_latency("session lookup", found["session"], found["floor"], 1.25)


def measure_reports(url: str) -> Iterator[Measure]:
    """Yield reports of a whole month over all payers, against reading all messages.

    Models and clients are read from the messages, payers from the daily sums.
    """
    until = datetime.now(UTC).replace(day=1, hour=0, minute=0, second=0, microsecond=0)
    month = {"since": (until - timedelta(days=1)).replace(day=1), "until": until}
    with connect(url) as conn, connect(url) as plain:
        plain.execute(query("disable_indexes").sql)

        contestants: dict[str, Callable[[], object]] = {
            **{by: partial(list_usage, conn, by=by, **month) for by in REPORTS},
            "plain": lambda: plain.execute(query("sum_month").sql, month).fetchall(),
        }

        def run(name: str) -> float:
            began = time.perf_counter()
            contestants[name]()
            return time.perf_counter() - began

        found = in_turn(run, *contestants, rounds=5)
    plain_seconds = statistics.median(found["plain"])
    for name in REPORTS:
        seconds = statistics.median(found[name])
        yield Measure(
            f"usage by {name}, one month",
            f"{brief(seconds)} s",
            f"all messages {brief(plain_seconds)} s",
            median_ratio(found["plain"], found[name]),
            f"<= {LONGEST_REPORT} s",
            seconds <= LONGEST_REPORT,
            {"report": seconds, "plain": plain_seconds},
        )


def rank_accounts(url: str) -> list[UUID]:
    """Return the accounts by their messages, the busiest first."""
    with psycopg.connect(url) as conn:
        rows = conn.execute(query("list_ranked_accounts").sql).fetchall()
    return [row[0] for row in rows]


def _choose_users(url: str) -> dict[str, list[Variables]]:
    ranked = rank_accounts(url)
    middle = len(ranked) // 2
    chosen = {
        "median user": ranked[middle : middle + 5],
        "hottest user": ranked[:1] * 3,
    }
    return {
        group: [{"user_id": str(user), "at": "now"} for user in users]
        for group, users in chosen.items()
    }


def _compare_plain(name: str, plain: Latency, quota: Latency) -> Measure:
    return at_least(
        f"join and SUM, {name}",
        format_latency(plain),
        f"check {brief(quota.p50)} ms",
        plain.p50 / quota.p50,
        PLAIN_TARGET,
        {"contestant": asdict(plain), "floor": asdict(quota)},
    )


def _grow(
    group: str, last: Mapping[str, Latency], first: Mapping[str, Latency]
) -> Measure:
    """Return the growth of the check from the smallest size to the largest."""
    return at_most(
        f"its growth, {group}",
        f"{brief(last['quota'].p50)} ms",
        f"from {brief(first['quota'].p50)} ms",
        last["quota"].p50 / first["quota"].p50,
        GROWTH,
        {
            "contestant": asdict(last["quota"]),
            "floor": asdict(first["quota"]),
            "rows_by_key": last["floor"].p50 / first["floor"].p50,
        },
    )

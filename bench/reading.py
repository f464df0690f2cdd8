"""Quota checks and sessions, against one row by its primary key."""

from collections.abc import Iterator
from dataclasses import asdict
from uuid import UUID

import psycopg

from bench.contest import Contestant, measure_latency
from bench.load import query
from bench.measures import Measure, at_least, compare_latency
from pyapp.queries import QUERIES


def measure_quota(url: str, accounts: list[UUID]) -> Iterator[Measure]:
    """The quota check of median users and of the hottest.

    The plain design, a join and a sum over the messages with an index on user_id alone,
    runs beside both.
    """
    middle = len(accounts) // 2
    groups = {
        "median user": accounts[middle : middle + 5],
        "hottest user": accounts[:1] * 3,
    }
    for name, users in groups.items():
        cases = [{"user_id": str(user), "at": "now"} for user in users]
        found = measure_latency(
            url,
            {
                "floor": Contestant(query("select_account").source),
                "quota": Contestant(QUERIES["get_user_quota"].source),
            },
            cases,
        )
        # On its own, for it leaves no cache as it was.
        found |= measure_latency(
            url,
            {"plain": Contestant(query("sum_plain").source)},
            cases,
            executions=8,
            rounds=1,
            warm_up=2,
        )
        yield compare_latency(f"quota check, {name}", found["quota"], found["floor"], 2)
        yield at_least(
            f"join and SUM, {name}",
            f"{found['plain'].p50:.3f} ms, p99 {found['plain'].p99:.3f}",
            f"check {found['quota'].p50:.3f} ms",
            found["plain"].p50 / found["quota"].p50,
            100,
            {"contestant": asdict(found["plain"]), "floor": asdict(found["quota"])},
        )


def measure_session(url: str) -> Iterator[Measure]:
    """The lookup of a session, against its user's row."""
    with psycopg.connect(url) as conn:
        rows = conn.execute(query("list_session_owners").sql).fetchall()
    found = measure_latency(
        url,
        {
            "floor": Contestant(query("select_account").source),
            "session": Contestant(QUERIES["find_session"].source),
        },
        [
            {
                "user_id": str(user_id),
                "token_hash": rf"\x{token_hash.hex()}",
                "at": "now",
            }
            for token_hash, user_id in rows
        ],
    )
    yield compare_latency("session lookup", found["session"], found["floor"], 1.3)

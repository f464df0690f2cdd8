"""Quota checks of payers with unusual days: cut, moved, and written by many."""

import statistics
import time
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from typing import Any
from uuid import UUID

import psycopg

from bench.contest import Variables, measure_latency
from bench.load import query
from bench.measures import Measure, brief, compare_latency, reported
from pyapp._core.queries import QUERIES
from pyapp.messages import record_message

# Messages of the busy day; fewer in a small database.
BUSY = 100_000
OTHERS = 100
# In every month, the period that began so many days ago is still the present one.
DAYS_AGO = 27
# The most rows of a span.
SLOTS = 32
TARGET = 2
OPEN_TARGET = 1.75


def measure_days(url: str, size: int) -> Iterator[Measure]:
    """Yield checks of payers whose busy day is cut, or has a row for each writer.

    The period begins at noon of the busy day. After the anchor was moved there, the
    rows of that day lie across it until they are cut.
    """
    busy = min(BUSY, size // 10)
    midnight = datetime.now(UTC).replace(
        hour=0, minute=0, second=0, microsecond=0
    ) - timedelta(days=DAYS_AGO)
    day = {"midnight": midnight, "hour": 12, "busy": busy, "others": OTHERS}
    with psycopg.connect(url, autocommit=True) as conn:
        conn.execute(query("defer_commits").sql)
        conn.execute(query("trust_rows").sql)
        divided = create_user(conn, day)
        endless = create_user(conn, day)
        # At midnight, no row lies across the boundary.
        written = create_user(conn, {**day, "hour": 0}, slots=SLOTS)
        unfolded = create_user(conn, {**day, "hour": 0}, slots=SLOTS, days=DAYS_AGO)
        before = midnight - timedelta(days=5)
        moved = [
            create_user(conn, {**day, "before": before}, slots=SLOTS) for _ in range(3)
        ]
        conn.execute(query("distrust_rows").sql)
        conn.execute(query("reset_commits").sql)
        conn.execute(query("forget_reset").sql, {"user_id": endless})
        record_message(conn, user_id=endless, model="model-1", cost=Decimal("0.012"))
        conn.execute(query("vacuum").sql)
        yield _compare(f"quota check, a day of {busy:,} cut", url, [divided], TARGET)
        # Its period ends at the time of the check, within today's row.
        yield _compare("the same, without a reset", url, [endless], TARGET)
        yield _compare(
            f"quota check, {SLOTS} rows on one day", url, [written], OPEN_TARGET
        )
        yield reported(
            _compare(
                f"the same, not folded for {DAYS_AGO} days",
                url,
                [unfolded],
                OPEN_TARGET,
            )
        )
        for user in moved:
            conn.execute(query("move_anchor").sql, {**day, "user_id": user})
        yield reported(
            _compare(
                "check, anchor moved, before the cut", url, moved, TARGET, few=True
            )
        )
        seconds = [cut(conn, user) for user in moved]
        yield Measure(
            f"the cut of a day of {busy:,}",
            f"{brief(statistics.median(seconds) * 1000)} ms",
            f"longest {brief(max(seconds) * 1000)} ms",
            None,
            "reported",
            None,
            {"seconds": seconds},
        )
        yield _compare("check, anchor moved, after the cut", url, moved, TARGET)


def create_user(
    conn: psycopg.Connection[Any], day: dict[str, Any], slots: int = 1, days: int = 1
) -> UUID:
    """Create a user with messages and their sums; return its id.

    The sums of the first *days* are in several *slots*.
    """
    anchor = {"midnight": day.get("before", day["midnight"]), "hour": day["hour"]}
    row = conn.execute(query("insert_day_user").sql, anchor).fetchone()
    assert row is not None
    values = {**day, "user_id": row[0], "slots": slots, "days": days}
    for name in ("insert_day_messages", "insert_day_usage"):
        statement = query(name)
        conn.execute(statement.sql, {key: values[key] for key in statement.parameters})
    user: UUID = row[0]
    return user


def _compare(
    name: str, url: str, users: list[UUID], limit: float, *, few: bool = False
) -> Measure:
    cases: list[Variables] = [{"user_id": str(user), "at": "now"} for user in users]
    found = measure_latency(
        {url: cases},
        {
            "floor": query("select_account"),
            "quota": QUERIES["get_user_quota"],
        },
        executions=20 if few else 300,
        warm_up=10 if few else 25,
    )[url]
    quota, floor = found["quota"], found["floor"]
    return compare_latency(name, quota, floor, limit)


def cut(conn: psycopg.Connection[Any], user: UUID) -> float:
    """Cut the user's day; return the seconds taken."""
    began = time.perf_counter()
    row = conn.execute(query("cut_usage").sql, {"user_id": user}).fetchone()
    assert row == (1,), row
    return time.perf_counter() - began

"""What is measured, each against its floor in the same run."""

import hashlib
import random
import statistics
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID, uuid4

import psycopg

from bench.contest import Latency, measure_latency, measure_rate
from bench.load import query
from pyapp.queries import QUERIES

COPIED = 100_000


@dataclass(frozen=True)
class Measure:
    """One line of the report: a contestant, its floor, and what is promised."""

    name: str
    value: str
    floor: str
    ratio: float
    target: str
    is_met: bool
    details: dict[str, Any]


def _ratio_of_latency(
    name: str, contestant: Latency, floor: Latency, target: float
) -> Measure:
    ratio = contestant.p50 / floor.p50
    return Measure(
        name,
        f"{contestant.p50:.3f} ms, p99 {contestant.p99:.3f}",
        f"{floor.p50:.3f} ms",
        ratio,
        f"<= {target:g}x",
        ratio <= target,
        {"contestant": asdict(contestant), "floor": asdict(floor)},
    )


def measure_quota(url: str, accounts: list[UUID]) -> Iterator[Measure]:
    """The quota check of median users and of the hottest, against one row by its key.

    The plain design, a join and a sum over the messages, runs beside both.
    """
    middle = len(accounts) // 2
    groups = {
        "quota check, median user": accounts[middle : middle + 5],
        "quota check, hottest user": accounts[:1],
    }
    for name, users in groups.items():
        found = measure_latency(
            url,
            {
                "floor": query("select_user").source,
                "quota": QUERIES["get_user_quota"].source,
                "plain": query("sum_plain").source,
            },
            [{"user_id": str(user), "at": "now"} for user in users],
            executions={"floor": 400, "quota": 400, "plain": 5},
        )
        yield _ratio_of_latency(name, found["quota"], found["floor"], 2)
        advantage = found["plain"].p50 / found["quota"].p50
        yield Measure(
            f"  join and SUM, {name.split(', ')[1]}",
            f"{found['plain'].p50:.3f} ms",
            f"{found['quota'].p50:.3f} ms",
            advantage,
            ">= 100x",
            advantage >= 100,
            {"plain": asdict(found["plain"]), "quota": asdict(found["quota"])},
        )


def measure_session(url: str, accounts: list[UUID]) -> Iterator[Measure]:
    """The lookup of a session, against one row by its key."""
    numbers = random.Random(1).sample(range(1, len(accounts) + 1), 5)
    found = measure_latency(
        url,
        {
            "floor": query("select_session").source,
            "session": QUERIES["find_session"].source,
        },
        [
            {"token_hash": rf"\x{hashlib.sha256(str(n).encode()).hexdigest()}"}
            for n in numbers
        ],
        executions={"floor": 400, "session": 400},
    )
    yield _ratio_of_latency("session lookup", found["session"], found["floor"], 1.3)


def measure_inserts(url: str, accounts: list[UUID]) -> Iterator[Measure]:
    """Single messages by many writers, with the rollup and without."""
    spread = rf"\set n random(1, {len(accounts)})"
    for name, choice, clients, target in (
        ("one message, 8 writers", spread, 8, 0.7),
        ("one message, 32 writers on one user", r"\set n 1", 32, None),
    ):
        rates = measure_rate(
            url,
            {
                "rollup": f"{choice}\n{query('insert_with_rollup').source}",
                "plain": f"{choice}\n{query('insert_plain').source}",
            },
            clients=clients,
            seconds=4,
        )
        ratio = rates["rollup"] / rates["plain"]
        yield Measure(
            name,
            f"{rates['rollup']:,.0f} /s",
            f"{rates['plain']:,.0f} /s",
            ratio,
            f">= {target}x the rate" if target else "reported",
            target is None or ratio >= target,
            dict(rates),
        )


def measure_copy(url: str, accounts: list[UUID]) -> Iterator[Measure]:
    """Messages in bulk, with the rollup and without."""
    chance = random.Random(2)
    now = datetime.now(UTC)
    usage = (900, 0, 4000, 300, "m", "0.012", "1.44")
    rows = [
        (user, uuid4(), user, now - timedelta(minutes=chance.randrange(40_000)), *usage)
        for user in chance.choices(accounts, k=COPIED)
    ]

    def copy(name: str) -> float:
        with psycopg.connect(url) as conn:
            began = time.perf_counter()
            with conn.cursor().copy(query(name).sql) as copying:
                for row in rows:
                    copying.write_row(row)
            took = time.perf_counter() - began
            conn.rollback()
        return took

    seconds = _in_turn(copy, "copy_with_rollup", "copy_plain")
    ratio = seconds["copy_with_rollup"] / seconds["copy_plain"]
    yield Measure(
        f"{COPIED:,} messages by COPY",
        f"{seconds['copy_with_rollup']:.2f} s",
        f"{seconds['copy_plain']:.2f} s",
        ratio,
        "<= 1.2x the time",
        ratio <= 1.2,
        seconds,
    )


def measure_retirement(url: str, messages: int) -> Iterator[Measure]:
    """A month of payloads retired, against the DELETE of as many rows."""
    this_month = datetime.now(UTC).replace(day=1, hour=0, minute=0, second=0)
    months = [_months_before(this_month, n) for n in (4, 3)]
    with psycopg.connect(url, autocommit=True) as conn:
        for month in months:
            conn.execute(
                QUERIES["create_payload_partitions"].sql,
                {"first_month": month.date(), "months": 1},
            )
            conn.execute(
                query("insert_payloads").sql, {"month": month, "limit": messages // 12}
            )
        began = time.perf_counter()
        rows = conn.execute(query("delete_payloads").sql, {"month": months[1]}).rowcount
        deleted = time.perf_counter() - began
        began = time.perf_counter()
        conn.execute(
            QUERIES["retire_payload_partitions"].sql, {"keep_from": months[1].date()}
        ).fetchall()
        retired = time.perf_counter() - began
    ratio = deleted / retired
    yield Measure(
        f"retiring {rows:,} payloads",
        f"{retired:.3f} s",
        f"DELETE {deleted:.3f} s",
        ratio,
        ">= 20x faster",
        ratio >= 20,
        {"rows": rows, "deleted": deleted, "retired": retired},
    )


def _months_before(moment: datetime, months: int) -> datetime:
    index = moment.year * 12 + moment.month - 1 - months
    return moment.replace(year=index // 12, month=index % 12 + 1, microsecond=0)


def _in_turn(
    function: Callable[[str], float], *names: str, rounds: int = 3
) -> dict[str, float]:
    """Return the median seconds of each name, run in turn."""
    seconds: dict[str, list[float]] = {name: [] for name in names}
    for _ in range(rounds):
        for name in names:
            seconds[name].append(function(name))
    return {name: statistics.median(values) for name, values in seconds.items()}

"""The period functions equal a model in Python."""

from collections.abc import Iterator, Sequence
from datetime import UTC, date, datetime, time, timedelta

import psycopg
import pytest

from tests.metering import (
    MICROSECOND,
    add_months,
    add_user,
    period_at,
    period_end,
    period_start,
)

ANCHOR = datetime(2024, 1, 31, tzinfo=UTC)
NOW = datetime(2024, 5, 10, tzinfo=UTC)
TIMES = [time(0, 0), time(23, 59, 59, 999999), time(12, 34, 56, 789)]

# The last days of months of every length, in a normal and in a leap year.
ANCHORS = [
    datetime.combine(date(year, month, day), at, UTC)
    for year, month, day in [
        (2023, 1, 1),
        (2023, 1, 28),
        (2023, 1, 29),
        (2023, 1, 30),
        (2023, 1, 31),
        (2023, 2, 28),
        (2023, 4, 30),
        (2023, 12, 31),
        (2024, 1, 29),
        (2024, 1, 31),
        (2024, 2, 28),
        (2024, 2, 29),
        (2024, 3, 31),
    ]
    for at in TIMES
]


def moments() -> Iterator[tuple[datetime, datetime]]:
    """Yield each anchor with instants around its boundaries, before and after it."""
    for anchor in ANCHORS:
        for months in [*range(-14, 27), 48, 49, 97, 1200]:
            boundary = add_months(anchor, months)
            yield anchor, boundary - MICROSECOND
            yield anchor, boundary
            yield anchor, boundary + MICROSECOND
            yield anchor, boundary + timedelta(days=11, hours=5)


PAIRS = list(moments())
# With each moment as the reset, too.
RESETS = [(anchor, moment, moment) for anchor, moment in PAIRS]


def select(
    conn: psycopg.Connection, columns: str, cases: Sequence[tuple[datetime, ...]]
) -> list[tuple[datetime, ...]]:
    """Return *columns* for each anchor, moment and reset."""
    query = f"""
        SELECT {columns}
        FROM unnest(%s::timestamptz[], %s::timestamptz[], %s::timestamptz[])
            WITH ORDINALITY AS p (anchor, moment, reset, n)
        ORDER BY p.n
    """
    arrays = [list(column) for column in zip(*cases, strict=True)]
    return conn.execute(query.encode(), arrays).fetchall()


def set_zone(conn: psycopg.Connection, zone: str) -> None:
    conn.execute("SELECT set_config('TimeZone', %s, FALSE)", (zone,))


@pytest.mark.parametrize("zone", ["UTC", "America/St_Johns", "Pacific/Apia"])
def test_boundaries_are_the_anchor_plus_whole_months(
    conn: psycopg.Connection, zone: str
):
    set_zone(conn, zone)

    columns = "app.get_period_start(anchor, moment), app.get_period_end(anchor, moment)"
    rows = select(conn, columns, RESETS)

    assert rows == [(period_start(*pair), period_end(*pair)) for pair in PAIRS]


def test_boundaries_do_not_drift(conn: psycopg.Connection):
    rows = conn.execute(
        """
        SELECT app.add_months('2024-01-31 00:00+00', n)::date
        FROM generate_series(0, 13) AS n ORDER BY n
        """
    ).fetchall()

    days = [day.isoformat() for (day,) in rows]
    assert days[:4] == ["2024-01-31", "2024-02-29", "2024-03-31", "2024-04-30"]
    assert days[-2:] == ["2025-01-31", "2025-02-28"]


def test_stored_start_is_the_boundary_before_the_reset(conn: psycopg.Connection):
    rows = select(conn, "app.get_quota_period_start(anchor, reset)", RESETS)

    assert rows == [(period_start(a, reset - MICROSECOND),) for a, reset in PAIRS]


@pytest.mark.parametrize("anchor", [ANCHORS[0], ANCHORS[12], ANCHORS[-6]])
def test_stored_start_is_the_anchor_without_a_reset(
    conn: psycopg.Connection, anchor: datetime
):
    user_id = add_user(conn, quota_anchor=anchor, next_quota_reset=None)

    row = conn.execute(
        "SELECT quota_period_start FROM app.users WHERE id = %s", (user_id,)
    ).fetchone()

    assert row == (anchor,)


@pytest.mark.parametrize(
    ("reset", "expected"),
    [
        # Lapsed by three months, by a microsecond, and at this instant.
        (add_months(ANCHOR, 1), add_months(ANCHOR, 4)),
        (NOW - MICROSECOND, add_months(ANCHOR, 4)),
        (NOW, add_months(ANCHOR, 4)),
        (NOW + MICROSECOND, NOW + MICROSECOND),
        (datetime(2024, 7, 1, tzinfo=UTC), datetime(2024, 7, 1, tzinfo=UTC)),
        (None, None),
    ],
)
def test_next_reset_is_the_given_one_or_the_next_boundary(
    conn: psycopg.Connection, reset: datetime | None, expected: datetime | None
):
    row = conn.execute(
        "SELECT app.get_next_reset(%s, %s, %s)", (ANCHOR, reset, NOW)
    ).fetchone()

    assert row == (expected,)


@pytest.mark.parametrize("zone", ["UTC", "Asia/Kathmandu"])
@pytest.mark.parametrize(
    "known_start", ["app.get_quota_period_start(anchor, reset)", "NULL"]
)
def test_period_contains_the_moment(
    conn: psycopg.Connection, zone: str, known_start: str
):
    set_zone(conn, zone)
    resets = [timedelta(days=-95), -MICROSECOND, timedelta(0), timedelta(days=20)]
    cases = [
        (anchor, moment, moment + shift)
        for anchor, moment in PAIRS[::7]
        for shift in resets
    ]
    usage = (
        f"app.get_period_usage(gen_random_uuid(), anchor, reset, moment, {known_start})"
    )

    rows = select(conn, f"({usage}).period_start, ({usage}).end_date", cases)

    periods = [period_at(anchor, reset, moment) for anchor, moment, reset in cases]
    assert rows == [(period.start, period.end) for period in periods]
    assert all(case[1] in period for case, period in zip(cases, periods, strict=True))

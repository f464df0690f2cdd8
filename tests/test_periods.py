"""The period functions equal a model in Python."""

from collections.abc import Iterator
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


@pytest.mark.parametrize("zone", ["UTC", "America/St_Johns", "Pacific/Apia"])
def test_boundaries_are_the_anchor_plus_whole_months(
    conn: psycopg.Connection, zone: str
):
    conn.execute("SELECT set_config('TimeZone', %s, FALSE)", (zone,))

    rows = conn.execute(
        """
        SELECT app.get_period_start(p.anchor, p.moment),
            app.get_period_end(p.anchor, p.moment)
        FROM unnest(%s::timestamptz[], %s::timestamptz[])
            WITH ORDINALITY AS p (anchor, moment, n)
        ORDER BY p.n
        """,
        ([anchor for anchor, _ in PAIRS], [moment for _, moment in PAIRS]),
    ).fetchall()

    expected = [(period_start(*pair), period_end(*pair)) for pair in PAIRS]
    assert expected == rows


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
    rows = conn.execute(
        """
        SELECT app.get_quota_period_start(p.anchor, p.reset)
        FROM unnest(%s::timestamptz[], %s::timestamptz[])
            WITH ORDINALITY AS p (anchor, reset, n)
        ORDER BY p.n
        """,
        ([anchor for anchor, _ in PAIRS], [moment for _, moment in PAIRS]),
    ).fetchall()

    expected = [period_start(anchor, reset - MICROSECOND) for anchor, reset in PAIRS]
    assert expected == [start for (start,) in rows]


@pytest.mark.parametrize("anchor", [ANCHORS[0], ANCHORS[12], ANCHORS[-6]])
def test_stored_start_is_the_anchor_without_a_reset(
    conn: psycopg.Connection, anchor: datetime
):
    user_id = add_user(conn, quota_anchor=anchor, next_quota_reset=None)

    row = conn.execute(
        "SELECT quota_period_start FROM app.users WHERE id = %s", (user_id,)
    ).fetchone()

    assert row == (anchor,)


def test_next_reset_is_the_given_one_or_the_next_boundary(
    conn: psycopg.Connection,
):
    anchor = datetime(2024, 1, 31, tzinfo=UTC)
    at = datetime(2024, 5, 10, tzinfo=UTC)
    cases = [
        # Lapsed by three months, by a microsecond, at this instant, and still ahead.
        (add_months(anchor, 1), add_months(anchor, 4)),
        (at - MICROSECOND, add_months(anchor, 4)),
        (at, add_months(anchor, 4)),
        (at + MICROSECOND, at + MICROSECOND),
        (datetime(2024, 7, 1, tzinfo=UTC), datetime(2024, 7, 1, tzinfo=UTC)),
        (None, None),
    ]

    for reset, expected in cases:
        row = conn.execute(
            "SELECT app.get_next_reset(%s, %s, %s)", (anchor, reset, at)
        ).fetchone()
        assert row == (expected,)


@pytest.mark.parametrize("zone", ["UTC", "Asia/Kathmandu"])
@pytest.mark.parametrize("is_start_known", [True, False])
def test_period_contains_the_moment(
    conn: psycopg.Connection, zone: str, is_start_known: bool
):
    conn.execute("SELECT set_config('TimeZone', %s, FALSE)", (zone,))
    resets = [timedelta(days=-95), -MICROSECOND, timedelta(0), timedelta(days=20)]
    cases = [
        (anchor, moment + shift, moment)
        for anchor, moment in PAIRS[::7]
        for shift in resets
    ]

    rows = conn.execute(
        """
        SELECT u.period_start, u.end_date
        FROM unnest(%s::timestamptz[], %s::timestamptz[], %s::timestamptz[])
            WITH ORDINALITY AS p (anchor, reset, moment, n),
            app.get_period_usage(
                gen_random_uuid(), p.anchor, p.reset, p.moment,
                CASE WHEN %s THEN app.get_quota_period_start(p.anchor, p.reset) END
            ) AS u
        ORDER BY p.n
        """,
        [*(list(column) for column in zip(*cases, strict=True)), is_start_known],
    ).fetchall()

    periods = [period_at(*case) for case in cases]
    assert [(p.start, p.end) for p in periods] == rows
    assert all(
        moment in period for (_, _, moment), period in zip(cases, periods, strict=True)
    )

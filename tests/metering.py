"""What the tests of metering share: accounts, messages, and recounts by other means."""

from calendar import monthrange
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from uuid import UUID, uuid4

from psycopg import Connection, sql

from pyapp._core.records import NewMessage

MICROSECOND = timedelta(microseconds=1)

# Every subject and day for which the sums kept differ from the messages recorded.
USAGE_DIFFERENCES = """
    SELECT *
    FROM (
        SELECT
            m.subject_id,
            (m.finished_at AT TIME ZONE 'UTC')::date AS day,
            count(*) AS messages,
            sum(m.input_tokens) AS input_tokens,
            sum(m.cache_creation_input_tokens) AS cache_creation_input_tokens,
            sum(m.cache_read_input_tokens) AS cache_read_input_tokens,
            sum(m.output_tokens) AS output_tokens,
            sum(m.total_tokens) AS total_tokens,
            sum(m.cost) AS cost,
            sum(m.credits) AS credits
        FROM app.messages AS m
        WHERE %(subjects)s::uuid[] IS NULL OR m.subject_id = ANY(%(subjects)s)
        GROUP BY 1, 2
    ) AS recorded
    FULL JOIN (
        SELECT *
        FROM app.usage_daily AS d
        WHERE %(subjects)s::uuid[] IS NULL OR d.subject_id = ANY(%(subjects)s)
    ) AS kept
        USING (
            subject_id, day, messages, input_tokens, cache_creation_input_tokens,
            cache_read_input_tokens, output_tokens, total_tokens, cost, credits
        )
    WHERE recorded IS NULL OR kept IS NULL
"""


def add_user(conn: Connection, **columns: object) -> UUID:
    """Add a user with these columns, and return the id."""
    return _add(conn, "users", {"email": f"{uuid4()}@example.com", **columns})


def add_fingerprint(conn: Connection, **columns: object) -> UUID:
    """Add a fingerprint with these columns, and return the id."""
    return _add(conn, "fingerprints", {"id": uuid4(), **columns})


def _add(conn: Connection, table: str, columns: dict[str, object]) -> UUID:
    statement = sql.SQL("INSERT INTO {} ({}) VALUES ({}) RETURNING id").format(
        sql.Identifier("app", table),
        sql.SQL(", ").join(map(sql.Identifier, columns)),
        sql.SQL(", ").join(map(sql.Placeholder, columns)),
    )
    row: tuple[UUID] | None = conn.execute(statement, columns).fetchone()
    assert row is not None
    return row[0]


def new_message(**values: object) -> NewMessage:
    """Return a message of one credit that finishes now, with *values* set."""
    defaults: dict[str, object] = {
        "id": uuid4(),
        "model": "claude-sonnet-4-5",
        "input_tokens": 1,
        "cache_creation_input_tokens": 2,
        "cache_read_input_tokens": 3,
        "output_tokens": 4,
        "finished_at": datetime.now(UTC),
        "cost": Decimal("0.008"),
        "credits": Decimal(1),
    }
    return NewMessage(**{**defaults, **values})  # type: ignore[arg-type]


def usage_differences(
    conn: Connection, subjects: list[UUID] | None = None
) -> list[tuple[object, ...]]:
    """Return what usage_daily has wrong, of these payers or of all."""
    return conn.execute(USAGE_DIFFERENCES, {"subjects": subjects}).fetchall()


def add_months(anchor: datetime, months: int) -> datetime:
    """Return *anchor* plus whole months, in its last days no later than there are."""
    count = anchor.year * 12 + anchor.month - 1 + months
    year, month = divmod(count, 12)
    day = min(anchor.day, monthrange(year, month + 1)[1])
    return anchor.replace(year=year, month=month + 1, day=day)


def period_start(anchor: datetime, moment: datetime) -> datetime:
    """Return the last of the anchor plus n months that is not after *moment*."""
    months = (moment.year - anchor.year) * 12 + moment.month - anchor.month + 1
    while add_months(anchor, months) > moment:
        months -= 1
    return add_months(anchor, months)


def period_end(anchor: datetime, moment: datetime) -> datetime:
    """Return the first of the anchor plus n months that is after *moment*."""
    months = (moment.year - anchor.year) * 12 + moment.month - anchor.month - 1
    while add_months(anchor, months) <= moment:
        months += 1
    return add_months(anchor, months)


@dataclass(frozen=True)
class Period:
    """A quota period, half-open."""

    start: datetime
    end: datetime

    def __contains__(self, moment: datetime) -> bool:
        return self.start <= moment < self.end


def period_at(anchor: datetime, reset: datetime | None, moment: datetime) -> Period:
    """Return the period of a payer at *moment*, as the contract defines it."""
    if reset is None:
        return Period(anchor, moment)
    end = reset if reset > moment else period_end(anchor, moment)
    return Period(period_start(anchor, moment), end)


def credits_in(period: Period, messages: Iterable[NewMessage]) -> Decimal:
    """Return the exact credits of the messages that finished in *period*."""
    return sum(
        (m.credits for m in messages if m.finished_at in period and m.credits),
        start=Decimal(0),
    )

"""Accounts, messages, referrals, and independent recounts of their sums."""

from calendar import monthrange
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from uuid import UUID, uuid4

import pytest
from psycopg import Connection, sql

from pyapp.messages import NewMessage, record_message, record_messages
from pyapp.referrals import redeem_referral
from pyapp.users import get_user

MICROSECOND = timedelta(microseconds=1)

# The columns of messages that insert_messages and copy_messages write.
COLUMNS = """
    subject_id, id, user_id, fingerprint_id, finished_at, input_tokens,
    cache_creation_input_tokens, cache_read_input_tokens, output_tokens, model, cost,
    credits
"""

# Payers and days for which usage_daily differs from the sums of messages.
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

# Payers for which the credits of a period differ from the sum of its messages.
QUOTA_DIFFERENCES = """
    SELECT p.id, q.*, m.credits
    FROM (
        SELECT u.id, u.quota_anchor, u.next_quota_reset, u.quota_period_start
        FROM app.users AS u
        UNION ALL
        SELECT f.id, f.quota_anchor, f.next_quota_reset, f.quota_period_start
        FROM app.fingerprints AS f
    ) AS p
    CROSS JOIN LATERAL app.get_period_usage(
        p.id, p.quota_anchor, p.next_quota_reset, COALESCE(%(at)s, now()),
        p.quota_period_start
    ) AS q
    CROSS JOIN LATERAL (
        SELECT COALESCE(sum(m.credits), 0) AS credits
        FROM app.messages AS m
        WHERE m.subject_id = p.id
            AND m.finished_at >= q.period_start
            AND m.finished_at < q.end_date
    ) AS m
    WHERE q.credits_used IS DISTINCT FROM m.credits
"""

# Users whose totals differ from their completed referrals, or exceed their limit.
REFERRAL_DIFFERENCES = """
    SELECT u.id
    FROM app.users AS u
    LEFT JOIN app.referrals AS r
        ON u.id IN (r.referrer_id, r.referred_id) AND r.status = 'completed'
    WHERE %(users)s::uuid[] IS NULL OR u.id = ANY(%(users)s)
    GROUP BY u.id
    HAVING u.referral_count <> count(*) FILTER (WHERE r.referrer_id = u.id)
        OR u.referral_credits <> COALESCE(sum(r.credits), 0)
        OR u.referral_count > u.referral_limit
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
    """Return a message of one credit that finishes now, with *values* changed."""
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


def record_one(conn: Connection, message: NewMessage) -> tuple[int, Decimal]:
    """Record by record_message; return the new messages and their credits."""
    values = {name: getattr(message, name) for name in NewMessage.__slots__}
    result = record_message(conn, **values)
    assert result.id == message.id
    return int(result.is_new), result.credits


def record_bulk(conn: Connection, message: NewMessage) -> tuple[int, Decimal]:
    """Record by record_messages; return the new messages and their credits."""
    result = record_messages(conn, [message])
    assert result.recorded + result.duplicates == 1
    return result.recorded, result.credits


# For a test of both, with the argument `send`.
either_way = pytest.mark.parametrize("send", [record_one, record_bulk])


def insert_messages(
    conn: Connection,
    messages: Iterable[NewMessage],
    *,
    recorded_at: datetime | None = None,
    on_conflict: str = "",
) -> list[Decimal]:
    """Insert messages by one plain INSERT; return the credits of the new ones."""
    rows = [(*_row(message), recorded_at) for message in messages]
    values = f"({'%s, ' * (len(rows[0]) - 1)}COALESCE(%s, now()))"
    statement = (
        f"INSERT INTO app.messages ({COLUMNS}, recorded_at)"
        f" VALUES {', '.join([values] * len(rows))} {on_conflict} RETURNING credits"
    )
    found = conn.execute(statement.encode(), [value for row in rows for value in row])
    return [credits for (credits,) in found]


def copy_messages(conn: Connection, messages: Iterable[NewMessage]) -> None:
    """Write messages by COPY."""
    statement = f"COPY app.messages ({COLUMNS}) FROM STDIN".encode()
    with conn.cursor() as cursor, cursor.copy(statement) as stream:
        for message in messages:
            stream.write_row(_row(message))


def _row(message: NewMessage) -> tuple[object, ...]:
    return (
        message.user_id or message.fingerprint_id,
        message.id,
        message.user_id,
        message.fingerprint_id,
        message.finished_at,
        message.input_tokens,
        message.cache_creation_input_tokens,
        message.cache_read_input_tokens,
        message.output_tokens,
        message.model,
        message.cost,
        message.credits,
    )


def usage_differences(
    conn: Connection, subjects: list[UUID] | None = None
) -> list[tuple[object, ...]]:
    """Return the wrong rows of usage_daily, of these payers or of all."""
    return conn.execute(USAGE_DIFFERENCES, {"subjects": subjects}).fetchall()


def quota_differences(
    conn: Connection, at: datetime | None = None
) -> list[tuple[object, ...]]:
    """Return the payers whose credits_used differ from messages, now or at a time."""
    return conn.execute(QUOTA_DIFFERENCES, {"at": at}).fetchall()


def refer(conn: Connection, referrer: UUID, referred: UUID) -> None:
    """Complete a referral between two users."""
    code = get_user(conn, user_id=referrer).referral_code
    redeem_referral(conn, referral_code=code, referred_id=referred)


def referral_totals(conn: Connection, *users: UUID) -> list[tuple[int, int]]:
    """Return referral_count and referral_credits of each user."""
    found = [get_user(conn, user_id=user) for user in users]
    return [(user.referral_count, int(user.referral_credits)) for user in found]


def referral_differences(
    conn: Connection, users: list[UUID] | None = None
) -> list[tuple[object, ...]]:
    """Return the users with wrong referral totals, of these or of all."""
    return conn.execute(REFERRAL_DIFFERENCES, {"users": users}).fetchall()


def add_months(anchor: datetime, months: int) -> datetime:
    """Return *anchor* plus whole months; a missing day becomes the month's last."""
    count = anchor.year * 12 + anchor.month - 1 + months
    year, month = divmod(count, 12)
    day = min(anchor.day, monthrange(year, month + 1)[1])
    return anchor.replace(year=year, month=month + 1, day=day)


def period_start(anchor: datetime, moment: datetime) -> datetime:
    """Return the last boundary that is not after *moment*."""
    months = (moment.year - anchor.year) * 12 + moment.month - anchor.month + 1
    while add_months(anchor, months) > moment:
        months -= 1
    return add_months(anchor, months)


def period_end(anchor: datetime, moment: datetime) -> datetime:
    """Return the first boundary that is after *moment*."""
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
    """Return the period of a payer at *moment*."""
    if reset is None:
        return Period(anchor, moment)
    end = reset if reset > moment else period_end(anchor, moment)
    return Period(period_start(anchor, moment), end)


def credits_in(period: Period, messages: Iterable[NewMessage]) -> Decimal:
    """Return the sum of the credits of the messages that finished in *period*."""
    return sum(
        (m.credits for m in messages if m.finished_at in period and m.credits),
        start=Decimal(0),
    )

"""Compares the stored sums with their rows, and repairs them while writers continue."""

from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import date
from decimal import Decimal
from typing import Any, Generic, TypeVar
from uuid import UUID

import psycopg
from psycopg.rows import class_row

from pyapp._core.queries import TOOL_QUERIES
from pyapp._core.run import execute, fetch_one
from pyapp._core.tool_sessions import connect_unlimited
from pyapp.errors import ReferralLimitReachedError

R = TypeVar("R")
# The columns of usage_daily that are sums, the most important first.
SUMS = (
    "credits",
    "cost",
    "messages",
    "input_tokens",
    "output_tokens",
    "cache_creation_input_tokens",
    "cache_read_input_tokens",
)
# The longest wait of a repair for a row that another transaction has locked.
LOCK_WAIT_MS = 5000


@dataclass(frozen=True, slots=True)
class UsageDrift:
    """A payer's UTC day: the sums in usage_daily, and the sums of its messages.

    Kept values are None if usage_daily has no row, recorded values if there are no
    messages.
    """

    subject_id: UUID
    day: date
    kept_messages: int | None
    recorded_messages: int | None
    kept_input_tokens: int | None
    recorded_input_tokens: int | None
    kept_cache_creation_input_tokens: int | None
    recorded_cache_creation_input_tokens: int | None
    kept_cache_read_input_tokens: int | None
    recorded_cache_read_input_tokens: int | None
    kept_output_tokens: int | None
    recorded_output_tokens: int | None
    kept_cost: Decimal | None
    recorded_cost: Decimal | None
    kept_credits: Decimal | None
    recorded_credits: Decimal | None

    def differences(self) -> dict[str, Decimal]:
        """Return kept minus recorded for each column that differs."""
        pairs = {
            name: (getattr(self, f"kept_{name}"), getattr(self, f"recorded_{name}"))
            for name in SUMS
        }
        return {
            name: Decimal(kept or 0) - Decimal(recorded or 0)
            for name, (kept, recorded) in pairs.items()
            if kept != recorded
        }


@dataclass(frozen=True, slots=True)
class ReferralDrift:
    """A user's stored totals, and the sums of the user's completed referrals."""

    user_id: UUID
    referral_limit: int
    kept_count: int
    completed_count: int
    kept_credits: Decimal
    granted_credits: Decimal

    @property
    def is_wrong(self) -> bool:
        """Whether a repair changes the user; extra credits given by hand are kept."""
        return (
            self.kept_count != self.completed_count
            or self.kept_credits < self.granted_credits
        )

    @property
    def is_raised(self) -> bool:
        """Whether the user has more credits than the referrals granted."""
        return self.kept_credits > self.granted_credits


@dataclass(slots=True)
class Drift(Generic[R]):
    """The number of rows that differ and of those repaired, and the first rows."""

    limit: int
    found: int = 0
    repaired: int = 0
    rows: list[R] = field(default_factory=list)

    def add(self, row: R) -> None:
        """Count *row*, and keep it if fewer than `limit` are kept."""
        self.found += 1
        if len(self.rows) < self.limit:
            self.rows.append(row)


@dataclass(frozen=True, slots=True)
class DataCheck:
    """The result of a check.

    `raised` are users with more referral credits than granted, which is not drift;
    `over_limit` users whose repaired count would exceed their referral_limit; `locked`
    rows that another transaction kept locked for too long.
    """

    days: int
    users: int
    usage: Drift[UsageDrift]
    referrals: Drift[ReferralDrift]
    raised: Drift[ReferralDrift]
    over_limit: Drift[ReferralDrift]
    locked: Drift[UsageDrift | ReferralDrift]

    @property
    def remaining(self) -> int:
        """The number of rows that still differ."""
        return sum(
            drift.found - drift.repaired for drift in (self.usage, self.referrals)
        )


@dataclass(frozen=True, slots=True)
class _Compared:
    days: int
    users: int


def check_data(url: str, *, limit: int, is_repairing: bool = False) -> DataCheck:
    """Compare the sums at *url* with their rows; keep the first *limit* of each kind.

    Writers are not blocked. A repair locks one payer's day, or one user, at a time, and
    commits after each.

    Raises:
        DatabaseUnavailableError: the server is not healthy.
    """
    with connect_unlimited(url) as reader, connect_unlimited(url) as repairer:
        reader.read_only = True
        repairer.isolation_level = psycopg.IsolationLevel.READ_COMMITTED
        compared = fetch_one(reader, _Compared, "count_compared")
        result = DataCheck(
            compared.days, compared.users, *(Drift(limit) for _ in range(5))
        )
        for day in _stream(reader, "list_usage_drift", UsageDrift):
            result.usage.add(day)
            if is_repairing:
                key = {"subject_id": day.subject_id, "day": day.day}
                if _repair(repairer, "repair_usage_day", **key):
                    result.usage.repaired += 1
                else:
                    result.locked.add(day)
        for user in _stream(reader, "list_referral_drift", ReferralDrift):
            if user.is_raised:
                result.raised.add(user)
            if user.is_wrong:
                result.referrals.add(user)
                if is_repairing:
                    _repair_user(repairer, user, result)
    return result


def _repair_user(
    conn: psycopg.Connection[Any], user: ReferralDrift, result: DataCheck
) -> None:
    try:
        is_done = _repair(conn, "repair_referral_totals", user_id=user.user_id)
    except ReferralLimitReachedError:
        result.over_limit.add(user)
        return
    if is_done:
        result.referrals.repaired += 1
    else:
        result.locked.add(user)


def _repair(conn: psycopg.Connection[Any], name: str, **key: Any) -> bool:
    """Repair one row in its own transaction; return False if it stays locked."""
    try:
        with conn.transaction():
            execute(conn, "set_lock_timeout", milliseconds=LOCK_WAIT_MS)
            execute(conn, name, **key)
    except psycopg.errors.LockNotAvailable:
        return False
    return True


def _stream(conn: psycopg.Connection[Any], name: str, row: type[R]) -> Iterator[R]:
    """Yield the rows of the query *name*; the client holds one at a time."""
    with conn.cursor(row_factory=class_row(row)) as cursor:
        yield from cursor.stream(TOOL_QUERIES[name].sql)

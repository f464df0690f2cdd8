"""Quota: the credits that a payer has used in the period, and the credits left."""

from datetime import datetime
from decimal import Decimal
from typing import Any, NamedTuple
from uuid import UUID

from psycopg import Connection

from pyapp._core.run import fetch_all, fetch_one
from pyapp._core.validation import validated
from pyapp.errors import (
    FingerprintNotFoundError,
    InvalidValueError,
    UserNotFoundError,
)


class Quota(NamedTuple):
    """A payer's quota for the period [`period_start`, `end_date`), in credits.

    `is_exceeded` is `credits_used` >= `quota`; `is_blocked` is exceeded without an
    active subscription. `credits_remaining` is at least 0. Times are aware, in the
    connection's time zone.
    """

    subject_id: UUID
    period_start: datetime
    end_date: datetime
    quota: Decimal
    credits_used: Decimal
    subscription_active: bool
    credits_remaining: Decimal
    is_exceeded: bool
    is_blocked: bool


class UserQuota(NamedTuple):
    """A user's `Quota` in a list; `email` is None once the user is anonymized."""

    subject_id: UUID
    email: str | None
    period_start: datetime
    end_date: datetime
    quota: Decimal
    credits_used: Decimal
    subscription_active: bool
    credits_remaining: Decimal
    is_exceeded: bool
    is_blocked: bool


@validated
def get_user_quota(
    conn: Connection[Any], *, user_id: UUID, at: datetime | None = None
) -> Quota:
    """Return the user's quota for the period that contains *at* (default: now).

    Now is the transaction's start. *at* replaces it, but the next reset is the one
    known today: for an instant before the current period, the period reaches to that
    reset, and `usage.list_usage` returns the usage by day. For a user whose
    quota never resets, the period ends at *at*.

    Raises:
        UserNotFoundError: there is no such user.
    """
    return fetch_one(
        conn,
        Quota,
        "get_user_quota",
        missing=UserNotFoundError(f"no user {user_id}"),
        user_id=user_id,
        at=_instant(at),
    )


@validated
def get_fingerprint_quota(
    conn: Connection[Any], *, fingerprint_id: UUID, at: datetime | None = None
) -> Quota:
    """Return the fingerprint's quota for the period that contains *at* (default: now).

    Raises:
        FingerprintNotFoundError: there is no such fingerprint.
    """
    return fetch_one(
        conn,
        Quota,
        "get_fingerprint_quota",
        missing=FingerprintNotFoundError(f"no fingerprint {fingerprint_id}"),
        fingerprint_id=fingerprint_id,
        at=_instant(at),
    )


@validated
def list_user_quotas(
    conn: Connection[Any],
    *,
    at: datetime | None = None,
    after: UUID | None = None,
    limit: int = 100,
) -> list[UserQuota]:
    """Return the quotas of up to *limit* users by id, anonymized ones included.

    For the next page, *after* is the last row's `subject_id`.
    """
    return fetch_all(
        conn, UserQuota, "list_user_quotas", at=_instant(at), after=after, limit=limit
    )


@validated
def list_fingerprint_quotas(
    conn: Connection[Any],
    *,
    at: datetime | None = None,
    after: UUID | None = None,
    limit: int = 100,
) -> list[Quota]:
    """Return the quotas of up to *limit* fingerprints by id.

    For the next page, *after* is the last row's `subject_id`.
    """
    return fetch_all(
        conn,
        Quota,
        "list_fingerprint_quotas",
        at=_instant(at),
        after=after,
        limit=limit,
    )


def _instant(at: datetime | None) -> datetime | str:
    # The period's boundaries must be in years that Python's datetime can hold.
    if at is not None and not 2 <= at.year <= 9998:
        raise InvalidValueError(f"at must be in the years 2 to 9998, not {at}")
    # PostgreSQL reads 'now' as the transaction's start.
    return at or "now"

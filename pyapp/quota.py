"""Quota: how much of it a payer has used in the period, and what is left."""

from dataclasses import dataclass
from datetime import datetime
from decimal import Decimal
from uuid import UUID

from pyapp._core.calls import Call, many, one, query
from pyapp.errors import (
    FingerprintNotFoundError,
    InvalidValueError,
    UserNotFoundError,
)


@dataclass(frozen=True, slots=True)
class Quota:
    """A payer's quota for the period [`period_start`, `end_date`), in credits.

    `is_exceeded` from `credits_used` = `quota` on; `is_blocked` is exceeded without an
    active subscription. Nothing remains below 0. Times are aware, in the connection's
    time zone.
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


@dataclass(frozen=True, slots=True)
class UserQuota:
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


@query
def get_user_quota(*, user_id: UUID, at: datetime | None = None) -> Call[Quota]:
    """Return the user's quota in the period that holds the instant *at*, else now.

    Now is the transaction's, and *at* stands for it, with the reset that is known
    today: from an instant before the current period, the answer reaches to that reset,
    and `messages.list_daily_usage` says what was used day by day. For a user whose
    quota never resets, the period ends at that instant.

    Raises:
        UserNotFoundError: there is no such user.
    """
    return one(
        Quota,
        {"user_id": user_id, "at": _instant(at)},
        missing=lambda: UserNotFoundError(f"no user {user_id}"),
    )


@query
def get_fingerprint_quota(
    *, fingerprint_id: UUID, at: datetime | None = None
) -> Call[Quota]:
    """Return the device's quota in the period that holds the instant *at*, else now.

    Raises:
        FingerprintNotFoundError: there is no such fingerprint.
    """
    return one(
        Quota,
        {"fingerprint_id": fingerprint_id, "at": _instant(at)},
        missing=lambda: FingerprintNotFoundError(f"no fingerprint {fingerprint_id}"),
    )


@query
def list_user_quotas(
    *, at: datetime | None = None, after: UUID | None = None, limit: int = 100
) -> Call[list[UserQuota]]:
    """Return the quotas of *limit* users by id, anonymized ones included.

    Start again with *after* the last one's `subject_id` to get the next page.
    """
    return many(UserQuota, {"at": _instant(at), "after": after, "limit": limit})


@query
def list_fingerprint_quotas(
    *, at: datetime | None = None, after: UUID | None = None, limit: int = 100
) -> Call[list[Quota]]:
    """Return the quotas of *limit* fingerprints by id.

    Start again with *after* the last one's `subject_id` to get the next page.
    """
    return many(Quota, {"at": _instant(at), "after": after, "limit": limit})


def _instant(at: datetime | None) -> datetime | str:
    # The period around it must begin and end in years that Python has.
    if at is not None and not 2 <= at.year <= 9998:
        raise InvalidValueError(f"at must be in the years 2 to 9998, not {at}")
    # PostgreSQL's own word for the time of the transaction.
    return at or "now"

"""Referrals: users who refer new users, and the credits granted to both.

Users are found by the code in their link. An anonymized user can neither refer nor be
referred; credits granted before stay.
"""

from datetime import datetime
from decimal import Decimal
from typing import Any, Literal, NamedTuple
from uuid import UUID

from psycopg import Connection

from pyapp._core.config import configured_referral_bonus
from pyapp._core.run import atomic, fetch_all, fetch_one, fetch_optional
from pyapp._core.sanitize import storable_text
from pyapp._core.validation import (
    MAX_REFERRAL_CREDITS,
    check_amount,
    check_cursor,
    validated,
)
from pyapp.errors import (
    ReferralCodeNotFoundError,
    ReferralNotFoundError,
    UserNotFoundError,
)


class Referral(NamedTuple):
    """A referral; once completed it is final, and both users were granted `credits`."""

    referrer_id: UUID
    referred_id: UUID
    status: Literal["pending", "completed"]
    credits: Decimal
    created_at: datetime
    completed_at: datetime | None


class ReferralSummary(NamedTuple):
    """A user's referrals and referral credits.

    `referral_credits` are the credits per period granted to the user as referrer and as
    referred. `referrer_id` is the user's referrer, or None.
    """

    referral_code: str
    referral_limit: int
    referral_count: int
    referral_credits: Decimal
    referrer_id: UUID | None
    pending_count: int


@validated
def redeem_referral(
    conn: Connection[Any],
    *,
    referral_code: str,
    referred_id: UUID,
    credits: Decimal | None = None,
) -> Referral:
    """Refer the user by the code, completed at once and final; return the referral.

    Both users are granted *credits* in the same transaction: at most 1,000,000, by
    default PYAPP_REFERRAL_BONUS.

    Raises:
        ReferralCodeNotFoundError: no user has this code.
        UserNotFoundError: there is no such user to be referred.
        SelfReferralError: the code is the user's own.
        AlreadyReferredError: the user was referred before; cancel_referral ends a
            referral that is still pending.
        MutualReferralError: the user has referred the code's owner; cancel_referral
            ends that referral while it is pending.
        ReferralLimitReachedError: the code's owner has reached referral_limit.
        ConfigError: *credits* is not given and PYAPP_REFERRAL_BONUS is not an amount.
    """
    credits = _checked(credits)
    with atomic(conn):
        return fetch_one(
            conn,
            Referral,
            "redeem_referral",
            missing=ReferralCodeNotFoundError("no user has this referral code"),
            referral_code=_normalized(referral_code),
            referred_id=referred_id,
            credits=credits,
        )


@validated
def create_referral(
    conn: Connection[Any],
    *,
    referral_code: str,
    referred_id: UUID,
    credits: Decimal | None = None,
) -> Referral:
    """Record a pending referral of the user by the code, and return it.

    Nothing is counted or granted until complete_referral; *credits* is as in
    redeem_referral.

    Raises: as redeem_referral, except that the limit does not apply yet.
    """
    credits = _checked(credits)
    with atomic(conn):
        return fetch_one(
            conn,
            Referral,
            "create_referral",
            missing=ReferralCodeNotFoundError("no user has this referral code"),
            referral_code=_normalized(referral_code),
            referred_id=referred_id,
            credits=credits,
        )


@validated
def complete_referral(conn: Connection[Any], *, referred_id: UUID) -> Referral:
    """Complete the user's pending referral, grant its credits, and return it.

    Raises:
        ReferralNotFoundError: none is pending, or one of the two users is anonymized.
        ReferralLimitReachedError: the referrer has reached referral_limit.
    """
    missing = ReferralNotFoundError(f"no pending referral of {referred_id}")
    with atomic(conn):
        return fetch_one(
            conn,
            Referral,
            "complete_referral",
            missing=missing,
            referred_id=referred_id,
        )


@validated
def cancel_referral(conn: Connection[Any], *, referred_id: UUID) -> Referral:
    """Delete the user's pending referral and return it as it was.

    The user can then be referred again. A completed referral is final.

    Raises:
        ReferralNotFoundError: none is pending.
    """
    missing = ReferralNotFoundError(f"no pending referral of {referred_id}")
    return fetch_one(
        conn, Referral, "cancel_referral", missing=missing, referred_id=referred_id
    )


@validated
def get_referral_summary(conn: Connection[Any], *, user_id: UUID) -> ReferralSummary:
    """Return the user's code, limit, counts, credits and referrer.

    Raises:
        UserNotFoundError: there is no such user.
    """
    missing = UserNotFoundError(f"no user {user_id}")
    return fetch_one(
        conn, ReferralSummary, "get_referral_summary", missing=missing, user_id=user_id
    )


@validated
def find_referral(conn: Connection[Any], *, referred_id: UUID) -> Referral | None:
    """Return the referral of the user by another, or None if there is none."""
    return fetch_optional(conn, Referral, "find_referral", referred_id=referred_id)


@validated
def list_referrals(
    conn: Connection[Any],
    *,
    user_id: UUID,
    before: datetime | None = None,
    before_id: UUID | None = None,
    limit: int = 100,
) -> list[Referral]:
    """Return up to *limit* referrals that the user has made, the newest first.

    For the next page, *before* and *before_id* are the last row's `created_at` and
    `referred_id`; *before* alone selects the referrals made before that instant.
    """
    check_cursor("before", before, before_id)
    return fetch_all(
        conn,
        Referral,
        "list_referrals",
        user_id=user_id,
        before=before,
        before_id=before_id,
        limit=limit,
    )


def _checked(credits: Decimal | None) -> Decimal:
    if credits is None:
        credits = configured_referral_bonus()
    return check_amount("credits", credits, MAX_REFERRAL_CREDITS)


def _normalized(referral_code: str) -> str:
    return storable_text(referral_code).strip().lower()

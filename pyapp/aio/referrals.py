# Generated from pyapp/referrals.py by .ci/generate_aio.py; do not edit.
"""Referrals: users who refer new users, and the credits granted to both.

Users are found by the code in their link. An anonymized user can neither refer nor be
referred; credits granted before stay.
"""

from datetime import datetime
from decimal import Decimal
from typing import Any
from uuid import UUID

from psycopg import AsyncConnection

from pyapp._core.run_async import atomic, fetch_all, fetch_one, fetch_optional
from pyapp._core.validation import check_cursor, validated
from pyapp.errors import (
    ReferralCodeNotFoundError,
    ReferralNotFoundError,
    UserNotFoundError,
)
from pyapp.referrals import Referral, ReferralSummary, _checked, _normalized


@validated
async def redeem_referral(
    conn: AsyncConnection[Any],
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
    async with atomic(conn):
        return await fetch_one(
            conn,
            Referral,
            "redeem_referral",
            missing=ReferralCodeNotFoundError("no user has this referral code"),
            referral_code=_normalized(referral_code),
            referred_id=referred_id,
            credits=credits,
        )


@validated
async def create_referral(
    conn: AsyncConnection[Any],
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
    async with atomic(conn):
        return await fetch_one(
            conn,
            Referral,
            "create_referral",
            missing=ReferralCodeNotFoundError("no user has this referral code"),
            referral_code=_normalized(referral_code),
            referred_id=referred_id,
            credits=credits,
        )


@validated
async def complete_referral(
    conn: AsyncConnection[Any], *, referred_id: UUID
) -> Referral:
    """Complete the user's pending referral, grant its credits, and return it.

    Raises:
        ReferralNotFoundError: none is pending, or one of the two users is anonymized.
        ReferralLimitReachedError: the referrer has reached referral_limit.
    """
    missing = ReferralNotFoundError(f"no pending referral of {referred_id}")
    async with atomic(conn):
        return await fetch_one(
            conn,
            Referral,
            "complete_referral",
            missing=missing,
            referred_id=referred_id,
        )


@validated
async def cancel_referral(conn: AsyncConnection[Any], *, referred_id: UUID) -> Referral:
    """Delete the user's pending referral and return it as it was.

    The user can then be referred again. A completed referral is final.

    Raises:
        ReferralNotFoundError: none is pending.
    """
    missing = ReferralNotFoundError(f"no pending referral of {referred_id}")
    return await fetch_one(
        conn, Referral, "cancel_referral", missing=missing, referred_id=referred_id
    )


@validated
async def get_referral_summary(
    conn: AsyncConnection[Any], *, user_id: UUID
) -> ReferralSummary:
    """Return the user's code, limit, counts, credits and referrer.

    Raises:
        UserNotFoundError: there is no such user.
    """
    missing = UserNotFoundError(f"no user {user_id}")
    return await fetch_one(
        conn, ReferralSummary, "get_referral_summary", missing=missing, user_id=user_id
    )


@validated
async def find_referral(
    conn: AsyncConnection[Any], *, referred_id: UUID
) -> Referral | None:
    """Return the referral of the user by another, or None if there is none."""
    return await fetch_optional(
        conn, Referral, "find_referral", referred_id=referred_id
    )


@validated
async def list_referrals(
    conn: AsyncConnection[Any],
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
    return await fetch_all(
        conn,
        Referral,
        "list_referrals",
        user_id=user_id,
        before=before,
        before_id=before_id,
        limit=limit,
    )

"""Referrals: who referred whom, and what both got for it.

Users are found by the code in their link. An anonymized user neither refers nor is
referred any more; what he was granted before stays.
"""

from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime
from decimal import Decimal
from typing import Literal
from uuid import UUID

from pyapp._core.calls import Call, many, one, query
from pyapp._core.config import configured_referral_bonus
from pyapp._core.sanitize import storable_text
from pyapp._core.validation import MAX_REFERRAL_CREDITS, check_amount, check_cursor
from pyapp.errors import (
    ReferralCodeNotFoundError,
    ReferralNotFoundError,
    UserNotFoundError,
)


@dataclass(frozen=True, slots=True)
class Referral:
    """A referral; once completed it is final, and both have been granted `credits`."""

    referrer_id: UUID
    referred_id: UUID
    status: Literal["pending", "completed"]
    credits: Decimal
    created_at: datetime
    completed_at: datetime | None


@dataclass(frozen=True, slots=True)
class ReferralSummary:
    """What a user has to do with referrals.

    `referral_credits` are those he was granted on either side, in credits a period.
    `referrer_id` is who referred him, None if nobody did.
    """

    referral_code: str
    referral_limit: int
    referral_count: int
    referral_credits: Decimal
    referrer_id: UUID | None
    pending_count: int


@query
def redeem_referral(
    *,
    referral_code: str,
    referred_id: UUID,
    credits: Decimal | None = None,
) -> Call[Referral]:
    """Refer the user by the code, at once and for good, and return the referral.

    Both users are granted *credits*, at most 1,000,000 and PYAPP_REFERRAL_BONUS if not
    given, in the same transaction.

    Raises:
        ReferralCodeNotFoundError: no user has this code.
        UserNotFoundError: there is no such user to be referred.
        SelfReferralError: the code is the user's own.
        AlreadyReferredError: the user was referred before; cancel_referral ends a
            referral that is still pending.
        MutualReferralError: the user has referred the code's owner; cancel_referral
            ends that referral while it is pending.
        ReferralLimitReachedError: the code's owner has reached referral_limit.
        ConfigError: *credits* are not given, and what is configured is no amount.
    """
    return _new_referral(referral_code, referred_id, credits)


@query
def create_referral(
    *,
    referral_code: str,
    referred_id: UUID,
    credits: Decimal | None = None,
) -> Call[Referral]:
    """Note that the user came by the code, to be completed later; return the referral.

    Nothing is counted or granted yet; *credits* are as in redeem_referral.

    Raises: as redeem_referral, except that the limit does not apply yet.
    """
    return _new_referral(referral_code, referred_id, credits)


@query
def complete_referral(*, referred_id: UUID) -> Call[Referral]:
    """Complete the user's pending referral, grant its credits, and return it.

    Raises:
        ReferralNotFoundError: none is pending, or one of the two has been anonymized.
        ReferralLimitReachedError: the referrer has referred as many as he may.
    """
    return one(
        Referral,
        {"referred_id": referred_id},
        missing=_none_pending(referred_id),
        is_guarded=True,
    )


@query
def cancel_referral(*, referred_id: UUID) -> Call[Referral]:
    """Delete the user's pending referral and return it as it was.

    The user can then be referred again. A completed referral is final.

    Raises:
        ReferralNotFoundError: none is pending.
    """
    return one(
        Referral, {"referred_id": referred_id}, missing=_none_pending(referred_id)
    )


@query
def get_referral_summary(*, user_id: UUID) -> Call[ReferralSummary]:
    """Return the user's code, limit, counts and credits, and who referred him.

    Raises:
        UserNotFoundError: there is no such user.
    """
    return one(
        ReferralSummary,
        {"user_id": user_id},
        missing=lambda: UserNotFoundError(f"no user {user_id}"),
    )


@query
def list_referrals(
    *,
    user_id: UUID,
    before: datetime | None = None,
    before_id: UUID | None = None,
    limit: int = 100,
) -> Call[list[Referral]]:
    """Return *limit* referrals that the user has made, the newest first.

    For the next page, *before* and *before_id* are the last one's `created_at` and
    `referred_id`; with *before* alone, those made before that instant.
    """
    check_cursor("before", before, before_id)
    cursor = {"before": before, "before_id": before_id, "limit": limit}
    return many(Referral, {"user_id": user_id, **cursor})


def _none_pending(referred_id: UUID) -> Callable[[], ReferralNotFoundError]:
    return lambda: ReferralNotFoundError(f"no pending referral of {referred_id}")


def _new_referral(
    code: str, referred_id: UUID, credits: Decimal | None
) -> Call[Referral]:
    if credits is None:
        credits = configured_referral_bonus()
    check_amount("credits", credits, MAX_REFERRAL_CREDITS)
    parameters = {
        "referral_code": storable_text(code).strip().lower(),
        "referred_id": referred_id,
        "credits": credits,
    }
    return one(
        Referral,
        parameters,
        missing=lambda: ReferralCodeNotFoundError("no user has this referral code"),
        is_guarded=True,
    )

"""Entitlements: what each user should have by the Stripe mirror, and until when.

The view `app.stripe_entitlements` derives them; the Stripe sync copies them to users.
"""

from datetime import datetime
from decimal import Decimal
from typing import Any, NamedTuple
from uuid import UUID

from psycopg import Connection

from pyapp._core.run import fetch_all, fetch_one
from pyapp._core.validation import validated
from pyapp.errors import UserNotFoundError


class Entitlement(NamedTuple):
    """What a user has by its best subscription item, and what is to end.

    `plan_id` is the plan that the item buys. It is None if the quota is that of the
    plan `free`; `reason` then says why. `base_quota` is in credits per period, without
    `referral_credits`.

    `subscription_status` is Stripe's; it is active if that is active, trialing or past
    due. `ends_at` is when a cancellation ends the subscription, or has ended it;
    `trial_end` when its trial ends, or has ended. `pause_behavior` is Stripe's word for
    paused payments, which take nothing away, and `pause_resumes_at` the time at which
    payments resume. Each is None if it does not apply. Times are aware, in the
    connection's time zone.

    `differences` names the groups of columns of `users` that the next sync will change.
    """

    user_id: UUID
    stripe_customer_id: str | None
    stripe_subscription_id: str | None
    stripe_price_id: str | None
    plan_id: str | None
    subscription_status: str | None
    subscription_active: bool
    base_quota: Decimal
    ends_at: datetime | None
    trial_end: datetime | None
    pause_behavior: str | None
    pause_resumes_at: datetime | None
    reason: str | None
    differences: list[str]


@validated
def get_entitlement(conn: Connection[Any], *, user_id: UUID) -> Entitlement:
    """Return what the user should have by the Stripe mirror.

    Raises:
        UserNotFoundError: there is no such user.
    """
    missing = UserNotFoundError(f"no user {user_id}")
    return fetch_one(
        conn, Entitlement, "get_entitlement", missing=missing, user_id=user_id
    )


@validated
def list_entitlements(
    conn: Connection[Any], *, after: UUID | None = None, limit: int = 100
) -> list[Entitlement]:
    """Return the entitlements of up to *limit* users by id, anonymized ones included.

    For the next page, *after* is the last row's `user_id`.
    """
    return fetch_all(conn, Entitlement, "list_entitlements", after=after, limit=limit)

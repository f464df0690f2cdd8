# Generated from pyapp/entitlements.py by .ci/generate_aio.py; do not edit.
"""Entitlements: what each user should have by the Stripe mirror, and until when.

The view `app.stripe_entitlements` derives them; the Stripe sync copies them to users.
"""

from typing import Any
from uuid import UUID

from psycopg import AsyncConnection

from pyapp._core.run_async import fetch_all, fetch_one
from pyapp._core.validation import validated
from pyapp.entitlements import Entitlement
from pyapp.errors import UserNotFoundError


@validated
async def get_entitlement(conn: AsyncConnection[Any], *, user_id: UUID) -> Entitlement:
    """Return what the user should have by the Stripe mirror.

    Raises:
        UserNotFoundError: there is no such user.
    """
    missing = UserNotFoundError(f"no user {user_id}")
    return await fetch_one(
        conn, Entitlement, "get_entitlement", missing=missing, user_id=user_id
    )


@validated
async def list_entitlements(
    conn: AsyncConnection[Any], *, after: UUID | None = None, limit: int = 100
) -> list[Entitlement]:
    """Return the entitlements of up to *limit* users by id, anonymized ones included.

    For the next page, *after* is the last row's `user_id`.
    """
    return await fetch_all(
        conn, Entitlement, "list_entitlements", after=after, limit=limit
    )

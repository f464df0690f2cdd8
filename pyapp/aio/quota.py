# Generated from pyapp/quota.py by .ci/generate_aio.py; do not edit.
"""Quota: the credits that a payer has used in the period, and the credits left."""

from datetime import datetime
from typing import Any
from uuid import UUID

from psycopg import AsyncConnection

from pyapp._core.run_async import fetch_all, fetch_one
from pyapp._core.validation import validated
from pyapp.errors import FingerprintNotFoundError, UserNotFoundError
from pyapp.quota import Quota, UserQuota, _instant


@validated
async def get_user_quota(
    conn: AsyncConnection[Any], *, user_id: UUID, at: datetime | None = None
) -> Quota:
    """Return the user's quota for the period that contains *at* (default: now).

    Now is the transaction's start. *at* replaces it, but the next reset is the one
    known today: for an instant before the current period, the period reaches to that
    reset, and `usage.list_usage` returns the usage by day. For a user whose
    quota never resets, the period ends at *at*.

    Raises:
        UserNotFoundError: there is no such user.
    """
    return await fetch_one(
        conn,
        Quota,
        "get_user_quota",
        missing=UserNotFoundError(f"no user {user_id}"),
        user_id=user_id,
        at=_instant(at),
    )


@validated
async def get_fingerprint_quota(
    conn: AsyncConnection[Any], *, fingerprint_id: UUID, at: datetime | None = None
) -> Quota:
    """Return the fingerprint's quota for the period that contains *at* (default: now).

    Raises:
        FingerprintNotFoundError: there is no such fingerprint.
    """
    return await fetch_one(
        conn,
        Quota,
        "get_fingerprint_quota",
        missing=FingerprintNotFoundError(f"no fingerprint {fingerprint_id}"),
        fingerprint_id=fingerprint_id,
        at=_instant(at),
    )


@validated
async def list_user_quotas(
    conn: AsyncConnection[Any],
    *,
    at: datetime | None = None,
    after: UUID | None = None,
    limit: int = 100,
) -> list[UserQuota]:
    """Return the quotas of up to *limit* users by id, anonymized ones included.

    For the next page, *after* is the last row's `subject_id`.
    """
    return await fetch_all(
        conn, UserQuota, "list_user_quotas", at=_instant(at), after=after, limit=limit
    )


@validated
async def list_fingerprint_quotas(
    conn: AsyncConnection[Any],
    *,
    at: datetime | None = None,
    after: UUID | None = None,
    limit: int = 100,
) -> list[Quota]:
    """Return the quotas of up to *limit* fingerprints by id.

    For the next page, *after* is the last row's `subject_id`.
    """
    return await fetch_all(
        conn,
        Quota,
        "list_fingerprint_quotas",
        at=_instant(at),
        after=after,
        limit=limit,
    )

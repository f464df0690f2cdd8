# Generated from pyapp/fingerprints.py by .ci/generate_aio.py; do not edit.
"""Fingerprints: anonymous devices, each with its own quota."""

from typing import Any
from uuid import UUID

from psycopg import AsyncConnection

from pyapp._core.run_async import fetch_all, fetch_one
from pyapp._core.sanitize import optional_text
from pyapp._core.validation import validated
from pyapp.errors import FingerprintNotFoundError, refusal
from pyapp.fingerprints import Fingerprint, UserFingerprint


@validated
async def upsert_fingerprint(
    conn: AsyncConnection[Any],
    *,
    fingerprint_id: UUID | None = None,
    sig_hash: str | None = None,
) -> Fingerprint:
    """Return the fingerprint, created if it is new; without an id it is always new.

    A *sig_hash* replaces the stored one; None keeps it.

    Raises:
        FingerprintIsUserError: the id is a user's.
    """
    return await fetch_one(
        conn,
        Fingerprint,
        "upsert_fingerprint",
        missing=refusal("fingerprints_refuse_user_id"),
        fingerprint_id=fingerprint_id,
        sig_hash=optional_text(sig_hash),
    )


@validated
async def get_fingerprint(
    conn: AsyncConnection[Any], *, fingerprint_id: UUID
) -> Fingerprint:
    """Return the fingerprint.

    Raises:
        FingerprintNotFoundError: there is no such fingerprint.
    """
    return await fetch_one(
        conn,
        Fingerprint,
        "get_fingerprint",
        missing=FingerprintNotFoundError(f"no fingerprint {fingerprint_id}"),
        fingerprint_id=fingerprint_id,
    )


@validated
async def list_user_fingerprints(
    conn: AsyncConnection[Any], *, user_id: UUID, limit: int = 1000
) -> list[UserFingerprint]:
    """Return up to *limit* fingerprints of the user, by id.

    Those that only an expired session named are not known any more once it is deleted.
    """
    return await fetch_all(
        conn, UserFingerprint, "list_user_fingerprints", user_id=user_id, limit=limit
    )

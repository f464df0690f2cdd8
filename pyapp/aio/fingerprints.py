# Generated from pyapp/fingerprints.py by .ci/generate_aio.py; do not edit.
"""Fingerprints: anonymous devices, each with its own quota."""

from typing import Any
from uuid import UUID

from psycopg import AsyncConnection

from pyapp._core.run_async import fetch_one
from pyapp._core.sanitize import optional_text
from pyapp._core.validation import validated
from pyapp.errors import FingerprintNotFoundError, refusal
from pyapp.fingerprints import Fingerprint


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

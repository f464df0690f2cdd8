"""Fingerprints: anonymous devices, each with its own quota."""

from datetime import datetime
from decimal import Decimal
from typing import Any, NamedTuple
from uuid import UUID

from psycopg import Connection

from pyapp._core.run import fetch_one
from pyapp._core.sanitize import optional_text
from pyapp._core.validation import validated
from pyapp.errors import FingerprintNotFoundError, refusal


class Fingerprint(NamedTuple):
    """A fingerprint; for its quota's period and usage see `pyapp.quota`.

    `base_quota` is in credits per period. `sig_hash` is None if none was given.
    """

    id: UUID
    sig_hash: str | None
    base_quota: Decimal
    created_at: datetime


@validated
def upsert_fingerprint(
    conn: Connection[Any],
    *,
    fingerprint_id: UUID | None = None,
    sig_hash: str | None = None,
) -> Fingerprint:
    """Return the fingerprint, created if it is new; without an id it is always new.

    A *sig_hash* replaces the stored one; None keeps it.

    Raises:
        FingerprintIsUserError: the id is a user's.
    """
    return fetch_one(
        conn,
        Fingerprint,
        "upsert_fingerprint",
        missing=refusal("fingerprints_refuse_user_id"),
        fingerprint_id=fingerprint_id,
        sig_hash=optional_text(sig_hash),
    )


@validated
def get_fingerprint(conn: Connection[Any], *, fingerprint_id: UUID) -> Fingerprint:
    """Return the fingerprint.

    Raises:
        FingerprintNotFoundError: there is no such fingerprint.
    """
    return fetch_one(
        conn,
        Fingerprint,
        "get_fingerprint",
        missing=FingerprintNotFoundError(f"no fingerprint {fingerprint_id}"),
        fingerprint_id=fingerprint_id,
    )

"""Fingerprints: anonymous devices, each with its own quota."""

from datetime import datetime
from decimal import Decimal
from typing import Any, NamedTuple
from uuid import UUID

from psycopg import Connection

from pyapp._core.run import fetch_all, fetch_one
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


class UserFingerprint(NamedTuple):
    """A fingerprint that a user's sessions or messages name.

    `is_shared` tells whether those of another user name it too.
    """

    fingerprint_id: UUID
    is_shared: bool


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


@validated
def list_user_fingerprints(
    conn: Connection[Any], *, user_id: UUID, limit: int = 1000
) -> list[UserFingerprint]:
    """Return up to *limit* fingerprints of the user, by id.

    Those that only an expired session named are not known any more once it is deleted.
    """
    return fetch_all(
        conn, UserFingerprint, "list_user_fingerprints", user_id=user_id, limit=limit
    )

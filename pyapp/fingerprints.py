"""Fingerprints: anonymous devices, each with a quota of its own."""

from dataclasses import dataclass
from datetime import datetime
from decimal import Decimal
from uuid import UUID

from pyapp._core.calls import Call, one, query
from pyapp._core.sanitize import storable_text
from pyapp.errors import FingerprintNotFoundError, refusal


@dataclass(frozen=True, slots=True)
class Fingerprint:
    """A device; for its quota's period and use see `pyapp.quota`.

    `base_quota` is in credits a period. `sig_hash` is None if the device gave none.
    """

    id: UUID
    sig_hash: str | None
    base_quota: Decimal
    created_at: datetime


@query
def upsert_fingerprint(
    *, fingerprint_id: UUID | None = None, sig_hash: str | None = None
) -> Call[Fingerprint]:
    """Return the device, created if it is new; without an id it is always new.

    A *sig_hash* replaces the one before it; None keeps that.

    Raises:
        FingerprintIsUserError: the id is a user's.
    """
    stored = None if sig_hash is None else storable_text(sig_hash)
    return one(
        Fingerprint,
        {"fingerprint_id": fingerprint_id, "sig_hash": stored},
        missing=lambda: refusal("fingerprints_refuse_user_id"),
    )


@query
def get_fingerprint(*, fingerprint_id: UUID) -> Call[Fingerprint]:
    """Return the device.

    Raises:
        FingerprintNotFoundError: there is none.
    """
    return one(
        Fingerprint,
        {"fingerprint_id": fingerprint_id},
        missing=lambda: FingerprintNotFoundError(f"no fingerprint {fingerprint_id}"),
    )

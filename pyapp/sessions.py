"""Sessions: who is signed in, known by a token of which only the hash is stored."""

import hashlib
import secrets
from dataclasses import dataclass, field, fields
from datetime import datetime, timedelta
from typing import Any
from uuid import UUID

from pyapp._core.calls import Call, one, optional, query, rowcount
from pyapp._core.rows import row_maker
from pyapp.errors import UserNotFoundError
from pyapp.fingerprints import Fingerprint
from pyapp.users import User

DEFAULT_TTL = timedelta(days=30)


@dataclass(frozen=True, slots=True)
class Session:
    """A session, valid before `expires_at` and never at it."""

    user_id: UUID
    fingerprint_id: UUID | None
    created_at: datetime
    expires_at: datetime


@dataclass(frozen=True, slots=True)
class NewSession:
    """A new session and its token, which is nowhere else to be had."""

    token: str = field(repr=False)
    session: Session


@dataclass(frozen=True, slots=True)
class ValidSession:
    """A valid session with its user and, if it is known, his device."""

    session: Session
    user: User
    fingerprint: Fingerprint | None


# Where the values of each begin in a row of find_session. No id is there twice, nor is
# anonymized_at, for it finds no session of such a user.
_USER = len(fields(Session)) - 1
_DEVICE = _USER + len(fields(User)) - 1


@query
def create_session(
    *,
    user_id: UUID,
    fingerprint_id: UUID | None = None,
    ttl: timedelta = DEFAULT_TTL,
) -> Call[NewSession]:
    """Sign the user in for *ttl* and return the session and its token.

    The token is 32 random bytes, URL-safe; only its hash is stored.

    Raises:
        UserNotFoundError: there is no such user, or he has been anonymized.
        FingerprintNotFoundError: there is no such device.
        RuleError: by sessions_expires_after_created_check, *ttl* is not positive.
    """
    token = secrets.token_urlsafe(32)
    parameters = {
        "token_hash": _hash(token),
        "user_id": user_id,
        "fingerprint_id": fingerprint_id,
        "ttl": ttl,
    }
    return one(
        Session,
        parameters,
        missing=lambda: UserNotFoundError(f"no user {user_id}, or none any more"),
        is_guarded=fingerprint_id is not None or ttl <= timedelta(0),
    ).map(lambda session: NewSession(token, session))


@query
def find_session(
    *, token: str, at: datetime | None = None
) -> Call[ValidSession | None]:
    """Return the session with its user and device, or None if it is not valid.

    Whatever the token is, the work is the same: one hash and one query. *at* is the
    instant in question, aware; without it, now.
    """
    return optional(_valid_session, {"token_hash": _hash(token), "at": at})


@query
def extend_session(*, token: str, ttl: timedelta = DEFAULT_TTL) -> Call[Session | None]:
    """Let the session end *ttl* from now and return it, or None if it is not valid.

    A session that would end later anyway keeps its end.
    """
    return optional(Session, {"token_hash": _hash(token), "ttl": ttl})


@query
def delete_session(*, token: str) -> Call[bool]:
    """Sign out, and return whether there was such a session."""
    return rowcount({"token_hash": _hash(token)}).map(bool)


@query
def delete_user_sessions(*, user_id: UUID) -> Call[int]:
    """Sign the user out everywhere, and return how many sessions that ended."""
    return rowcount({"user_id": user_id})


@query
def delete_expired_sessions(*, limit: int = 1000) -> Call[int]:
    """Delete at most *limit* expired sessions, and return how many.

    It never waits for others: repeat it, with a commit each time, until it returns 0.
    """
    return rowcount({"limit": limit})


def _hash(token: str) -> bytes:
    # Anything may come in a cookie, half a surrogate pair included.
    return hashlib.sha256(token.encode(errors="surrogatepass")).digest()


def _valid_session(*values: Any) -> ValidSession:
    device_id, user_id = values[0], values[_USER]
    return ValidSession(
        session=row_maker(Session)(user_id, *values[:_USER]),
        user=row_maker(User)(*values[_USER:_DEVICE], None),
        fingerprint=None
        if device_id is None
        else row_maker(Fingerprint)(device_id, *values[_DEVICE:]),
    )

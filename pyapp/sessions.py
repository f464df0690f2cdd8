"""Sessions: signed-in users, found by a token of which only the hash is stored."""

import hashlib
import secrets
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Any, NamedTuple
from uuid import UUID

from psycopg import Connection

from pyapp._core.run import (
    atomic,
    execute,
    fetch_all,
    fetch_one,
    fetch_optional,
)
from pyapp._core.validation import validated
from pyapp.errors import UserNotFoundError
from pyapp.fingerprints import Fingerprint
from pyapp.users import User

DEFAULT_TTL = timedelta(days=30)


class Session(NamedTuple):
    """A session; it is valid before `expires_at`, not at it."""

    user_id: UUID
    fingerprint_id: UUID | None
    created_at: datetime
    expires_at: datetime


@dataclass(frozen=True, slots=True)
class NewSession:
    """A new session and its token. The token is returned only here."""

    token: str = field(repr=False)
    session: Session


class ValidSession(NamedTuple):
    """A valid session with its user and, if it has one, its fingerprint."""

    session: Session
    user: User
    fingerprint: Fingerprint | None


# Where each part begins in a row of find_session. The row holds no id twice, and not
# anonymized_at: anonymized users have no valid session.
_USER = len(Session._fields) - 1
_FINGERPRINT = _USER + len(User._fields) - 1


@validated
def create_session(
    conn: Connection[Any],
    *,
    user_id: UUID,
    fingerprint_id: UUID | None = None,
    ttl: timedelta = DEFAULT_TTL,
) -> NewSession:
    """Sign the user in for *ttl* and return the session and its token.

    The token is 32 random bytes, URL-safe; only its hash is stored.

    Raises:
        UserNotFoundError: there is no such user, or it has been anonymized.
        FingerprintNotFoundError: there is no such fingerprint.
        RuleError: by sessions_expires_after_created_check, *ttl* is not positive.
    """
    token = secrets.token_urlsafe(32)
    may_be_refused = fingerprint_id is not None or ttl <= timedelta(0)
    with atomic(conn, is_needed=may_be_refused):
        session = fetch_one(
            conn,
            Session,
            "create_session",
            missing=UserNotFoundError(f"no user {user_id}, or it is anonymized"),
            token_hash=_hash(token),
            user_id=user_id,
            fingerprint_id=fingerprint_id,
            ttl=ttl,
        )
    return NewSession(token, session)


@validated
def find_session(
    conn: Connection[Any], *, token: str, at: datetime | None = None
) -> ValidSession | None:
    """Return the session with its user and fingerprint, or None if it is not valid.

    Any token costs the same: one hash and one query. *at* is the instant at which the
    session must be valid, aware (default: now).
    """
    return fetch_optional(
        conn, _valid_session, "find_session", token_hash=_hash(token), at=at
    )


@validated
def list_user_sessions(
    conn: Connection[Any], *, user_id: UUID, limit: int = 100
) -> list[Session]:
    """Return up to *limit* sessions of the user, the newest first.

    Expired ones are included until delete_expired_sessions deletes them.
    """
    return fetch_all(conn, Session, "list_user_sessions", user_id=user_id, limit=limit)


@validated
def list_fingerprint_sessions(
    conn: Connection[Any], *, fingerprint_id: UUID, limit: int = 100
) -> list[Session]:
    """Return up to *limit* sessions of all users of the fingerprint, the newest first.

    Expired ones are included until delete_expired_sessions deletes them.
    """
    return fetch_all(
        conn,
        Session,
        "list_fingerprint_sessions",
        fingerprint_id=fingerprint_id,
        limit=limit,
    )


@validated
def extend_session(
    conn: Connection[Any], *, token: str, ttl: timedelta = DEFAULT_TTL
) -> Session | None:
    """Extend the session to *ttl* from now and return it, or None if it is not valid.

    A session that ends later already keeps its end.
    """
    return fetch_optional(
        conn, Session, "extend_session", token_hash=_hash(token), ttl=ttl
    )


@validated
def delete_session(conn: Connection[Any], *, token: str) -> bool:
    """Sign out, and return whether there was such a session."""
    return execute(conn, "delete_session", token_hash=_hash(token)) > 0


@validated
def delete_user_sessions(conn: Connection[Any], *, user_id: UUID) -> int:
    """Delete all sessions of the user, and return how many."""
    return execute(conn, "delete_user_sessions", user_id=user_id)


@validated
def delete_expired_sessions(conn: Connection[Any], *, limit: int = 1000) -> int:
    """Delete at most *limit* expired sessions, and return how many.

    It waits for no lock. Repeat it, with a commit each time, until it returns 0.
    """
    return execute(conn, "delete_expired_sessions", limit=limit)


def _hash(token: str) -> bytes:
    # A cookie may hold any text, also half a surrogate pair.
    return hashlib.sha256(token.encode(errors="surrogatepass")).digest()


def _valid_session(*values: Any) -> ValidSession:
    fingerprint_id, user_id = values[0], values[_USER]
    return ValidSession(
        session=Session._make((user_id, *values[:_USER])),
        user=User._make((*values[_USER:_FINGERPRINT], None)),
        fingerprint=None
        if fingerprint_id is None
        else Fingerprint._make((fingerprint_id, *values[_FINGERPRINT:])),
    )

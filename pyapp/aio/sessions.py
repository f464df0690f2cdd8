# Generated from pyapp/sessions.py by .ci/generate_aio.py; do not edit.
"""Sessions: signed-in users, found by a token of which only the hash is stored."""

import secrets
from datetime import datetime, timedelta
from typing import Any
from uuid import UUID

from psycopg import AsyncConnection

from pyapp._core.run_async import atomic, execute, fetch_all, fetch_one, fetch_optional
from pyapp._core.validation import validated
from pyapp.errors import UserNotFoundError
from pyapp.sessions import (
    DEFAULT_TTL,
    NewSession,
    Session,
    ValidSession,
    _hash,
    _valid_session,
)


@validated
async def create_session(
    conn: AsyncConnection[Any],
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
    async with atomic(conn, is_needed=may_be_refused):
        session = await fetch_one(
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
async def find_session(
    conn: AsyncConnection[Any], *, token: str, at: datetime | None = None
) -> ValidSession | None:
    """Return the session with its user and fingerprint, or None if it is not valid.

    Any token costs the same: one hash and one query. *at* is the instant at which the
    session must be valid, aware (default: now).
    """
    return await fetch_optional(
        conn, _valid_session, "find_session", token_hash=_hash(token), at=at
    )


@validated
async def list_user_sessions(
    conn: AsyncConnection[Any], *, user_id: UUID, limit: int = 100
) -> list[Session]:
    """Return up to *limit* sessions of the user, the newest first.

    Expired ones are included until delete_expired_sessions deletes them.
    """
    return await fetch_all(
        conn, Session, "list_user_sessions", user_id=user_id, limit=limit
    )


@validated
async def list_fingerprint_sessions(
    conn: AsyncConnection[Any], *, fingerprint_id: UUID, limit: int = 100
) -> list[Session]:
    """Return up to *limit* sessions of all users of the fingerprint, the newest first.

    Expired ones are included until delete_expired_sessions deletes them.
    """
    return await fetch_all(
        conn,
        Session,
        "list_fingerprint_sessions",
        fingerprint_id=fingerprint_id,
        limit=limit,
    )


@validated
async def extend_session(
    conn: AsyncConnection[Any], *, token: str, ttl: timedelta = DEFAULT_TTL
) -> Session | None:
    """Extend the session to *ttl* from now and return it, or None if it is not valid.

    A session that ends later already keeps its end.
    """
    return await fetch_optional(
        conn, Session, "extend_session", token_hash=_hash(token), ttl=ttl
    )


@validated
async def delete_session(conn: AsyncConnection[Any], *, token: str) -> bool:
    """Sign out, and return whether there was such a session."""
    return await execute(conn, "delete_session", token_hash=_hash(token)) > 0


@validated
async def delete_user_sessions(conn: AsyncConnection[Any], *, user_id: UUID) -> int:
    """Delete all sessions of the user, and return how many."""
    return await execute(conn, "delete_user_sessions", user_id=user_id)


@validated
async def delete_expired_sessions(
    conn: AsyncConnection[Any], *, limit: int = 1000
) -> int:
    """Delete at most *limit* expired sessions, and return how many.

    It waits for no lock. Repeat it, with a commit each time, until it returns 0.
    """
    return await execute(conn, "delete_expired_sessions", limit=limit)

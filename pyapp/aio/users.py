# Generated from pyapp/users.py by .ci/generate_aio.py; do not edit.
"""Users: their accounts, from creation to anonymization."""

from collections.abc import AsyncIterator
from typing import Any
from uuid import UUID

from psycopg import AsyncConnection

from pyapp._core.run_async import (
    atomic,
    fetch_all,
    fetch_one,
    fetch_optional,
    stream_rows,
)
from pyapp._core.sanitize import optional_text
from pyapp._core.validation import validated
from pyapp.errors import UserNotFoundError, refusal
from pyapp.users import _PLAIN, PersonalRecord, User, _clean, _not_active


@validated
async def create_user(
    conn: AsyncConnection[Any], *, email: str, name: str | None = None
) -> User:
    """Create a user on the free plan and return it.

    White space around *email* is removed; its case is kept.

    Raises:
        EmailTakenError: another user has it, ignoring case.
        RuleError: by users_email_shape_check, it is not an e-mail address.
    """
    email = _clean(email)
    async with atomic(conn, is_needed=_PLAIN.fullmatch(email) is None):
        return await fetch_one(
            conn,
            User,
            "create_user",
            missing=refusal("users_lower_email_idx"),
            email=email,
            name=optional_text(name),
        )


@validated
async def get_user(conn: AsyncConnection[Any], *, user_id: UUID) -> User:
    """Return the user, anonymized or not.

    Raises:
        UserNotFoundError: there is no such user.
    """
    missing = UserNotFoundError(f"no user {user_id}")
    return await fetch_one(conn, User, "get_user", missing=missing, user_id=user_id)


@validated
async def find_user_by_email(conn: AsyncConnection[Any], *, email: str) -> User | None:
    """Return the user with this e-mail, ignoring case, or None."""
    return await fetch_optional(conn, User, "find_user_by_email", email=_clean(email))


@validated
async def list_users(
    conn: AsyncConnection[Any], *, after: UUID | None = None, limit: int = 100
) -> list[User]:
    """Return up to *limit* users by id, anonymized ones included.

    For the next page, *after* is the last row's `id`.
    """
    return await fetch_all(conn, User, "list_users", after=after, limit=limit)


@validated
async def set_user_profile(
    conn: AsyncConnection[Any],
    *,
    user_id: UUID,
    name: str | None,
    image_url: str | None,
) -> User:
    """Set name and image URL and return the user; None clears a value.

    Raises:
        UserNotFoundError: there is no such user, or it has been anonymized.
    """
    return await fetch_one(
        conn,
        User,
        "set_user_profile",
        missing=_not_active(user_id),
        user_id=user_id,
        name=optional_text(name),
        image_url=optional_text(image_url),
    )


@validated
async def set_user_email(
    conn: AsyncConnection[Any], *, user_id: UUID, email: str
) -> User:
    """Change the e-mail and return the user; a new address is not verified.

    The user's sessions stay until the new address is verified for the first time.

    Raises:
        EmailTakenError: another user has it, ignoring case.
        RuleError: by users_email_shape_check, it is not an e-mail address.
        UserNotFoundError: there is no such user, or it has been anonymized.
    """
    async with atomic(conn):
        return await fetch_one(
            conn,
            User,
            "set_user_email",
            missing=_not_active(user_id),
            user_id=user_id,
            email=_clean(email),
        )


@validated
async def mark_user_email_verified(
    conn: AsyncConnection[Any], *, user_id: UUID, email: str
) -> User:
    """Record that the user has verified *email*, and return the user.

    The first verification of an address ends all sessions of the user, also one that is
    being created concurrently, because another person may have signed up with the
    address: create the session of the person who verified it after this. Repeating it
    keeps the time of the first verification and ends no session. The transaction must
    be READ COMMITTED. In the transaction, call it before any other statement that
    refers to the user; otherwise two such transactions can deadlock.

    Raises:
        UserNotFoundError: there is no such user, or its e-mail is another one now.
    """
    return await fetch_one(
        conn,
        User,
        "mark_user_email_verified",
        missing=UserNotFoundError(f"no user {user_id} with this e-mail"),
        user_id=user_id,
        email=_clean(email),
    )


@validated
async def anonymize_user(conn: AsyncConnection[Any], *, user_id: UUID) -> User:
    """Erase the person, keep the bill, and return the anonymized user.

    E-mail, name, image, sessions, pending referrals and message payloads are deleted,
    also payloads that maintenance is moving, and those of fingerprints that no other
    user has; messages, usage, completed referrals and Stripe's ids and events stay. The
    account cannot be signed in to again, and its e-mail can be used for a new one.
    Repeating it is harmless. Archives written before are files and are not changed;
    docs/users.md says how to change them.

    Raises:
        UserNotFoundError: there is no such user.
    """
    missing = UserNotFoundError(f"no user {user_id}")
    async with atomic(conn):
        return await fetch_one(
            conn, User, "anonymize_user", missing=missing, user_id=user_id
        )


@validated
async def export_user(
    conn: AsyncConnection[Any], *, user_id: UUID
) -> AsyncIterator[PersonalRecord]:
    """Return all that is stored about the user, as an iterator over records.

    The first is the user's own; docs/users.md lists the kinds. All are of the snapshot
    of this call, in any isolation level. Memory holds a batch of them: read them before
    the transaction ends. Anonymous messages are those of fingerprints that no other
    user has. No record is about another user.

    Raises:
        UserNotFoundError: there is no such user.
    """
    missing = UserNotFoundError(f"no user {user_id}")
    return await stream_rows(
        conn, PersonalRecord, "export_user", missing=missing, user_id=user_id
    )

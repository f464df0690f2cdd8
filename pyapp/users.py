"""Users: their accounts, from creation to anonymization."""

import re
from collections.abc import Iterator
from datetime import datetime
from decimal import Decimal
from typing import Any, NamedTuple
from uuid import UUID

from psycopg import Connection

from pyapp._core.run import (
    atomic,
    fetch_all,
    fetch_one,
    fetch_optional,
    stream_rows,
)
from pyapp._core.sanitize import REPLACEMENT, optional_text, storable_text
from pyapp._core.validation import validated
from pyapp.errors import UserNotFoundError, refusal

# Such an address passes users_email_shape_check, so its insert needs no savepoint.
_PLAIN = re.compile("[!-?A-~]{1,64}@[!-?A-~]{1,255}")


class User(NamedTuple):
    """A user; for the quota's period and usage see `pyapp.quota.get_user_quota`.

    `quota`, in credits per period, is `base_quota` plus `referral_credits`. `email` is
    None once the user is anonymized; times are aware, in the connection's time zone.
    """

    id: UUID
    email: str | None
    name: str | None
    email_verified_at: datetime | None
    image_url: str | None
    base_quota: Decimal
    referral_credits: Decimal
    quota: Decimal
    referral_code: str
    referral_limit: int
    referral_count: int
    stripe_customer_id: str | None
    stripe_subscription_id: str | None
    stripe_price_id: str | None
    subscription_status: str | None
    subscription_active: bool
    created_at: datetime
    updated_at: datetime
    anonymized_at: datetime | None


class PersonalRecord(NamedTuple):
    """One record of an export: `json_text` is a JSON object, and `kind` its first key.

    Exact numbers in it are strings, and times are ISO 8601.
    """

    kind: str
    json_text: str


@validated
def create_user(conn: Connection[Any], *, email: str, name: str | None = None) -> User:
    """Create a user on the free plan and return it.

    White space around *email* is removed; its case is kept.

    Raises:
        EmailTakenError: another user has it, ignoring case.
        RuleError: by users_email_shape_check, it is not an e-mail address.
    """
    email = _clean(email)
    with atomic(conn, is_needed=_PLAIN.fullmatch(email) is None):
        return fetch_one(
            conn,
            User,
            "create_user",
            missing=refusal("users_lower_email_idx"),
            email=email,
            name=optional_text(name),
        )


@validated
def get_user(conn: Connection[Any], *, user_id: UUID) -> User:
    """Return the user, anonymized or not.

    Raises:
        UserNotFoundError: there is no such user.
    """
    missing = UserNotFoundError(f"no user {user_id}")
    return fetch_one(conn, User, "get_user", missing=missing, user_id=user_id)


@validated
def find_user_by_email(conn: Connection[Any], *, email: str) -> User | None:
    """Return the user with this e-mail, ignoring case, or None."""
    return fetch_optional(conn, User, "find_user_by_email", email=_clean(email))


@validated
def list_users(
    conn: Connection[Any], *, after: UUID | None = None, limit: int = 100
) -> list[User]:
    """Return up to *limit* users by id, anonymized ones included.

    For the next page, *after* is the last row's `id`.
    """
    return fetch_all(conn, User, "list_users", after=after, limit=limit)


@validated
def set_user_profile(
    conn: Connection[Any], *, user_id: UUID, name: str | None, image_url: str | None
) -> User:
    """Set name and image URL and return the user; None clears a value.

    Raises:
        UserNotFoundError: there is no such user, or it has been anonymized.
    """
    return fetch_one(
        conn,
        User,
        "set_user_profile",
        missing=_not_active(user_id),
        user_id=user_id,
        name=optional_text(name),
        image_url=optional_text(image_url),
    )


@validated
def set_user_email(conn: Connection[Any], *, user_id: UUID, email: str) -> User:
    """Change the e-mail and return the user; a new address is not verified.

    The user's sessions stay until the new address is verified for the first time.

    Raises:
        EmailTakenError: another user has it, ignoring case.
        RuleError: by users_email_shape_check, it is not an e-mail address.
        UserNotFoundError: there is no such user, or it has been anonymized.
    """
    with atomic(conn):
        return fetch_one(
            conn,
            User,
            "set_user_email",
            missing=_not_active(user_id),
            user_id=user_id,
            email=_clean(email),
        )


@validated
def mark_user_email_verified(
    conn: Connection[Any], *, user_id: UUID, email: str
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
    return fetch_one(
        conn,
        User,
        "mark_user_email_verified",
        missing=UserNotFoundError(f"no user {user_id} with this e-mail"),
        user_id=user_id,
        email=_clean(email),
    )


@validated
def anonymize_user(conn: Connection[Any], *, user_id: UUID) -> User:
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
    with atomic(conn):
        return fetch_one(conn, User, "anonymize_user", missing=missing, user_id=user_id)


@validated
def export_user(conn: Connection[Any], *, user_id: UUID) -> Iterator[PersonalRecord]:
    """Return all that is stored about the user, as an iterator over records.

    The first is the user's own; docs/users.md lists the kinds. All are of the snapshot
    of this call, in any isolation level. Memory holds a batch of them: read them before
    the transaction ends. Anonymous messages are those of fingerprints that no other
    user has. No record is about another user.

    Raises:
        UserNotFoundError: there is no such user.
    """
    missing = UserNotFoundError(f"no user {user_id}")
    return stream_rows(
        conn, PersonalRecord, "export_user", missing=missing, user_id=user_id
    )


def _clean(email: str) -> str:
    email = email.strip()
    text = storable_text(email)
    # A replaced character must not make an address valid; a space never does.
    return email if text == email else text.replace(REPLACEMENT, " ")


def _not_active(user_id: UUID) -> UserNotFoundError:
    return UserNotFoundError(f"no user {user_id}, or it is anonymized")

"""Users: who they are, until they are anonymized."""

import re
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime
from decimal import Decimal
from uuid import UUID

from pyapp._core.calls import (
    Call,
    Script,
    Step,
    many,
    one,
    optional,
    query,
    script,
)
from pyapp._core.sanitize import storable_text
from pyapp.errors import UserNotFoundError, refusal

# What PostgreSQL cannot hold in text, and no address has.
_UNSTORABLE = re.compile("[\0\ud800-\udfff]")
# An address like this passes the shape's check for certain, so it needs no guard.
_PLAIN = re.compile("[!-?A-~]{1,64}@[!-?A-~]{1,255}")


@dataclass(frozen=True, slots=True)
class User:
    """A user; for his quota's period and use see `pyapp.quota.get_user_quota`.

    `quota`, in credits a period, is the sum of the two before it. `email` is None once
    the user is anonymized; times are aware, in the connection's time zone.
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


@query
def create_user(*, email: str, name: str | None = None) -> Call[User]:
    """Create a user on the free plan and return him.

    White space around *email* is dropped, its case is kept.

    Raises:
        EmailTakenError: another user has it, whatever the case.
        RuleError: by users_email_shape_check, it is not an e-mail address.
    """
    email = _clean(email)
    return one(
        User,
        {"email": email, "name": _storable(name)},
        missing=lambda: refusal("users_lower_email_idx"),
        is_guarded=_PLAIN.fullmatch(email) is None,
    )


@query
def get_user(*, user_id: UUID) -> Call[User]:
    """Return the user, anonymized or not.

    Raises:
        UserNotFoundError: there is none.
    """
    return one(User, {"user_id": user_id}, missing=_not_found(user_id))


@query
def find_user_by_email(*, email: str) -> Call[User | None]:
    """Return the user with this e-mail, whatever its case, or None."""
    return optional(User, {"email": _clean(email)})


@query
def list_users(*, after: UUID | None = None, limit: int = 100) -> Call[list[User]]:
    """Return *limit* users by id, anonymized ones included.

    Start again with *after* the last one's id to get the next page.
    """
    return many(User, {"after": after, "limit": limit})


@query
def set_user_profile(
    *, user_id: UUID, name: str | None, image_url: str | None
) -> Call[User]:
    """Set both and return the user; None clears.

    Raises:
        UserNotFoundError: there is none, or he has been anonymized.
    """
    profile = {"name": _storable(name), "image_url": _storable(image_url)}
    return one(User, {"user_id": user_id, **profile}, missing=_not_found(user_id))


@query
def set_user_email(*, user_id: UUID, email: str) -> Call[User]:
    """Change the e-mail and return the user; a new address is not verified.

    The user's sessions stay until the new address is proved for the first time.

    Raises:
        EmailTakenError: another user has it, whatever the case.
        RuleError: by users_email_shape_check, it is not an e-mail address.
        UserNotFoundError: there is no such user, or he has been anonymized.
    """
    parameters = {"user_id": user_id, "email": _clean(email)}
    return one(User, parameters, missing=_not_found(user_id), is_guarded=True)


@query
def mark_user_email_verified(*, user_id: UUID, email: str) -> Call[User]:
    """Record that the user has proved to own *email*, and return the user.

    The first proof of an address ends all sessions of the user, also one that is being
    created concurrently, because another person may have signed up with the address:
    create the session of the person who proved it after this. Repeating it keeps the
    time of the first proof and ends nothing. The transaction must be READ COMMITTED.
    Call it before all else in the transaction that refers to the user: otherwise two
    such transactions can deadlock.

    Raises:
        UserNotFoundError: there is no such user, or the e-mail is another one now.
    """
    parameters = {"user_id": user_id, "email": _clean(email)}
    missing = f"no user {user_id} whose e-mail this is now"
    return one(User, parameters, missing=lambda: UserNotFoundError(missing))


@script
def anonymize_user(*, user_id: UUID) -> Script[User]:
    """Erase the person, keep the bill, and return what remains of the user.

    E-mail, name, image, sessions, pending referrals and message payloads are deleted,
    wherever maintenance keeps payloads at the moment; messages, usage, completed
    referrals and Stripe's ids stay. The account can no longer be signed in to, and its
    e-mail can be used for a new one. Repeating it is harmless. Archives that were
    written before are files, and not changed; docs/users.md says how to change them.

    Raises:
        UserNotFoundError: there is no such user.
    """
    call = one(User, {"user_id": user_id}, missing=_not_found(user_id))
    user: User = yield Step("anonymize_user", call)
    return user


def _clean(email: str) -> str:
    # A space never passes the shape's check, and never matches a stored address.
    return _UNSTORABLE.sub(" ", email.strip())


def _storable(text: str | None) -> str | None:
    return None if text is None else storable_text(text)


def _not_found(user_id: UUID) -> Callable[[], UserNotFoundError]:
    return lambda: UserNotFoundError(f"no user {user_id}, or none any more")

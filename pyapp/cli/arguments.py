"""Arguments that several commands take: times, durations, ids, users and payers."""

import re
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from typing import Annotated, Any
from uuid import UUID

import typer
from psycopg import Connection

from pyapp.errors import FingerprintNotFoundError, PyappError, UserNotFoundError
from pyapp.fingerprints import Fingerprint, get_fingerprint
from pyapp.users import User, find_user_by_email, get_user

# For reports, and for actions with one result.
AsJson = Annotated[bool, typer.Option("--json", help="Print one JSON object.")]
# For lists and runs; exact numbers are strings.
AsJsonLines = Annotated[
    bool, typer.Option("--json", help="Print one JSON object a line.")
]

UserArgument = Annotated[
    str, typer.Argument(metavar="USER", help="E-mail address or UUID.")
]
Yes = Annotated[bool, typer.Option("--yes", help="Do not ask.")]
Scratch = Annotated[
    str | None,
    typer.Option(
        metavar="URL",
        help="Server for scratch databases; default the live one, else a temporary"
        " one.",
    ),
]

_SECONDS = {"d": 86400, "h": 3600, "m": 60, "s": 1}


class ArgumentError(PyappError):
    """An argument names something that does not exist; the message says what to do."""


def require_yes(yes: bool, as_json: bool) -> None:
    """Refuse a question where stdout may contain JSON only."""
    if as_json and not yes:
        raise typer.BadParameter("--json asks no question: give --yes too")


def parse_time(text: str | None) -> datetime | None:
    """Return the time in UTC: ISO 8601 or `now`; without a zone it is UTC."""
    if text is None:
        return None
    if text == "now":
        return datetime.now(UTC)
    try:
        moment = datetime.fromisoformat(text)
        return moment.replace(tzinfo=moment.tzinfo or UTC).astimezone(UTC)
    except (ValueError, OverflowError):
        raise typer.BadParameter(
            f"invalid time {text!r}: write 2026-02-28T14:30 (in UTC), or now"
        ) from None


def parse_duration(text: str) -> timedelta:
    """Return the duration: a whole number of days, hours, minutes or seconds."""
    found = re.fullmatch(r"(\d{1,5})([dhms])", text, re.ASCII)
    if found is None:
        raise typer.BadParameter(
            f"invalid duration {text!r}: write it as 90d, 12h, 30m or 90s"
        )
    return timedelta(seconds=int(found[1]) * _SECONDS[found[2]])


def parse_amount(
    option: str,
    text: str,
    *,
    noun: str = "amount",
    form: str = "digits, as 2500 or 0.75",
) -> Decimal:
    """Return *text*, the value of *option*, as an exact number of at least 0.

    The error calls it a *noun*, and shows the *form* to write.
    """
    if re.fullmatch(r"\d{1,15}(\.\d{1,100})?", text, re.ASCII) is None:
        raise typer.BadParameter(f"{option}: invalid {noun} {text!r}: write {form}")
    return Decimal(text)


def parse_id(text: str) -> UUID | None:
    """Return *text* as a UUID, or None if it is not one."""
    try:
        return UUID(text)
    except ValueError:
        return None


def require_id(option: str, text: str) -> UUID:
    """Return *text*, the value of *option*, as a UUID; raise an error if it is not."""
    found = parse_id(text)
    if found is None:
        raise typer.BadParameter(f"{option}: {text!r} is not a UUID")
    return found


def find_user(conn: Connection[Any], user: str) -> User:
    """Return the user with this e-mail address or id.

    Raises:
        ArgumentError: no user has this address.
        UserNotFoundError: no user has this id.
    """
    user_id = parse_id(user)
    if user_id is not None:
        return get_user(conn, user_id=user_id)
    if "@" not in user:
        raise typer.BadParameter(f"{user!r} is neither an e-mail address nor a UUID")
    found = find_user_by_email(conn, email=user)
    if found is None:
        raise ArgumentError(f"no user {user}; create one with: pyapp users add {user}")
    return found


def find_payer(conn: Connection[Any], payer: str) -> User | Fingerprint:
    """Return the user with this e-mail address or id, or the fingerprint with this id.

    Raises:
        ArgumentError: there is none.
    """
    payer_id = parse_id(payer)
    if payer_id is not None:
        with suppress(FingerprintNotFoundError):
            return get_fingerprint(conn, fingerprint_id=payer_id)
    try:
        return find_user(conn, payer)
    except UserNotFoundError:
        raise ArgumentError(f"no user and no fingerprint {payer}") from None


def name_user(user: User) -> str:
    """Return how messages name the user; an anonymized one has no address."""
    return user.email or f"user {user.id}"

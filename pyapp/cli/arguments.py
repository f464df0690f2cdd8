"""What commands are told: times, how long, and who is meant."""

import re
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID

import typer
from psycopg import Connection

from pyapp.errors import PyappError
from pyapp.users import User, find_user_by_email, get_user

_SECONDS = {"d": 86400, "h": 3600, "m": 60, "s": 1}


class ArgumentError(PyappError):
    """An argument names what is not there; the message says what to do."""


def parse_time(text: str | None) -> datetime | None:
    """Return the time in UTC that *text* means: ISO 8601 or `now`.

    A time without a zone is taken to be in UTC.
    """
    if text is None:
        return None
    if text == "now":
        return datetime.now(UTC)
    try:
        moment = datetime.fromisoformat(text)
        return moment.replace(tzinfo=moment.tzinfo or UTC).astimezone(UTC)
    except (ValueError, OverflowError):
        raise typer.BadParameter(
            f"{text!r} is not a time: write 2026-02-28T14:30 (in UTC), or now"
        ) from None


def parse_duration(text: str) -> timedelta:
    """Return how long *text* is: a whole number of days, hours, minutes or seconds."""
    found = re.fullmatch(r"(\d{1,5})([dhms])", text, re.ASCII)
    if found is None:
        raise typer.BadParameter(
            f"{text!r} is no duration: write it as 90d, 12h, 30m or 90s"
        )
    return timedelta(seconds=int(found[1]) * _SECONDS[found[2]])


def parse_id(text: str) -> UUID | None:
    """Return the UUID that *text* is, or None."""
    try:
        return UUID(text)
    except ValueError:
        return None


def find_user(conn: Connection[Any], who: str) -> User:
    """Return the user with *who* as e-mail or id.

    Raises:
        ArgumentError: there is none.
        UserNotFoundError: there is none with this id.
    """
    user_id = parse_id(who)
    if user_id is not None:
        return get_user(conn, user_id=user_id)
    if "@" not in who:
        raise typer.BadParameter(f"{who!r} is neither an e-mail address nor a UUID")
    user = find_user_by_email(conn, email=who)
    if user is None:
        raise ArgumentError(f"no user {who}; create one with: pyapp users add {who}")
    return user

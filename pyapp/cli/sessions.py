"""`pyapp sessions list | revoke`. A token and its hash are never shown."""

from contextlib import suppress
from datetime import UTC, datetime
from typing import Annotated, Any
from uuid import UUID

import typer
from psycopg import Connection

from pyapp._core.connection import connect
from pyapp._core.validation import MAX_INTEGER
from pyapp.cli.arguments import (
    ArgumentError,
    AsJson,
    AsJsonLines,
    find_user,
    parse_id,
    require_yes,
)
from pyapp.cli.console import confirmed, counted, print_json, print_table, say
from pyapp.errors import FingerprintNotFoundError, UserNotFoundError
from pyapp.fingerprints import get_fingerprint
from pyapp.sessions import (
    Session,
    delete_user_sessions,
    list_fingerprint_sessions,
    list_user_sessions,
)
from pyapp.users import User


def register(app: typer.Typer) -> None:
    """Add the commands to `pyapp sessions`."""
    app.command("list")(list_all)
    app.command()(revoke)


def list_all(
    payer: Annotated[
        str, typer.Argument(metavar="USER|FINGERPRINT", help="E-mail address or UUID.")
    ],
    limit: Annotated[
        int,
        typer.Option(
            metavar="N", min=1, max=MAX_INTEGER - 1, help="The newest N sessions."
        ),
    ] = 100,
    as_json: AsJsonLines = False,
) -> None:
    """List the sessions of a user or a fingerprint, the newest first."""
    with connect() as conn:
        fingerprint_id = _find_fingerprint(conn, payer)
        if fingerprint_id:
            name, other = f"fingerprint {fingerprint_id}", "user"
            sessions = list_fingerprint_sessions(
                conn, fingerprint_id=fingerprint_id, limit=limit + 1
            )
        else:
            user = _find_user(conn, payer)
            name, other = user.email or f"user {user.id}", "fingerprint"
            sessions = list_user_sessions(conn, user_id=user.id, limit=limit + 1)
    now = datetime.now(UTC)
    if as_json:
        for session in sessions[:limit]:
            print_json({**session._asdict(), "is_valid": session.expires_at > now})
        return
    if not sessions:
        say(f"{name} has no sessions")
        return
    header = (other, "created (UTC)", "expires (UTC)", "valid")
    rows = (_cells(session, other, now) for session in sessions[:limit])
    print_table(header, rows)
    if len(sessions) > limit:
        say(f"There are more than {limit:,}; see --limit.")


def revoke(
    user: Annotated[
        str, typer.Argument(metavar="USER", help="E-mail address or UUID.")
    ],
    yes: Annotated[bool, typer.Option("--yes", help="Do not ask.")] = False,
    as_json: AsJson = False,
) -> None:
    """Sign a user out everywhere: end all its sessions."""
    require_yes(yes, as_json)
    with connect() as conn:
        found = find_user(conn, user)
        # No transaction is open while the question waits.
        conn.commit()
        name = found.email or f"user {found.id}"
        if not yes:
            say(f"{name} is to be signed out everywhere.")
            if not confirmed("End all sessions of this user?"):
                say("Nothing is ended; --yes ends them without asking.")
                raise typer.Exit(1)
        count = delete_user_sessions(conn, user_id=found.id)
    if as_json:
        print_json({"user_id": found.id, "email": found.email, "sessions": count})
    else:
        say(f"{counted(count, 'session')} of {name} ended")


def _find_fingerprint(conn: Connection[Any], payer: str) -> UUID | None:
    found = parse_id(payer)
    if found is not None:
        with suppress(FingerprintNotFoundError):
            return get_fingerprint(conn, fingerprint_id=found).id
    return None


def _find_user(conn: Connection[Any], payer: str) -> User:
    try:
        return find_user(conn, payer)
    except UserNotFoundError:
        raise ArgumentError(f"no user and no fingerprint {payer}") from None


def _cells(session: Session, other: str, now: datetime) -> tuple[str, ...]:
    other_id = session.user_id if other == "user" else session.fingerprint_id
    return (
        str(other_id or "(unknown)"),
        _format_time(session.created_at),
        _format_time(session.expires_at),
        "yes" if session.expires_at > now else "no",
    )


def _format_time(moment: datetime) -> str:
    return f"{moment.astimezone(UTC):%Y-%m-%d %H:%M}"

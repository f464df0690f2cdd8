"""`pyapp sessions list | revoke`. A token and its hash are never shown."""

from datetime import UTC, datetime
from typing import Annotated

import typer

from pyapp._core.connection import connect
from pyapp._core.validation import MAX_INTEGER
from pyapp.cli.arguments import (
    AsJson,
    AsJsonLines,
    UserArgument,
    Yes,
    find_payer,
    find_user,
    name_user,
    require_yes,
)
from pyapp.cli.console import counted, print_json, print_table, require_consent, say
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
        found = find_payer(conn, payer)
        if isinstance(found, User):
            name, other = name_user(found), "fingerprint"
            sessions = list_user_sessions(conn, user_id=found.id, limit=limit + 1)
        else:
            name, other = f"fingerprint {found.id}", "user"
            sessions = list_fingerprint_sessions(
                conn, fingerprint_id=found.id, limit=limit + 1
            )
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
    user: UserArgument,
    yes: Yes = False,
    as_json: AsJson = False,
) -> None:
    """Sign a user out everywhere: end all its sessions."""
    require_yes(yes, as_json)
    with connect() as conn:
        found = find_user(conn, user)
        # No transaction is open while the question waits.
        conn.commit()
        name = name_user(found)
        if not yes:
            say(f"{name} is to be signed out everywhere.")
            require_consent(
                "End all sessions of this user?",
                "Nothing is ended; --yes ends them without asking.",
            )
        count = delete_user_sessions(conn, user_id=found.id)
    if as_json:
        print_json({"user_id": found.id, "email": found.email, "sessions": count})
    else:
        say(f"{counted(count, 'session')} of {name} ended")


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

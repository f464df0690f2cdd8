"""`pyapp referrals show`."""

from collections.abc import Iterator
from datetime import UTC, datetime
from typing import Annotated, Any

import typer

from pyapp import referrals
from pyapp._core.connection import connect
from pyapp._core.validation import MAX_INTEGER
from pyapp.cli.arguments import AsJson, UserArgument, find_user
from pyapp.cli.console import format_amount, print_json, print_table, say
from pyapp.referrals import Referral, ReferralSummary
from pyapp.users import User

HEADER = ("referred user", "status", "credits", "created", "completed")
_INDENT = 13


def register(app: typer.Typer) -> None:
    """Add the command to `pyapp referrals`."""
    app.command()(show)


def show(
    user: UserArgument,
    limit: Annotated[
        int,
        typer.Option(
            metavar="N",
            min=1,
            max=MAX_INTEGER - 1,
            help="Referrals made that are listed, the newest first.",
        ),
    ] = 100,
    as_json: AsJson = False,
) -> None:
    """Show a user's code, limit, credits, referrer and the users it referred."""
    with connect() as conn:
        found = find_user(conn, user)
        summary = referrals.get_referral_summary(conn, user_id=found.id)
        own = referrals.find_referral(conn, referred_id=found.id)
        made = referrals.list_referrals(conn, user_id=found.id, limit=limit + 1)
    if as_json:
        print_json(_object(found, summary, own, made[:limit]))
        return
    say(found.email or f"user {found.id} (anonymized)")
    for label, text in _lines(summary, own):
        say(f"  {label:<{_INDENT}}{text}", hanging=_INDENT)
    if made:
        say("")
        print_table(HEADER, map(_cells, made[:limit]), numbers={"credits"})
    if len(made) > limit:
        say(f"There are more than {limit:,}; see --limit.")


def _lines(summary: ReferralSummary, own: Referral | None) -> Iterator[tuple[str, str]]:
    yield "code", summary.referral_code
    yield (
        "made",
        f"{summary.referral_count:,} completed of {summary.referral_limit:,} allowed,"
        f" {summary.pending_count:,} pending",
    )
    yield "credits", f"{format_amount(summary.referral_credits)} a period"
    if own is None:
        yield "referred by", "no user"
    else:
        when = f" {_day(own.completed_at)}" if own.completed_at else ""
        credits = format_amount(own.credits)
        text = f"user {own.referrer_id}, {own.status}{when}: {credits} credits"
        yield "referred by", text


def _cells(referral: Referral) -> tuple[str, ...]:
    done = referral.completed_at
    return (
        str(referral.referred_id),
        referral.status,
        format_amount(referral.credits),
        _day(referral.created_at),
        "" if done is None else _day(done),
    )


def _object(
    user: User,
    summary: ReferralSummary,
    own: Referral | None,
    made: list[Referral],
) -> dict[str, Any]:
    """Return the JSON object; docs/referrals.md documents its keys."""
    return {
        "user_id": user.id,
        "email": user.email,
        **summary._asdict(),
        "referred_by": None if own is None else own._asdict(),
        "referrals": [each._asdict() for each in made],
    }


def _day(moment: datetime) -> str:
    return f"{moment.astimezone(UTC):%Y-%m-%d}"

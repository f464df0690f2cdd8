"""`pyapp stripe reconcile`: what Stripe lists against what is known here."""

from time import sleep
from typing import Annotated

import psycopg
import typer
from stripe import StripeClient

from pyapp._core.config import load_settings
from pyapp._core.connection import connect
from pyapp.cli.arguments import parse_duration
from pyapp.cli.console import say, warn
from pyapp.cli.failures import explain
from pyapp.cli.stripe_progress import show_progress
from pyapp.errors import PyappError
from pyapp.stripe_sync import Difference, Reconciliation, make_client
from pyapp.stripe_sync.reconcile import reconcile as run_reconciliation

# What a dry run exits with when there are differences; 1 is for errors.
DIFFERENT = 3
# So many differences are shown one by one; the table counts all.
SHOWN = 20

_MEANINGS = {
    "missing_here": "in Stripe, and not known here",
    "missing_there": "known here, and gone from Stripe",
    "status": "another status",
    "price": "another price",
    "period": "another period",
    "created_at": "another creation date",
    "unlinked": "a customer without a user, or of another one",
    "unknown_price": "a price that buys no plan",
}


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command()(reconcile)


def reconcile(
    dry_run: Annotated[
        bool,
        typer.Option(
            "--dry-run", help="Change nothing; the status is 3 if they differ."
        ),
    ] = False,
    match_email: Annotated[
        bool,
        typer.Option("--match-email", help="Link customers to users by e-mail too."),
    ] = False,
    every: Annotated[
        str | None, typer.Option(metavar="TIME", help="Again and again, such as 1h.")
    ] = None,
) -> None:
    """Compare all of Stripe with the database, and mend the database.

    The status is 1 if some objects could not be compared. With --every, only a failure
    of the first run ends it.
    """
    pause = None if every is None else parse_duration(every).total_seconds()
    if pause == 0:
        raise typer.BadParameter("again and again needs some time between: such as 1h")
    client = make_client(load_settings())
    found = _run(client, dry_run, match_email)
    while pause is not None:
        sleep(pause)
        try:
            _run(client, dry_run, match_email)
        except (PyappError, psycopg.OperationalError) as exc:
            reason = explain(exc) if isinstance(exc, psycopg.Error) else exc
            warn(f"error: {reason}; it is tried again in {every}")
    if found.failed:
        raise typer.Exit(1)
    if dry_run and found.number_found:
        raise typer.Exit(DIFFERENT)


def _run(client: StripeClient, dry_run: bool, match_email: bool) -> Reconciliation:
    shown: list[Difference] = []

    def show(difference: Difference) -> None:
        if len(shown) < SHOWN:
            shown.append(difference)

    with connect() as conn, show_progress() as progress:
        found = run_reconciliation(
            conn,
            client,
            dry_run=dry_run,
            match_email=match_email,
            progress=progress,
            on_difference=show,
            on_failure=lambda one: say(f"{one.object_id}: {one.error}"),
        )
    _report(found, shown)
    return found


def _report(found: Reconciliation, shown: list[Difference]) -> None:
    seen = ", ".join(
        f"{number:,} {object_type}" for object_type, number in found.seen.items()
    )
    resumed = ", resumed" if found.is_resumed else ""
    if found.failed:
        resumed += f"; {found.failed:,} failed"
    if not found.number_found:
        say(f"no differences: {seen}{resumed}")
        return
    for one in shown:
        say(f"{one.object_id}: {_MEANINGS[one.kind]}")
        if one.kind == "unlinked" and one.user_id and not one.is_repaired:
            say(f"  its e-mail is that of user {one.user_id}")
    if found.number_found > len(shown):
        say(f"and {found.number_found - len(shown):,} more")
    say("")
    say(f"{'difference':<15}{'found':>8}{'repaired':>10}")
    for kind, number in found.found.items():
        if number:
            repaired = found.repaired[kind]
            say(f"{kind.replace('_', ' '):<15}{number:>8,}{repaired:>10,}")
    say(f"in all of Stripe: {seen}{resumed}")

"""`pyapp stripe reconcile`: what Stripe lists against what is known here."""

import contextlib
import re
import time
from collections.abc import Callable, Iterator
from typing import Annotated

import typer
from stripe import StripeClient

from pyapp.cli.console import say, stderr
from pyapp.config import load_settings
from pyapp.connection import connect
from pyapp.stripe_sync import Difference, Progress, Reconciliation, make_client
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
_SECONDS = {"h": 3600, "m": 60, "s": 1}


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
    """Compare all of Stripe with the database, and mend the database."""
    pause = None if every is None else _seconds(every)
    client = make_client(load_settings())
    while True:
        found = _run(client, dry_run, match_email)
        if pause is None:
            break
        time.sleep(pause)
    if dry_run and found.number_found:
        raise typer.Exit(DIFFERENT)


def _run(client: StripeClient, dry_run: bool, match_email: bool) -> Reconciliation:
    shown: list[Difference] = []

    def show(difference: Difference) -> None:
        if len(shown) < SHOWN:
            shown.append(difference)

    with connect() as conn, _progress() as progress:
        found = run_reconciliation(
            conn,
            client,
            dry_run=dry_run,
            match_email=match_email,
            progress=progress,
            on_difference=show,
        )
    _report(found, shown)
    return found


def _report(found: Reconciliation, shown: list[Difference]) -> None:
    seen = ", ".join(f"{number:,} {noun}" for noun, number in found.seen.items())
    resumed = ", resumed" if found.is_resumed else ""
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


@contextlib.contextmanager
def _progress() -> Iterator[Callable[[Progress], None] | None]:
    """Give what shows how far a run is, on a terminal only."""
    if not stderr.is_terminal:
        yield None
        return
    from rich import progress as bars

    columns = (
        bars.TextColumn("{task.description}"),
        bars.BarColumn(bar_width=30),
        bars.MofNCompleteColumn(),
        bars.TextColumn("{task.fields[rate]}"),
        bars.TimeRemainingColumn(),
    )
    with bars.Progress(*columns, console=stderr, transient=True) as bar:
        tasks: dict[str, bars.TaskID] = {}

        def show(how_far: Progress) -> None:
            if how_far.noun not in tasks:
                tasks[how_far.noun] = bar.add_task(how_far.noun, rate="")
            task = tasks[how_far.noun]
            speed = bar.tasks[task].speed
            rate = f"{speed:,.0f}/s" if speed else ""
            bar.update(task, completed=how_far.seen, total=how_far.expected, rate=rate)

        yield show


def _seconds(text: str) -> int:
    found = re.fullmatch(r"(\d{1,5})([hms])", text, re.ASCII)
    if found is None or int(found[1]) == 0:
        raise typer.BadParameter(f"{text} is no interval; write it as 1h, 30m or 90s")
    return int(found[1]) * _SECONDS[found[2]]

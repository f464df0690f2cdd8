"""`pyapp stripe`: list and apply events, reconcile; `serve` is in stripe_serve.py."""

from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import asdict
from datetime import UTC, datetime
from functools import partial
from typing import Annotated, TypeVar

import typer
from stripe import StripeClient

from pyapp._core.config import Settings, is_live_key, load_settings
from pyapp._core.connection import connect
from pyapp.cli.arguments import (
    ArgumentError,
    AsJson,
    AsJsonLines,
    Yes,
    parse_duration,
    require_yes,
)
from pyapp.cli.console import (
    counted,
    print_json,
    print_table,
    require_consent,
    say,
    show_objects,
)
from pyapp.cli.logs import printable
from pyapp.cli.repeating import Every, repeat
from pyapp.cli.stripe_waits import show_waits
from pyapp.stripe_sync import (
    Difference,
    Outcome,
    Reconciliation,
    Refusal,
    make_client,
    replay_events,
    retry_failed_events,
)
from pyapp.stripe_sync.client import find_livemode
from pyapp.stripe_sync.events import (
    StoredEvent,
    delete_event_payloads,
    discard_event,
    list_events,
    list_failed_events,
)
from pyapp.stripe_sync.outcomes import Result
from pyapp.stripe_sync.reconcile import reconcile as run_reconciliation
from pyapp.stripe_sync.replay import RESULTS

T = TypeVar("T")

BATCH = 1000
# The exit status of a dry run that finds differences; 1 is for errors.
DIFFERENT = 3
# Differences and refused objects listed one by one; --json lists all.
LISTED = 20
LISTED_REFUSALS = 100

_DIFFERENCES = {
    "missing_here": "in Stripe, not in the database",
    "missing_there": "in the database, not in Stripe",
    "status": "another status",
    "price": "another price",
    "period": "another period",
    "created_at": "another creation date",
    "unlinked": "customer linked to no user, or to another one",
    "conflict": "claims another user than its customer has",
    "unknown_price": "price without a plan",
}


def register(app: typer.Typer) -> None:
    """Add the commands to `pyapp stripe`."""
    for command in (events, retry, replay, discard, prune, reconcile):
        app.command()(command)


def events(
    failed: Annotated[
        bool, typer.Option("--failed", help="Only failed events, oldest first.")
    ] = False,
    limit: Annotated[
        int,
        typer.Option(metavar="N", min=1, max=10_000, help="Maximum number of events."),
    ] = 50,
    as_json: AsJsonLines = False,
) -> None:
    """List received events and their status, newest first."""
    with connect() as conn:
        rows = (list_failed_events if failed else list_events)(conn, limit=limit)
    if as_json:
        for row in rows:
            print_json(row._asdict())
        return
    if not rows:
        say("there are no failed events" if failed else "there are no events")
        return
    header = ("event", "created (UTC)", "status", "attempts")
    print_table(header, map(_cells, rows), numbers={"attempts"})


def retry(as_json: AsJsonLines = False) -> None:
    """Apply failed events again; the exit status is 1 if some still fail."""
    settings = load_settings()
    client, livemode = make_optional_client(settings), find_livemode(settings)
    counts: Counter[Result] = Counter()
    report = _print_outcome if as_json else _say_problem
    with connect() as conn, show_waits():
        for outcome in retry_failed_events(conn, client, livemode=livemode):
            counts[outcome.result] += 1
            report(outcome)
    if as_json:
        _print_totals(counts)
    elif not counts:
        say("there are no failed events")
    else:
        say(_format_counts(counts))
    if counts["failed"]:
        raise typer.Exit(1)


def replay(
    since: Annotated[
        str | None,
        typer.Option(metavar="AGE", help="Such as 3d or 12h; default: 30 days."),
    ] = None,
    as_json: AsJsonLines = False,
) -> None:
    """Fetch and apply undelivered events; the exit status is 1 if some fail."""
    moment = None if since is None else datetime.now(UTC) - parse_duration(since)
    client = make_client(load_settings())
    with connect() as conn, show_waits(), show_objects() as progress:
        done = replay_events(
            conn,
            client,
            since=moment,
            progress=progress,
            on_outcome=_print_outcome if as_json else _say_problem,
        )
    resumed = ", resumed" if done.is_resumed else ""
    if as_json:
        _print_totals(done.results, is_resumed=done.is_resumed)
    elif not done.seen:
        say(f"there are no undelivered events{resumed}")
    else:
        events = counted(done.seen, "undelivered event")
        say(f"{events}: {_format_counts(done.results)}{resumed}")
    if done.results["failed"]:
        raise typer.Exit(1)


def discard(
    event_id: Annotated[str, typer.Argument(metavar="EVENT", help="A failed event.")],
    yes: Yes = False,
    as_json: AsJson = False,
) -> None:
    """Set a failed event to ignored: it can never be applied, and is not retried.

    The event and its error are kept.
    """
    require_yes(yes, as_json)
    if not yes:
        require_consent(
            f"Discard {printable(event_id)}?",
            "Nothing is discarded; --yes discards without asking.",
        )
    with connect() as conn:
        found = discard_event(conn, id=event_id)
    if found is None:
        raise ArgumentError(
            f"there is no failed event {event_id}: pyapp stripe events --failed lists"
            " them"
        )
    if as_json:
        print_json(found._asdict())
    else:
        say(f"{found.id} ({found.type}) is {found.last_error}")


def prune(
    older_than: Annotated[
        str, typer.Option(metavar="AGE", help="Such as 90d, 12h or 30m.")
    ] = "90d",
    as_json: AsJson = False,
) -> None:
    """Delete the payloads of old events that have not failed; keep the events."""
    before = datetime.now(UTC) - parse_duration(older_than)
    total = 0
    with connect() as conn:
        while True:
            with conn.transaction():
                count = delete_event_payloads(conn, before=before, limit=BATCH)
            total += count
            if count < BATCH:
                break
    if as_json:
        print_json({"events": total})
    else:
        say(f"deleted the payloads of {counted(total, 'event')}")


def reconcile(
    dry_run: Annotated[
        bool,
        typer.Option(
            "--dry-run", help="Change nothing; the exit status is 3 on a difference."
        ),
    ] = False,
    match_email: Annotated[
        bool,
        typer.Option("--match-email", help="Link customers to users by e-mail too."),
    ] = False,
    cleared: Annotated[
        bool,
        typer.Option("--cleared", help="The account's test data was deleted."),
    ] = False,
    every: Every = None,
    as_json: AsJsonLines = False,
) -> None:
    """Compare all of Stripe with the database, and repair the database.

    The exit status is 1 if some objects were refused, also in a dry run. With
    --every, only an error of the first run ends the command.
    """
    if cleared and every is not None:
        raise typer.BadParameter("--cleared cannot be used with --every")
    settings = load_settings()
    if cleared and is_live_key(settings.stripe_api_key or ""):
        raise typer.BadParameter(
            "--cleared needs a test key: live data is never cleared"
        )
    client = make_client(settings)
    reconcile_once = partial(
        _reconcile_json if as_json else _reconcile_table,
        partial(_reconcile, client, dry_run, match_email, cleared),
    )
    result = repeat(reconcile_once, every)
    if result.number_refused:
        raise typer.Exit(1)
    if dry_run and result.number_found:
        raise typer.Exit(DIFFERENT)


def _reconcile(
    client: StripeClient,
    dry_run: bool,
    match_email: bool,
    cleared: bool,
    on_difference: Callable[[Difference], None],
    on_refusal: Callable[[Refusal], None],
) -> Reconciliation:
    with connect() as conn, show_waits(), show_objects() as progress:
        return run_reconciliation(
            conn,
            client,
            dry_run=dry_run,
            match_email=match_email,
            cleared=cleared,
            progress=progress,
            on_difference=on_difference,
            on_refusal=on_refusal,
        )


def _reconcile_json(run: Callable[..., Reconciliation]) -> Reconciliation:
    result = run(
        lambda difference: print_json({"record": "difference", **asdict(difference)}),
        lambda refusal: print_json({"record": "refused", **asdict(refusal)}),
    )
    print_json({"record": "totals", **asdict(result)})
    return result


def _reconcile_table(run: Callable[..., Reconciliation]) -> Reconciliation:
    differences: list[Difference] = []
    refusals: list[Refusal] = []
    try:
        result = run(
            _keep_first(LISTED, differences), _keep_first(LISTED_REFUSALS, refusals)
        )
    except BaseException:
        # The run that resumes this one does not report them again.
        _list_differences(differences)
        _list_refusals(refusals)
        raise
    compared = ", ".join(
        counted(number, name.removesuffix("s")) for name, number in result.seen.items()
    )
    compared += ", resumed" if result.is_resumed else ""
    _report_differences(result, differences)
    _report_refusals(result, refusals)
    if result.number_found or result.number_refused:
        say(f"compared: {compared}")
    else:
        say(f"no differences: {compared}")
    return result


def _keep_first(most: int, kept: list[T]) -> Callable[[T], None]:
    """Return a function that appends to *kept* what it is given, up to *most*."""

    def keep(one: T) -> None:
        if len(kept) < most:
            kept.append(one)

    return keep


def _report_differences(result: Reconciliation, listed: list[Difference]) -> None:
    if not result.number_found:
        return
    _list_differences(listed)
    if result.number_found > len(listed):
        say(f"and {result.number_found - len(listed):,} more")
    say("")
    print_table(
        ("difference", "found", "repaired"),
        (
            (kind.replace("_", " "), f"{number:,}", f"{result.repaired[kind]:,}")
            for kind, number in result.found.items()
            if number
        ),
        numbers=("found", "repaired"),
    )


def _list_differences(listed: list[Difference]) -> None:
    for difference in listed:
        say(f"{difference.object_id}: {_DIFFERENCES[difference.kind]}")
        is_candidate = difference.user_id and not difference.is_repaired
        if difference.kind == "unlinked" and is_candidate:
            say(f"  user {difference.user_id} has its e-mail address")
        elif difference.kind == "conflict":
            say(f"  user {difference.user_id} is claimed")


def _report_refusals(result: Reconciliation, listed: list[Refusal]) -> None:
    number = result.number_refused
    if not number:
        return
    if result.number_found:
        say("")
    _list_refusals(listed)
    if number > len(listed):
        say(f"and {number - len(listed):,} more")
    kinds = ", ".join(f"{n:,} {kind}" for kind, n in result.refused.items() if n)
    say(f"refused: {number:,} ({kinds})")


def _list_refusals(listed: list[Refusal]) -> None:
    if listed:
        print_table(
            ("refused", "reason"),
            ((one.object_id, one.reason) for one in listed),
            fitted="reason",
        )


def make_optional_client(settings: Settings) -> StripeClient | None:
    """Return a client, or None without a key."""
    return make_client(settings) if settings.stripe_api_key else None


def _say_problem(outcome: Outcome) -> None:
    if outcome.error is not None:
        say(f"{outcome.event_id}  {outcome.error}", hanging=2)
    if outcome.conflicting_user_id:
        say(
            f"{outcome.event_id}  conflict: it claims user"
            f" {outcome.conflicting_user_id}, and its customer has another one",
            hanging=2,
        )


def _print_outcome(outcome: Outcome) -> None:
    values = asdict(outcome)
    values["event_type"] = values.pop("type")
    print_json({"record": "outcome", **values})


def _print_totals(counts: Mapping[Result, int], *, is_resumed: bool = False) -> None:
    results = {result: counts.get(result, 0) for result in RESULTS}
    print_json(
        {
            "record": "totals",
            "is_resumed": is_resumed,
            "seen": sum(results.values()),
            "results": results,
        }
    )


def _format_counts(counts: Mapping[Result, int]) -> str:
    return ", ".join(f"{n:,} {result}" for result, n in sorted(counts.items()) if n)


def _cells(event: StoredEvent) -> tuple[str, ...]:
    cells = (
        event.id,
        f"{event.event_created_at.astimezone(UTC):%Y-%m-%d %H:%M:%S}",
        event.status,
        str(event.attempts),
        event.type,
    )
    is_shown = event.last_error and event.status in {"failed", "ignored"}
    return (*cells, str(event.last_error)) if is_shown else cells

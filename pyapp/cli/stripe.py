"""`pyapp stripe`: the endpoint for webhooks, and the inbox behind it."""

import signal
import socket
from collections import Counter
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Annotated

import typer
from stripe import StripeClient

from pyapp._core.config import Settings, load_settings
from pyapp._core.connection import connect, pool
from pyapp.cli.arguments import ArgumentError, parse_duration
from pyapp.cli.console import say
from pyapp.cli.logs import start_logging
from pyapp.cli.stripe_progress import show_progress
from pyapp.cli.text import printable
from pyapp.errors import ConfigError, MissingExtraError
from pyapp.stripe_sync import Outcome, make_client, replay_events
from pyapp.stripe_sync.client import find_livemode
from pyapp.stripe_sync.events import (
    StoredEvent,
    delete_event_payloads,
    list_events,
    list_failed_events,
)
from pyapp.stripe_sync.inbox import Result
from pyapp.stripe_sync.retry import retry_failed_events

BATCH = 1000


def register(app: typer.Typer) -> None:
    """Add the commands."""
    app.command()(serve)
    app.command()(events)
    app.command()(retry)
    app.command()(replay)
    app.command()(prune)


def serve(
    host: Annotated[str, typer.Option(help="Where to listen.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535)] = 8000,
) -> None:
    """Take Stripe's deliveries at /stripe/webhook until told to stop."""
    try:
        import uvicorn  # noqa: F401

        from pyapp.stripe_sync import server
        from pyapp.stripe_sync.web import create_app
    except ModuleNotFoundError as exc:
        if exc.name in {"anyio", "h11", "starlette", "uvicorn"}:
            raise MissingExtraError("web") from exc
        raise
    settings = load_settings()
    if not settings.stripe_webhook_secrets:
        raise ConfigError("STRIPE_WEBHOOK_SECRET is not set; put it into .env.local")
    client = _client(settings)
    start_logging("text")
    _check_address(host, port)
    with pool(settings.database_url) as connections:
        app = create_app(
            connections,
            settings.stripe_webhook_secrets,
            client,
            livemode=find_livemode(settings),
        )
        # The server raises the signal again once it has stopped; that is no failure.
        signal.signal(signal.SIGTERM, lambda *_: None)
        signal.signal(signal.SIGINT, lambda *_: None)
        server.serve(app, host, port)


def events(
    failed: Annotated[
        bool, typer.Option("--failed", help="Those to try again, the oldest first.")
    ] = False,
    limit: Annotated[int, typer.Option(min=1, max=10_000)] = 50,
) -> None:
    """Show what was delivered and what became of it."""
    with connect() as conn:
        rows = (list_failed_events if failed else list_events)(conn, limit=limit)
    if not rows:
        say("there are no failed events" if failed else "there are no events")
        return
    table: list[tuple[str, ...]] = [
        ("event", "type", "created (UTC)", "status", "attempts", "error")
    ]
    table += map(_cells, rows)
    widths = [max(map(len, column)) for column in zip(*table, strict=True)]
    for row in table:
        cells = (c.ljust(width) for c, width in zip(row, widths, strict=True))
        say("  ".join(cells).rstrip())


def retry() -> None:
    """Try the failed events again; the status is 1 while some still fail."""
    settings = load_settings()
    client, livemode = _client(settings), find_livemode(settings)
    counts: Counter[Result] = Counter()
    with connect() as conn:
        for outcome in retry_failed_events(conn, client, livemode=livemode):
            counts[outcome.result] += 1
            _tell_error(outcome)
    if not counts:
        say("there are no failed events")
        return
    say(_sum_up(counts))
    if counts["failed"]:
        raise typer.Exit(1)


def replay(
    since: Annotated[
        str | None,
        typer.Option(metavar="AGE", help="Such as 3d or 12h; else all of 30 days."),
    ] = None,
) -> None:
    """Take in what Stripe could not deliver; the status is 1 if some of it failed."""
    moment = None if since is None else datetime.now(UTC) - parse_duration(since)
    client = make_client(load_settings())
    with connect() as conn, show_progress() as progress:
        done = replay_events(
            conn, client, since=moment, progress=progress, on_outcome=_tell_error
        )
    resumed = ", resumed" if done.is_resumed else ""
    if not done.seen:
        say(f"there are no undelivered events{resumed}")
        return
    say(f"{done.seen:,} undelivered events: {_sum_up(done.results)}{resumed}")
    if done.results["failed"]:
        raise typer.Exit(1)


def prune(
    older_than: Annotated[
        str, typer.Option(metavar="AGE", help="How old: such as 90d, 12h or 30m.")
    ] = "90d",
) -> None:
    """Empty the payloads of old events that are done; the events stay."""
    before = datetime.now(UTC) - parse_duration(older_than)
    total = 0
    with connect() as conn:
        while True:
            with conn.transaction():
                count = delete_event_payloads(conn, before=before, limit=BATCH)
            total += count
            if count < BATCH:
                break
    say(f"emptied the payloads of {total} events")


def _check_address(host: str, port: int) -> None:
    """Refuse where nobody can listen, and an empty host, which is every address."""
    if not host.strip():
        raise ArgumentError("--host is empty: name an address, or 0.0.0.0 for all")
    try:
        (family, *_), *_ = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
        socket.create_server((host, port), family=family).close()
    except OSError as exc:
        reason = exc.strerror or str(exc)
    except UnicodeError:
        reason = "this is no name of a host"
    else:
        return
    raise ArgumentError(f"cannot listen on {host} port {port}: {reason}")


def _client(settings: Settings) -> StripeClient | None:
    return make_client(settings) if settings.stripe_api_key else None


def _tell_error(outcome: Outcome) -> None:
    if outcome.error is not None:
        say(f"{outcome.event_id}  {outcome.error}")


def _sum_up(counts: Mapping[Result, int]) -> str:
    told = (f"{count:,} {result}" for result, count in sorted(counts.items()) if count)
    return ", ".join(told)


def _cells(event: StoredEvent) -> tuple[str, ...]:
    error = event.last_error if event.status == "failed" else None
    return (
        printable(event.id),
        printable(event.type),
        f"{event.event_created_at.astimezone(UTC):%Y-%m-%d %H:%M:%S}",
        event.status,
        str(event.attempts),
        printable(error or ""),
    )

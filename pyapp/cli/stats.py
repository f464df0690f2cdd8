"""`pyapp stats`: the state of the database, for a person or for a monitor."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Any

import typer

from pyapp import stats as queries
from pyapp._core.config import load_settings
from pyapp._core.connection import connect
from pyapp.cli.arguments import AsJson
from pyapp.cli.console import counted, print_json, print_table, say
from pyapp.cli.listening import parse_address, require_prometheus
from pyapp.cli.logs import printable, start_logging
from pyapp.cli.stats_sections import Answers, ask_all
from pyapp.errors import DatabaseUnavailableError

# Smaller unused indexes are shown with --json only.
LARGE = 1 << 20
_WIDTH = 21
_ERROR_WIDTH = 80 - _WIDTH
LATE = "not answered in time; allow more by --within SECONDS"
REFUSED = "this role may not read it"


@dataclass(frozen=True)
class _Line:
    label: str
    text: str
    is_bad: bool = False


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command()(stats)


def stats(
    as_json: AsJson = False,
    within: Annotated[
        int,
        typer.Option(
            metavar="SECONDS",
            min=1,
            max=3600,
            help="Leave out a section whose query takes longer.",
        ),
    ] = 10,
    prometheus: Annotated[
        bool, typer.Option("--prometheus", help="Print Prometheus' text format.")
    ] = False,
    output: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Write it to a file instead, in one step."),
    ] = None,
    listen: Annotated[
        str | None,
        typer.Option(metavar="[HOST:]PORT", help="Serve it at /metrics instead."),
    ] = None,
) -> None:
    """Show rates, blocked users, failed events, runs, partitions and sizes.

    --prometheus prints metrics; with --output they go to a file, for node_exporter,
    with --listen to scrapers. The database is then asked at each scrape.
    """
    if (output or listen) and not prometheus:
        raise typer.BadParameter("--output and --listen need --prometheus")
    if prometheus + as_json + bool(output and listen) > 1:
        raise typer.BadParameter(
            "choose one of --json, --prometheus, --output and --listen"
        )
    if prometheus:
        _report_metrics(within, output, listen)
        return
    with connect() as conn:
        answers = ask_all(conn, within)
    if as_json:
        # A monitor compares rates as numbers, which need not be exact.
        print_json(_as_object(answers), decimal=float)
        return
    for line in _lines(answers):
        style = "red" if line.is_bad else None
        hanging = _WIDTH if line.label else 0
        say(f"{line.label:<{_WIDTH}}{line.text}", style=style, hanging=hanging)
    for name, print_section in (("tables", _sizes), ("unused_indexes", _unused)):
        say("")
        if name in answers.unanswered:
            say(f"{name.replace('_', ' '):<{_WIDTH}}{_reason(answers, name)}")
        else:
            print_section(answers)
    if answers.remedy:
        say("")
        is_grant = answers.remedy.startswith("GRANT ")
        who = "an administrator" if is_grant else "the owner of the schema"
        say(f"To read all, {who} runs: {answers.remedy}")


def _report_metrics(within: int, output: Path | None, listen: str | None) -> None:
    require_prometheus()
    from pyapp.cli import stats_metrics as metrics

    if listen is not None:
        address = parse_address("--listen", listen)
        start_logging("text")
        load_settings()
        metrics.serve_metrics(*address, within)
        return
    try:
        with connect() as conn:
            text = metrics.format_metrics(ask_all(conn, within))
    except DatabaseUnavailableError:
        # The figures of the previous file are out of date.
        if output:
            metrics.write_metrics(output, metrics.format_metrics(None))
        raise
    if output:
        metrics.write_metrics(output, text)
    else:
        typer.echo(text, nl=False)


def _as_object(answers: Answers) -> dict[str, Any]:
    """Return what `--json` prints; its keys are promised in docs/operations.md."""
    whole: dict[str, Any] = {
        "at": answers.at,
        "unanswered": answers.unanswered,
        "refused": answers.refused,
        "remedy": answers.remedy,
    }
    for name, found in answers.found.items():
        if isinstance(found, list):
            whole[name] = [one._asdict() for one in found]
        else:
            whole[name] = None if found is None else found._asdict()
    return whole


def _lines(answers: Answers) -> Iterator[_Line]:
    parts: dict[str, Callable[[Any, datetime], Iterator[_Line]]] = {
        "messages": _messages,
        "users": _users,
        "events": _events,
        "reconcile": _reconcile,
        "replay": _replay,
        "payloads": _payloads,
        "server": _server,
    }
    for name, part in parts.items():
        if name in answers.unanswered:
            yield _Line(name, _reason(answers, name), True)
        else:
            yield from part(answers.found[name], answers.at)


def _reason(answers: Answers, name: str) -> str:
    return REFUSED if name in answers.refused else LATE


def _messages(found: queries.MessageRates, _: datetime) -> Iterator[_Line]:
    for label, minute, hour in (
        ("messages a minute", f"{found.minute_messages:,}", found.hour_messages / 60),
        ("credits a minute", f"{found.minute_credits:,.2f}", found.hour_credits / 60),
    ):
        yield _Line(
            label, f"{minute} in the last minute, {hour:,.2f} over the last hour"
        )


def _users(found: queries.UserCounts, _: datetime) -> Iterator[_Line]:
    yield _Line(
        "users",
        f"{found.users:,}: {found.subscribed:,} subscribed, {found.blocked:,} blocked",
    )


def _events(found: queries.InboxCounts, now: datetime) -> Iterator[_Line]:
    failed = f"{found.failed:,} failed"
    if found.oldest_failed_at:
        failed += f", the oldest from {_ago(now, found.oldest_failed_at)}"
    yield _Line("Stripe events", failed, found.failed > 0)
    last = found.last_received_at
    latest = f"the latest {_ago(now, last)}" if last else "none received yet"
    yield _Line("", f"{found.hour_received:,} in the last hour; {latest}")


def _reconcile(run: queries.LastRun | None, now: datetime) -> Iterator[_Line]:
    found, repaired = (run.differences, run.repaired) if run else (0, 0)
    counts = f"{found:,} differences, {repaired:,} repaired"
    if run and (refused := run.counts.get("refused")):
        counts += f", {refused:,} refused"
    yield from _run("last reconciliation", run, counts, now)


def _replay(run: queries.LastRun | None, now: datetime) -> Iterator[_Line]:
    counts = run.counts if run else {}
    seen, failed = counts.get("seen", 0), counts.get("failed", 0)
    yield from _run("last replay", run, f"{seen:,} events, {failed:,} failed", now)


def _run(
    label: str, run: queries.LastRun | None, counts: str, now: datetime
) -> Iterator[_Line]:
    if run is None:
        yield _Line(label, "never")
        return
    moment = run.finished_at or run.started_at
    started = "" if run.finished_at else ", started"
    is_failed = run.outcome == "failed"
    yield _Line(
        label, f"{run.outcome}{started} {_ago(now, moment)}: {counts}", is_failed
    )
    if is_failed:
        error = printable(run.last_error or "")
        is_long = len(error) > _ERROR_WIDTH
        yield _Line("", f"{error[: _ERROR_WIDTH - 3]}..." if is_long else error, True)
    if run.outcome != "completed":
        last = run.last_completed_at
        yield _Line("", f"last completed: {_ago(now, last) if last else 'never'}")


def _payloads(found: queries.PayloadMonths, _: datetime) -> Iterator[_Line]:
    ahead = found.months_ahead
    if ahead < 0:
        months = "none for this month; run: pyapp db maintain"
    else:
        months = f"{counted(ahead, 'month')} ahead"
    since = f", the oldest {found.oldest_month:%Y-%m}" if found.oldest_month else ""
    yield _Line("payload partitions", f"{months}{since}", ahead < 1)
    if found.has_default_rows or found.has_waiting_table:
        count = f"about {n:,} " if (n := found.estimated_waiting) else ""
        yield _Line("", f"{count}payloads without a partition: pyapp db maintain", True)
    if found.has_waiting_table:
        yield _Line("", "some are in app.waiting_payloads, invisible to queries", True)
    if found.has_retired_table:
        yield _Line("", "retiring a month was interrupted: pyapp db maintain", True)


def _server(found: queries.ServerState, now: datetime) -> Iterator[_Line]:
    oldest = found.oldest_transaction_at
    since = f"; oldest transaction {_span(now, oldest)}" if oldest else ""
    waiting = f"; {found.waiting} waiting for a lock" if found.waiting else ""
    if found.connections is None:
        text = "this role sees only its own: grant it pg_read_all_stats"
    else:
        text = f"{found.connections} of {found.max_connections}{waiting}{since}"
    yield _Line("connections", text, bool(found.waiting))
    yield _Line("server", f"up for {_span(now, found.started_at)}")


def _sizes(answers: Answers) -> None:
    tables: list[queries.TableSize] = answers.found["tables"]
    print_table(
        ("table", "rows, about", "size", "indexes"),
        (
            (
                table.name,
                f"{table.estimated_rows:,}",
                _size(table.table_bytes),
                _size(table.index_bytes),
            )
            for table in tables
        ),
        numbers=("rows, about", "size", "indexes"),
    )


def _unused(answers: Answers) -> None:
    indexes: list[queries.UnusedIndex] = answers.found["unused_indexes"]
    server: queries.ServerState | None = answers.found["server"]
    begin = server and server.counted_since
    since = f" since {begin.astimezone(UTC):%Y-%m-%d}" if begin else ""
    large = [
        (index.name, _size(index.bytes)) for index in indexes if index.bytes >= LARGE
    ]
    if large:
        print_table((f"unused index{since}", "size"), large, numbers=("size",))
    else:
        say(f"no unused index of {_size(LARGE)} or more{since}")


def _ago(now: datetime, moment: datetime) -> str:
    return f"{_span(now, moment)} ago"


def _span(now: datetime, moment: datetime) -> str:
    """Return the time from *moment* to *now* in its largest unit, at least 0."""
    seconds = max(0, int((now - moment).total_seconds()))
    for unit, length in (("day", 86400), ("hour", 3600), ("minute", 60)):
        if seconds >= 2 * length:
            return counted(seconds // length, unit)
    return counted(seconds, "second")


def _size(count: int) -> str:
    """Return *count* bytes in the units of pg_size_pretty: 1 kB is 1024 bytes."""
    size, units = float(count), iter(("bytes", "kB", "MB", "GB", "TB"))
    unit = next(units)
    while size >= 1000 and unit != "TB":
        size, unit = size / 1024, next(units)
    number = f"{size:,.0f}" if size >= 10 else f"{size:.1f}".removesuffix(".0")
    return f"{number} {unit}"

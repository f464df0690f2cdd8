"""`pyapp stats`: what an operator asks first, for a person or for a monitor."""

import json
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from decimal import Decimal
from functools import partial
from typing import Annotated, Any

import psycopg
import typer

from pyapp import stats as ask
from pyapp._core.connection import connect
from pyapp.cli.console import console, say
from pyapp.cli.text import printable

Connection = psycopg.Connection[Any]
# The sections of the answer, in their order.
QUESTIONS: dict[str, Callable[[Connection], Any]] = {
    "messages": ask.get_message_rates,
    "users": ask.get_user_counts,
    "events": ask.get_inbox_counts,
    "reconcile": partial(ask.find_last_run, kind="reconcile"),
    "replay": partial(ask.find_last_run, kind="replay"),
    "payloads": ask.get_payload_months,
    "server": ask.get_server_state,
    "tables": ask.list_table_sizes,
    "unused_indexes": ask.list_unused_indexes,
}
# Unused indexes below it are no matter, and shown to a monitor only.
LARGE = 1 << 20
MILLISECONDS = 1000
_WIDTH = 21
_ERROR_WIDTH = 80 - _WIDTH
LATE = "not answered in time: give it more --within SECONDS"


@dataclass(frozen=True)
class _Answers:
    """What was asked at a moment; `unanswered` took longer than it might."""

    at: datetime
    found: dict[str, Any]
    unanswered: list[str]


@dataclass(frozen=True)
class _Line:
    label: str
    text: str
    is_bad: bool = False


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command()(stats)


def stats(
    as_json: Annotated[
        bool, typer.Option("--json", help="One JSON object, for a monitor.")
    ] = False,
    within: Annotated[
        int,
        typer.Option(
            metavar="SECONDS",
            min=1,
            max=3600,
            help="Leave a question unanswered that takes longer.",
        ),
    ] = 10,
) -> None:
    """Show rates, blocked users, failed events, runs, partitions and sizes."""
    with connect() as conn:
        answers = _ask_all(conn, within * MILLISECONDS)
    if as_json:
        typer.echo(json.dumps(_as_object(answers), default=_exact))
        return
    for line in _lines(answers):
        style = "red" if line.is_bad else None
        console.print(f"{line.label:<{_WIDTH}}{line.text}", style=style)
    for text in _tables(answers):
        say(text)


def _ask_all(conn: Connection, milliseconds: int) -> _Answers:
    """Ask each question in a transaction of its own, which holds up nobody."""
    conn.autocommit = True
    conn.read_only = True
    answers = _Answers(datetime.now(UTC), {}, [])
    for name, question in QUESTIONS.items():
        try:
            with conn.transaction():
                ask.limit_time(conn, milliseconds=milliseconds)
                answers.found[name] = question(conn)
        except psycopg.errors.QueryCanceled:
            answers.found[name] = None
            answers.unanswered.append(name)
    return answers


def _as_object(answers: _Answers) -> dict[str, Any]:
    """Return what `--json` prints; its keys are promised in docs/operations.md."""
    whole: dict[str, Any] = {"at": answers.at, "unanswered": answers.unanswered}
    for name, found in answers.found.items():
        if isinstance(found, list):
            whole[name] = [asdict(one) for one in found]
        else:
            whole[name] = None if found is None else asdict(found)
    return whole


def _exact(value: Any) -> Any:
    # A rate is no bill: a monitor compares it as a number.
    if isinstance(value, Decimal):
        return float(value)
    return value.isoformat()


def _lines(answers: _Answers) -> Iterator[_Line]:
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
            yield _Line(name, LATE, True)
        else:
            yield from part(answers.found[name], answers.at)


def _messages(found: ask.MessageRates, _: datetime) -> Iterator[_Line]:
    for label, minute, hour in (
        ("messages a minute", f"{found.minute_messages:,}", found.hour_messages / 60),
        ("credits a minute", f"{found.minute_credits:,.2f}", found.hour_credits / 60),
    ):
        yield _Line(
            label, f"{minute} in the last minute, {hour:,.2f} over the last hour"
        )


def _users(found: ask.UserCounts, _: datetime) -> Iterator[_Line]:
    yield _Line(
        "users",
        f"{found.users:,}: {found.subscribed:,} subscribed, {found.blocked:,} blocked",
    )


def _events(found: ask.InboxCounts, now: datetime) -> Iterator[_Line]:
    failed = f"{found.failed:,} failed"
    if found.oldest_failed_at:
        failed += f", the oldest of {_ago(now, found.oldest_failed_at)}"
    yield _Line("events of Stripe", failed, found.failed > 0)
    last = found.last_received_at
    came = f"the last came {_ago(now, last)}" if last else "none has ever come"
    yield _Line("", f"{found.hour_received:,} in the last hour; {came}")


def _reconcile(run: ask.LastRun | None, now: datetime) -> Iterator[_Line]:
    found, repaired = (run.differences, run.repaired) if run else (0, 0)
    counts = f"{found:,} differences, {repaired:,} repaired"
    yield from _run("last reconciliation", run, counts, now)


def _replay(run: ask.LastRun | None, now: datetime) -> Iterator[_Line]:
    counts = run.counts if run else {}
    seen, failed = counts.get("seen", 0), counts.get("failed", 0)
    yield from _run("last replay", run, f"{seen:,} events, {failed:,} failed", now)


def _run(
    label: str, run: ask.LastRun | None, counts: str, now: datetime
) -> Iterator[_Line]:
    if run is None:
        yield _Line(label, "never")
        return
    moment = run.finished_at or run.started_at
    begun = "" if run.finished_at else ", begun"
    is_failed = run.outcome == "failed"
    yield _Line(label, f"{run.outcome}{begun} {_ago(now, moment)}: {counts}", is_failed)
    if is_failed:
        error = printable(run.last_error or "")
        is_long = len(error) > _ERROR_WIDTH
        yield _Line("", f"{error[: _ERROR_WIDTH - 3]}..." if is_long else error, True)
    if run.outcome != "completed":
        last = run.last_completed_at
        yield _Line("", f"last completed {_ago(now, last) if last else 'never'}")


def _payloads(found: ask.PayloadMonths, _: datetime) -> Iterator[_Line]:
    ahead = found.months_ahead
    months = (
        "this month has none: pyapp db maintain"
        if ahead < 0
        else "1 month ahead"
        if ahead == 1
        else f"{ahead} months ahead"
    )
    since = f", {found.oldest_month:%Y-%m} the oldest" if found.oldest_month else ""
    yield _Line("payload partitions", f"{months}{since}", ahead < 1)
    if found.has_default_rows or found.has_waiting_table:
        many = f", about {found.estimated_waiting:,}" if found.estimated_waiting else ""
        yield _Line("", f"payloads wait{many}: pyapp db maintain", True)
    if found.has_waiting_table:
        yield _Line("", "some are put aside, and not found until then", True)
    if found.has_retired_table:
        yield _Line("", "a month is half retired: pyapp db maintain", True)


def _server(found: ask.ServerState, now: datetime) -> Iterator[_Line]:
    oldest = found.oldest_transaction_at
    since = f"; oldest transaction {_span(now, oldest)}" if oldest else ""
    waiting = f"; {found.waiting} wait for a lock" if found.waiting else ""
    yield _Line(
        "connections",
        f"{found.connections} of at most {found.max_connections}{waiting}{since}",
        found.waiting > 0,
    )
    yield _Line("server", f"up for {_span(now, found.started_at)}")


def _tables(answers: _Answers) -> Iterator[str]:
    for name, table in (("tables", _sizes), ("unused_indexes", _unused)):
        yield ""
        if name in answers.unanswered:
            yield f"{name.replace('_', ' '):<{_WIDTH}}{LATE}"
        else:
            yield from table(answers)


def _sizes(answers: _Answers) -> Iterator[str]:
    tables: list[ask.TableSize] = answers.found["tables"]
    yield f"{'table':<30}{'rows, about':>16}{'table':>12}{'indexes':>12}"
    for table in tables:
        yield (
            f"{table.name:<30}{table.estimated_rows:>16,}"
            f"{_size(table.table_bytes):>12}{_size(table.index_bytes):>12}"
        )


def _unused(answers: _Answers) -> Iterator[str]:
    indexes: list[ask.UnusedIndex] = answers.found["unused_indexes"]
    server: ask.ServerState | None = answers.found["server"]
    counted = server and server.counted_since
    since = f" since {counted.astimezone(UTC):%Y-%m-%d}" if counted else ""
    large = [index for index in indexes if index.bytes >= LARGE]
    if not large:
        yield f"no index of {_size(LARGE)} or more is unused{since}"
        return
    yield f"{f'unused index{since}':<58}{'size':>12}"
    for index in large:
        yield f"{index.name:<58}{_size(index.bytes):>12}"


def _ago(now: datetime, moment: datetime) -> str:
    return f"{_span(now, moment)} ago"


def _span(now: datetime, moment: datetime) -> str:
    """Return the time from *moment* to *now* in its largest unit, never less than 0."""
    seconds = max(0, int((now - moment).total_seconds()))
    for unit, length in (("day", 86400), ("hour", 3600), ("minute", 60)):
        if seconds >= 2 * length:
            return f"{seconds // length:,} {unit}s"
    return "1 second" if seconds == 1 else f"{seconds} seconds"


def _size(count: int) -> str:
    """Return *count* bytes as PostgreSQL writes them: a kB is 1024 of them."""
    size, units = float(count), iter(("bytes", "kB", "MB", "GB", "TB"))
    unit = next(units)
    while size >= 1000 and unit != "TB":
        size, unit = size / 1024, next(units)
    number = f"{size:,.0f}" if size >= 10 else f"{size:.1f}".removesuffix(".0")
    return f"{number} {unit}"

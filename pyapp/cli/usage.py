"""`pyapp import usage`: what usage logs say, as messages."""

import itertools
import logging
import stat
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import date, datetime
from decimal import Decimal
from pathlib import Path
from typing import Annotated, Any
from uuid import UUID

import psycopg
import typer

from pyapp._core.config import load_settings
from pyapp._core.connection import connect
from pyapp._core.records import NewMessage
from pyapp._core.tool_queries import fetch_one
from pyapp.cli.arguments import ArgumentError, find_user, parse_id, parse_time
from pyapp.cli.console import say, stderr, warn
from pyapp.errors import PyappError
from pyapp.fingerprints import upsert_fingerprint
from pyapp.messages import record_messages
from pyapp.usage_import.reader import BrokenLine, LineCounts, read_usage_logs

log = logging.getLogger("pyapp.imports")

BATCH = 5_000
SHOWN_BROKEN_LINES = 20


@dataclass(frozen=True)
class _Payer:
    user_id: UUID | None = None
    fingerprint_id: UUID | None = None


@dataclass(frozen=True)
class _Latest:
    finished_at: datetime


@dataclass
class _Tally:
    """What has been read, and what of it has been committed."""

    lines: LineCounts = field(default_factory=LineCounts)
    recorded: int = 0
    known: int = 0
    cost: Decimal = Decimal(0)
    credits: Decimal = Decimal(0)
    days: set[date] = field(default_factory=set)


def register(app: typer.Typer) -> None:
    """Add the command to `pyapp import`."""
    app.command()(usage)


def usage(
    files: Annotated[
        list[Path], typer.Argument(metavar="FILE", help="Logs in JSON Lines.")
    ],
    user: Annotated[
        str | None, typer.Option(metavar="EMAIL|UUID", help="The user who pays.")
    ] = None,
    fingerprint: Annotated[
        str | None, typer.Option(metavar="UUID", help="The anonymous device that pays.")
    ] = None,
    at: Annotated[
        str | None,
        typer.Option(
            metavar="TIME|now",
            help="When responses without a time finished; else their file's time.",
        ),
    ] = None,
) -> None:
    """Record the model calls in usage logs; doing so again adds nothing.

    A response that may still be streaming is left for the next time.
    """
    moment = parse_time(at)
    device_id = _device_id(user, fingerprint)
    _check_files(files)
    settings = load_settings()
    tally = _Tally()
    with connect(settings.database_url) as conn, _progress(files) as advance:
        payer = _find_payer(conn, user, device_id)
        latest = fetch_one(conn, "get_latest_finish", _Latest).finished_at
        lines = read_usage_logs(
            files, at=moment, latest=latest, counts=tally.lines, on_bytes=advance
        )
        with _told_how_to_go_on(tally):
            _record(conn, _messages(lines), payer, settings.margin, tally)
    for line in _summary(tally):
        say(line)
    if tally.lines.broken:
        raise typer.Exit(1)


def _device_id(user: str | None, fingerprint: str | None) -> UUID | None:
    if (user is None) == (fingerprint is None):
        raise typer.BadParameter("say who pays: --user EMAIL or --fingerprint UUID")
    if fingerprint is None:
        return None
    device_id = parse_id(fingerprint)
    if device_id is None:
        raise typer.BadParameter(f"--fingerprint: {fingerprint!r} is not a UUID")
    return device_id


def _check_files(files: list[Path]) -> None:
    """Refuse what cannot be read before anything is recorded."""
    for path in files:
        try:
            if path.is_dir():
                raise ArgumentError(
                    f"{path} is a folder; name its files: {path}/*.jsonl"
                )
            if stat.S_ISREG(path.stat().st_mode):
                path.open("rb").close()
        except OSError as exc:
            raise ArgumentError(f"cannot read {path}: {exc.strerror}") from exc


def _find_payer(
    conn: psycopg.Connection[Any], user: str | None, device_id: UUID | None
) -> _Payer:
    if user is not None:
        found = find_user(conn, user)
        return _Payer(user_id=found.id)
    # A device needs no account: it is known from its first call on.
    upsert_fingerprint(conn, fingerprint_id=device_id)
    return _Payer(fingerprint_id=device_id)


@contextmanager
def _progress(files: list[Path]) -> Iterator[Callable[[int], None]]:
    """Show a bar, if there is a terminal to show it on."""
    if not stderr.is_terminal:
        yield lambda _: None
        return
    from rich.progress import (
        BarColumn,
        Progress,
        TaskProgressColumn,
        TimeRemainingColumn,
    )

    columns = (BarColumn(bar_width=40), TaskProgressColumn(), TimeRemainingColumn())
    with Progress(*columns, console=stderr, transient=True) as progress:
        # They are read twice; a pipe's length is not known.
        sizes = [path.stat().st_size for path in files if path.is_file()]
        total = 2 * sum(sizes) if len(sizes) == len(files) else None
        task = progress.add_task("", total=total)
        yield lambda count: progress.advance(task, count)


def _messages(lines: Iterable[NewMessage | BrokenLine]) -> Iterator[NewMessage]:
    """Yield the messages, and print the first broken lines as they come."""
    broken = 0
    for line in lines:
        if isinstance(line, NewMessage):
            yield line
            continue
        broken += 1
        if broken <= SHOWN_BROKEN_LINES:
            warn(f"{line.file}:{line.line}: {line.reason}")
        elif broken == SHOWN_BROKEN_LINES + 1:
            warn("more broken lines are counted, not shown")


def _record(
    conn: psycopg.Connection[Any],
    messages: Iterator[NewMessage],
    payer: _Payer,
    margin: Decimal,
    tally: _Tally,
) -> None:
    """Record *messages* in batches, each committed."""
    conn.commit()
    while batch := list(itertools.islice(messages, BATCH)):
        result = record_messages(
            conn,
            batch,
            user_id=payer.user_id,
            fingerprint_id=payer.fingerprint_id,
            margin=margin,
        )
        conn.commit()
        tally.recorded += result.recorded
        tally.known += result.duplicates
        tally.cost += result.cost
        tally.credits += result.credits
        tally.days.update(message.finished_at.date() for message in batch)


@contextmanager
def _told_how_to_go_on(tally: _Tally) -> Iterator[None]:
    """Say what stays when the import ends early."""
    try:
        yield
    except (KeyboardInterrupt, OSError, PyappError, psycopg.Error) as exc:
        warn(
            f"stopped: {tally.recorded:,} new messages are recorded and stay;"
            " the same command goes on from there"
        )
        if isinstance(exc, KeyboardInterrupt):
            raise typer.Exit(130) from None
        if isinstance(exc, OSError):
            raise ArgumentError(f"cannot read {exc.filename}: {exc.strerror}") from exc
        raise
    finally:
        counts = {
            "recorded": tally.recorded,
            "duplicates": tally.known,
            "still_open": tally.lines.still_open,
            "broken": tally.lines.broken,
        }
        log.info("usage imported", extra=counts)


def _summary(tally: _Tally) -> Iterator[str]:
    lines = tally.lines
    if tally.recorded:
        first, last = min(tally.days), max(tally.days)
        days = f"of {first}" if first == last else f"from {first} to {last}"
        yield (
            f"{tally.recorded:,} new messages {days}:"
            f" {tally.cost:,.4f} USD, {tally.credits:,.2f} credits"
        )
    else:
        yield "nothing new: 0 USD, 0 credits"
    yield (
        f"{tally.known:,} already there; lines: {lines.repeats:,} repeated,"
        f" {lines.without_usage:,} without usage, {lines.broken:,} broken"
    )
    if lines.still_open:
        yield (
            f"not recorded yet, for they may still be streaming: {lines.still_open:,};"
            " import again later"
        )

"""`pyapp import usage`: record the model calls of usage logs."""

import itertools
import logging
import stat
from collections.abc import Iterable, Iterator
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
from pyapp._core.run import fetch_one
from pyapp.cli.arguments import ArgumentError, find_user, parse_id, parse_time
from pyapp.cli.console import say, show_bytes, warn
from pyapp.errors import PyappError
from pyapp.fingerprints import upsert_fingerprint
from pyapp.messages import NewMessage, record_messages
from pyapp.usage_import.reader import (
    BrokenLine,
    LineCounts,
    ReadMessage,
    UnknownUsage,
    read_usage_logs,
)

log = logging.getLogger("pyapp.imports")

BATCH = 5_000
SHOWN_BROKEN_LINES = 20


@dataclass(frozen=True)
class _Latest:
    finished_at: datetime


@dataclass
class _Tally:
    """Counts of the lines read and of the messages committed."""

    lines: LineCounts = field(default_factory=LineCounts)
    recorded: int = 0
    duplicates: int = 0
    cost: Decimal = Decimal(0)
    credits: Decimal = Decimal(0)
    days: set[date] = field(default_factory=set)


def register(app: typer.Typer) -> None:
    """Add the command to `pyapp import`."""
    app.command()(usage)


def usage(
    files: Annotated[
        list[Path], typer.Argument(metavar="FILE", help="Logs, or folders of logs.")
    ],
    user: Annotated[
        str | None, typer.Option(metavar="EMAIL|UUID", help="The paying user.")
    ] = None,
    fingerprint: Annotated[
        str | None, typer.Option(metavar="UUID", help="The paying fingerprint.")
    ] = None,
    at: Annotated[
        str | None,
        typer.Option(
            metavar="TIME|now",
            help="Time of responses without one; default: the file's.",
        ),
    ] = None,
    provider: Annotated[
        str | None,
        typer.Option(
            metavar="NAME", help="Host of all calls; default: as the log says."
        ),
    ] = None,
) -> None:
    """Record the model calls of usage logs; a repeated import adds nothing.

    A response that may still be streaming is left for the next import.
    """
    moment = parse_time(at)
    fingerprint_id = _parse_fingerprint(user, fingerprint)
    _check_files(files)
    settings = load_settings()
    tally = _Tally()
    with connect(settings.database_url) as conn, show_bytes(files) as advance:
        payer = _find_payer(conn, user, fingerprint_id)
        latest = fetch_one(conn, _Latest, "get_latest_finish").finished_at
        lines = read_usage_logs(
            files,
            at=moment,
            latest=latest,
            provider=provider,
            counts=tally.lines,
            on_bytes=advance,
        )
        with _reporting(tally):
            _record(conn, _messages(lines), payer, settings.margin, tally)
    for line in _summary(tally):
        say(line)
    if tally.lines.broken or tally.lines.unknown or tally.lines.unknown_files:
        raise typer.Exit(1)


def _parse_fingerprint(user: str | None, fingerprint: str | None) -> UUID | None:
    if (user is None) == (fingerprint is None):
        raise typer.BadParameter("name the payer: --user EMAIL or --fingerprint UUID")
    if fingerprint is None:
        return None
    fingerprint_id = parse_id(fingerprint)
    if fingerprint_id is None:
        raise typer.BadParameter(f"--fingerprint: {fingerprint!r} is not a UUID")
    return fingerprint_id


def _check_files(files: list[Path]) -> None:
    """Raise an error for an unreadable file before anything is recorded."""
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
    conn: psycopg.Connection[Any], user: str | None, fingerprint_id: UUID | None
) -> dict[str, Any]:
    """Return the payer as an argument of record_messages."""
    if user is not None:
        return {"user_id": find_user(conn, user).id}
    # A fingerprint needs no account; its first call creates it.
    upsert_fingerprint(conn, fingerprint_id=fingerprint_id)
    return {"fingerprint_id": fingerprint_id}


def _messages(
    lines: Iterable[ReadMessage | BrokenLine | UnknownUsage],
) -> Iterator[NewMessage]:
    """Yield the messages, and print the first broken lines as they are read."""
    broken = 0
    for line in lines:
        if isinstance(line, ReadMessage):
            yield line.message
            continue
        broken += 1
        if broken <= SHOWN_BROKEN_LINES:
            warn(f"{line.file}:{line.line or ''}: {line.reason}")
        elif broken == SHOWN_BROKEN_LINES + 1:
            warn("further broken lines are only counted")


def _record(
    conn: psycopg.Connection[Any],
    messages: Iterator[NewMessage],
    payer: dict[str, Any],
    margin: Decimal,
    tally: _Tally,
) -> None:
    """Record *messages* in batches, and commit each."""
    conn.commit()
    while batch := list(itertools.islice(messages, BATCH)):
        result = record_messages(conn, batch, margin=margin, **payer)
        conn.commit()
        tally.recorded += result.recorded
        tally.duplicates += result.duplicates
        tally.cost += result.cost
        tally.credits += result.credits
        tally.days.update(message.finished_at.date() for message in batch)


@contextmanager
def _reporting(tally: _Tally) -> Iterator[None]:
    """Report what was recorded if the import ends early; log the counts."""
    try:
        yield
    except (KeyboardInterrupt, OSError, PyappError, psycopg.Error) as exc:
        warn(
            f"stopped: {tally.recorded:,} new messages were recorded;"
            " repeat the command to continue"
        )
        if isinstance(exc, KeyboardInterrupt):
            raise typer.Exit(130) from None
        if isinstance(exc, OSError):
            raise ArgumentError(f"cannot read {exc.filename}: {exc.strerror}") from exc
        raise
    finally:
        counts = {
            "recorded": tally.recorded,
            "duplicates": tally.duplicates,
            "still_open": tally.lines.still_open,
            "broken": tally.lines.broken,
        }
        log.info("usage imported", extra=counts)


def _summary(tally: _Tally) -> Iterator[str]:
    lines = tally.lines
    if tally.recorded:
        first, last = min(tally.days), max(tally.days)
        days = f"on {first}" if first == last else f"from {first} to {last}"
        yield (
            f"{tally.recorded:,} new messages {days}:"
            f" {tally.cost:,.4f} USD, {tally.credits:,.2f} credits"
        )
    else:
        yield "nothing new: 0 USD, 0 credits"
    yield (
        f"{tally.duplicates:,} already recorded; lines: {lines.repeats:,} repeated,"
        f" {lines.without_usage:,} without usage, {lines.broken:,} broken"
    )
    if lines.still_open:
        yield (
            f"{lines.still_open:,} not recorded, because they may still be streaming;"
            " import again later"
        )

"""`pyapp import usage`: record the model calls of usage logs."""

import itertools
import logging
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
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
from pyapp._core.sanitize import storable_text
from pyapp._core.validation import MAX_ID_LENGTH
from pyapp.cli.arguments import ArgumentError, AsJson, find_user, parse_time, require_id
from pyapp.cli.console import counted, print_json, say, show_bytes, warn
from pyapp.errors import PyappError
from pyapp.fingerprints import upsert_fingerprint
from pyapp.messages import RecordedMessages, record_messages
from pyapp.usage_import.collection import LineCounts
from pyapp.usage_import.files import SUFFIXES, Log, find_logs
from pyapp.usage_import.reader import (
    BrokenLine,
    ReadMessage,
    UnknownUsage,
    read_usage_logs,
)
from pyapp.usage_import.recorded_runs import RecordedRuns, leave_out_recorded

log = logging.getLogger("pyapp.imports")

BATCH = 5_000


@dataclass(frozen=True)
class _Latest:
    finished_at: datetime


@dataclass
class _Tally:
    """Counts of the lines read and of the messages committed.

    `stated` are messages whose log states their cost, `stated_cost` is that cost.
    """

    lines: LineCounts = field(default_factory=LineCounts)
    recorded: int = 0
    duplicates: int = 0
    cost: Decimal = Decimal(0)
    credits: Decimal = Decimal(0)
    stated: int = 0
    stated_cost: Decimal = Decimal(0)
    unpriced: int = 0
    days: set[date] = field(default_factory=set)


def register(app: typer.Typer) -> None:
    """Add the command to `pyapp import`."""
    app.command()(usage)


def usage(
    files: Annotated[
        list[str], typer.Argument(metavar="FILE", help="Logs, or folders of logs.")
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
    allow_broken: Annotated[
        int,
        typer.Option(
            metavar="N", min=0, help="Status 0 if at most N lines are broken."
        ),
    ] = 0,
    as_json: AsJson = False,
) -> None:
    """Record the model calls of usage logs; a repeated import adds nothing.

    A response that may still be streaming is left for the next import.
    """
    moment = parse_time(at)
    fingerprint_id = _parse_fingerprint(user, fingerprint)
    host = _parse_provider(provider)
    logs = _find_logs(files)
    settings = load_settings()
    tally = _Tally()
    with connect(settings.database_url) as conn, show_bytes(_total(logs)) as advance:
        payer = _find_payer(conn, user, fingerprint_id)
        latest = fetch_one(conn, _Latest, "get_latest_finish").finished_at
        lines = read_usage_logs(
            logs,
            at=moment,
            latest=latest,
            provider=host,
            counts=tally.lines,
            on_bytes=advance,
        )
        runs = RecordedRuns(conn, *payer.values())
        with _reporting(tally):
            messages = _messages(lines, runs, tally)
            _record(conn, messages, payer, settings.margin, tally)
    if as_json:
        print_json(_object(tally))
    else:
        for line in _summary(tally):
            say(line)
    found = tally.lines
    if found.broken > allow_broken or found.unknown or found.unknown_files:
        raise typer.Exit(1)


def _parse_fingerprint(user: str | None, fingerprint: str | None) -> UUID | None:
    if (user is None) == (fingerprint is None):
        raise typer.BadParameter("name the payer: --user EMAIL or --fingerprint UUID")
    return None if fingerprint is None else require_id("--fingerprint", fingerprint)


def _parse_provider(provider: str | None) -> str | None:
    if provider is not None and not 0 < len(provider.strip()) <= MAX_ID_LENGTH:
        raise typer.BadParameter(
            f"--provider is a name of 1 to {MAX_ID_LENGTH} characters"
        )
    return provider and storable_text(provider.strip())


def _find_logs(paths: list[str]) -> list[Log]:
    """Return the files; raise an error for an unreadable one before any is recorded."""
    if "" in paths:
        # An empty path would be the present folder.
        raise ArgumentError("the name of a file is empty")
    try:
        logs = find_logs(map(Path, paths))
        for log in logs:
            if log.time is not None:
                log.path.open("rb").close()
    except OSError as exc:
        raise ArgumentError(f"cannot read {exc.filename}: {exc.strerror}") from exc
    if not logs:
        names = ", ".join(f"*{suffix}" for suffix in SUFFIXES)
        raise ArgumentError(f"no file to read: in a folder they are {names}, or .gz")
    return logs


def _total(logs: list[Log]) -> int | None:
    """Return the bytes to show: each file is read, then recorded."""
    if any(log.time is None for log in logs):
        return None  # the length of a pipe is not known
    return 2 * sum(log.size for log in logs)


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
    runs: RecordedRuns,
    tally: _Tally,
) -> Iterator[ReadMessage]:
    """Yield the messages, and print the other lines as they are read."""
    for line in lines:
        if not isinstance(line, ReadMessage):
            _report(line.file, line.line, line.reason)
            continue
        reason = runs.find_reason(line)
        if reason is None:
            yield line
        elif reason:
            tally.lines.broken += 1
            _report(line.file, line.line, reason)
        else:
            tally.lines.repeats += 1


def _report(file: str, line: int | None, reason: str) -> None:
    place = file if line is None else f"{file}:{line}"
    warn(f"{place}: {reason}")


def _record(
    conn: psycopg.Connection[Any],
    messages: Iterator[ReadMessage],
    payer: dict[str, UUID],
    margin: Decimal,
    tally: _Tally,
) -> None:
    """Record *messages* in batches, and commit each."""
    conn.commit()
    (payer_id,) = payer.values()
    while read := list(itertools.islice(messages, BATCH)):
        batch = leave_out_recorded(conn, payer_id, read)
        tally.duplicates += len(read) - len(batch)
        # Recorded apart, so that the new ones of each kind can be counted.
        stated = [each for each in batch if each.message.cost is not None]
        others = [each for each in batch if each.message.cost is None]
        if stated:
            result = _record_batch(conn, stated, payer, margin, tally)
            tally.stated += result.recorded
            tally.stated_cost += result.cost
        if others:
            _record_batch(conn, others, payer, margin, tally)


def _record_batch(
    conn: psycopg.Connection[Any],
    batch: list[ReadMessage],
    payer: dict[str, UUID],
    margin: Decimal,
    tally: _Tally,
) -> RecordedMessages:
    unpriced: dict[int, str] = {}
    result = record_messages(
        conn,
        (each.message for each in batch),
        margin=margin,
        on_unpriced=unpriced.__setitem__,
        **payer,
    )
    conn.commit()
    tally.recorded += result.recorded
    tally.duplicates += result.duplicates
    tally.cost += result.cost
    tally.credits += result.credits
    tally.unpriced += len(unpriced)
    tally.lines.broken += len(unpriced)
    for position, each in enumerate(batch, start=1):
        if position in unpriced:
            _report(each.file, each.line, unpriced[position])
        else:
            tally.days.add(each.message.finished_at.date())
    return result


@contextmanager
def _reporting(tally: _Tally) -> Iterator[None]:
    """Report what was recorded if the import ends early; log the counts."""
    try:
        yield
    except (KeyboardInterrupt, OSError, PyappError, psycopg.Error) as exc:
        number = counted(tally.recorded, "new message was", "new messages were")
        warn(f"stopped: {number} recorded; repeat the command to continue")
        if isinstance(exc, KeyboardInterrupt):
            raise typer.Exit(130) from None
        if isinstance(exc, OSError):
            # Without a name, it is the temporary file: the disk may be full.
            name = exc.filename or "the logs"
            raise ArgumentError(f"cannot read {name}: {exc.strerror}") from exc
        raise
    finally:
        counts = {
            "recorded": tally.recorded,
            "duplicates": tally.duplicates,
            "still_open": tally.lines.still_open,
            "broken": tally.lines.broken,
            "unknown": tally.lines.unknown,
        }
        log.info("usage imported", extra=counts)


def _object(tally: _Tally) -> dict[str, Any]:
    """Return the JSON object; docs/usage.md documents its keys."""
    lines = asdict(tally.lines)
    del lines["messages"]
    return {
        "recorded": tally.recorded,
        "duplicates": tally.duplicates,
        "first_day": min(tally.days, default=None),
        "last_day": max(tally.days, default=None),
        "cost": tally.cost,
        "credits": tally.credits,
        "stated": tally.stated,
        "stated_cost": tally.stated_cost,
        "unpriced": tally.unpriced,
        **lines,
    }


def _summary(tally: _Tally) -> Iterator[str]:
    lines = tally.lines
    if tally.recorded:
        first, last = min(tally.days), max(tally.days)
        days = f"on {first}" if first == last else f"from {first} to {last}"
        yield (
            f"{counted(tally.recorded, 'new message')} {days}:"
            f" {tally.cost:,.4f} USD, {tally.credits:,.2f} credits"
        )
    else:
        yield "nothing new: 0 USD, 0 credits"
    yield (
        f"{tally.duplicates:,} already recorded; lines: {lines.repeats:,} repeated,"
        f" {lines.without_usage:,} without usage, {lines.broken:,} broken"
    )
    if tally.stated:
        yield (
            f"{counted(tally.stated, 'new message')} at the cost that the log states:"
            f" {tally.stated_cost:,.4f} USD"
        )
    if tally.unpriced:
        number = counted(tally.unpriced, "broken line has", "broken lines have")
        yield f"{number} no price; see: pyapp prices set"
    if lines.unknown:
        number = counted(lines.unknown, "line")
        yield f"{number} with usage in an unknown form, not recorded"
    if lines.unknown_files:
        number = counted(lines.unknown_files, "file or folder", "files or folders")
        yield f"{number} of an unknown format"
    if lines.other_files:
        number = counted(lines.other_files, "other file")
        yield f"{number} in the folders, without usage"
    if lines.still_open:
        yield (
            f"{counted(lines.still_open, 'response')} may still be streaming: not"
            " recorded; import again later"
        )

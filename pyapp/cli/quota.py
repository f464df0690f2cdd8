"""`pyapp quota`: who has used how much of which quota, and until when."""

import itertools
import json
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import asdict, dataclass
from datetime import UTC, datetime, time
from decimal import Decimal
from typing import Annotated, Any
from uuid import UUID

import typer
from psycopg import Connection
from rich.cells import cell_len, set_cell_size

from pyapp._core.connection import connect
from pyapp.cli.arguments import ArgumentError, find_user, parse_id
from pyapp.cli.console import console
from pyapp.cli.text import printable
from pyapp.errors import FingerprintNotFoundError, UserNotFoundError
from pyapp.quota import (
    Quota,
    UserQuota,
    get_fingerprint_quota,
    get_user_quota,
    list_fingerprint_quotas,
    list_user_quotas,
)

PAGE = 500
HEADER = ("who", "used", "quota", "remaining", "ends (UTC)", "blocked")
_NUMBERS = frozenset({"used", "quota", "remaining"})
_GAP = "  "


@dataclass(frozen=True)
class _Entry:
    kind: str
    email: str | None
    quota: Quota | UserQuota


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command()(quota)


def quota(
    who: Annotated[
        str | None,
        typer.Argument(metavar="USER|FINGERPRINT", help="E-mail or UUID."),
    ] = None,
    everyone: Annotated[
        bool,
        typer.Option("--all", help="Every user, and every fingerprint with usage."),
    ] = False,
    as_json: Annotated[
        bool, typer.Option("--json", help="One exact JSON object for each line.")
    ] = False,
) -> None:
    """Show quota, use and period: of one, or of all."""
    if (who is None) != everyone:
        raise typer.BadParameter("name a user or a fingerprint, or give --all")
    # Now is the transaction's, so that all pages are of one moment.
    with connect() as conn:
        entries = _all(conn) if who is None else iter([_one(conn, who)])
        if as_json:
            _print_json(entries)
        else:
            _print_table(entries)


def _one(conn: Connection[Any], who: str) -> _Entry:
    subject_id = parse_id(who)
    if subject_id is not None:
        with suppress(FingerprintNotFoundError):
            found = get_fingerprint_quota(conn, fingerprint_id=subject_id)
            return _Entry("fingerprint", None, found)
    try:
        user = find_user(conn, who)
    except UserNotFoundError:
        raise ArgumentError(f"no user and no fingerprint {who}") from None
    return _Entry("user", user.email, get_user_quota(conn, user_id=user.id))


def _all(conn: Connection[Any]) -> Iterator[_Entry]:
    """Yield all users, then the fingerprints that used anything, a page at a time."""
    after: UUID | None = None
    while users := list_user_quotas(conn, after=after, limit=PAGE):
        after = users[-1].subject_id
        yield from (_Entry("user", user.email, user) for user in users)
    after = None
    while devices := list_fingerprint_quotas(conn, after=after, limit=PAGE):
        after = devices[-1].subject_id
        yield from (_Entry("fingerprint", None, d) for d in devices if d.credits_used)


def _print_json(entries: Iterator[_Entry]) -> None:
    for entry in entries:
        values = {"kind": entry.kind, **asdict(entry.quota), "email": entry.email}
        typer.echo(json.dumps(values, default=_exact))


def _exact(value: Any) -> str:
    if isinstance(value, Decimal):
        return format(value, "f")
    return value.isoformat() if isinstance(value, datetime) else str(value)


def _print_table(entries: Iterator[_Entry]) -> None:
    """Print page by page; a later page may widen a column, and none is narrowed."""
    widths = [0] * len(HEADER)
    rows: list[tuple[str, ...]] = [HEADER]
    while page := list(itertools.islice(entries, PAGE)):
        rows += map(_cells, page)
        widths = [
            max(width, *(cell_len(row[column]) for row in rows))
            for column, width in enumerate(widths)
        ]
        for row in rows:
            style = "bold" if row is HEADER else "red" if row[-1] == "yes" else None
            console.print(_line(row, _fitted(widths)), style=style)
        rows = []
    if rows:
        console.print("there are no users, and no fingerprints with usage")


def _cells(entry: _Entry) -> tuple[str, ...]:
    quota = entry.quota
    return (
        printable(entry.email or str(quota.subject_id)),
        f"{quota.credits_used:,.2f}",
        f"{quota.quota:,.2f}".removesuffix(".00"),
        f"{quota.credits_remaining:,.2f}",
        _shown_time(quota.end_date.astimezone(UTC)),
        "yes" if quota.is_blocked else "no",
    )


def _shown_time(moment: datetime) -> str:
    is_midnight = moment.time() == time()
    return f"{moment:%Y-%m-%d}" if is_midnight else f"{moment:%Y-%m-%d %H:%M}"


def _fitted(widths: list[int]) -> list[int]:
    """Return *widths*, the first one cut to what a terminal has room for."""
    rest = sum(len(_GAP) + width for width in widths[1:])
    if not console.is_terminal:
        return widths
    return [min(widths[0], max(console.width - rest, len(HEADER[0]))), *widths[1:]]


def _line(row: tuple[str, ...], widths: list[int]) -> str:
    who, *others = row
    if cell_len(who) > widths[0]:
        who = set_cell_size(who, widths[0] - 1) + "\N{HORIZONTAL ELLIPSIS}"
    cells = [set_cell_size(who, widths[0])]
    for title, cell, width in zip(HEADER[1:], others, widths[1:], strict=True):
        cells.append(cell.rjust(width) if title in _NUMBERS else cell.ljust(width))
    return _GAP.join(cells).rstrip()

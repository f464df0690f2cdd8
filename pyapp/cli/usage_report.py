"""`pyapp usage`: what was used and what it cost, from the database."""

import csv
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, time
from decimal import Decimal
from typing import Annotated, Any, get_args
from uuid import UUID

import psycopg
import typer
from psycopg import Connection

from pyapp._core.connection import connect
from pyapp._core.validation import MAX_INTEGER
from pyapp.cli.arguments import (
    AsJsonLines,
    find_user,
    name_user,
    parse_time,
    require_id,
)
from pyapp.cli.console import print_json, print_table, say, warn
from pyapp.cli.logs import printable
from pyapp.fingerprints import get_fingerprint
from pyapp.usage import UsageGroup, UsageKey, list_usage

# Groups that the table shows without --limit.
SHOWN = 1000
NONE = "(none)"
TOTAL = "total"
_COST_HEADER = ("messages", "tokens", "cost (USD)", "credits")
_TOKEN_HEADER = ("input", "cache writes", "cache reads", "output")
_SUMS = (
    "messages",
    "input_tokens",
    "cache_creation_input_tokens",
    "cache_read_input_tokens",
    "output_tokens",
    "total_tokens",
    "cost",
    "credits",
)
# A spreadsheet takes a cell that begins with one of these, in either width, for a
# formula.
_FORMULA = tuple("=+-@\uff1d\uff0b\uff0d\uff20")

_Row = tuple[str, ...]
_FIELDS: dict[UsageKey, str] = {
    "day": "day",
    "month": "day",
    "model": "model",
    "provider": "provider",
    "client": "client_id",
    "payer": "subject_id",
}


@dataclass(frozen=True)
class _Scope:
    """The messages of a report: `payer` is the text that names it, if it is one."""

    payer: str | None
    subject_id: UUID | None
    since: datetime | None
    until: datetime | None

    @property
    def span(self) -> str:
        """Return the range of times in words."""
        bounds = [
            f"{word} {_format_time(moment)}"
            for word, moment in (("from", self.since), ("until", self.until))
            if moment is not None
        ]
        return f"{' '.join(bounds)} (UTC)" if bounds else "of all time"


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command()(usage)


def usage(
    by: Annotated[
        str, typer.Option(metavar="KEY", help=f"{', '.join(get_args(UsageKey))}.")
    ],
    user: Annotated[
        str | None, typer.Option(metavar="EMAIL|UUID", help="Only of this user.")
    ] = None,
    fingerprint: Annotated[
        str | None, typer.Option(metavar="UUID", help="Only of this fingerprint.")
    ] = None,
    since: Annotated[
        str | None,
        typer.Option(metavar="TIME", help="Default, without --until: this month."),
    ] = None,
    until: Annotated[
        str | None, typer.Option(metavar="TIME", help="The time itself is excluded.")
    ] = None,
    limit: Annotated[
        int | None,
        typer.Option(
            metavar="N",
            min=1,
            max=MAX_INTEGER - 1,
            help=f"Default: {SHOWN:,} in the table; all with --json and --csv.",
        ),
    ] = None,
    tokens: Annotated[
        bool,
        typer.Option("--tokens", help="Show the token counts in place of the cost."),
    ] = False,
    as_json: AsJsonLines = False,
    as_csv: Annotated[
        bool, typer.Option("--csv", help="For a spreadsheet, with exact numbers.")
    ] = False,
) -> None:
    """Show tokens, cost and credits by day, month, model, provider, client or payer.

    Times are in UTC, and default to the present month.
    """
    key = _parse_key(by)
    if as_json + as_csv + tokens > 1:
        raise typer.BadParameter("give one of --json, --csv and --tokens")
    if user is not None and fingerprint is not None:
        raise typer.BadParameter("name one payer: --user or --fingerprint")
    bounds = _parse_bounds(since, until)
    with connect() as conn:
        # The groups and the total of all come from one snapshot.
        conn.isolation_level = psycopg.IsolationLevel.REPEATABLE_READ
        conn.read_only = True
        payer, subject_id = _find_payer(conn, user, fingerprint)
        scope = _Scope(payer, subject_id, *bounds)
        if as_json or as_csv:
            groups = _list(conn, key, scope, limit or MAX_INTEGER)
            (_print_json if as_json else _print_csv)(key, groups)
            if not groups:
                warn(_no_messages(scope))
        else:
            _print_table(conn, key, scope, limit or SHOWN, tokens)


def _parse_key(by: str) -> UsageKey:
    for key in _FIELDS:
        if by == key:
            return key
    raise typer.BadParameter(f"--by: {by!r} is not one of {', '.join(_FIELDS)}")


def _parse_bounds(
    since: str | None, until: str | None
) -> tuple[datetime | None, datetime | None]:
    if since is None and until is None:
        first = datetime.now(UTC).replace(
            day=1, hour=0, minute=0, second=0, microsecond=0
        )
        months = first.year * 12 + first.month
        return first, first.replace(year=months // 12, month=months % 12 + 1)
    begin, end = parse_time(since), parse_time(until)
    if begin is not None and end is not None and begin >= end:
        raise typer.BadParameter("--until must be later than --since")
    return begin, end


def _find_payer(
    conn: Connection[Any], user: str | None, fingerprint: str | None
) -> tuple[str | None, UUID | None]:
    """Return the name and the id of the payer, or None for all payers."""
    if user is not None:
        found = find_user(conn, user)
        return name_user(found), found.id
    if fingerprint is None:
        return None, None
    fingerprint_id = require_id("--fingerprint", fingerprint)
    get_fingerprint(conn, fingerprint_id=fingerprint_id)
    return f"fingerprint {fingerprint_id}", fingerprint_id


def _list(
    conn: Connection[Any], key: UsageKey, scope: _Scope, limit: int
) -> list[UsageGroup]:
    return list_usage(
        conn,
        by=key,
        subject_id=scope.subject_id,
        since=scope.since,
        until=scope.until,
        limit=limit,
    )


def _name(key: UsageKey, group: UsageGroup) -> str | None:
    value = getattr(group, _FIELDS[key])
    if value is None:
        return None
    return str(value)[: len("2026-11")] if key == "month" else str(value)


def _values(key: UsageKey, group: UsageGroup) -> dict[str, Any]:
    """Return what --json and --csv print; the keys are promised in docs/usage.md."""
    values: dict[str, Any] = {key: _name(key, group)}
    if key == "payer":
        values |= {"kind": group.kind, "email": group.email}
    return values | {name: getattr(group, name) for name in _SUMS}


def _print_json(key: UsageKey, groups: Sequence[UsageGroup]) -> None:
    for group in groups:
        print_json(_values(key, group))


def _print_csv(key: UsageKey, groups: Sequence[UsageGroup]) -> None:
    names = [key, *(("kind", "email") if key == "payer" else ()), *_SUMS]
    writer = csv.writer(sys.stdout, lineterminator="\n")
    writer.writerow(names)
    for group in groups:
        writer.writerow(map(_cell, _values(key, group).values()))


def _cell(value: Any) -> str:
    """Return a cell that no spreadsheet evaluates; an apostrophe marks it as text."""
    if isinstance(value, Decimal):
        return f"{value:f}"
    text = "" if value is None else printable(str(value))
    return f"'{text}" if text.startswith(_FORMULA) else text


def _print_table(
    conn: Connection[Any], key: UsageKey, scope: _Scope, limit: int, has_tokens: bool
) -> None:
    groups = _list(conn, key, scope, limit + 1)
    if not groups:
        say(_no_messages(scope))
        return
    is_cut = len(groups) > limit
    # The months of a scope have the sums of all its groups, and are few.
    whole = _list(conn, "month", scope, MAX_INTEGER) if is_cut else groups
    make_cells = _token_cells if has_tokens else _cost_cells
    header = (key, *(_TOKEN_HEADER if has_tokens else _COST_HEADER))
    rows: list[_Row] = []
    for group in groups[:limit]:
        name = group.email or _name(key, group)
        rows.append((NONE if name is None else printable(name), *make_cells(group)))
    rows.append((TOTAL, *make_cells(_total(whole))))
    say(f"usage {scope.span}")
    if scope.payer:
        say(f"of {scope.payer}")
    print_table(header, rows, numbers=header[1:])
    if is_cut:
        say(
            f"only the first {limit:,} groups are shown (--limit); the total counts all"
        )


def _no_messages(scope: _Scope) -> str:
    payer = f" of {scope.payer}" if scope.payer else ""
    return f"no messages{payer} {scope.span}"


def _cost_cells(sums: UsageGroup) -> _Row:
    return (
        f"{sums.messages:,}",
        f"{sums.total_tokens:,}",
        f"{sums.cost:,.4f}",
        f"{sums.credits:,.2f}",
    )


def _token_cells(sums: UsageGroup) -> _Row:
    return (
        f"{sums.input_tokens:,}",
        f"{sums.cache_creation_input_tokens:,}",
        f"{sums.cache_read_input_tokens:,}",
        f"{sums.output_tokens:,}",
    )


def _total(groups: Sequence[UsageGroup]) -> UsageGroup:
    sums = {name: sum(getattr(group, name) for group in groups) for name in _SUMS}
    return groups[0]._replace(**sums)


def _format_time(moment: datetime) -> str:
    is_midnight = moment.time() == time()
    return f"{moment:%Y-%m-%d}" if is_midnight else f"{moment:%Y-%m-%d %H:%M:%S}"

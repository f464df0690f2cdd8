"""`pyapp quota`: quota, usage and period of one payer or of all.

Below a user with a subscription, lines show its status, what is to end, and why an
active one buys no plan.
"""

import heapq
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, time
from itertools import chain, islice
from typing import Annotated, Any
from uuid import UUID

import typer
from psycopg import Connection

from pyapp._core.connection import connect
from pyapp._core.validation import MAX_INTEGER
from pyapp.cli.arguments import AsJsonLines, find_payer
from pyapp.cli.console import print_json, print_table, say, warn
from pyapp.entitlements import Entitlement, get_entitlement, list_entitlements
from pyapp.quota import (
    Quota,
    UserQuota,
    get_fingerprint_quota,
    get_user_quota,
    list_fingerprint_quotas,
    list_user_quotas,
)
from pyapp.users import User

PAGE = 500
# Payers that --sort keeps without --limit, so that memory stays flat.
SORTED = 1000
HEADER = ("payer", "used", "quota", "remaining", "ends (UTC)", "blocked")
_NUMBERS = frozenset({"used", "quota", "remaining"})
_JSON_KEYS = (
    "plan_id",
    "subscription_status",
    "ends_at",
    "trial_end",
    "pause_behavior",
    "pause_resumes_at",
    "reason",
)


@dataclass(frozen=True)
class _Entry:
    kind: str
    email: str | None
    quota: Quota | UserQuota
    entitlement: Entitlement | None = None


def _payer_order(entry: _Entry) -> tuple[Any, ...]:
    """Order e-mail addresses first, then the ids of payers without one."""
    return entry.email is None, (entry.email or "").lower()


# The first are those that an operator looks for: most used, least remaining, soonest.
ORDERS: dict[str, Callable[[_Entry], Any]] = {
    "used": lambda entry: -entry.quota.credits_used,
    "remaining": lambda entry: entry.quota.credits_remaining,
    "ends": lambda entry: entry.quota.end_date,
    "payer": _payer_order,
}


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command()(quota)


def quota(
    payer: Annotated[
        str | None,
        typer.Argument(metavar="USER|FINGERPRINT", help="E-mail address or UUID."),
    ] = None,
    is_all: Annotated[
        bool,
        typer.Option("--all", help="All users, and all fingerprints with usage."),
    ] = False,
    blocked: Annotated[
        bool, typer.Option("--blocked", help="With --all: only blocked payers.")
    ] = False,
    sort: Annotated[
        str | None,
        typer.Option(
            metavar="|".join(ORDERS),
            help="With --all: most used, least remaining, or soonest end first.",
        ),
    ] = None,
    limit: Annotated[
        int | None,
        typer.Option(
            metavar="N",
            min=1,
            max=MAX_INTEGER,
            help=f"With --all: at most N payers; default: all, {SORTED:,} with --sort.",
        ),
    ] = None,
    as_json: AsJsonLines = False,
) -> None:
    """Show quota, usage and period of one payer or of all.

    Without --sort, all payers are in the order of their ids.
    """
    if (payer is None) != is_all:
        raise typer.BadParameter("name a user or a fingerprint, or give --all")
    if not is_all and (blocked or sort is not None or limit is not None):
        raise typer.BadParameter("--blocked, --sort and --limit need --all")
    if sort is not None and sort not in ORDERS:
        raise typer.BadParameter(f"--sort: {sort!r} is not one of {', '.join(ORDERS)}")
    # One transaction, so that all pages have the same now().
    with connect() as conn:
        if payer is None:
            entries = _select(_all(conn), blocked, sort, limit)
        else:
            entries = iter([_one(conn, payer)])
        if as_json:
            _print_json(entries)
        else:
            _print_table(entries, is_blocked=blocked)


def _select(
    entries: Iterator[_Entry], is_blocked: bool, sort: str | None, limit: int | None
) -> Iterator[_Entry]:
    """Return the entries asked for; with *sort*, only these are in memory."""
    if is_blocked:
        entries = (entry for entry in entries if entry.quota.is_blocked)
    if sort is None:
        return islice(entries, limit)
    count = 0

    def numbered() -> Iterator[_Entry]:
        nonlocal count
        for entry in entries:
            count += 1
            yield entry

    order = ORDERS[sort]
    first = heapq.nsmallest(
        limit or SORTED,
        numbered(),
        key=lambda entry: (order(entry), entry.quota.subject_id),
    )
    if limit is None and count > SORTED:
        warn(f"the first {SORTED:,} of {count:,} payers are shown; see --limit")
    return iter(first)


def _one(conn: Connection[Any], payer: str) -> _Entry:
    found = find_payer(conn, payer)
    if isinstance(found, User):
        quota = get_user_quota(conn, user_id=found.id)
        entitlement = get_entitlement(conn, user_id=found.id)
        return _Entry("user", found.email, quota, entitlement)
    quota = get_fingerprint_quota(conn, fingerprint_id=found.id)
    return _Entry("fingerprint", None, quota)


def _all(conn: Connection[Any]) -> Iterator[_Entry]:
    """Yield all users, then all fingerprints with usage, a page at a time."""
    after: UUID | None = None
    entitlements = _all_entitlements(conn)
    found = next(entitlements, None)
    while users := list_user_quotas(conn, after=after, limit=PAGE):
        after = users[-1].subject_id
        for user in users:
            # Users created or deleted between the two statements are in one list only.
            while found and found.user_id < user.subject_id:
                found = next(entitlements, None)
            is_found = found is not None and found.user_id == user.subject_id
            yield _Entry("user", user.email, user, found if is_found else None)
    after = None
    while quotas := list_fingerprint_quotas(conn, after=after, limit=PAGE):
        after = quotas[-1].subject_id
        yield from (_Entry("fingerprint", None, q) for q in quotas if q.credits_used)


def _all_entitlements(conn: Connection[Any]) -> Iterator[Entitlement]:
    after: UUID | None = None
    while found := list_entitlements(conn, after=after, limit=PAGE):
        after = found[-1].user_id
        yield from found


def _print_json(entries: Iterator[_Entry]) -> None:
    for entry in entries:
        values = {"kind": entry.kind, **entry.quota._asdict(), "email": entry.email}
        found = entry.entitlement
        state = {key: found and getattr(found, key) for key in _JSON_KEYS}
        print_json(values | state)


def _print_table(entries: Iterator[_Entry], *, is_blocked: bool) -> None:
    first = next(entries, None)
    if first is None:
        everyone = "there are no users, and no fingerprints with usage"
        say("no payer is blocked" if is_blocked else everyone)
        return
    print_table(
        HEADER,
        map(_cells, chain((first,), entries)),
        numbers=_NUMBERS,
        style=lambda cells: "red" if cells[-1] == "yes" else None,
        fitted=HEADER[0],
    )


def _cells(entry: _Entry) -> tuple[str, ...]:
    quota = entry.quota
    return (
        entry.email or str(quota.subject_id),
        f"{quota.credits_used:,.2f}",
        f"{quota.quota:,.2f}".removesuffix(".00"),
        f"{quota.credits_remaining:,.2f}",
        _format_end(quota.end_date),
        "yes" if quota.is_blocked else "no",
        *(_subscription_notes(entry.entitlement) if entry.entitlement else ()),
    )


def _subscription_notes(entitlement: Entitlement) -> Iterator[str]:
    """Yield lines of less than 80 columns about the user's subscription."""
    status = entitlement.subscription_status
    if status is None:
        return
    state = f"subscription {status}"
    if not entitlement.subscription_active:
        yield state
        return
    if status == "trialing" and entitlement.trial_end:
        state += f" until {_format_end(entitlement.trial_end)}"
    if entitlement.ends_at:
        state += f", ends {_format_end(entitlement.ends_at)}"
    yield state
    if entitlement.reason == "no_quantity":
        yield "no plan: its quantity is 0"
    elif entitlement.reason:
        yield f"no plan has its price: {entitlement.stripe_price_id or '(none)'}"
    if entitlement.pause_behavior:
        paused = f"payments paused ({entitlement.pause_behavior})"
        resumes = entitlement.pause_resumes_at
        yield paused if resumes is None else f"{paused} until {_format_end(resumes)}"


def _format_end(moment: datetime) -> str:
    moment = moment.astimezone(UTC)
    is_midnight = moment.time() == time()
    return f"{moment:%Y-%m-%d}" if is_midnight else f"{moment:%Y-%m-%d %H:%M}"

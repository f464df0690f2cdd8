"""`pyapp users add | list | show | anonymize | export`."""

import json
import re
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from itertools import chain
from pathlib import Path
from typing import Annotated, Any, TextIO
from uuid import UUID

import typer
from psycopg import Connection

from pyapp._core.connection import connect
from pyapp.cli.arguments import (
    ArgumentError,
    AsJson,
    AsJsonLines,
    UserArgument,
    Yes,
    find_user,
    name_user,
    require_yes,
)
from pyapp.cli.console import (
    counted,
    format_amount,
    print_json,
    print_table,
    require_consent,
    say,
)
from pyapp.cli.files import replaced
from pyapp.entitlements import Entitlement, get_entitlement
from pyapp.fingerprints import list_user_fingerprints
from pyapp.quota import Quota, get_user_quota
from pyapp.referrals import ReferralSummary, get_referral_summary
from pyapp.sessions import Session, list_user_sessions
from pyapp.users import (
    PersonalRecord,
    User,
    anonymize_user,
    create_user,
    export_user,
    list_users,
)

PAGE = 1000
HEADER = ("user", "e-mail", "name")
_INDENT = 14
_ERASED = (
    "Erased: e-mail address, name, image, sessions, pending referrals, and the payloads"
    " of messages."
)
_KEPT = (
    "Kept: messages and daily usage, which are the bill, completed referrals, Stripe's"
    " ids, and Stripe's events until pyapp stripe prune deletes their payloads."
)
# Why an active subscription buys no plan.
_WITHOUT_PLAN = {
    "no_quantity": "the quantity of its price is 0",
    "unknown_price": "no plan has the price",
}
_NOT_ASCII = re.compile(r"[^\x00-\x7f]")


def register(app: typer.Typer) -> None:
    """Add the commands to `pyapp users`."""
    app.command()(add)
    app.command("list")(list_all)
    for command in (show, anonymize, export):
        app.command()(command)


def add(
    email: Annotated[str, typer.Argument(help="E-mail address, unique.")],
    name: Annotated[str | None, typer.Option(help="Display name.")] = None,
    as_json: AsJson = False,
) -> None:
    """Create a user on the free plan."""
    with connect() as conn:
        user = create_user(conn, email=email, name=name)
    if as_json:
        print_json(user._asdict())
    else:
        say(f"{user.email} is user {user.id}")


def list_all(
    search: Annotated[
        str | None,
        typer.Option(
            metavar="TEXT", help="Only users with it in the address or the name."
        ),
    ] = None,
    as_json: AsJsonLines = False,
) -> None:
    """List the users by id."""
    with connect() as conn:
        users = _all(conn, search)
        if as_json:
            for user in users:
                print_json(user._asdict())
            return
        first = next(users, None)
        if first is None:
            say("there are no users" if search is None else f"no user has {search}")
            return
        print_table(HEADER, map(_cells, chain((first,), users)), fitted="name")


def show(user: UserArgument, as_json: AsJson = False) -> None:
    """Show a user's profile, plan, quota, sessions and referrals."""
    with connect() as conn:
        found = find_user(conn, user)
        quota = get_user_quota(conn, user_id=found.id)
        entitlement = get_entitlement(conn, user_id=found.id)
        sessions = list_user_sessions(conn, user_id=found.id, limit=PAGE)
        referrals = get_referral_summary(conn, user_id=found.id)
    if as_json:
        print_json(_object(found, quota, entitlement, sessions, referrals))
        return
    say(_title(found))
    lines = chain(
        _profile(found),
        _plan(found, quota, entitlement),
        (
            ("sessions", _count_sessions(sessions)),
            ("referrals", _describe_referrals(referrals)),
        ),
    )
    for label, text in lines:
        say(f"  {label:<{_INDENT}}{text}", hanging=_INDENT)


def anonymize(
    user: UserArgument,
    yes: Yes = False,
    as_json: AsJson = False,
) -> None:
    """Erase the personal data of a user; keep the bill."""
    require_yes(yes, as_json)
    with connect() as conn:
        found = find_user(conn, user)
        own = [
            fingerprint.fingerprint_id
            for fingerprint in list_user_fingerprints(conn, user_id=found.id)
            if not fingerprint.is_shared
        ]
        # No transaction is open while the question waits.
        conn.commit()
        if not yes:
            say(f"{name_user(found)} is to be erased; the bill is kept.")
            require_consent(
                "Erase the personal data of this user for ever?",
                "Nothing is erased; --yes erases without asking.",
            )
        left = anonymize_user(conn, user_id=found.id)
    if as_json:
        print_json(
            {
                "user_id": left.id,
                "anonymized_at": left.anonymized_at,
                "subscription_status": left.subscription_status,
                "payers": [left.id, *own],
            }
        )
    else:
        _say_erased(found, own)


def export(
    user: UserArgument,
    output: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Write a file that only its owner reads."),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Export all that is stored about a user, as JSON lines.

    Without --output, the lines are printed, with --json too. With it, --json prints how
    many records of each kind are in the file.
    """
    with connect() as conn:
        found = find_user(conn, user)
        records = export_user(conn, user_id=found.id)
        if output is None:
            for record in records:
                typer.echo(_ascii(record.json_text))
            return
        with _private_file(output) as file:
            kinds = Counter(_written(records, file))
    total = sum(kinds.values())
    if as_json:
        print_json(
            {"user_id": found.id, "file": output, "records": total, "kinds": kinds}
        )
    else:
        say(f"{counted(total, 'record')} of {name_user(found)} in {output}")


def _all(conn: Connection[Any], search: str | None) -> Iterator[User]:
    after: UUID | None = None
    text = (search or "").casefold()
    while page := list_users(conn, after=after, limit=PAGE):
        after = page[-1].id
        for user in page:
            words = f"{user.email or ''}\n{user.name or ''}"
            if text in words.casefold():
                yield user


def _cells(user: User) -> tuple[str, ...]:
    return str(user.id), user.email or "(anonymized)", user.name or ""


def _title(user: User) -> str:
    return user.email or f"user {user.id} (anonymized)"


def _profile(user: User) -> Iterator[tuple[str, str]]:
    yield "user", str(user.id)
    if user.name:
        yield "name", user.name
    if user.image_url:
        yield "image", user.image_url
    yield "created", _format_time(user.created_at)
    if user.anonymized_at:
        yield "anonymized", _format_time(user.anonymized_at)
    else:
        verified = user.email_verified_at
        yield "verified", "no" if verified is None else _format_time(verified)


def _plan(
    user: User, quota: Quota, entitlement: Entitlement
) -> Iterator[tuple[str, str]]:
    status = entitlement.subscription_status
    why = _WITHOUT_PLAN.get(entitlement.reason or "")
    without = f"no paid plan: {why}" if why else "no paid plan"
    yield "plan", entitlement.plan_id or without
    yield (
        "quota",
        f"{quota.credits_used:,.2f} of {format_amount(quota.quota)} credits used"
        f" until {_format_time(quota.end_date)}",
    )
    yield "blocked", "yes" if quota.is_blocked else "no"
    yield "customer", user.stripe_customer_id or "none"
    if status is None:
        yield "subscription", "none"
        return
    ends = entitlement.ends_at
    yield (
        "subscription",
        f"{status} {entitlement.stripe_subscription_id}"
        + (f", ends {_format_time(ends)}" if ends else ""),
    )
    yield "price", entitlement.stripe_price_id or "none"


def _split(sessions: list[Session]) -> tuple[int, int]:
    """Return how many of *sessions* are valid, and how many are expired."""
    now = datetime.now(UTC)
    valid = sum(session.expires_at > now for session in sessions)
    return valid, len(sessions) - valid


def _count_sessions(sessions: list[Session]) -> str:
    valid, expired = _split(sessions)
    more = f", of the newest {PAGE:,}" if len(sessions) == PAGE else ""
    return f"{valid:,} valid, {expired:,} expired{more}"


def _describe_referrals(summary: ReferralSummary) -> str:
    return (
        f"{summary.referral_code}, {summary.referral_count:,} of"
        f" {summary.referral_limit:,} completed, {summary.pending_count:,} pending"
    )


def _object(
    user: User,
    quota: Quota,
    entitlement: Entitlement,
    sessions: list[Session],
    referrals: ReferralSummary,
) -> dict[str, Any]:
    """Return the JSON object; docs/users.md documents its keys."""
    valid, expired = _split(sessions)
    return {
        **user._asdict(),
        "credits_used": quota.credits_used,
        "credits_remaining": quota.credits_remaining,
        "period_start": quota.period_start,
        "end_date": quota.end_date,
        "is_blocked": quota.is_blocked,
        "plan_id": entitlement.plan_id,
        "reason": entitlement.reason,
        "ends_at": entitlement.ends_at,
        "trial_end": entitlement.trial_end,
        "pending_referrals": referrals.pending_count,
        "referrer_id": referrals.referrer_id,
        "valid_sessions": valid,
        "expired_sessions": expired,
    }


def _say_erased(user: User, fingerprints: list[UUID]) -> None:
    """Say what is erased; *user* is as it was before."""
    say(f"{name_user(user)} is anonymized")
    if user.email:
        say(f"What remains is user {user.id}")
    say(_ERASED)
    if fingerprints:
        count = counted(len(fingerprints), "fingerprint")
        say(
            f"Also the anonymous payloads of {count} that no other user has:"
            f" {', '.join(map(str, fingerprints))}"
        )
    say(_KEPT)
    if user.subscription_active:
        say(
            f"Subscription {user.stripe_subscription_id} is"
            f" {user.subscription_status}: Stripe charges the customer until it is"
            " canceled or deleted there."
        )
    say("Archives and backups are not changed. For each folder of archives:")
    for payer in (user.id, *fingerprints):
        say(f"  pyapp db erase-archived DIR --payer {payer}")


def _format_time(moment: datetime) -> str:
    return f"{moment.astimezone(UTC):%Y-%m-%d %H:%M} UTC"


def _written(records: Iterator[PersonalRecord], file: TextIO) -> Iterator[str]:
    """Write each record as a line; yield its kind."""
    for record in records:
        file.write(f"{record.json_text}\n")
        yield record.kind


def _ascii(json_text: str) -> str:
    """Return the same JSON in ASCII, which any terminal and encoding can show."""
    if json_text.isascii():
        return json_text
    # Outside of strings, JSON is ASCII.
    return _NOT_ASCII.sub(lambda found: json.dumps(found[0])[1:-1], json_text)


@contextmanager
def _private_file(path: Path) -> Iterator[TextIO]:
    """Yield a file that becomes *path* when the block ends, for its owner to read."""
    try:
        if path.exists() and not path.is_file():
            raise ArgumentError(f"--output: {path} is not a file")
        with replaced(path, mode=0o600) as file:
            yield file
    except OSError as exc:
        raise ArgumentError(f"cannot write {path}: {exc.strerror or exc}") from exc

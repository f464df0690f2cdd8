"""Which migrations a database has, and whether they are of the earlier history."""

from collections.abc import Collection, Mapping
from datetime import datetime
from typing import Any, NamedTuple

import psycopg

from pyapp._core.run import fetch_all, fetch_one
from pyapp.errors import MigrationError

# The migrations before the squash; `pyapp db adopt` replaces their marks.
EARLIER_HISTORY = (
    "0001_create_plans",
    "0002_create_accounts",
    "0003_create_messages",
    "0004_create_referrals",
    "0005_create_stripe_mirror",
    "0006_create_stripe_rules",
    "0007_widen_stripe_ties",
    "0008_create_messages_recorded_at_idx",
    "0009_speed_up_quota_check",
    "0010_sync_stripe_by_page",
    "0011_match_email_after_claims",
    "0012_follow_live_customers",
    "0013_fix_search_paths",
    "0014_refuse_times_ahead",
    "0015_erase_payloads_everywhere",
    "0016_grant_referrals_once",
    "0017_repair_drift",
    "0018_validate_messages_finished_at_not_ahead_check",
    "0019_create_messages_fingerprint_id_id_idx",
    "0020_end_sessions_and_referrals",
    "0021_drop_messages_fingerprint_id_idx",
)
# The first five have the same names in both histories; this text only the earlier one.
_EARLIER_CHECKSUM = "d5ba73dd317718ed6355bbd1f59a400bd2b720c1b8460a3b58ef227f809349f9"


class Bookkeeping(NamedTuple):
    """Which of the tables of yoyo and pyapp exist, and the number of other clients."""

    has_migrations: bool
    has_lock: bool
    has_checksums: bool
    other_clients: int


class _Applied(NamedTuple):
    name: str
    applied_at: datetime


class _Checksum(NamedTuple):
    name: str
    checksum: str


def read_bookkeeping(conn: psycopg.Connection[Any]) -> Bookkeeping:
    """Return which tables of yoyo and pyapp the database of *conn* has."""
    return fetch_one(conn, Bookkeeping, "get_bookkeeping")


def read_applied(
    conn: psycopg.Connection[Any],
) -> tuple[dict[str, datetime], dict[str, str]]:
    """Return when each migration was applied, and the known checksums."""
    tables = read_bookkeeping(conn)
    if not tables.has_migrations:
        return {}, {}
    applied = fetch_all(conn, _Applied, "list_applied_migrations")
    checksums: list[_Checksum] = []
    if tables.has_checksums:
        checksums = fetch_all(conn, _Checksum, "list_checksums")
    return (
        {row.name: row.applied_at for row in applied},
        {row.name: row.checksum for row in checksums},
    )


def is_earlier(applied: Collection[str], checksums: Mapping[str, str]) -> bool:
    """Tell whether a database has migrations of the earlier history."""
    return (
        not set(EARLIER_HISTORY[5:]).isdisjoint(applied)
        or checksums.get(EARLIER_HISTORY[0]) == _EARLIER_CHECKSUM
    )


def refuse_earlier(applied: Collection[str], checksums: Mapping[str, str]) -> None:
    """Refuse a database with migrations of the earlier history.

    Raises:
        MigrationError: it has some.
    """
    if is_earlier(applied, checksums):
        raise MigrationError(
            f"the database has migrations of an earlier history, up to {max(applied)};"
            " nothing was changed; bring it over with: pyapp db adopt"
        )

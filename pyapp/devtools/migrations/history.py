"""Which migrations a database has, and whether its schema app is that of pyapp.

Another project can have a schema of this name, and another project that uses yoyo has
its marks in the same table.
"""

from collections.abc import Collection
from datetime import datetime
from typing import Any, NamedTuple

import psycopg

from pyapp._core.queries import migrations_dir
from pyapp._core.run import fetch_all, fetch_one, fetch_optional
from pyapp.errors import MigrationError, MissingPrivilegeError

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
# The migrations that replace them.
SQUASHED = (
    "0001_create_schema",
    "0002_create_users",
    "0003_create_usage",
    "0004_add_referrals",
    "0005_add_stripe_mirror",
    "0006_create_functions",
)
# The objects of the earlier history that adoption replaces, changes or drops, with the
# MD5 of their statements in a dump, which is the same with PostgreSQL 15 and 18. Any
# other object that differs was changed by hand, and is refused.
CHANGED_OBJECTS = {
    "CONSTRAINT app.users users_stripe_customer_id_key": (
        "bcc2f0fc1d0b3a032dd5b2688a293a20"
    ),
    "FUNCTION app.add_usage": "22f10d27dc018895354e765ecb2e7e46",
    "FUNCTION app.anonymize_user": "e6bf9b2dd93db0d566aae4535bb7a7b8",
    "FUNCTION app.create_payload_partitions": "fd19da84eeb1f9a9a200330949f2b776",
    "FUNCTION app.end_unproved_sessions": "96c69ca4a0ade1edee814a16c0ecf5d0",
    "FUNCTION app.grant_referral_credits": "462669d0df19f69afa8ace4bb83b20d8",
    "FUNCTION app.judge_stripe_view": "7ad26c4d8cc5e9adb42e7fc9da9c227b",
    "FUNCTION app.put_stripe_customers": "13f1deae344f2467c8b5832457933fdc",
    "FUNCTION app.put_stripe_subscriptions": "471af31202ed4f4dfa5a5d62c4c0f0a5",
    "FUNCTION app.put_stripe_views": "427ab992703f78b5c0d80166db0377c7",
    "FUNCTION app.refuse_user_id": "4f891020d9a0e770267676932335b190",
    "FUNCTION app.repair_referral_totals": "36a23109dc87c4a1ef9c2f8b17835b9c",
    "FUNCTION app.repair_usage_day": "172c0e0727bca798d3da9b343c5486fc",
    "FUNCTION app.retire_payload_partition": "94d3da6dc8dc2e59e6e9dea58335ca91",
    "FUNCTION app.sync_stripe_users": "22ed9efe57327bd42d226a79326b91a2",
    "FUNCTION app.take_stripe_event": "1566ea3385fb06f56841b1d0c06c9187",
    "TABLE app.stripe_events": "59a60939120e47ccb763a0ffa37e75a0",
    "TRIGGER app.usage_daily usage_daily_kept_by_trigger": (
        "496df5ee0e7ea022d5e3ec83c2f48550"
    ),
    "TRIGGER app.usage_daily usage_daily_no_truncate": (
        "d84ee54d714b2820286281fa27d45163"
    ),
    "TRIGGER app.users users_end_unproved_sessions": "ceba9cebc14cad697fd1e66b6a64d81d",
    "VIEW app.referral_drift": "0174e00b894697ab0df1c59e72bd1bd6",
}
# The functions, views and triggers that adoption adds.
NEW_OBJECTS = frozenset(
    {
        "FUNCTION app.apply_stripe_event",
        "FUNCTION app.compare_stripe_customers",
        "FUNCTION app.compare_stripe_snapshot",
        "FUNCTION app.compare_stripe_subscriptions",
        "FUNCTION app.end_unverified_sessions",
        "FUNCTION app.find_best_subscription",
        "FUNCTION app.find_customer_owners",
        "FUNCTION app.find_user_customer",
        "FUNCTION app.lock_snapshot_users",
        "FUNCTION app.record_message",
        "FUNCTION app.upsert_stripe_customers",
        "FUNCTION app.upsert_stripe_subscriptions",
        "TRIGGER app.users users_end_unverified_sessions",
        "VIEW app.stripe_entitlements",
    }
)


class Bookkeeping(NamedTuple):
    """Which of the tables of yoyo and pyapp exist, and the number of other clients."""

    has_migrations: bool
    has_lock: bool
    has_checksums: bool
    other_clients: int


class Schema(NamedTuple):
    """Schema app: whether pyapp built it, the number of its objects, and 3 names."""

    is_ours: bool
    objects: int
    names: list[str]


class _Applied(NamedTuple):
    name: str
    applied_at: datetime


class _Checksum(NamedTuple):
    name: str
    checksum: str
    is_current: bool


def read_bookkeeping(conn: psycopg.Connection[Any]) -> Bookkeeping:
    """Return which tables of yoyo and pyapp the database of *conn* has."""
    return fetch_one(conn, Bookkeeping, "get_bookkeeping")


def read_applied(
    conn: psycopg.Connection[Any],
) -> tuple[dict[str, datetime], dict[str, str]]:
    """Return when each migration of pyapp was applied, and the known checksums.

    A mark without a checksum and without a file here is of another project.

    Raises:
        MigrationError: schema app is not that of pyapp, or does not exist any more.
        MissingPrivilegeError: the role may not read them.
    """
    tables = read_bookkeeping(conn)
    applied: dict[str, datetime] = {}
    if grants := fetch_all(conn, str, "list_mark_grants"):
        raise MissingPrivilegeError(
            f"the role {conn.info.user} may not read which migrations are applied; let"
            f" their owner run: {'; '.join(grants)}"
        )
    stored: list[_Checksum] = []
    if tables.has_migrations and tables.has_checksums:
        stored = fetch_all(conn, _Checksum, "list_checksums")
    own = {row.name for row in stored}
    if tables.has_migrations:
        files = {path.stem for path in migrations_dir().glob("*.sql")}
        known = {*own, *files, *EARLIER_HISTORY}
        marks = fetch_all(conn, _Applied, "list_applied_migrations")
        applied = {mark.name: mark.applied_at for mark in marks if mark.name in known}
    _require_own_schema(find_schema(conn), applied, own)
    return applied, {row.name: row.checksum for row in stored if row.is_current}


def find_schema(conn: psycopg.Connection[Any]) -> Schema | None:
    """Return schema app, None if there is none."""
    return fetch_optional(conn, Schema, "find_schema")


def _require_own_schema(
    schema: Schema | None, applied: Collection[str], own: Collection[str]
) -> None:
    if schema is None:
        if applied:
            raise MigrationError(
                f"{min(applied)} is marked as applied in public._yoyo_migration, and"
                " there is no schema app; if it was dropped, remove its marks with:"
                " yoyo unmark --all; if the mark is of another project, use another"
                " database"
            )
    elif schema.objects and not schema.is_ours and not own:
        more = schema.objects - len(schema.names)
        others = f" and {more} more object{'s' if more > 1 else ''}" if more else ""
        raise MigrationError(
            f"the schema app of this database belongs to another program: it has"
            f" {', '.join(schema.names)}{others};"
            " nothing was changed. pyapp needs this name: use another database, or"
            " rename that schema (ALTER SCHEMA app RENAME TO ...)"
        )


def is_earlier(applied: Collection[str]) -> bool:
    """Tell whether a database has migrations of the earlier history."""
    return not set(EARLIER_HISTORY).isdisjoint(applied)


def refuse_earlier(conn: psycopg.Connection[Any]) -> None:
    """Refuse a database with migrations of the earlier history.

    Raises:
        MigrationError: it has some, or its schema app is not that of pyapp.
    """
    applied, _ = read_applied(conn)
    if is_earlier(applied):
        raise MigrationError(
            f"the database has migrations of an earlier history, up to {max(applied)};"
            " nothing was changed; bring it over with: pyapp db adopt"
        )

"""Cut the sums of the day in which a period begins that the sync has moved.

A payer's messages of a day are summed in one span. A new boundary in that day divides
it: until the sums are cut there, the quota check subtracts the messages before the
boundary. The cut runs after the sync's commit, because it must see the sums that
concurrent writers begin until then, and must not hold the user's row.
"""

import logging
from collections.abc import Collection
from typing import Any
from uuid import UUID

import psycopg
from psycopg import Connection

from pyapp.errors import RuleError
from pyapp.stripe_sync import events, store
from pyapp.stripe_sync.transactions import (
    NO_DEADLINE,
    Deadline,
    milliseconds,
    own_transaction,
)

log = logging.getLogger("pyapp.stripe")

# Seconds for each lock: less than the usual deadlock_timeout, so that a deadlock ends
# the cut and not a writer.
_LOCK_WAIT = 0.5


def cut_moved_usage(
    conn: Connection[Any],
    user_ids: Collection[UUID],
    deadline: Deadline = NO_DEADLINE,
) -> None:
    """Cut the sums of these users, whose period has moved and is committed.

    Those that cannot be cut, because writers hold their rows for example, are logged:
    `pyapp db maintain` cuts them. Their quota is exact until then, and slower to check.
    """
    ids = sorted(user_ids)
    if not ids:
        return
    try:
        _cut(conn, ids, deadline)
    except (psycopg.Error, RuleError) as exc:
        if (
            len(ids) == 1
            or conn.closed
            or isinstance(exc, psycopg.errors.InsufficientPrivilege)
        ):
            log_uncut(ids, exc)
            return
        for user_id in ids:
            cut_moved_usage(conn, [user_id], deadline)


def log_uncut(user_ids: Collection[UUID], error: Exception) -> None:
    """Log that the sums of these users are left to maintenance."""
    fields: dict[str, Any] = {
        "user_ids": [str(user_id) for user_id in sorted(user_ids)],
        "kind": type(error).__name__,
    }
    if isinstance(error, psycopg.errors.InsufficientPrivilege):
        fields["remedy"] = "pyapp db roles"
    log.warning("stripe period moved, sums not cut", extra=fields)


def _cut(conn: Connection[Any], user_ids: list[UUID], deadline: Deadline) -> None:
    left = deadline.left()
    with own_transaction(conn):
        events.set_timeouts(
            conn,
            statement_milliseconds=milliseconds(left),
            lock_milliseconds=milliseconds(min(left, _LOCK_WAIT)),
        )
        store.cut_usage(conn, user_ids=user_ids)

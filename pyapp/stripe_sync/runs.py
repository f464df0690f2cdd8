"""Reconciliations and replays: one of a kind at a time, each with its cursor."""

from collections.abc import Mapping
from datetime import datetime
from typing import Any, Literal, NamedTuple

from psycopg import Connection
from psycopg.types.json import Json

from pyapp._core.advisory_locks import AdvisoryLock
from pyapp._core.run import execute, fetch_one, fetch_optional

Kind = Literal["reconcile", "replay"]


class Run(NamedTuple):
    """A run: `cursor` is where to go on from, `counts` what it has seen so far."""

    id: int
    cursor: str | None
    counts: Mapping[str, int]
    started_at: datetime


class RunLock(NamedTuple):
    """Whether this session held the lock until now."""

    is_held: bool


class MirrorSize(NamedTuple):
    """How many of Stripe's objects are known here."""

    customers: int
    subscriptions: int


def get_mirror_size(conn: Connection[Any]) -> MirrorSize:
    """Return how many customers and subscriptions are known here."""
    return fetch_one(conn, MirrorSize, "get_mirror_size")


def try_lock_runs(conn: Connection[Any], *, kind: Kind) -> AdvisoryLock:
    """Take the lock of *kind* for this session, or return which session has it."""
    return fetch_one(conn, AdvisoryLock, "try_lock_runs", kind=kind)


def unlock_runs(conn: Connection[Any], *, kind: Kind) -> RunLock:
    """Give the lock of *kind* back."""
    return fetch_one(conn, RunLock, "unlock_runs", kind=kind)


def find_resumable_run(
    conn: Connection[Any], *, kind: Kind, started_after: datetime
) -> Run | None:
    """Return the newest run if it broke off and began after *started_after*."""
    return fetch_optional(
        conn, Run, "find_resumable_run", kind=kind, started_after=started_after
    )


def insert_run(conn: Connection[Any], *, kind: Kind, is_dry_run: bool) -> Run:
    """Begin a run and return it."""
    return fetch_one(conn, Run, "insert_run", kind=kind, is_dry_run=is_dry_run)


def update_run(
    conn: Connection[Any],
    *,
    id: int,
    cursor: str | None,
    counts: Mapping[str, int],
    outcome: Literal["completed", "failed"] | None = None,
    last_error: str | None = None,
) -> int:
    """Say how far a run has got, and how it ended if it did; return 1."""
    return execute(
        conn,
        "update_run",
        id=id,
        cursor=cursor,
        counts=Json(dict(counts)),
        outcome=outcome,
        last_error=last_error,
    )


def mark_abandoned_runs(conn: Connection[Any], *, kind: Kind, id: int) -> int:
    """Close the runs that were killed, except *id*; return how many.

    Whoever holds the lock may: nobody else runs.
    """
    return execute(conn, "mark_abandoned_runs", kind=kind, id=id)

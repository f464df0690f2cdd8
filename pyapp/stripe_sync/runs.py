"""Reconciliations and replays: one of a kind at a time, each with its cursor."""

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Literal

from psycopg.types.json import Json

from pyapp._core.advisory_locks import AdvisoryLock
from pyapp._core.calls import Call, one, optional, query, rowcount

Kind = Literal["reconcile", "replay"]


@dataclass(frozen=True, slots=True)
class Run:
    """A run: `cursor` is where to go on from, `counts` what it has seen so far."""

    id: int
    cursor: str | None
    counts: Mapping[str, int]
    started_at: datetime


@dataclass(frozen=True, slots=True)
class RunLock:
    """Whether this session held the lock until now."""

    is_held: bool


@dataclass(frozen=True, slots=True)
class MirrorSize:
    """How many of Stripe's objects are known here."""

    customers: int
    subscriptions: int


@query
def get_mirror_size() -> Call[MirrorSize]:
    """Return how many customers and subscriptions are known here."""
    return one(MirrorSize, {})


@query
def try_lock_runs(*, kind: Kind) -> Call[AdvisoryLock]:
    """Take the lock of *kind* for this session, or return which session has it."""
    return one(AdvisoryLock, {"kind": kind})


@query
def unlock_runs(*, kind: Kind) -> Call[RunLock]:
    """Give the lock of *kind* back."""
    return one(RunLock, {"kind": kind})


@query
def find_resumable_run(*, kind: Kind, started_after: datetime) -> Call[Run | None]:
    """Return the newest run if it broke off and began after *started_after*."""
    return optional(Run, {"kind": kind, "started_after": started_after})


@query
def insert_run(*, kind: Kind, is_dry_run: bool) -> Call[Run]:
    """Begin a run and return it."""
    return one(Run, {"kind": kind, "is_dry_run": is_dry_run})


@query
def update_run(
    *,
    id: int,
    cursor: str | None,
    counts: Mapping[str, int],
    outcome: Literal["completed", "failed"] | None = None,
    last_error: str | None = None,
) -> Call[int]:
    """Say how far a run has got, and how it ended if it did; return 1."""
    parameters = {
        "id": id,
        "cursor": cursor,
        "counts": Json(dict(counts)),
        "outcome": outcome,
        "last_error": last_error,
    }
    return rowcount(parameters)


@query
def mark_abandoned_runs(*, kind: Kind, id: int) -> Call[int]:
    """Close the runs that were killed, except *id*; return how many.

    Whoever holds the lock may: nobody else runs.
    """
    return rowcount({"kind": kind, "id": id})

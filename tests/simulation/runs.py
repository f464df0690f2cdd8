"""Runs reconciliations, and compares each with the dry run before it."""

from collections import Counter
from collections.abc import Callable, Set
from contextlib import suppress
from dataclasses import dataclass, field
from itertools import count
from random import Random
from types import SimpleNamespace
from typing import Any
from unittest.mock import patch

from psycopg import Connection

from pyapp.stripe_sync import (
    Difference,
    Progress,
    Reconciliation,
    Refusal,
    client,
    reconcile,
)
from tests.fake_stripe import FakeStripe
from tests.stripe_world import Killed

# Kinds of differences that no reconciliation repairs.
UNREPAIRED = {"unlinked", "conflict", "unknown_price"}


@dataclass(slots=True)
class RunRecord:
    """What a reconciliation reported."""

    differences: list[Difference] = field(default_factory=list)
    refusals: list[Refusal] = field(default_factory=list)

    @property
    def repairs(self) -> Counter[tuple[str, str]]:
        """Return what was repaired, or what a dry run would have repaired.

        A dry run compares each page with the database as it is: it does not see the
        users, conflicts and prices that the pages before it would have left.
        """
        return Counter(
            (one.kind, one.object_id)
            for one in self.differences
            if one.kind not in {"conflict", "unknown_price"}
        )

    @property
    def refused(self) -> Counter[str]:
        return Counter(refusal.object_id for refusal in self.refusals)


def run_once(
    conn: Connection[Any],
    fake: FakeStripe,
    *,
    progress: Callable[[Progress], None] | None = None,
    **options: Any,
) -> RunRecord:
    record = RunRecord()
    result: Reconciliation = reconcile(
        conn,
        fake.client(),
        progress=progress,
        on_difference=record.differences.append,
        on_refusal=record.refusals.append,
        **options,
    )
    repaired = sum(one.is_repaired for one in record.differences)
    told = (len(record.differences), repaired, len(record.refusals))
    counted = (
        result.number_found,
        sum(result.repaired.values()),
        result.number_refused,
    )
    if told != counted and not result.is_resumed:
        raise AssertionError(f"{told} were reported, and {counted} counted")
    return record


def run_predicted(
    conn: Connection[Any], fake: FakeStripe, odd: Set[str] = frozenset(), **options: Any
) -> tuple[RunRecord, list[str]]:
    """Reconcile while nothing changes; return the last run, and what was wrong.

    A dry run before it finds the same differences and refusals, and a run after it
    repairs nothing. The objects *odd* are refused, and no others.
    """
    # Nothing changes that a slow response could miss: date none back by a second.
    steps = SimpleNamespace(monotonic=count(0.0, 0.001).__next__)
    with patch.object(client, "time", steps):
        foreseen = run_once(conn, fake, dry_run=True, **options)
        done = run_once(conn, fake, **options)
        _let_time_pass(conn, fake, **options)
        again = run_once(conn, fake, **options)
    faults = []
    for name, run in {"dry run": foreseen, "run": done, "second run": again}.items():
        if run.refused != Counter(odd):
            faults.append(f"the {name} refused {run.refusals}, and not {odd}")
    missed, extra = done.repairs - foreseen.repairs, foreseen.repairs - done.repairs
    if missed or extra:
        faults.append(f"the dry run missed {missed}, and found {extra} besides")
    faults += [
        f"the dry run repaired {d}" for d in foreseen.differences if d.is_repaired
    ]
    for difference in again.differences:
        if difference.kind not in UNREPAIRED or difference.is_repaired:
            faults.append(f"the second run found {difference}")
    left = {one for one in done.differences if one.kind in UNREPAIRED}
    for difference in done.differences:
        if not difference.is_repaired and difference not in left:
            faults.append(f"the run did not repair {difference}")
    return again, faults


def _let_time_pass(conn: Connection[Any], fake: FakeStripe, **options: Any) -> None:
    """Advance the clock, so that the pages are newer than the stored rows."""
    events = len(fake.world.events)
    fake.advance(seconds=5)
    if len(fake.world.events) > events:
        # Something became due.
        run_once(conn, fake, **options)


def run_killed(conn: Connection[Any], fake: FakeStripe, choose: Random) -> None:
    """Reconcile until a kill after some pages; the next run resumes."""
    pages = choose.randint(1, 8)

    def stop(_progress: Progress) -> None:
        nonlocal pages
        pages -= 1
        if pages == 0:
            raise Killed

    with suppress(Killed):
        run_once(conn, fake, progress=stop, page_size=20)

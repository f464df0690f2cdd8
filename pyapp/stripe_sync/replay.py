"""Replay: the events that Stripe could not deliver, put through the inbox.

Stripe keeps events for 30 days and lists the newest first: a replay walks down to the
oldest, counting them, and works its way up. One that another delivery brings meanwhile,
or that was taken in before, is a duplicate there and changes nothing.
"""

import json
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime, timedelta
from typing import Any, get_args

import stripe
from psycopg import Connection

from pyapp._core.validation import check_time
from pyapp.errors import InvalidPayloadError, InvalidValueError, StripeRequestError
from pyapp.stripe_sync import events
from pyapp.stripe_sync.apply import USED_TYPES
from pyapp.stripe_sync.client import describe, list_page
from pyapp.stripe_sync.differences import Progress
from pyapp.stripe_sync.envelope import read_event
from pyapp.stripe_sync.inbox import Outcome, Result, Taken, own_transaction, take_in
from pyapp.stripe_sync.running import Started, start_run
from pyapp.stripe_sync.shapes import find_created, find_id, find_last_id

KEPT = timedelta(days=30)
RESULTS: tuple[Result, ...] = (*get_args(Taken), "failed")

Shapes = Sequence[Mapping[str, Any]]


@dataclass(frozen=True, slots=True)
class Replay:
    """What a run has seen, and what became of it, also before it was resumed.

    `results` counts the outcomes by each of the words that an `Outcome` may have.
    """

    run_id: int
    is_resumed: bool
    seen: int
    results: Mapping[Result, int]


def replay_events(
    conn: Connection[Any],
    client: stripe.StripeClient,
    since: datetime | None = None,
    progress: Callable[[Progress], None] | None = None,
    on_outcome: Callable[[Outcome], None] | None = None,
    page_size: int = 100,
) -> Replay:
    """Take in the events that Stripe could not deliver, the oldest first.

    Each is a transaction of its own, and those that have failed here are tried again.
    Without *since*, an aware time, all that Stripe still has are listed. A run that was
    killed within the last day is resumed, unless that one began its search later.

    Raises:
        InvalidValueError: *since* has no zone, or lies where Stripe has no events.
        ReconcileRunningError: another replay is under way.
        StripeRequestError: Stripe refuses, or is out of reach for minutes.
        OpenTransactionError: the connection is in a transaction.
    """
    first = _read_since(since)
    with start_run(conn, "replay") as run:
        cursor = _Cursor.load(run.cursor, first)
        if cursor.after is None:
            run.forget()
        listing = _Listing(client, page_size, run)
        while page := listing.list_after(cursor):
            for outcome in _take_page(conn, client, page):
                run.counts[outcome.result] += 1
                if on_outcome:
                    on_outcome(outcome)
            run.counts["seen"] += len(page)
            cursor = cursor.behind(page)
            run.save(cursor.dump())
            if progress:
                seen = run.counts["seen"]
                progress(Progress("events", seen, max(seen, run.counts["expected"])))
        return Replay(
            run_id=run.id,
            is_resumed=run.is_resumed,
            seen=run.counts["seen"],
            results={result: run.counts[result] for result in RESULTS},
        )


def _read_since(since: datetime | None) -> int | None:
    if since is None:
        return None
    since, now = check_time("since", since), datetime.now(UTC)
    if since > now:
        raise InvalidValueError(f"since, {since}, is yet to come; give an earlier time")
    # What is 30 days ago by the time it gets here is meant so.
    if since < now - KEPT - timedelta(minutes=5):
        raise InvalidValueError(
            f"Stripe keeps events for {KEPT.days} days; give a later time, and for what"
            " was before: pyapp stripe reconcile"
        )
    return int(since.timestamp())


def _take_page(
    conn: Connection[Any], client: stripe.StripeClient, page: Shapes
) -> Iterator[Outcome]:
    ids = [name for shape in page if (name := find_id(shape))]
    with own_transaction(conn):
        done = {event.id for event in events.list_done_events(conn, ids=ids)}
    for shape in page:
        # An event without an id is reported by the fields that it has.
        name, kind = find_id(shape) or "(no id)", "(no type)"
        if isinstance(shape, Mapping):
            kind = str(shape.get("type", kind))
        if name in done:
            yield Outcome(name, kind, "duplicate")
            continue
        try:
            event = read_event(shape)
        except InvalidPayloadError as exc:
            # It would be so the next time; the others are not held up by it.
            yield Outcome(name, kind, "failed", describe(exc))
        else:
            yield take_in(conn, event, client, is_patient=True)


@dataclass(frozen=True, slots=True)
class _Cursor:
    """Where a search that began at *since* is: *after* an event made at *created*.

    Behind that one *nameless* events without an id were seen, too.
    """

    since: int | None
    after: str | None = None
    created: int | None = None
    nameless: int = 0

    def behind(self, page: Shapes) -> "_Cursor":
        """Return the cursor behind *page*."""
        names = [find_id(shape) for shape in page]
        times = [time for shape in page if (time := find_created(shape)) is not None]
        created = times[-1] if times else self.created
        after = find_last_id(page)
        if after is None:
            return replace(self, created=created, nameless=self.nameless + len(page))
        nameless = names[::-1].index(after)
        return _Cursor(self.since, after, created, nameless)

    def dump(self) -> str:
        return json.dumps(asdict(self))

    @classmethod
    def load(cls, text: str | None, since: int | None) -> "_Cursor":
        """Return the cursor of *text* if its search covers one from *since* on."""
        left = cls(**json.loads(text)) if text else cls(since)
        is_covered = left.since is None or (since is not None and left.since <= since)
        return left if is_covered else cls(since)


@dataclass(slots=True)
class _Listing:
    """The events that were made before the first request, and never delivered."""

    client: stripe.StripeClient
    page_size: int
    run: Started
    until: int | None = None

    def list_after(self, cursor: _Cursor) -> Shapes:
        """Return the next page, its oldest event first; empty at the end."""
        answer = None
        if cursor.nameless and cursor.after is None:
            raise StripeRequestError("Stripe lists nothing but events without ids")
        if cursor.after is not None:
            answer = self._ask(cursor.since, ending_before=cursor.after)
        if answer is None:
            # There is no cursor, or Stripe has it no more: the oldest there is then.
            answer = self._find_oldest(cursor)
        page: Shapes = answer["data"][::-1]
        seen = 0
        while seen < min(cursor.nameless, len(page)) and not find_id(page[seen]):
            seen += 1
        if page[seen:] or not page or not answer["has_more"]:
            return page[seen:]
        raise StripeRequestError("Stripe lists nothing but events without ids")

    def _find_oldest(self, cursor: _Cursor) -> Mapping[str, Any]:
        since = cursor.since if cursor.created is None else cursor.created
        page = self._ask(since)
        if page is None:
            raise StripeRequestError("Stripe does not list events")
        expected = self.run.counts["seen"] + len(page["data"])
        while page["has_more"]:
            last = find_last_id(page["data"])
            older = self._ask(since, starting_after=last) if last else None
            if older is None or not older["data"]:
                break
            page = older
            expected += len(page["data"])
        self.run.counts["expected"] = expected
        return page

    def _ask(self, since: int | None, **place: str) -> Mapping[str, Any] | None:
        created = {"gte": since, "lte": self.until}
        answer = list_page(
            self.client,
            "events",
            limit=self.page_size,
            delivery_success=False,
            types=sorted(USED_TYPES),
            created={name: value for name, value in created.items() if value},
            **place,
        )
        if answer is None:
            return None
        if self.until is None:
            # Or it would never end where nothing can be delivered.
            self.until = math.ceil(answer.as_of.timestamp())
        return answer.data

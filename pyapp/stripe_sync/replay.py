"""Process events again: those that Stripe could not deliver, and those that failed.

Stripe keeps events for 30 days and lists the newest first. A replay therefore pages to
the oldest undelivered event, counting, and then processes upwards from there. An event
that was processed before, or that a concurrent delivery brings, is a duplicate.
"""

import json
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime, timedelta
from typing import Any, NamedTuple, get_args

import stripe
from psycopg import Connection

from pyapp._core.validation import check_time
from pyapp.errors import InvalidPayloadError, InvalidValueError, StripeRequestError
from pyapp.stripe_sync import events
from pyapp.stripe_sync.account import require_own_account
from pyapp.stripe_sync.apply import (
    USED_TYPES,
    process_event,
    record_failure,
)
from pyapp.stripe_sync.client import error_summary, list_page
from pyapp.stripe_sync.objects import (
    Event,
    count_without_id,
    describe_id,
    find_created,
    find_id,
    find_last_id,
    read_event,
)
from pyapp.stripe_sync.outcomes import Outcome, Result, Success
from pyapp.stripe_sync.pages import LARGEST_PAGE, read_list
from pyapp.stripe_sync.runs import ActiveRun, Progress, start_run
from pyapp.stripe_sync.transactions import NO_DEADLINE, own_transaction

# How long Stripe keeps events.
RETENTION = timedelta(days=30)
RESULTS: tuple[Result, ...] = (*get_args(Success), "failed")

# Stripe's JSON, which may contain anything.
EventPage = Sequence[Any]


@dataclass(frozen=True, slots=True)
class Replay:
    """The totals of a replay, including those before it was resumed.

    `seen` counts the events. `results` counts them by result; its keys are applied,
    duplicate, stale, ignored and failed.
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
    """Process the events that Stripe could not deliver, the oldest first.

    Each has its own transaction. Events that failed here before are processed again.
    *since* is an aware time; the default is all of Stripe's 30 days. A run that was
    killed within the last day is resumed, unless it began with a later *since*.
    *progress* is called after each page, *on_outcome* after each event.

    Raises:
        InvalidValueError: *since* has no time zone, is in the future, or is older than
            30 days.
        OtherAccountError: Stripe has none of the newest objects of the database.
        ReconcileRunningError: another replay is running.
        StripeRequestError: Stripe refused, was unavailable for minutes, or sent a page
            after which no other can be requested.
        OpenTransactionError: the connection is in a transaction.
    """
    first = _read_since(since)
    with start_run(conn, "replay") as run:
        require_own_account(conn, client)
        cursor = run.load_cursor(
            lambda text: EventCursor.load(text, first), EventCursor(first)
        )
        if cursor.after is None:
            run.restart()
        listing = Listing(client, page_size, run)
        while page := listing.list_after(cursor):
            for outcome in _process_page(conn, client, page):
                run.counts[outcome.result] += 1
                if on_outcome:
                    on_outcome(outcome)
            run.counts["seen"] += len(page)
            cursor = cursor.advance(page)
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


def retry_failed_events(
    conn: Connection[Any],
    client: stripe.StripeClient | None = None,
    page: int = 100,
    *,
    livemode: bool | None = None,
) -> Iterator[Outcome]:
    """Process each stored failed event once more; yield the outcomes, the oldest first.

    Each has its own transaction. An event that cannot be read or applied fails again,
    and the others go on. *livemode* is as in `handle_webhook`.

    Raises:
        OpenTransactionError: the connection is in a transaction.
        StripeRequestError: Stripe was unavailable for minutes.
        psycopg.OperationalError: the connection is lost.
    """
    after, after_id = None, None
    while True:
        with own_transaction(conn):
            failed = events.list_failed_events(
                conn, after=after, after_id=after_id, limit=page
            )
        if not failed:
            return
        after, after_id = failed[-1].event_created_at, failed[-1].id
        for event in failed:
            yield _retry(conn, client, event, livemode)


def _retry(
    conn: Connection[Any],
    client: stripe.StripeClient | None,
    failed: events.StoredEvent,
    livemode: bool | None,
) -> Outcome:
    with own_transaction(conn):
        stored = events.find_event_payload(conn, id=failed.id)
    if stored is None:
        return Outcome(failed.id, failed.type, "failed", "it was deleted")
    if stored.payload is None:
        # Another delivery applied it, and its payload was pruned.
        return Outcome(failed.id, failed.type, "duplicate")
    try:
        event = read_event(stored.payload, livemode)
    except InvalidPayloadError as exc:
        unreadable = Event(
            id=failed.id,
            type=failed.type,
            api_version=failed.api_version,
            created_at=failed.event_created_at,
            object={},
            foreign=None,
            text=stored.payload,
        )
        return record_failure(conn, unreadable, exc, NO_DEADLINE)
    return process_event(conn, event, client, wait_for_stripe=True)


def _read_since(since: datetime | None) -> int | None:
    if since is None:
        return None
    since, now = check_time("since", since), datetime.now(UTC)
    if since > now:
        raise InvalidValueError(f"since, {since}, is in the future; give a past time")
    # The caller's 30 days may have begun a moment ago.
    if since < now - RETENTION - timedelta(minutes=5):
        raise InvalidValueError(
            f"Stripe keeps events for {RETENTION.days} days; give a later time, and run"
            " pyapp stripe reconcile for earlier changes"
        )
    return int(since.timestamp())


def _process_page(
    conn: Connection[Any], client: stripe.StripeClient, page: EventPage
) -> Iterator[Outcome]:
    ids = [found for listed in page if (found := find_id(listed))]
    with own_transaction(conn):
        done = {event.id for event in events.list_done_events(conn, ids=ids)}
    for listed in page:
        event_id, event_type = describe_id(listed), "(no type)"
        if isinstance(listed, Mapping) and isinstance(listed.get("type"), str):
            event_type = listed["type"]
        if event_id in done:
            yield Outcome(event_id, event_type, "duplicate")
            continue
        try:
            event = read_event(listed)
        except InvalidPayloadError as exc:
            yield Outcome(event_id, event_type, "failed", error_summary(exc))
        else:
            yield process_event(conn, event, client, wait_for_stripe=True)


@dataclass(frozen=True, slots=True)
class EventCursor:
    """The position of a replay from *since* on: after event *after*.

    That event was created at *created*; *without_id* events after it had no valid id.
    """

    since: int | None
    after: str | None = None
    created: int | None = None
    without_id: int = 0

    def advance(self, page: EventPage) -> "EventCursor":
        """Return the cursor after *page*."""
        times = [time for listed in page if (time := find_created(listed)) is not None]
        created = times[-1] if times else self.created
        after = find_last_id(page)
        if after is None:
            return replace(
                self, created=created, without_id=self.without_id + len(page)
            )
        count = count_without_id(reversed(page))
        return EventCursor(self.since, after, created, count)

    def dump(self) -> str:
        return json.dumps(asdict(self))

    @classmethod
    def load(cls, text: str, since: int | None) -> "EventCursor":
        """Return the cursor in *text* if it includes *since*, else a new one.

        Raises: TypeError or ValueError, if it cannot be read.
        """
        saved = cls(**json.loads(text))
        if not (
            isinstance(saved.since, int | None)
            and isinstance(saved.after, str | None)
            and isinstance(saved.created, int | None)
            and isinstance(saved.without_id, int)
        ):
            raise ValueError("not the cursor of a replay")
        is_included = saved.since is None or (
            since is not None and saved.since <= since
        )
        return saved if is_included else cls(since)


class _List(NamedTuple):
    """Events as Stripe lists them, the newest first, and whether there are more."""

    events: EventPage
    has_more: bool


@dataclass(slots=True)
class Listing:
    """Lists undelivered events that were created before the first request."""

    client: stripe.StripeClient
    page_size: int
    run: ActiveRun
    until: int | None = None

    def list_after(self, cursor: EventCursor) -> EventPage:
        """Return the next page, its oldest event first; empty at the end."""
        listed = None
        if cursor.after is not None:
            listed = self._list_with_id(cursor.since, ending_before=cursor.after)
        if listed is None:
            # There is no cursor event, or Stripe has deleted it.
            listed = self._list_oldest(cursor)
        page = listed.events[::-1]
        if cursor.after and cursor.after in map(find_id, page):
            raise StripeRequestError(f"Stripe lists the event {cursor.after} again")
        return page[count_without_id(page[: cursor.without_id]) :]

    def _list_oldest(self, cursor: EventCursor) -> _List:
        """Return the oldest page; it has an event with a valid id if any has one."""
        since = cursor.since if cursor.created is None else cursor.created
        newer, page = _List((), False), self._list_with_id(since)
        if page is None:
            raise StripeRequestError("Stripe does not list events")
        expected = self.run.counts["seen"] + len(page.events)
        while page.has_more:
            last = str(find_last_id(page.events))
            older = self._list_with_id(since, starting_after=last)
            if older is None or not older.events:
                break
            newer, page = page, older
            expected += len(page.events)
        self.run.counts["expected"] = expected
        if find_last_id(page.events) is None:
            # The page begins with the events that follow the last valid id.
            count = len(newer.events) - count_without_id(reversed(newer.events))
            return _List([*newer.events[:count], *page.events], False)
        return page

    def _list_with_id(self, since: int | None, **place: str) -> _List | None:
        """Return a page, with more events if those of *page_size* have no valid id.

        It returns None if the event in *place* does not exist.

        Raises:
            StripeRequestError: no page behind it could be requested.
        """
        for size in (self.page_size, max(self.page_size, LARGEST_PAGE)):
            found = self._list(since, size, place)
            if found is None or not found.has_more or find_last_id(found.events):
                return found
        where = " ".join(f"{name} {id}" for name, id in place.items())
        raise StripeRequestError(
            f"none of the events that Stripe lists {where} has a valid id"
        )

    def _list(
        self, since: int | None, size: int, place: Mapping[str, str]
    ) -> _List | None:
        created = {"gte": since, "lte": self.until}
        response = list_page(
            self.client,
            "events",
            limit=size,
            delivery_success=False,
            types=sorted(USED_TYPES),
            created={name: value for name, value in created.items() if value},
            **place,
        )
        if response is None:
            return None
        if self.until is None:
            # Without an end, a replay would not finish while deliveries keep failing.
            self.until = math.ceil(response.as_of.timestamp())
        return _List(*read_list(response))

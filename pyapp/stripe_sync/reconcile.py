"""Reconciliation: all that Stripe lists against all that is known here."""

import logging
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

import psycopg
import stripe
from psycopg import Connection

from pyapp.errors import RuleError, StripeRequestError
from pyapp.stripe_sync import mirror
from pyapp.stripe_sync.apply import read, refresh, sync_owners
from pyapp.stripe_sync.client import describe, is_of_all, is_transient, with_retries
from pyapp.stripe_sync.deadline import BUSY
from pyapp.stripe_sync.differences import (
    KINDS,
    Difference,
    Failure,
    Progress,
    Reconciliation,
    find_differences,
)
from pyapp.stripe_sync.inbox import own_transaction
from pyapp.stripe_sync.mirror import ObjectType, SyncedUser, Unlisted, UpsertResult
from pyapp.stripe_sync.pages import OBJECT_TYPES, Cursor, Page, list_pages
from pyapp.stripe_sync.running import Started, start_run, wait_briefly
from pyapp.stripe_sync.runs import get_mirror_size
from pyapp.stripe_sync.shapes import find_id

log = logging.getLogger("pyapp.stripe")

_UNLISTED_PAGE = 100
# Classes of SQLSTATE: data, integrity, limits of the server, a rule of ours.
_OF_A_ROW = frozenset({"22", "23", "54", "P0"})
# Errors from reading an object of an unexpected shape.
_UNREADABLE = (
    AttributeError,
    KeyError,
    IndexError,
    OSError,
    OverflowError,
    RecursionError,
    TypeError,
    ValueError,
)


def reconcile(
    conn: Connection[Any],
    client: stripe.StripeClient,
    dry_run: bool = False,
    match_email: bool = False,
    progress: Callable[[Progress], None] | None = None,
    on_difference: Callable[[Difference], None] | None = None,
    page_size: int = 100,
    on_failure: Callable[[Failure], None] | None = None,
) -> Reconciliation:
    """Compare all of Stripe with the database, and mend the database.

    A run that was killed within the last day is resumed, unless *dry_run*, which
    changes nothing. With *match_email*, a customer that names no user is linked to the
    one with its e-mail; otherwise that is proposed by an `unlinked` difference. An
    object that cannot be read or kept, or that another transaction holds for five
    seconds, has failed: it is reported to *on_failure*, and the others are compared.

    Raises:
        ReconcileRunningError: another one is under way.
        StripeRequestError: Stripe refuses, or is out of reach for minutes.
        OpenTransactionError: the connection is in a transaction.
    """
    with start_run(conn, "reconcile", is_dry_run=dry_run) as run:
        work = _Work(conn, client, run, dry_run, match_email, on_difference, on_failure)
        with own_transaction(conn):
            size = get_mirror_size(conn)
        expected = {"customers": size.customers, "subscriptions": size.subscriptions}
        cursor = Cursor.load(run.cursor)
        for object_type in OBJECT_TYPES[OBJECT_TYPES.index(cursor.object_type) :]:
            for page in list_pages(client, cursor, page_size):
                work.compare(page)
                if progress:
                    seen = run.counts[object_type]
                    progress(
                        Progress(object_type, seen, max(seen, expected[object_type]))
                    )
            if object_type == "customers":
                work.look_at_names(page.as_of)
            cursor = Cursor("subscriptions")
            run.save(cursor.dump())
        return Reconciliation(
            run_id=run.id,
            is_dry_run=dry_run,
            is_resumed=run.is_resumed,
            seen={object_type: run.counts[object_type] for object_type in OBJECT_TYPES},
            found={kind: run.counts[kind] for kind in KINDS},
            repaired={kind: run.counts[f"{kind} repaired"] for kind in KINDS},
            failed=run.counts["failed"],
        )


@dataclass(slots=True)
class _Work:
    conn: Connection[Any]
    client: stripe.StripeClient
    run: Started
    is_dry_run: bool
    match_email: bool
    on_difference: Callable[[Difference], None] | None
    on_failure: Callable[[Failure], None] | None

    def compare(self, page: Page) -> None:
        """Mend what the page shows, then look for what it should show and does not.

        Where nothing is left to look for, one transaction holds all of it.
        """
        rows = self._read(page)
        try:
            with self.run.transaction():
                found, ambiguous = self._upsert_snapshots(page, rows)
                unlisted = self._list_unlisted(page, page.until, None)
                if not ambiguous and not unlisted:
                    self._end(page)
        except Exception as exc:
            if not is_of_one_object(exc, self.conn):
                raise
            # One of them is at fault, or is locked.
            found, ambiguous = [], []
            for row in rows:
                self._put_alone(page, row)
            with own_transaction(self.conn):
                unlisted = self._list_unlisted(page, page.until, None)
            is_ended = False
        else:
            is_ended = not ambiguous and not unlisted
        self._tell(found)
        if not is_ended:
            for row in ambiguous:
                self._look(
                    page.object_type, row["id"], _customer(page, row), page.as_of
                )
            self._look_for(page, unlisted)
            with self.run.transaction():
                self._end(page)

    def _read(self, page: Page) -> list[dict[str, Any]]:
        rows = []
        for shape in page.shapes:
            name = find_id(shape)
            try:
                if name is None:
                    raise ValueError("it has no id")
                rows.append(read(page.object_type, shape, page.as_of))
            except _UNREADABLE as exc:
                self._fail(page.object_type, name or "(no id)", exc)
        return rows

    def _upsert_snapshots(
        self, page: Page, rows: list[dict[str, Any]]
    ) -> tuple[list[Difference], list[dict[str, Any]]]:
        """Keep the rows; return what differed, and those that are ambiguous."""
        if not self.is_dry_run:
            customers = [_customer(page, row) for row in rows]
            mirror.lock_customers(self.conn, ids=customers)
        judged = mirror.upsert_snapshots(
            self.conn,
            object_type=page.object_type,
            snapshots=rows,
            source="page",
            can_fetch=True,
            match_email=self.match_email,
            is_dry_run=self.is_dry_run,
        )
        users = sync_owners(self.conn, judged, is_dry_run=self.is_dry_run)
        ambiguous = {one.id for one in judged if one.result == "ambiguous"}
        found = self._count(
            find_differences(page.object_type, judged, users, self.is_dry_run)
        )
        return found, [row for row in rows if row["id"] in ambiguous]

    def _put_alone(self, page: Page, row: dict[str, Any]) -> None:
        try:
            with self.run.transaction():
                found, ambiguous = self._upsert_snapshots(page, [row])
        except Exception as exc:
            if not is_of_one_object(exc, self.conn):
                raise
            self._fail(page.object_type, row["id"], exc)
            return
        self._tell(found)
        if ambiguous:
            self._look(page.object_type, row["id"], _customer(page, row), page.as_of)

    def _fail(self, object_type: ObjectType, name: str, error: Exception) -> None:
        failure = Failure(object_type, name, describe(error))
        self.run.counts["failed"] += 1
        log.error(
            "stripe object failed",
            extra={"object_id": name, "kind": type(error).__name__},
        )
        if self.on_failure:
            self.on_failure(failure)

    def _end(self, page: Page) -> None:
        self.run.counts[page.object_type] += len(page.shapes)
        self.run.write(page.cursor.dump())

    def look_at_names(self, asked_at: datetime) -> None:
        """Look at the customers of a checkout or a user that no page has shown."""
        self._look_at_each(mirror.list_name_only_customers, asked_at)
        # A dry run keeps nothing of what the pages have shown.
        if not self.is_dry_run:
            self._look_at_each(mirror.list_unseen_customers, asked_at)

    def _look_at_each(
        self, list_customers: Callable[..., list[Unlisted]], asked_at: datetime
    ) -> None:
        after = None
        while True:
            with own_transaction(self.conn):
                found = list_customers(self.conn, after_id=after, limit=_UNLISTED_PAGE)
            for suspect in found:
                self._look("customers", suspect.id, suspect.id, asked_at)
                after = suspect.id
            if len(found) < _UNLISTED_PAGE:
                return

    def _list_unlisted(
        self, page: Page, until: datetime, after_id: str | None
    ) -> list[Unlisted]:
        """Return what the page should show and does not, from there on."""
        list_unlisted = (
            mirror.list_unlisted_customers
            if page.object_type == "customers"
            else mirror.list_unlisted_subscriptions
        )
        return list_unlisted(
            self.conn,
            since=page.since,
            until=until,
            listed_ids=page.ids,
            after_id=after_id,
            limit=_UNLISTED_PAGE,
        )

    def _look_for(self, page: Page, unlisted: list[Unlisted]) -> None:
        while unlisted:
            for suspect in unlisted:
                self._look(
                    page.object_type, suspect.id, suspect.customer_id, page.as_of
                )
            last = unlisted[-1]
            if len(unlisted) < _UNLISTED_PAGE or last.created_at is None:
                return
            with own_transaction(self.conn):
                unlisted = self._list_unlisted(page, last.created_at, last.id)

    def _look(
        self, object_type: ObjectType, name: str, customer_id: str, asked_at: datetime
    ) -> None:
        """Fetch one object while its customer is locked, and mend what is known of it.

        *asked_at* is a moment that has passed.
        """

        def look() -> tuple[UpsertResult | None, list[SyncedUser]]:
            with own_transaction(self.conn):
                wait_briefly(self.conn)
                if not self.is_dry_run:
                    mirror.lock_customers(self.conn, ids=[customer_id])
                judged = refresh(
                    self.conn,
                    self.client,
                    object_type,
                    name,
                    asked_at,
                    match_email=self.match_email,
                    is_dry_run=self.is_dry_run,
                )
                if judged is None:
                    self._forget(object_type, name, asked_at)
                    return None, []
                users = sync_owners(self.conn, [judged], is_dry_run=self.is_dry_run)
                return judged, users

        # Whoever waits for Stripe does so without the lock.
        try:
            judged, users = with_retries(look)
        except StripeRequestError as exc:
            if is_of_all(exc, self.client):
                raise
            self._fail(object_type, name, exc)
            return
        except Exception as exc:
            if not is_of_one_object(exc, self.conn):
                raise
            self._fail(object_type, name, exc)
            return
        found: Iterable[Difference]
        if judged is None:
            found = [Difference("missing_there", name, None, not self.is_dry_run)]
        else:
            found = find_differences(object_type, [judged], users, self.is_dry_run)
        self._tell(self._count(found))

    def _forget(self, object_type: ObjectType, name: str, asked_at: datetime) -> None:
        """Take for deleted what Stripe does not know any more."""
        if self.is_dry_run:
            return
        if object_type == "customers":
            row = {"id": name, "is_deleted": True, "as_of": asked_at.isoformat()}
            judged = mirror.upsert_snapshots(
                self.conn,
                object_type=object_type,
                snapshots=[row],
                source="object",
                can_fetch=False,
            )
            sync_owners(self.conn, judged)
            return
        owned = mirror.mark_subscription_missing(self.conn, id=name, as_of=asked_at)
        if owned is not None and owned.user_id is not None:
            mirror.sync_users(self.conn, user_ids=[owned.user_id])

    def _count(self, differences: Iterable[Difference]) -> list[Difference]:
        found = list(differences)
        for one in found:
            self.run.counts[one.kind] += 1
            self.run.counts[f"{one.kind} repaired"] += one.is_repaired
        return found

    def _tell(self, found: Sequence[Difference]) -> None:
        """Tell what was found, once it is committed."""
        for one in found:
            if self.on_difference:
                self.on_difference(one)


def _customer(page: Page, row: dict[str, Any]) -> str:
    name: str = row["id"] if page.object_type == "customers" else row["customer_id"]
    return name


def is_of_one_object(error: Exception, conn: Connection[Any]) -> bool:
    """Say whether *error* is about one object, so that the others can go on."""
    if conn.closed:
        return False
    if isinstance(error, psycopg.Error):
        state = error.sqlstate or ""
        return isinstance(error, BUSY) or state[:2] in _OF_A_ROW
    if isinstance(error, stripe.StripeError):
        refused = (stripe.AuthenticationError, stripe.PermissionError)
        return not is_transient(error) and not isinstance(error, refused)
    return isinstance(error, (RuleError, *_UNREADABLE))

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
from pyapp.stripe_sync.api import describe, is_of_all, is_passing, patiently
from pyapp.stripe_sync.apply import read, refresh, sync_owners
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
from pyapp.stripe_sync.mirror import Judgement, Noun, Suspect, SyncedUser
from pyapp.stripe_sync.pages import NOUNS, Cursor, Page, list_pages
from pyapp.stripe_sync.running import Started, start_run, wait_briefly
from pyapp.stripe_sync.runs import get_mirror_size
from pyapp.stripe_sync.shapes import find_id

log = logging.getLogger("pyapp.stripe")

_SUSPECTS = 100
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
        for noun in NOUNS[NOUNS.index(cursor.noun) :]:
            for page in list_pages(client, cursor, page_size):
                work.compare(page)
                if progress:
                    seen = run.counts[noun]
                    progress(Progress(noun, seen, max(seen, expected[noun])))
            if noun == "customers":
                work.look_at_names(page.as_of)
            cursor = Cursor("subscriptions")
            run.save(cursor.dump())
        return Reconciliation(
            run_id=run.id,
            is_dry_run=dry_run,
            is_resumed=run.is_resumed,
            seen={noun: run.counts[noun] for noun in NOUNS},
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
                found, unclear = self._put(page, rows)
                unlisted = self._list_unlisted(page, page.until, None)
                if not unclear and not unlisted:
                    self._end(page)
        except Exception as exc:
            if not is_of_one_object(exc, self.conn):
                raise
            # One of them is at fault, or is locked.
            found, unclear = [], []
            for row in rows:
                self._put_alone(page, row)
            with own_transaction(self.conn):
                unlisted = self._list_unlisted(page, page.until, None)
            is_ended = False
        else:
            is_ended = not unclear and not unlisted
        self._tell(found)
        if not is_ended:
            for row in unclear:
                self._look(page.noun, row["id"], _customer(page, row), page.as_of)
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
                rows.append(read(page.noun, shape, page.as_of))
            except _UNREADABLE as exc:
                self._fail(page.noun, name or "(no id)", exc)
        return rows

    def _put(
        self, page: Page, rows: list[dict[str, Any]]
    ) -> tuple[list[Difference], list[dict[str, Any]]]:
        """Keep the rows; return what differed, and those that are unclear."""
        if not self.is_dry_run:
            customers = [_customer(page, row) for row in rows]
            mirror.lock_customers(self.conn, ids=customers)
        judged = mirror.upsert_views(
            self.conn,
            noun=page.noun,
            views=rows,
            source="page",
            can_ask=True,
            match_email=self.match_email,
            is_dry_run=self.is_dry_run,
        )
        users = sync_owners(self.conn, judged, is_dry_run=self.is_dry_run)
        unclear = {one.id for one in judged if one.verdict == "unclear"}
        found = self._count(find_differences(page.noun, judged, users, self.is_dry_run))
        return found, [row for row in rows if row["id"] in unclear]

    def _put_alone(self, page: Page, row: dict[str, Any]) -> None:
        try:
            with self.run.transaction():
                found, unclear = self._put(page, [row])
        except Exception as exc:
            if not is_of_one_object(exc, self.conn):
                raise
            self._fail(page.noun, row["id"], exc)
            return
        self._tell(found)
        if unclear:
            self._look(page.noun, row["id"], _customer(page, row), page.as_of)

    def _fail(self, noun: Noun, name: str, error: Exception) -> None:
        failure = Failure(noun, name, describe(error))
        self.run.counts["failed"] += 1
        log.error(
            "stripe object failed",
            extra={"object_id": name, "kind": type(error).__name__},
        )
        if self.on_failure:
            self.on_failure(failure)

    def _end(self, page: Page) -> None:
        self.run.counts[page.noun] += len(page.shapes)
        self.run.write(page.cursor.dump())

    def look_at_names(self, asked_at: datetime) -> None:
        """Look at the customers of a checkout or a user that no page has shown."""
        self._look_at_each(mirror.list_name_only_customers, asked_at)
        # A dry run keeps nothing of what the pages have shown.
        if not self.is_dry_run:
            self._look_at_each(mirror.list_unseen_customers, asked_at)

    def _look_at_each(
        self, list_customers: Callable[..., list[Suspect]], asked_at: datetime
    ) -> None:
        after = None
        while True:
            with own_transaction(self.conn):
                found = list_customers(self.conn, after_id=after, limit=_SUSPECTS)
            for suspect in found:
                self._look("customers", suspect.id, suspect.id, asked_at)
                after = suspect.id
            if len(found) < _SUSPECTS:
                return

    def _list_unlisted(
        self, page: Page, until: datetime, after_id: str | None
    ) -> list[Suspect]:
        """Return what the page should show and does not, from there on."""
        list_unlisted = (
            mirror.list_unlisted_customers
            if page.noun == "customers"
            else mirror.list_unlisted_subscriptions
        )
        return list_unlisted(
            self.conn,
            since=page.since,
            until=until,
            listed_ids=page.ids,
            after_id=after_id,
            limit=_SUSPECTS,
        )

    def _look_for(self, page: Page, unlisted: list[Suspect]) -> None:
        while unlisted:
            for suspect in unlisted:
                self._look(page.noun, suspect.id, suspect.customer_id, page.as_of)
            last = unlisted[-1]
            if len(unlisted) < _SUSPECTS or last.created_at is None:
                return
            with own_transaction(self.conn):
                unlisted = self._list_unlisted(page, last.created_at, last.id)

    def _look(
        self, noun: Noun, name: str, customer_id: str, asked_at: datetime
    ) -> None:
        """Fetch one object while its customer is locked, and mend what is known of it.

        *asked_at* is a moment that has passed.
        """

        def look() -> tuple[Judgement | None, list[SyncedUser]]:
            with own_transaction(self.conn):
                wait_briefly(self.conn)
                if not self.is_dry_run:
                    mirror.lock_customers(self.conn, ids=[customer_id])
                judged = refresh(
                    self.conn,
                    self.client,
                    noun,
                    name,
                    asked_at,
                    match_email=self.match_email,
                    is_dry_run=self.is_dry_run,
                )
                if judged is None:
                    self._forget(noun, name, asked_at)
                    return None, []
                users = sync_owners(self.conn, [judged], is_dry_run=self.is_dry_run)
                return judged, users

        # Whoever waits for Stripe does so without the lock.
        try:
            judged, users = patiently(look)
        except StripeRequestError as exc:
            if is_of_all(exc, self.client):
                raise
            self._fail(noun, name, exc)
            return
        except Exception as exc:
            if not is_of_one_object(exc, self.conn):
                raise
            self._fail(noun, name, exc)
            return
        found: Iterable[Difference]
        if judged is None:
            found = [Difference("missing_there", name, None, not self.is_dry_run)]
        else:
            found = find_differences(noun, [judged], users, self.is_dry_run)
        self._tell(self._count(found))

    def _forget(self, noun: Noun, name: str, asked_at: datetime) -> None:
        """Take for deleted what Stripe does not know any more."""
        if self.is_dry_run:
            return
        if noun == "customers":
            row = {"id": name, "is_deleted": True, "as_of": asked_at.isoformat()}
            judged = mirror.upsert_views(
                self.conn, noun=noun, views=[row], source="object", can_ask=False
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
    name: str = row["id"] if page.noun == "customers" else row["customer_id"]
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
        return not is_passing(error) and not isinstance(error, refused)
    return isinstance(error, (RuleError, *_UNREADABLE))

"""Reconciliation: all that Stripe lists against all that is known here."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

import stripe
from psycopg import Connection

from pyapp.stripe_sync import mirror
from pyapp.stripe_sync.api import patiently
from pyapp.stripe_sync.apply import read, refresh, sync_owners
from pyapp.stripe_sync.differences import (
    KINDS,
    Difference,
    Progress,
    Reconciliation,
    find_differences,
)
from pyapp.stripe_sync.inbox import own_transaction
from pyapp.stripe_sync.mirror import Judgement, Noun, Suspect, SyncedUser
from pyapp.stripe_sync.pages import NOUNS, Cursor, Page, list_pages
from pyapp.stripe_sync.running import Started, start_run
from pyapp.stripe_sync.runs import get_mirror_size

_SUSPECTS = 100


def reconcile(
    conn: Connection[Any],
    client: stripe.StripeClient,
    dry_run: bool = False,
    match_email: bool = False,
    progress: Callable[[Progress], None] | None = None,
    on_difference: Callable[[Difference], None] | None = None,
    page_size: int = 100,
) -> Reconciliation:
    """Compare all of Stripe with the database, and mend the database.

    A run that was killed within the last day is resumed, unless *dry_run*, which
    changes nothing. With *match_email*, a customer that names no user is linked to the
    one with its e-mail; otherwise that is proposed by an `unlinked` difference.

    Raises:
        ReconcileRunningError: another one is under way.
        StripeRequestError: Stripe refuses, or is out of reach for minutes.
        OpenTransactionError: the connection is in a transaction.
    """
    with start_run(conn, "reconcile", is_dry_run=dry_run) as run:
        work = _Work(conn, client, run, dry_run, match_email, on_difference)
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
        )


@dataclass(slots=True)
class _Work:
    conn: Connection[Any]
    client: stripe.StripeClient
    run: Started
    is_dry_run: bool
    match_email: bool
    on_difference: Callable[[Difference], None] | None

    def compare(self, page: Page) -> None:
        """Mend what the page shows, then look for what it should show and does not.

        Where nothing is left to look for, one transaction holds all of it.
        """
        rows = [read(page.noun, shape, page.as_of) for shape in page.shapes]
        customers = {
            row["id"]: row["id"] if page.noun == "customers" else row["customer_id"]
            for row in rows
        }
        with self.run.transaction():
            if not self.is_dry_run:
                mirror.lock_customers(self.conn, ids=list(customers.values()))
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
            unclear = [one.id for one in judged if one.verdict == "unclear"]
            unlisted = self._list_unlisted(page, page.until, None)
            found = self._count(
                find_differences(page.noun, judged, users, self.is_dry_run)
            )
            if not unclear and not unlisted:
                self._end(page)
        self._tell(found)
        if unclear or unlisted:
            for name in unclear:
                self._look(page.noun, name, customers[name], page.as_of)
            self._look_for(page, unlisted)
            with self.run.transaction():
                self._end(page)

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
        judged, users = patiently(look)
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

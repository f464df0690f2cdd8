"""Compare all of Stripe's customers and subscriptions with the database.

A dry run applies each page as a run does, in a transaction that is rolled back: it
finds the same differences and meets the same refusals, and locks nothing for longer.
"""

import json
import logging
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any
from uuid import UUID

import stripe
from psycopg import Connection

from pyapp._core.run import check_connection
from pyapp.stripe_sync import store
from pyapp.stripe_sync.account import require_own_account
from pyapp.stripe_sync.client import with_retries
from pyapp.stripe_sync.differences import KINDS, Difference, find_differences
from pyapp.stripe_sync.objects import describe_id, has_more_items, require_id
from pyapp.stripe_sync.pages import OBJECT_TYPES, Cursor, Page, list_pages
from pyapp.stripe_sync.refusals import (
    REFUSAL_KINDS,
    UNREADABLE,
    Refusal,
    RefusalKind,
    affects_one_object,
    make_refusal,
)
from pyapp.stripe_sync.runs import ActiveRun, Progress, start_run
from pyapp.stripe_sync.snapshots import (
    moved_users,
    read_snapshot,
    refresh_object,
    sync_affected_users,
    upsert_snapshots,
)
from pyapp.stripe_sync.store import ObjectType, SyncedUser, UnlistedObject, UpsertResult
from pyapp.stripe_sync.transactions import limit_lock_waits, own_transaction
from pyapp.stripe_sync.usage_cuts import cut_moved_usage

log = logging.getLogger("pyapp.stripe")

# Rows per query for objects that a page should contain and does not.
_UNLISTED_PAGE = 100
_NO_USER = UUID(int=0)

Row = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Reconciliation:
    """The totals of a reconciliation, including those before it was resumed.

    `seen` counts listed objects; its keys are customers and subscriptions. `found` and
    `repaired` count differences; their keys are KINDS. `refused` counts the objects
    that could not be compared or repaired; its keys are REFUSAL_KINDS.
    """

    run_id: int
    is_dry_run: bool
    is_resumed: bool
    seen: Mapping[ObjectType, int]
    found: Mapping[str, int]
    repaired: Mapping[str, int]
    refused: Mapping[RefusalKind, int]

    @property
    def number_found(self) -> int:
        """Return the number of differences."""
        return sum(self.found.values())

    @property
    def number_refused(self) -> int:
        """Return the number of objects that could not be compared or repaired."""
        return sum(self.refused.values())


def reconcile(
    conn: Connection[Any],
    client: stripe.StripeClient,
    dry_run: bool = False,
    match_email: bool = False,
    progress: Callable[[Progress], None] | None = None,
    on_difference: Callable[[Difference], None] | None = None,
    page_size: int = 100,
    on_refusal: Callable[[Refusal], None] | None = None,
    cleared: bool = False,
) -> Reconciliation:
    """Compare all of Stripe's objects with the database, and repair the database.

    A run that was killed within the last day is resumed. With *dry_run*, nothing is
    changed and nothing resumed. With *match_email*, a customer without a claim is
    linked to the user with its e-mail address; otherwise an `unlinked` difference
    proposes that user. *progress* is called after each page, *on_difference* after the
    commit that repairs it. An object that cannot be read or stored, or that another
    transaction locks for five seconds, is reported to *on_refusal*; the run goes on.
    *cleared* means that the account's test data was deleted, and with it all objects
    that the database knows.

    Raises:
        OtherAccountError: Stripe has none of the newest objects, without *cleared*.
        ReconcileRunningError: another reconciliation is running.
        StripeRequestError: Stripe refused, was unavailable for minutes, or sent a page
            that cannot be read.
        OpenTransactionError: the connection is in a transaction.
        psycopg.Error: the database would refuse every object.
    """
    with start_run(conn, "reconcile", is_dry_run=dry_run) as run:
        work = _Comparison(
            conn, client, run, dry_run, match_email, on_difference, on_refusal
        )
        if not cleared:
            require_own_account(conn, client)
        with own_transaction(conn):
            size = store.get_mirror_size(conn)
        expected = {"customers": size.customers, "subscriptions": size.subscriptions}
        cursor = run.load_cursor(Cursor.load, Cursor())
        for object_type in OBJECT_TYPES[OBJECT_TYPES.index(cursor.object_type) :]:
            for page in list_pages(client, cursor, page_size):
                work.compare_page(page)
                if progress:
                    seen = run.counts[object_type]
                    progress(
                        Progress(object_type, seen, max(seen, expected[object_type]))
                    )
            if object_type == "customers":
                work.refresh_unlisted_customers(page.as_of)
            cursor = Cursor("subscriptions")
            run.save(cursor.dump())
        return Reconciliation(
            run_id=run.id,
            is_dry_run=dry_run,
            is_resumed=run.is_resumed,
            seen={object_type: run.counts[object_type] for object_type in OBJECT_TYPES},
            found={kind: run.counts[kind] for kind in KINDS},
            repaired={kind: run.counts[f"{kind} repaired"] for kind in KINDS},
            refused={kind: run.counts[f"refused {kind}"] for kind in REFUSAL_KINDS},
        )


@dataclass(slots=True)
class _Comparison:
    conn: Connection[Any]
    client: stripe.StripeClient
    run: ActiveRun
    is_dry_run: bool
    match_email: bool
    on_difference: Callable[[Difference], None] | None
    on_refusal: Callable[[Refusal], None] | None
    # Ids that have been reported, so that each object is reported once.
    refused: set[tuple[ObjectType, str]] = field(default_factory=set)
    # In a dry run, the rows as JSON of the customers that a run would have changed.
    unstored: dict[str, str] = field(default_factory=dict)

    def compare_page(self, page: Page) -> None:
        """Apply the page, then refresh objects that are ambiguous or missing from it.

        If there are none of these, all of it is one transaction.
        """
        with self._counted_once():
            rows, incomplete = self._read(page)
            try:
                with self._transaction():
                    found, users, ambiguous = self._upsert_snapshots(
                        page.object_type, rows
                    )
                    unlisted = self._list_unlisted(page, page.until, None)
                    is_finished = not (
                        ambiguous or incomplete or unlisted or self.is_dry_run
                    )
                    if is_finished:
                        self._finish(page)
            except Exception as exc:
                if not self._affects_one_object(page.object_type, exc):
                    raise
                # One object is refused: upsert each in its own transaction.
                found, users, ambiguous, is_finished = [], [], [], False
                for row in rows:
                    self._upsert_alone(page, row)
                with own_transaction(self.conn):
                    unlisted = self._list_unlisted(page, page.until, None)
            self._report(found, users)
            for row in (*ambiguous, *incomplete):
                self._refresh_row(page, row)
            self._refresh_unlisted(page, unlisted)
            if not is_finished:
                with self.run.transaction():
                    self._finish(page)

    @contextmanager
    def _counted_once(self) -> Iterator[None]:
        """Forget the refusals of work that is interrupted: a resumed run repeats it."""
        before = self.run.counts.copy()
        try:
            yield
        except BaseException:
            for name in self.run.counts:
                if name.startswith("refused"):
                    self.run.counts[name] = before[name]
            raise

    def _transaction(self) -> AbstractContextManager[None]:
        return self.run.transaction(is_kept=not self.is_dry_run)

    def _read(self, page: Page) -> tuple[list[Row], list[Row]]:
        """Return the rows of the page, and those of subscriptions with more items."""
        rows: list[Row] = []
        incomplete: list[Row] = []
        previous = page.after
        for listed in page.objects:
            try:
                previous = require_id(listed)
            except ValueError as exc:
                place = f"listed after {previous}" if previous else "listed first"
                error = ValueError(f"{exc}; {place}")
                self._refuse(page.object_type, describe_id(listed), error)
                continue
            try:
                row = read_snapshot(page.object_type, listed, page.as_of)
                (incomplete if has_more_items(listed) else rows).append(row)
            except UNREADABLE as exc:
                self._refuse(page.object_type, previous, exc)
        return rows, incomplete

    def _upsert_snapshots(
        self, object_type: ObjectType, rows: list[Row]
    ) -> tuple[list[Difference], list[SyncedUser], list[Row]]:
        """Upsert the rows; return the differences, the users, and ambiguous rows."""
        customers = [_customer_id(object_type, row) for row in rows]
        store.lock_customers(self.conn, ids=customers)
        if object_type == "subscriptions":
            self._upsert_unstored(customers)
        upserted = upsert_snapshots(
            self.conn,
            object_type,
            rows,
            "page",
            can_fetch=True,
            match_email=self.match_email,
        )
        users = sync_affected_users(self.conn, upserted)
        if self.is_dry_run and object_type == "customers":
            changed = {
                one.id
                for one in upserted
                if one.result == "applied" and one.differences
            }
            self.unstored |= {
                row["id"]: json.dumps(row) for row in rows if row["id"] in changed
            }
        ambiguous = {one.id for one in upserted if one.result == "ambiguous"}
        found = self._count(
            find_differences(object_type, upserted, users, self.is_dry_run)
        )
        return found, users, [row for row in rows if row["id"] in ambiguous]

    def _upsert_unstored(self, customers: Iterable[str]) -> None:
        """Upsert these customers as a run would have: a dry run has rolled them back.

        The caller's transaction is rolled back too.
        """
        changed = set(customers) & self.unstored.keys()
        rows = [json.loads(self.unstored[customer]) for customer in changed]
        if rows:
            upserted = upsert_snapshots(
                self.conn, "customers", rows, "page", match_email=self.match_email
            )
            sync_affected_users(self.conn, upserted)

    def _upsert_alone(self, page: Page, row: Row) -> None:
        try:
            with self._transaction():
                found, users, ambiguous = self._upsert_snapshots(
                    page.object_type, [row]
                )
        except Exception as exc:
            if not self._affects_one_object(page.object_type, exc):
                raise
            self._refuse(page.object_type, row["id"], exc)
            return
        self._report(found, users)
        if ambiguous:
            self._refresh_row(page, row)

    def _refuse(
        self, object_type: ObjectType, object_id: str, error: Exception
    ) -> None:
        refusal = make_refusal(object_type, object_id, error)
        self.unstored.pop(object_id, None)
        self.refused.add((object_type, object_id))
        self.run.counts["refused"] += 1
        self.run.counts[f"refused {refusal.kind}"] += 1
        log.error(
            "stripe object refused",
            extra={
                "object_id": object_id,
                "reason": refusal.kind,
                "kind": type(error).__name__,
            },
        )
        if self.on_refusal:
            self.on_refusal(refusal)

    def _finish(self, page: Page) -> None:
        self.run.counts[page.object_type] += len(page.objects)
        self.run.write(page.cursor.dump())

    def refresh_unlisted_customers(self, as_of: datetime) -> None:
        """Refresh customers of checkouts and users that no page has contained."""
        with self._counted_once():
            self._refresh_each(store.list_name_only_customers, as_of)
            self._refresh_each(store.list_unseen_customers, as_of)

    def _refresh_each(
        self, list_customers: Callable[..., list[UnlistedObject]], as_of: datetime
    ) -> None:
        after = None
        while True:
            with own_transaction(self.conn):
                found = list_customers(self.conn, after_id=after, limit=_UNLISTED_PAGE)
            for customer in found:
                after = customer.id
                is_refused = ("customers", customer.id) in self.refused
                # A page has contained these, and stored none of them.
                if not is_refused and customer.id not in self.unstored:
                    self._refresh("customers", customer.id, customer.id, as_of)
            if len(found) < _UNLISTED_PAGE:
                return

    def _list_unlisted(
        self, page: Page, until: datetime, after_id: str | None
    ) -> list[UnlistedObject]:
        """Return objects missing from the page, from *until* and *after_id* on."""
        list_unlisted = (
            store.list_unlisted_customers
            if page.object_type == "customers"
            else store.list_unlisted_subscriptions
        )
        return list_unlisted(
            self.conn,
            since=page.since,
            until=until,
            listed_ids=page.ids,
            after_id=after_id,
            limit=_UNLISTED_PAGE,
        )

    def _refresh_unlisted(self, page: Page, unlisted: list[UnlistedObject]) -> None:
        while unlisted:
            for one in unlisted:
                self._refresh(page.object_type, one.id, one.customer_id, page.as_of)
            last = unlisted[-1]
            if len(unlisted) < _UNLISTED_PAGE or last.created_at is None:
                return
            with own_transaction(self.conn):
                unlisted = self._list_unlisted(page, last.created_at, last.id)

    def _refresh_row(self, page: Page, row: Row) -> None:
        customer = _customer_id(page.object_type, row)
        self._refresh(page.object_type, row["id"], customer, page.as_of)

    def _refresh(
        self,
        object_type: ObjectType,
        object_id: str,
        customer_id: str,
        not_before: datetime,
    ) -> None:
        """Fetch one object under its customer's lock, and repair its row.

        *not_before* is a time in Stripe's clock that has passed.
        """

        def refresh() -> tuple[UpsertResult | None, list[SyncedUser]]:
            with own_transaction(self.conn, is_kept=not self.is_dry_run):
                limit_lock_waits(self.conn)
                store.lock_customers(self.conn, ids=[customer_id])
                if object_type == "subscriptions":
                    self._upsert_unstored([customer_id])
                upserted = refresh_object(
                    self.conn,
                    self.client,
                    object_type,
                    object_id,
                    not_before,
                    match_email=self.match_email,
                )
                if upserted is None:
                    users = self._mark_missing(object_type, object_id, not_before)
                else:
                    users = sync_affected_users(self.conn, [upserted])
                return upserted, users

        # A retry waits outside the transaction, so without the lock.
        try:
            upserted, users = with_retries(refresh, self.client)
        except Exception as exc:
            check_connection(self.conn, exc)
            if not self._affects_one_object(object_type, exc):
                raise
            self._refuse(object_type, object_id, exc)
            return
        found: Iterable[Difference]
        if upserted is None:
            found = [Difference("missing_there", object_id, None, not self.is_dry_run)]
        else:
            found = find_differences(object_type, [upserted], users, self.is_dry_run)
        self._report(self._count(found), users)

    def _mark_missing(
        self, object_type: ObjectType, object_id: str, as_of: datetime
    ) -> list[SyncedUser]:
        """Mark an object that Stripe does not have as deleted or canceled."""
        if object_type == "customers":
            row = {"id": object_id, "is_deleted": True, "as_of": as_of.isoformat()}
            upserted = store.upsert_customers(
                self.conn, snapshots=[row], source="object", can_fetch=False
            )
            return sync_affected_users(self.conn, upserted)
        marked = store.mark_subscription_missing(self.conn, id=object_id, as_of=as_of)
        if marked is None or marked.user_id is None:
            return []
        return store.sync_users(self.conn, user_ids=[marked.user_id])

    def _count(self, differences: Iterable[Difference]) -> list[Difference]:
        found = list(differences)
        for one in found:
            self.run.counts[one.kind] += 1
            self.run.counts[f"{one.kind} repaired"] += one.is_repaired
        return found

    def _affects_one_object(self, object_type: ObjectType, error: Exception) -> bool:
        def apply_empty() -> None:
            store.sync_users(self.conn, user_ids=[_NO_USER])
            upsert_snapshots(self.conn, object_type, [{}], "page", can_fetch=True)

        return affects_one_object(self.conn, self.client, error, apply_empty)

    def _report(self, found: Sequence[Difference], users: Sequence[SyncedUser]) -> None:
        """Report differences whose repair is committed, and cut the sums that moved."""
        if not self.is_dry_run:
            cut_moved_usage(self.conn, moved_users(users))
        for one in found:
            if self.on_difference:
                self.on_difference(one)


def _customer_id(object_type: ObjectType, row: Row) -> str:
    found: str = row["id"] if object_type == "customers" else row["customer_id"]
    return found

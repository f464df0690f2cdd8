"""Compare all of Stripe's customers and subscriptions with the database."""

import logging
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any
from uuid import UUID

import psycopg
import stripe
from psycopg import Connection

from pyapp.errors import RuleError, StripeRequestError
from pyapp.stripe_sync import store
from pyapp.stripe_sync.apply import (
    read_snapshot,
    refresh_object,
    sync_affected_users,
    upsert_snapshots,
)
from pyapp.stripe_sync.client import (
    affects_all_objects,
    error_summary,
    with_retries,
)
from pyapp.stripe_sync.objects import find_id
from pyapp.stripe_sync.pages import OBJECT_TYPES, Cursor, Page, list_pages
from pyapp.stripe_sync.runs import ActiveRun, Progress, start_run
from pyapp.stripe_sync.store import ObjectType, SyncedUser, UnlistedObject, UpsertResult
from pyapp.stripe_sync.transactions import (
    LOCK_ERRORS,
    limit_lock_waits,
    own_transaction,
)

log = logging.getLogger("pyapp.stripe")

# Kinds of differences, in the order of a report.
KINDS = (
    "missing_here",
    "missing_there",
    "status",
    "price",
    "period",
    "created_at",
    "unlinked",
    "unknown_price",
)
# Rows per query for objects that a page should contain and does not.
_UNLISTED_PAGE = 100
# SQLSTATE classes of errors about one row: data, integrity, program limits, PL/pgSQL.
_ROW_ERRORS = frozenset({"22", "23", "54", "P0"})
# Errors from reading an unexpected object.
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


@dataclass(frozen=True, slots=True)
class Difference:
    """One disagreement between Stripe and the database.

    *kind* is one of KINDS. *object_id* is a customer, a subscription or a user.
    *user_id* is the object's user; for `unlinked`, the user with its e-mail address.
    """

    kind: str
    object_id: str
    user_id: UUID | None
    is_repaired: bool


@dataclass(frozen=True, slots=True)
class Failure:
    """An object that could not be compared or repaired, and the error.

    *object_id* is a customer or a subscription, or "(no id)".
    """

    object_type: ObjectType
    object_id: str
    error: str


@dataclass(frozen=True, slots=True)
class Reconciliation:
    """The totals of a reconciliation, including those before it was resumed.

    `seen` counts listed objects; its keys are customers and subscriptions. `found` and
    `repaired` count differences; their keys are KINDS. `failed` counts the objects that
    could not be compared or repaired.
    """

    run_id: int
    is_dry_run: bool
    is_resumed: bool
    seen: Mapping[ObjectType, int]
    found: Mapping[str, int]
    repaired: Mapping[str, int]
    failed: int = 0

    @property
    def number_found(self) -> int:
        """Return the number of differences."""
        return sum(self.found.values())


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
    """Compare all of Stripe's objects with the database, and repair the database.

    A run that was killed within the last day is resumed. With *dry_run*, nothing is
    changed and nothing resumed. With *match_email*, a customer without a claim is
    linked to the user with its e-mail address; otherwise an `unlinked` difference
    proposes that user. *progress* is called after each page, *on_difference* after the
    commit that repairs it. An object that cannot be read or stored, or that another
    transaction locks for five seconds, is reported to *on_failure*; the run goes on.

    Raises:
        ReconcileRunningError: another reconciliation is running.
        StripeRequestError: Stripe refused, or was unavailable for minutes.
        OpenTransactionError: the connection is in a transaction.
    """
    with start_run(conn, "reconcile", is_dry_run=dry_run) as run:
        work = _Comparison(
            conn, client, run, dry_run, match_email, on_difference, on_failure
        )
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
            failed=run.counts["failed"],
        )


@dataclass(slots=True)
class _Comparison:
    conn: Connection[Any]
    client: stripe.StripeClient
    run: ActiveRun
    is_dry_run: bool
    match_email: bool
    on_difference: Callable[[Difference], None] | None
    on_failure: Callable[[Failure], None] | None

    def compare_page(self, page: Page) -> None:
        """Apply the page, then refresh objects that are ambiguous or missing from it.

        If there are none of these, all of it is one transaction.
        """
        rows = self._read(page)
        try:
            with self.run.transaction():
                found, ambiguous = self._upsert_snapshots(page, rows)
                unlisted = self._list_unlisted(page, page.until, None)
                if not ambiguous and not unlisted:
                    self._finish(page)
        except Exception as exc:
            if not self._affects_one_object(exc):
                raise
            # One object is invalid or locked: upsert each in its own transaction.
            found, ambiguous = [], []
            for row in rows:
                self._upsert_alone(page, row)
            with own_transaction(self.conn):
                unlisted = self._list_unlisted(page, page.until, None)
            is_finished = False
        else:
            is_finished = not ambiguous and not unlisted
        self._report(found)
        if not is_finished:
            for row in ambiguous:
                self._refresh_row(page, row)
            self._refresh_unlisted(page, unlisted)
            with self.run.transaction():
                self._finish(page)

    def _read(self, page: Page) -> list[dict[str, Any]]:
        rows = []
        for listed in page.objects:
            object_id = find_id(listed)
            try:
                if object_id is None:
                    raise ValueError("it has no id")
                rows.append(read_snapshot(page.object_type, listed, page.as_of))
            except _UNREADABLE as exc:
                self._fail(page.object_type, object_id or "(no id)", exc)
        return rows

    def _upsert_snapshots(
        self, page: Page, rows: list[dict[str, Any]]
    ) -> tuple[list[Difference], list[dict[str, Any]]]:
        """Upsert the rows; return the differences, and the ambiguous rows."""
        if not self.is_dry_run:
            customers = [_customer_id(page, row) for row in rows]
            store.lock_customers(self.conn, ids=customers)
        upserted = upsert_snapshots(
            self.conn,
            page.object_type,
            rows,
            "page",
            can_fetch=True,
            match_email=self.match_email,
            is_dry_run=self.is_dry_run,
        )
        users = sync_affected_users(self.conn, upserted, is_dry_run=self.is_dry_run)
        ambiguous = {one.id for one in upserted if one.result == "ambiguous"}
        found = self._count(
            find_differences(page.object_type, upserted, users, self.is_dry_run)
        )
        return found, [row for row in rows if row["id"] in ambiguous]

    def _upsert_alone(self, page: Page, row: dict[str, Any]) -> None:
        try:
            with self.run.transaction():
                found, ambiguous = self._upsert_snapshots(page, [row])
        except Exception as exc:
            if not self._affects_one_object(exc):
                raise
            self._fail(page.object_type, row["id"], exc)
            return
        self._report(found)
        if ambiguous:
            self._refresh_row(page, row)

    def _fail(self, object_type: ObjectType, object_id: str, error: Exception) -> None:
        failure = Failure(object_type, object_id, error_summary(error))
        self.run.counts["failed"] += 1
        log.error(
            "stripe object failed",
            extra={"object_id": object_id, "kind": type(error).__name__},
        )
        if self.on_failure:
            self.on_failure(failure)

    def _finish(self, page: Page) -> None:
        self.run.counts[page.object_type] += len(page.objects)
        self.run.write(page.cursor.dump())

    def refresh_unlisted_customers(self, as_of: datetime) -> None:
        """Refresh customers of checkouts and users that no page has contained."""
        self._refresh_each(store.list_name_only_customers, as_of)
        # A dry run does not store the pages, so every user's customer is unseen.
        if not self.is_dry_run:
            self._refresh_each(store.list_unseen_customers, as_of)

    def _refresh_each(
        self, list_customers: Callable[..., list[UnlistedObject]], as_of: datetime
    ) -> None:
        after = None
        while True:
            with own_transaction(self.conn):
                found = list_customers(self.conn, after_id=after, limit=_UNLISTED_PAGE)
            for customer in found:
                self._refresh("customers", customer.id, customer.id, as_of)
                after = customer.id
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

    def _refresh_row(self, page: Page, row: dict[str, Any]) -> None:
        self._refresh(page.object_type, row["id"], _customer_id(page, row), page.as_of)

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
            with own_transaction(self.conn):
                limit_lock_waits(self.conn)
                if not self.is_dry_run:
                    store.lock_customers(self.conn, ids=[customer_id])
                upserted = refresh_object(
                    self.conn,
                    self.client,
                    object_type,
                    object_id,
                    not_before,
                    match_email=self.match_email,
                    is_dry_run=self.is_dry_run,
                )
                if upserted is None:
                    self._mark_missing(object_type, object_id, not_before)
                    return None, []
                users = sync_affected_users(
                    self.conn, [upserted], is_dry_run=self.is_dry_run
                )
                return upserted, users

        # A retry waits outside the transaction, so without the lock.
        try:
            upserted, users = with_retries(refresh)
        except Exception as exc:
            if not self._affects_one_object(exc):
                raise
            self._fail(object_type, object_id, exc)
            return
        found: Iterable[Difference]
        if upserted is None:
            found = [Difference("missing_there", object_id, None, not self.is_dry_run)]
        else:
            found = find_differences(object_type, [upserted], users, self.is_dry_run)
        self._report(self._count(found))

    def _mark_missing(
        self, object_type: ObjectType, object_id: str, as_of: datetime
    ) -> None:
        """Mark an object that Stripe does not have as deleted or canceled."""
        if self.is_dry_run:
            return
        if object_type == "customers":
            row = {"id": object_id, "is_deleted": True, "as_of": as_of.isoformat()}
            upserted = store.upsert_customers(
                self.conn, snapshots=[row], source="object", can_fetch=False
            )
            sync_affected_users(self.conn, upserted)
            return
        marked = store.mark_subscription_missing(self.conn, id=object_id, as_of=as_of)
        if marked is not None and marked.user_id is not None:
            store.sync_users(self.conn, user_ids=[marked.user_id])

    def _count(self, differences: Iterable[Difference]) -> list[Difference]:
        found = list(differences)
        for one in found:
            self.run.counts[one.kind] += 1
            self.run.counts[f"{one.kind} repaired"] += one.is_repaired
        return found

    def _affects_one_object(self, error: Exception) -> bool:
        """Return True if other objects can succeed, so that the run goes on."""
        if self.conn.closed:
            return False
        if isinstance(error, psycopg.Error):
            state = error.sqlstate or ""
            return isinstance(error, LOCK_ERRORS) or state[:2] in _ROW_ERRORS
        if isinstance(error, StripeRequestError):
            return not affects_all_objects(error, self.client)
        return isinstance(error, (RuleError, *_UNREADABLE))

    def _report(self, found: Sequence[Difference]) -> None:
        """Report differences whose repair is committed."""
        for one in found:
            if self.on_difference:
                self.on_difference(one)


def find_differences(
    object_type: ObjectType,
    upserted: Sequence[UpsertResult],
    users: Sequence[SyncedUser],
    is_dry_run: bool,
) -> Iterator[Difference]:
    """Yield the differences of objects, and those of users that no object explains."""
    known = {user.id: user for user in users}
    ids = {one.id for one in upserted}
    explained = set()
    for one in upserted:
        if one.result != "applied":
            continue
        user = known.get(one.user_id) if one.user_id else None
        kinds = dict.fromkeys(one.differences, not is_dry_run)
        if one.user_id is None and "unlinked" in kinds:
            kinds["unlinked"] = False
        # A user has one customer; a second one that claims the user stays unlinked.
        is_second = object_type == "customers" and user and user.customer_id != one.id
        if is_second and not is_dry_run and "missing_there" not in kinds:
            kinds["unlinked"] = False
        for kind, is_repaired in kinds.items():
            owner = one.user_id or one.proposed_user_id
            yield Difference(kind, one.id, owner, is_repaired)
        if kinds:
            explained.add(one.user_id)
    for user in users:
        # Users with a customer appear once with it, and again with a subscription.
        if object_type == "customers" and user.id not in explained:
            for kind in user.differences:
                yield Difference(kind, str(user.id), user.id, not is_dry_run)
        if user.has_unknown_price and user.subscription_id in ids:
            yield Difference("unknown_price", user.subscription_id, user.id, False)


def _customer_id(page: Page, row: dict[str, Any]) -> str:
    found: str = row["id"] if page.object_type == "customers" else row["customer_id"]
    return found

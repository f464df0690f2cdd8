"""Compares the database with the history of Stripe and the delivered events."""

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence, Set
from dataclasses import dataclass
from datetime import datetime
from typing import Any
from uuid import UUID

import psycopg

from tests.simulation.history import (
    CustomerState,
    History,
    SubscriptionState,
    Version,
    subscription_states,
)
from tests.simulation.users import CustomerRecord, find_faults, read_users


@dataclass(frozen=True, slots=True)
class Row:
    """A row of the mirror; times are Stripe's, in seconds."""

    id: str
    customer_id: str
    user_id: UUID | None
    created: int | None
    as_of: float
    is_provisional: bool
    state: SubscriptionState | CustomerState


def read_mirror(conn: psycopg.Connection[Any]) -> dict[str, Row]:
    """Return all customers and subscriptions by id."""
    rows = [
        Row(
            name,
            name,
            user,
            _seconds(created),
            as_of.timestamp(),
            flag,
            CustomerState(user, gone),
        )
        for name, user, gone, created, as_of, flag in conn.execute(
            "SELECT id, user_id, is_deleted, created_at, as_of, is_provisional"
            " FROM app.stripe_customers"
        )
    ]
    for name, customer, user, created, as_of, flag, *state in conn.execute(
        "SELECT id, customer_id, user_id, created_at, as_of, is_provisional,"
        " status, price_id, current_period_start, current_period_end,"
        " billing_cycle_anchor, cancel_at_period_end, canceled_at"
        " FROM app.stripe_subscriptions"
    ):
        values: list[Any] = [
            _seconds(v) if isinstance(v, datetime) else v for v in state
        ]
        paid = SubscriptionState(*values)
        rows.append(
            Row(name, customer, user, _seconds(created), as_of.timestamp(), flag, paid)
        )
    return {row.id: row for row in rows}


def check_rows(
    conn: psycopg.Connection[Any],
    history: History,
    delivered: Set[str],
    *,
    has_client: bool,
) -> list[str]:
    """Return rows that are missing, or older than a delivered event, or wrong.

    Each object of a delivered event has a row. The row equals a version of that event
    or later, which was true at the row's `as_of`. Without a client, two versions of the
    same second are equivalent.
    """
    rows = read_mirror(conn)
    # Deliveries in progress may be visible or not.
    buyers = _list_linked(history, set(history.links))
    faults = _check_owners(rows)
    for name, number in history.newest(delivered, has_client=has_client).items():
        versions, row = history.versions[name], rows.get(name)
        since = versions[number].since
        if not has_client:
            number = min(n for n, v in enumerate(versions) if v.since == since)
        if row is None:
            faults.append(
                f"{name} is missing although an event of {since} was delivered"
            )
        elif int(row.as_of) < since:
            faults.append(f"{name} is older than a delivered event of {since}: {row}")
        elif not any(
            _fits(row, versions, n, buyers.get(name, set()))
            for n in range(number, len(versions))
        ):
            faults.append(
                f"{name} equals no version since {since}: the row is {row}, the"
                f" version of the delivered event {versions[number]}"
            )
    for name, users in _list_linked(history, delivered).items():
        claims = {claim.user_id for claim in history.list_claims(name)}
        if name not in rows or rows[name].user_id not in users | claims:
            faults.append(f"{name} is not linked to {users}: {rows.get(name)}")
    return faults + find_faults(read_users(conn), _owned(rows))


def check_equal(
    conn: psycopg.Connection[Any], history: History, delivered: Set[str]
) -> list[str]:
    """Return the differences from the fake after a reconciliation.

    A customer that was deleted before its first delivery may be missing.
    """
    rows, world = read_mirror(conn), history.fake.world
    linked, seen = _list_linked(history, delivered), history.newest(delivered)
    faults = [
        f"{r.id} is still provisional: {r}" for r in rows.values() if r.is_provisional
    ]
    faults += _check_owners(rows)
    unknown = set(rows)
    for subscription in world.subscriptions:
        unknown.discard(subscription.id)
        row, (state, *_) = rows.get(subscription.id), subscription_states(subscription)
        wanted = (state, subscription.customer, subscription.created)
        if row is None or (row.state, row.customer_id, row.created) != wanted:
            faults.append(f"{subscription.id} is {row}, and should be {state}")
    for customer in world.customers:
        name, row = customer.id, rows.get(customer.id)
        unknown.discard(name)
        claim = history.claim(customer, customer.deleted)
        buyers: set[UUID | None] = {*linked.get(name, ())}
        users = {claim.user_id} if claim.user_id else buyers or {None}
        if customer.deleted and name not in seen:
            if row is None and not buyers:
                continue
            users |= {None, *buyers}
        is_same = row and row.state in {
            CustomerState(u, claim.is_deleted) for u in users
        }
        if not row or not is_same or row.created not in {customer.created, None}:
            faults.append(f"{name} is {row}, and should be {claim}, of {users}")
    faults += [f"{name} is not in Stripe: {rows[name]}" for name in unknown]
    return faults + find_faults(read_users(conn), _owned(rows))


def _fits(
    row: Row, versions: Sequence[Version], number: int, linked: Set[UUID]
) -> bool:
    """Return True if the row equals the version, which was true at `as_of`."""
    states = versions[number].states
    is_last = number + 1 == len(versions)
    if not is_last and int(row.as_of) > versions[number + 1].since:
        return False
    if row.state in states:
        return True
    # A link by a checkout is kept while the metadata claims no user.
    return (
        isinstance(row.state, CustomerState)
        and CustomerState(None, row.state.is_deleted) in states
        and row.user_id in linked
    )


def check_inbox(conn: psycopg.Connection[Any], delivered: Set[str]) -> list[str]:
    """Return delivered events that are not processed, and others that are stored."""
    found = dict(
        conn.execute("SELECT id, processed_at IS NOT NULL FROM app.stripe_events")
    )
    return [f"{event} was not delivered" for event in found.keys() - delivered] + [
        f"{event} was delivered and is not processed"
        for event in delivered
        if not found.get(event)
    ]


def _check_owners(rows: Mapping[str, Row]) -> list[str]:
    """Return subscriptions that have another user than their customer."""
    faults = []
    for row in rows.values():
        customer = rows.get(row.customer_id)
        owner = customer.user_id if customer else None
        if row.user_id != owner:
            faults.append(
                f"{row.id} does not belong to {owner}, as its customer does: {row}"
            )
    return faults


def _list_linked(history: History, delivered: Set[str]) -> dict[str, set[UUID]]:
    """Return the users that delivered checkouts name, by customer."""
    linked: dict[str, set[UUID]] = defaultdict(set)
    for event in delivered & history.links.keys():
        customer, user_id = history.links[event]
        if user_id is not None:
            linked[customer].add(user_id)
    return linked


def _owned(rows: Mapping[str, Row]) -> Iterator[CustomerRecord]:
    """Yield the mirrored customers with their subscriptions."""
    bought: dict[str, dict[str, tuple[SubscriptionState]]] = defaultdict(dict)
    for row in rows.values():
        if isinstance(row.state, SubscriptionState):
            bought[row.customer_id][row.id] = (row.state,)
    for row in rows.values():
        if isinstance(row.state, CustomerState):
            yield CustomerRecord(
                row.id,
                row.user_id,
                row.state.is_deleted,
                row.created,
                bought[row.id],
            )


def _seconds(instant: datetime | None) -> int | None:
    return None if instant is None else int(instant.timestamp())

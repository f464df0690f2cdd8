"""Judges the database by what was true in Stripe and what was delivered."""

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence, Set
from dataclasses import dataclass
from datetime import datetime
from typing import Any
from uuid import UUID

import psycopg

from tests.simulation.history import Claim, History, Paid, Version, paid
from tests.simulation.users import Owned, find_faults, read_users


@dataclass(frozen=True, slots=True)
class Row:
    """A row of the mirror; times in Stripe's seconds, `as_of` with its fraction."""

    id: str
    customer_id: str
    user_id: UUID | None
    created: int | None
    as_of: float
    is_provisional: bool
    state: Paid | Claim


def read_mirror(conn: psycopg.Connection[Any]) -> dict[str, Row]:
    """All customers and subscriptions."""
    rows = [
        Row(
            name, name, user, _seconds(made), as_of.timestamp(), flag, Claim(user, gone)
        )
        for name, user, gone, made, as_of, flag in conn.execute(
            "SELECT id, user_id, is_deleted, created_at, as_of, is_provisional"
            " FROM app.stripe_customers"
        )
    ]
    for name, customer, user, made, as_of, flag, *state in conn.execute(
        "SELECT id, customer_id, user_id, created_at, as_of, is_provisional,"
        " status, price_id, current_period_start, current_period_end,"
        " billing_cycle_anchor, cancel_at_period_end, canceled_at"
        " FROM app.stripe_subscriptions"
    ):
        values: list[Any] = [
            _seconds(v) if isinstance(v, datetime) else v for v in state
        ]
        paid = Paid(*values)
        rows.append(
            Row(name, customer, user, _seconds(made), as_of.timestamp(), flag, paid)
        )
    return {row.id: row for row in rows}


def check_rows(
    conn: psycopg.Connection[Any],
    history: History,
    delivered: Set[str],
    *,
    has_client: bool,
) -> list[str]:
    """What is older than something that was delivered, or is not what it says.

    Each object that a delivered event vouches for has a row, and the row is as Stripe
    had it at that event or later, until its `as_of` at least. By a client that holds
    for two changes in one second, too; without one, any of that second's will do.
    """
    rows = read_mirror(conn)
    # What is being delivered at this moment may show or not.
    buyers = _list_linked(history, set(history.links))
    faults = _check_owners(rows)
    for name, number in history.newest(delivered, has_client=has_client).items():
        versions, row = history.versions[name], rows.get(name)
        since = versions[number].since
        if not has_client:
            number = min(n for n, v in enumerate(versions) if v.since == since)
        if row is None:
            faults.append(f"{name} is missing, and an event of {since} was delivered")
        elif int(row.as_of) < since:
            faults.append(f"{name} is older than a delivered event of {since}: {row}")
        elif not any(
            _fits(row, versions, n, buyers.get(name, set()))
            for n in range(number, len(versions))
        ):
            faults.append(
                f"{name} is not what it was at {since} or later: it is {row}, and the"
                f" delivered event says {versions[number]}"
            )
    for name, users in _list_linked(history, delivered).items():
        claims = {claim.user_id for claim in history.list_claims(name)}
        if name not in rows or rows[name].user_id not in users | claims:
            faults.append(f"{name} is not linked to {users}: {rows.get(name)}")
    return faults + find_faults(read_users(conn), _owned(rows))


def check_equal(
    conn: psycopg.Connection[Any], history: History, delivered: Set[str]
) -> list[str]:
    """What differs from the fake, after a reconciliation.

    A customer that was deleted before anybody here heard of it may be unknown.
    """
    rows, world = read_mirror(conn), history.fake.world
    linked, heard_of = _list_linked(history, delivered), history.newest(delivered)
    faults = [
        f"{r.id} is still flagged: {r}" for r in rows.values() if r.is_provisional
    ]
    faults += _check_owners(rows)
    strangers = set(rows)
    for subscription in world.subscriptions:
        strangers.discard(subscription.id)
        row, (state, *_) = rows.get(subscription.id), paid(subscription)
        wanted = (state, subscription.customer, subscription.created)
        if row is None or (row.state, row.customer_id, row.created) != wanted:
            faults.append(f"{subscription.id} is {row}, and should be {state}")
    for customer in world.customers:
        name, row = customer.id, rows.get(customer.id)
        strangers.discard(name)
        claim = history.claim(customer, customer.deleted)
        buyers: set[UUID | None] = {*linked.get(name, ())}
        users = {claim.user_id} if claim.user_id else buyers or {None}
        if customer.deleted and name not in heard_of:
            if row is None and not buyers:
                continue
            users |= {None, *buyers}
        is_same = row and row.state in {Claim(u, claim.is_deleted) for u in users}
        if not row or not is_same or row.created not in {customer.created, None}:
            faults.append(f"{name} is {row}, and should be {claim}, of {users}")
    faults += [f"{name} is not in Stripe: {rows[name]}" for name in strangers]
    return faults + find_faults(read_users(conn), _owned(rows))


def _fits(
    row: Row, versions: Sequence[Version], number: int, linked: Set[UUID]
) -> bool:
    """Whether it is that version, and that was true at its `as_of`."""
    states = versions[number].states
    is_last = number + 1 == len(versions)
    if not is_last and int(row.as_of) > versions[number + 1].since:
        return False
    if row.state in states:
        return True
    # Whoever is linked by a checkout stays so while the metadata name nobody.
    return (
        isinstance(row.state, Claim)
        and Claim(None, row.state.is_deleted) in states
        and row.user_id in linked
    )


def check_inbox(conn: psycopg.Connection[Any], delivered: Set[str]) -> list[str]:
    """Every delivered event is there and done; no other one is."""
    found = dict(
        conn.execute("SELECT id, processed_at IS NOT NULL FROM app.stripe_events")
    )
    return [f"{event} was not delivered" for event in found.keys() - delivered] + [
        f"{event} was delivered, and is not done"
        for event in delivered
        if not found.get(event)
    ]


def _check_owners(rows: Mapping[str, Row]) -> list[str]:
    """A subscription is whose its customer is."""
    faults = []
    for row in rows.values():
        customer = rows.get(row.customer_id)
        owner = customer.user_id if customer else None
        if row.user_id != owner:
            faults.append(f"{row.id} is not its customer's, {owner}: {row}")
    return faults


def _list_linked(history: History, delivered: Set[str]) -> dict[str, set[UUID]]:
    """The users whom delivered checkouts name, by customer."""
    linked: dict[str, set[UUID]] = defaultdict(set)
    for event in delivered & history.links.keys():
        customer, user_id = history.links[event]
        if user_id is not None:
            linked[customer].add(user_id)
    return linked


def _owned(rows: Mapping[str, Row]) -> Iterator[Owned]:
    """The customers with their subscriptions, as the mirror has them."""
    bought: dict[str, dict[str, tuple[Paid]]] = defaultdict(dict)
    for row in rows.values():
        if isinstance(row.state, Paid):
            bought[row.customer_id][row.id] = (row.state,)
    for row in rows.values():
        if isinstance(row.state, Claim):
            yield Owned(
                row.id,
                row.user_id,
                row.state.is_deleted,
                row.created,
                bought[row.id],
            )


def _seconds(instant: datetime | None) -> int | None:
    return None if instant is None else int(instant.timestamp())

"""Compares the database with the history of Stripe and the delivered events."""

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence, Set
from dataclasses import dataclass
from datetime import datetime
from typing import Any
from uuid import UUID

import psycopg

from tests.simulation.claims import (
    Link,
    find_claim_faults,
    find_conflicts,
    find_known_claims,
)
from tests.simulation.history import (
    Claim,
    CustomerState,
    History,
    ItemState,
    SubscriptionState,
    Version,
    make_version,
)
from tests.simulation.users import CustomerRecord, find_faults, read_users

ITEMS = """
    SELECT subscription_id, id, price_id, unit_amount, quantity,
        current_period_start, current_period_end
    FROM app.stripe_subscription_items
    ORDER BY subscription_id, id COLLATE "C"
"""
SUBSCRIPTIONS = """
    SELECT id, customer_id, created_at, as_of, is_provisional, status,
        billing_cycle_anchor, cancel_at, cancel_at_period_end, canceled_at, trial_end,
        pause_behavior, pause_resumes_at
    FROM app.stripe_subscriptions
"""
CUSTOMERS = """
    SELECT id, user_id, is_deleted, created_at, as_of, is_provisional, claim_source,
        claimed_user_id
    FROM app.stripe_customers
"""


@dataclass(frozen=True, slots=True)
class Row:
    """A row of the mirror; times are Stripe's, in seconds."""

    id: str
    customer_id: str
    created: int | None
    as_of: float
    is_provisional: bool
    state: SubscriptionState | CustomerState


@dataclass(frozen=True, slots=True)
class Mirror:
    """All customers and subscriptions by id, and the links of the customers."""

    rows: Mapping[str, Row]
    links: Mapping[str, Link]

    @property
    def bought(self) -> dict[str, str]:
        """Return the subscriptions with their customers."""
        return {
            row.id: row.customer_id
            for row in self.rows.values()
            if isinstance(row.state, SubscriptionState)
        }

    def list_customers(self) -> Iterator[CustomerRecord]:
        """Yield the customers with their subscriptions."""
        bought: dict[str, dict[str, SubscriptionState]] = defaultdict(dict)
        for row in self.rows.values():
            if isinstance(row.state, SubscriptionState):
                bought[row.customer_id][row.id] = row.state
        for link in self.links.values():
            created = self.rows[link.customer].created
            yield CustomerRecord(
                link.customer,
                link.user_id,
                link.is_deleted,
                created,
                bought[link.customer],
            )


def read_mirror(conn: psycopg.Connection[Any]) -> Mirror:
    rows, links = {}, {}
    for name, user, gone, created, as_of, flag, source, claimed in conn.execute(
        CUSTOMERS
    ):
        claim = Claim(source, claimed) if source else None
        links[name] = Link(name, gone, claim, user)
        state = CustomerState(gone, claimed if source == "customer" else None)
        rows[name] = Row(name, name, _seconds(created), as_of.timestamp(), flag, state)
    items: dict[str, list[ItemState]] = defaultdict(list)
    for subscription, *values in conn.execute(ITEMS):
        items[subscription].append(ItemState(*map(_plain, values)))
    for name, customer, created, as_of, flag, *values in conn.execute(SUBSCRIPTIONS):
        fields = [*map(_plain, values), tuple(items[name])]
        paid = SubscriptionState(*fields)
        rows[name] = Row(
            name, customer, _seconds(created), as_of.timestamp(), flag, paid
        )
    return Mirror(rows, links)


def check_rows(
    conn: psycopg.Connection[Any],
    history: History,
    delivered: Set[str],
    *,
    has_client: bool,
    is_settled: bool = False,
    linked: Set[UUID] = frozenset(),
) -> list[str]:
    """Return rows that are missing, or older than a delivered event, or wrong.

    Each object of a delivered event has a row. The row equals a version of that event
    or later, which was true at the row's `as_of`. Without a client, two versions of the
    same second are equivalent. Deliveries in progress may be visible or not, unless it
    is settled. Claims on the users *linked* are in effect.
    """
    mirror, faults = read_mirror(conn), []
    for name, number in history.newest(delivered, has_client=has_client).items():
        versions, row = history.versions[name], mirror.rows.get(name)
        since = versions[number].since
        if not has_client:
            number = min(n for n, v in enumerate(versions) if v.since == since)
        if row is None:
            faults.append(
                f"{name} is missing although an event of {since} was delivered"
            )
        elif int(row.as_of) < since:
            faults.append(f"{name} is older than a delivered event of {since}: {row}")
        elif not any(_fits(row, versions, n) for n in range(number, len(versions))):
            faults.append(
                f"{name} equals no version since {since}: the row is {row}, the"
                f" version of the delivered event {versions[number:]}"
            )
    return faults + _check_users(
        conn, mirror, history, delivered, is_settled=is_settled, linked=linked
    )


def check_equal(
    conn: psycopg.Connection[Any],
    history: History,
    delivered: Set[str],
    *,
    has_client: bool,
    odd: Set[str] = frozenset(),
) -> list[str]:
    """Return the differences from the fake after a reconciliation.

    A customer that was deleted before its first delivery may be missing, and so may the
    objects of a test clock. Objects of the customers *odd* were refused.
    """
    mirror, world = read_mirror(conn), history.fake.world
    seen = history.newest(delivered, has_client=has_client)
    faults = []
    unknown = set(mirror.rows)
    for subscription in world.subscriptions:
        unknown.discard(subscription.id)
        row = mirror.rows.get(subscription.id)
        may_miss = bool(subscription.test_clock) and subscription.id not in seen
        if subscription.customer in odd or (row is None and may_miss):
            continue
        version = make_version(0, subscription)
        # One of a test clock that has ended is not compared: no list contains it.
        is_compared = subscription.test_clock is None or not subscription.ended
        number = 1 if is_compared else None
        allowed = {*version.states[:number], *([] if is_compared else version.partial)}
        wanted = (subscription.customer, subscription.created)
        if row is None or (row.customer_id, row.created) != wanted:
            faults.append(f"{subscription.id} is {row}, and should be of {wanted}")
        elif row.state not in allowed:
            faults.append(f"{subscription.id} is {row}, and should be {allowed}")
        elif row.is_provisional and is_compared:
            faults.append(f"{row.id} is still provisional: {row}")
    for customer in world.customers:
        name, row = customer.id, mirror.rows.get(customer.id)
        unknown.discard(name)
        is_listed = not customer.deleted and customer.test_clock is None
        may_miss = name not in seen and not is_listed
        if name in odd or (row is None and may_miss):
            continue
        last = history.versions[name][-1].states[0]
        assert isinstance(last, CustomerState)
        if row is None or not _is_customer(row, last):
            faults.append(f"{name} is {row}, and should be {last}")
        elif row.is_provisional or row.created not in {customer.created, None}:
            faults.append(f"{name} is still provisional, or was created: {row}")
    faults += [f"{name} is not in Stripe: {mirror.rows[name]}" for name in unknown]
    everyone = {user.id for user in read_users(conn)}
    faults += _check_users(
        conn, mirror, history, delivered, is_settled=True, linked=everyone, odd=odd
    )
    return faults + _check_view(conn)


def list_conflicts(conn: psycopg.Connection[Any], history: History) -> dict[str, UUID]:
    """Return the stored subscriptions whose claim does not win, with its user."""
    mirror = read_mirror(conn)
    return find_conflicts(mirror.links, history, mirror.bought)


def _check_users(
    conn: psycopg.Connection[Any],
    mirror: Mirror,
    history: History,
    delivered: Set[str],
    *,
    is_settled: bool,
    linked: Set[UUID],
    odd: Set[str] = frozenset(),
) -> list[str]:
    """Return customers with a wrong claim or link, and users with a wrong row."""
    users = read_users(conn)
    known = find_known_claims(history, delivered, mirror.bought)
    # Without a client, a claim of the same second may have come and gone too early.
    links = {
        name: link
        for name, link in mirror.links.items()
        if name not in odd and not mirror.rows[name].is_provisional
    }
    faults = find_claim_faults(
        links,
        history,
        known,
        {user.id for user in users},
        is_settled=is_settled,
        linked=linked,
    )
    return [*faults, *find_faults(users, mirror.list_customers(), history)]


def _check_view(conn: psycopg.Connection[Any]) -> list[str]:
    rows = conn.execute(
        "SELECT id, differences FROM app.stripe_entitlements WHERE differences <> '{}'"
    )
    return [f"the entitlement of user {user} differs: {kinds}" for user, kinds in rows]


def _fits(row: Row, versions: Sequence[Version], number: int) -> bool:
    """Return True if the row equals the version, which was true at `as_of`."""
    version = versions[number]
    is_last = number + 1 == len(versions)
    if not is_last and int(row.as_of) > versions[number + 1].since:
        return False
    if isinstance(row.state, SubscriptionState):
        is_part = row.is_provisional and row.state in version.partial
        return is_part or row.state in version.states
    (state,) = version.states
    assert isinstance(state, CustomerState)
    return _is_customer(row, state)


def _is_customer(row: Row, state: CustomerState) -> bool:
    """A deleted customer may have lost its claim: Stripe keeps its id alone."""
    assert isinstance(row.state, CustomerState)
    return row.state == state or (state.is_deleted and row.state.is_deleted)


def check_inbox(
    conn: psycopg.Connection[Any], delivered: Set[str], failed: Set[str] = frozenset()
) -> list[str]:
    """Return delivered events that are not processed, and others that are stored."""
    found = dict(
        conn.execute("SELECT id, processed_at IS NOT NULL FROM app.stripe_events")
    )
    unknown = found.keys() - delivered - failed
    return [f"{event} was not delivered" for event in unknown] + [
        f"{event} was delivered and is not processed"
        for event in delivered
        if not found.get(event)
    ]


def _plain(value: Any) -> Any:
    return _seconds(value) if isinstance(value, datetime) else value


def _seconds(instant: datetime | None) -> int | None:
    return None if instant is None else int(instant.timestamp())

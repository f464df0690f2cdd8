"""Events that claim a user for a Stripe customer, by each source of claims."""

import itertools
from typing import Any
from uuid import UUID

import psycopg

from pyapp.stripe_sync import Outcome
from tests.stripe_world import (
    NUMBERS,
    START,
    StripeWorld,
    make_checkout,
    make_customer,
    make_subscription,
)

UPDATED = "customer.subscription.updated"
COMPLETED = "checkout.session.completed"
# Strongest first.
SOURCES = ("customer", "subscription", "checkout", "reference")
# The stronger and the weaker source.
PAIRS = list(itertools.combinations(SOURCES, 2))
FREE, PAID = 2500, 50_000


def claim(
    world: StripeWorld,
    source: str,
    user_id: Any,
    name: str = "sub_claim",
    created: int | None = None,
    customer: str = "cus_1",
    **options: Any,
) -> Outcome:
    """Handle an event in which this source claims the user for the customer."""
    second = START + next(NUMBERS) if created is None else created
    metadata = {} if user_id is None else {"user_id": str(user_id)}
    if source == "customer":
        shape = make_customer(customer, user_id)
        return world.handle_event("customer.updated", shape, second, **options)
    if source == "subscription":
        # Without a plan, so that it is not the best one.
        fields = {"price": "price_other", "created": START, "metadata": metadata}
        shape = make_subscription(name, customer, **fields)
        return world.handle_event(UPDATED, shape, second, **options)
    if source == "checkout":
        shape = make_checkout(customer, None, metadata=metadata)
    else:
        shape = make_checkout(customer, user_id)
    return world.handle_event(COMPLETED, shape, second, **options)


def add_paid_customer(world: StripeWorld) -> None:
    """Add a customer that claims no user, with a subscription of a plan."""
    world.handle_event("customer.created", make_customer("cus_1"))
    world.handle_event(UPDATED, make_subscription("sub_paid", "cus_1"))


def insert(conn: psycopg.Connection[Any], *users: UUID) -> None:
    conn.execute(
        "INSERT INTO app.users (id, email)"
        " SELECT n.id, n.id || '@example.com' FROM unnest(%s::uuid[]) AS n (id)",
        [list(users)],
    )


def claimed(
    world: StripeWorld, customer: str = "cus_1"
) -> tuple[UUID | None, UUID | None, str | None]:
    """Return the customer's user, the claimed user, and the source of the claim."""
    row = world.customer_row(customer)
    return row.user_id, row.claimed_user_id, row.claim_source


def quota(world: StripeWorld, user_id: UUID) -> int:
    return int(world.get_user(user_id).base_quota)

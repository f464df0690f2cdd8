"""A fake Stripe and a database, and helpers that act on both.

The fake queues a webhook delivery for each of its events. `pop_deliveries` takes them
from the queue, `handle_delivery` gives one to `handle_webhook`, and `handle_all` gives
it all of them in order. `handle_event` signs and handles an event that the test makes.
"""

import itertools
import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any
from uuid import UUID

import psycopg
import stripe

from pyapp import users
from pyapp._core.connection import connect
from pyapp.stripe_sync import Difference, Outcome, handle_webhook, reconcile, store
from pyapp.users import User
from tests.fake_stripe import TEST_SECRET, Delivery, FakeStripe, sign

# The initial time of the fake's clock.
START = int(datetime(2026, 9, 10, 12, tzinfo=UTC).timestamp())
NUMBERS = itertools.count(1)


def at(*moment: int) -> datetime:
    """Return a time in UTC: year, month, day, hour, minute, second."""
    return datetime(*moment, tzinfo=UTC)  # type: ignore[misc,arg-type]


def seconds(*moment: int) -> int:
    return int(at(*moment).timestamp())


def moment(seconds: int) -> datetime:
    return datetime.fromtimestamp(seconds, UTC)


@dataclass
class StripeWorld:
    """`url` is the database, `conn` an autocommit connection to it."""

    fake: FakeStripe
    url: str
    conn: psycopg.Connection[Any]
    client: stripe.StripeClient = field(init=False)

    def __post_init__(self) -> None:
        self.client = self.fake.client()

    def create_user(self, email: str | None = None) -> UUID:
        name = email or f"user{next(NUMBERS)}@example.com"
        return users.create_user(self.conn, email=name).id

    def create_customer(self, user_id: UUID | str | None = None, **params: Any) -> str:
        if user_id is not None:
            params["metadata"] = {"user_id": str(user_id)}
        return self.client.v1.customers.create(params).id  # type: ignore[arg-type]

    def subscribe(
        self, customer: str, price: str = "price_month", **params: Any
    ) -> str:
        params |= {"customer": customer, "items": [{"price": price}]}
        return self.client.v1.subscriptions.create(params).id  # type: ignore[arg-type]

    def create_subscription(self, price: str = "price_month") -> str:
        """Return a subscription of a new customer that claims a new user."""
        return self.subscribe(self.create_customer(self.create_user()), price)

    def change_price(self, subscription: str, *prices: str) -> None:
        """Change the price of the subscription's item, once for each of *prices*."""
        shape = self.client.v1.subscriptions.retrieve(subscription)
        item = shape["items"].data[0].id
        for price in prices:
            self.client.v1.subscriptions.update(
                subscription, {"items": [{"id": item, "price": price}]}
            )

    def pop_deliveries(self, *types: str) -> list[Delivery]:
        """Remove all due deliveries; return them, with *types* only these."""
        due = list(iter(self.fake.deliveries.take, None))
        return [d for d in due if not types or d.event.type in types]

    def handle_delivery(
        self, delivery: Delivery, client: stripe.StripeClient | None = None
    ) -> Outcome:
        """Give the delivery to `handle_webhook`."""
        return handle_webhook(
            self.conn, delivery.payload, delivery.signature, [TEST_SECRET], client
        )

    def handle_all(self, client: stripe.StripeClient | None = None) -> list[str]:
        """Handle all due deliveries in order; return the results."""
        return [
            self.handle_delivery(delivery, client).result
            for delivery in self.pop_deliveries()
        ]

    def handle_event(
        self,
        event_type: str,
        shape: Mapping[str, Any],
        created: int = START,
        client: stripe.StripeClient | None = None,
        **fields: Any,
    ) -> Outcome:
        """Sign and handle an event with these fields."""
        body = make_event(event_type, shape, created, **fields)
        return handle_webhook(
            self.conn, body, sign(body, [TEST_SECRET]), [TEST_SECRET], client
        )

    def reconcile(self, **options: Any) -> list[Difference]:
        """Reconcile two seconds later; return the differences."""
        self.fake.advance(seconds=2)
        found: list[Difference] = []
        reconcile(self.conn, self.client, on_difference=found.append, **options)
        return found

    def create_subscribed_user(self) -> tuple[UUID, str, str]:
        """Return a user, customer and active subscription that both sides have."""
        user_id = self.create_user()
        customer = self.create_customer(user_id)
        subscription = self.subscribe(customer)
        self.handle_all()
        return user_id, customer, subscription

    def get_user(self, user_id: UUID) -> User:
        return users.get_user(self.conn, user_id=user_id)

    def subscription_row(self, subscription: str) -> store.Subscription:
        row = store.find_subscription(self.conn, id=subscription)
        assert row is not None
        return row

    def items(self, subscription: str) -> list[store.SubscriptionItem]:
        return store.list_subscription_items(self.conn, subscription_id=subscription)

    def price_of(self, subscription: str) -> str | None:
        """Return the price of the subscription's only item."""
        (item,) = self.items(subscription)
        return item.price_id

    def customer_row(self, customer: str) -> store.Customer:
        row = store.find_customer(self.conn, id=customer)
        assert row is not None
        return row

    def quota_period(self, user_id: UUID) -> tuple[datetime, datetime]:
        """Return the user's quota_anchor and next_quota_reset."""
        found = self.conn.execute(
            "SELECT quota_anchor, next_quota_reset FROM app.users WHERE id = %s",
            [user_id],
        ).fetchone()
        assert found is not None
        return found[0], found[1]

    def events(self) -> Sequence[tuple[str, str, int, str | None]]:
        """Return type, status, attempts and error of all events by arrival."""
        return self.conn.execute(
            "SELECT type, status, attempts, last_error FROM app.stripe_events"
            " ORDER BY received_at, id"
        ).fetchall()

    def clear_stripe(self) -> None:
        """Delete all Stripe data, including that of users."""
        for table in ("events", "subscriptions", "customers", "sync_runs"):
            self.conn.execute(f"DELETE FROM app.stripe_{table}")
        self.conn.execute(
            "UPDATE app.users SET stripe_customer_id = NULL, stripe_price_id = NULL,"
            " stripe_subscription_id = NULL, subscription_status = NULL"
        )


@contextmanager
def stripe_world(url: str, **options: Any) -> Iterator[StripeWorld]:
    """Run a fake Stripe with the database at *url*."""
    options = {"seed": 1, "start": START} | options
    with FakeStripe(**options) as fake, connect(url) as conn:
        conn.autocommit = True
        for price in ("price_month", "price_other"):
            fake.add_price(price)
        fake.add_price("price_year", interval="year")
        conn.execute(
            "INSERT INTO app.plan_prices (stripe_price_id, plan_id)"
            " VALUES ('price_month', 'paid') ON CONFLICT DO NOTHING"
        )
        yield StripeWorld(fake, url, conn)


@contextmanager
def held(
    url: str, statement: str, *parameters: Any
) -> Iterator[psycopg.Connection[Any]]:
    """Execute *statement* in a transaction that stays open during the block."""
    with connect(url) as conn:
        conn.execute(statement.encode(), parameters)
        yield conn
        conn.rollback()


def count_lock_waits(conn: psycopg.Connection[Any]) -> int:
    """Return the number of backends that wait for a lock."""
    return conn.execute(
        "SELECT FROM pg_stat_activity"
        " WHERE datname = current_database() AND wait_event_type = 'Lock'"
    ).rowcount


class Killed(BaseException):
    """Simulates SIGKILL: no handler catches it."""


def make_event(
    event_type: str, shape: Mapping[str, Any], created: int = START, **fields: Any
) -> bytes:
    """Return the JSON of an event; *fields* replace its own."""
    event = {
        "id": f"evt_made{next(NUMBERS):06}",
        "object": "event",
        "api_version": stripe.api_version,
        "created": created,
        "livemode": False,
        "type": event_type,
        "data": {"object": shape},
    }
    return json.dumps(event | fields).encode()


def make_customer(customer: str, user_id: Any = None, **fields: Any) -> dict[str, Any]:
    """Return a minimal customer that claims *user_id*."""
    metadata = {} if user_id is None else {"user_id": str(user_id)}
    shape = {"id": customer, "object": "customer", "created": START, "email": None}
    return shape | {"metadata": metadata} | fields


def make_checkout(customer: str | None, user_id: Any, **fields: Any) -> dict[str, Any]:
    """Return a completed checkout session with *user_id* as its reference."""
    reference = None if user_id is None else str(user_id)
    shape = {"id": "cs_1", "object": "checkout.session", "customer": customer}
    return shape | {"client_reference_id": reference} | fields


def make_item(item: str, price: Any = "price_month", **fields: Any) -> dict[str, Any]:
    """Return an item from START to the end of the subscription; *fields* are its own.

    *price* is an id, or a price object; an id becomes a price that costs something.
    """
    if isinstance(price, str):
        price = {"id": price, "object": "price", "unit_amount": 2000}
    shape = {
        "id": item,
        "object": "subscription_item",
        "price": price,
        "quantity": 1,
        "current_period_start": START,
        "current_period_end": seconds(2026, 10, 10, 12),
    }
    return shape | fields


def make_items(*items: Mapping[str, Any]) -> dict[str, Any]:
    """Return the list of a subscription's items."""
    return {"object": "list", "data": list(items)}


def make_subscription(
    subscription: str, customer: str, **fields: Any
) -> dict[str, Any]:
    """Return a monthly active subscription from START.

    *start*, *end*, *price* and other *fields* replace its own.
    """
    start = fields.pop("start", START)
    end = fields.pop("end", seconds(2026, 10, 10, 12))
    price = fields.pop("price", "price_month")
    item = {
        "id": "si_1",
        "price": {"id": price, "object": "price"},
        "current_period_start": start,
        "current_period_end": end,
    }
    return {
        "id": subscription,
        "object": "subscription",
        "customer": customer,
        "status": "active",
        "created": start,
        "billing_cycle_anchor": start,
        "cancel_at_period_end": False,
        "canceled_at": None,
        "items": {"object": "list", "data": [item]},
    } | fields

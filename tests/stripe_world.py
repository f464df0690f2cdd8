"""A fake Stripe and a database together, and short ways to drive both."""

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
from pyapp.stripe_sync import Difference, Outcome, handle_webhook, mirror, reconcile
from pyapp.users import User
from tests.fake_stripe import TEST_SECRET, Delivery, FakeStripe, sign

# The fake's time; a day in the middle of a month, at noon.
START = int(datetime(2026, 9, 10, 12, tzinfo=UTC).timestamp())
NUMBERS = itertools.count(1)


def at(*moment: int) -> datetime:
    """The moment in UTC: year, month, day, hour, minute, second."""
    return datetime(*moment, tzinfo=UTC)  # type: ignore[misc,arg-type]


def seconds(*moment: int) -> int:
    return int(at(*moment).timestamp())


def moment(seconds: int) -> datetime:
    return datetime.fromtimestamp(seconds, UTC)


@dataclass
class StripeWorld:
    """`url` is the database, `conn` a connection to it that commits at once."""

    fake: FakeStripe
    url: str
    conn: psycopg.Connection[Any]
    client: stripe.StripeClient = field(init=False)

    def __post_init__(self) -> None:
        self.client = self.fake.client()

    def user(self, email: str | None = None) -> UUID:
        name = email or f"user{next(NUMBERS)}@example.com"
        return users.create_user(self.conn, email=name).id

    def customer(self, user_id: UUID | str | None = None, **params: Any) -> str:
        if user_id is not None:
            params["metadata"] = {"user_id": str(user_id)}
        return self.client.v1.customers.create(params).id  # type: ignore[arg-type]

    def subscribe(
        self, customer: str, price: str = "price_month", **params: Any
    ) -> str:
        params |= {"customer": customer, "items": [{"price": price}]}
        return self.client.v1.subscriptions.create(params).id  # type: ignore[arg-type]

    def change_price(self, subscription: str, *prices: str) -> None:
        """Change the price of the subscription's item, several times if told so."""
        shape = self.client.v1.subscriptions.retrieve(subscription)
        item = shape["items"].data[0].id
        for price in prices:
            self.client.v1.subscriptions.update(
                subscription, {"items": [{"id": item, "price": price}]}
            )

    def take(self, *types: str) -> list[Delivery]:
        """All deliveries that are due; with *types*, only these are kept."""
        taken = list(iter(self.fake.deliveries.take, None))
        return [d for d in taken if not types or d.event.type in types]

    def handle(
        self, delivery: Delivery, client: stripe.StripeClient | None = None
    ) -> Outcome:
        return handle_webhook(
            self.conn, delivery.payload, delivery.signature, [TEST_SECRET], client
        )

    def deliver(self, client: stripe.StripeClient | None = None) -> list[str]:
        """Hand over all that is due, in order; return the results."""
        return [self.handle(delivery, client).result for delivery in self.take()]

    def send(
        self,
        kind: str,
        shape: Mapping[str, Any],
        created: int = START,
        client: stripe.StripeClient | None = None,
        **fields: Any,
    ) -> Outcome:
        """Hand over an event made by hand."""
        body = make_event(kind, shape, created, **fields)
        return handle_webhook(
            self.conn, body, sign(body, [TEST_SECRET]), [TEST_SECRET], client
        )

    def reconcile(self, **options: Any) -> list[Difference]:
        """Reconcile two seconds later; return what was found."""
        self.fake.advance(seconds=2)
        found: list[Difference] = []
        reconcile(self.conn, self.client, on_difference=found.append, **options)
        return found

    def subscribed(self) -> tuple[UUID, str, str]:
        """A user with a customer and an active subscription that both sides know."""
        user_id = self.user()
        customer = self.customer(user_id)
        subscription = self.subscribe(customer)
        self.deliver()
        return user_id, customer, subscription

    def get(self, user_id: UUID) -> User:
        return users.get_user(self.conn, user_id=user_id)

    def row(self, subscription: str) -> mirror.Subscription:
        row = mirror.find_subscription(self.conn, id=subscription)
        assert row is not None
        return row

    def customer_row(self, customer: str) -> mirror.Customer:
        row = mirror.find_customer(self.conn, id=customer)
        assert row is not None
        return row

    def period(self, user_id: UUID) -> tuple[datetime, datetime]:
        """The user's quota_anchor and next_quota_reset."""
        found = self.conn.execute(
            "SELECT quota_anchor, next_quota_reset FROM app.users WHERE id = %s",
            [user_id],
        ).fetchone()
        assert found is not None
        return found[0], found[1]

    def events(self) -> Sequence[tuple[str, str, int, str | None]]:
        """Type, status, attempts and error of all events, in order of arrival."""
        return self.conn.execute(
            "SELECT type, status, attempts, last_error FROM app.stripe_events"
            " ORDER BY received_at, id"
        ).fetchall()

    def forget(self) -> None:
        """Empty the inbox and the mirror; the users lose what they had of it."""
        for table in ("events", "subscriptions", "customers", "sync_runs"):
            self.conn.execute(f"DELETE FROM app.stripe_{table}")
        self.conn.execute(
            "UPDATE app.users SET stripe_customer_id = NULL, stripe_price_id = NULL,"
            " stripe_subscription_id = NULL, subscription_status = NULL"
        )


@contextmanager
def stripe_world(url: str, **options: Any) -> Iterator[StripeWorld]:
    """Run a fake beside the database at *url*."""
    options = {"seed": 1, "start": START} | options
    with FakeStripe(**options) as fake, connect(url) as conn:
        conn.autocommit = True
        for price in ("price_month", "price_other"):
            fake.add_price(price)
        fake.add_price("price_year", interval="year")
        conn.execute(
            "UPDATE app.plans SET stripe_price_id = 'price_month' WHERE id = 'paid'"
        )
        yield StripeWorld(fake, url, conn)


def make_event(
    kind: str, shape: Mapping[str, Any], created: int = START, **fields: Any
) -> bytes:
    event = {
        "id": f"evt_made{next(NUMBERS)}",
        "object": "event",
        "api_version": stripe.api_version,
        "created": created,
        "livemode": False,
        "type": kind,
        "data": {"object": shape},
    }
    return json.dumps(event | fields).encode()


def make_customer(customer: str, user_id: Any = None, **fields: Any) -> dict[str, Any]:
    """A customer with the least that Stripe gives one."""
    metadata = {} if user_id is None else {"user_id": str(user_id)}
    shape = {"id": customer, "object": "customer", "created": START, "email": None}
    return shape | {"metadata": metadata} | fields


def make_checkout(customer: str | None, user_id: Any, **fields: Any) -> dict[str, Any]:
    """A completed checkout of the customer that names the user, or what is no user."""
    reference = None if user_id is None else str(user_id)
    shape = {"id": "cs_1", "object": "checkout.session", "customer": customer}
    return shape | {"client_reference_id": reference} | fields


def make_subscription(
    subscription: str, customer: str, **fields: Any
) -> dict[str, Any]:
    """An active month from START, unless *start*, *end*, *price*, ... say otherwise."""
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

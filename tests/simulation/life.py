"""Makes random changes in the fake Stripe, as customers and time do."""

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime
from decimal import Decimal
from random import Random
from uuid import UUID

import stripe

from pyapp._core.connection import connect
from tests.fake_stripe import ApiError, FakeStripe
from tests.fake_stripe.driving import DECLINED
from tests.fake_stripe.model import Subscription

# Near the end of a month, so that some months lack the day of the anchor.
START = int(datetime(2026, 1, 29, 23, 59, 30, tzinfo=UTC).timestamp())
DAY = 86_400
VERSIONS = (stripe.api_version, "2024-06-20")
UPDATED = "customer.subscription.updated"
# Prices with their interval in months; the last two have no plan.
PRICES = {
    "price_month": 1,
    "price_quarter": 3,
    "price_year": 12,
    "price_other": 1,
    "price_other_year": 12,
}
CREDITS = {
    "price_month": Decimal(50_000),
    "price_quarter": Decimal(60_000),
    "price_year": Decimal(70_000),
}


@dataclass(slots=True)
class Life:
    """`users` have no customer yet; each gets at most one that is not deleted."""

    fake: FakeStripe
    choose: Random
    users: list[tuple[UUID, str]]
    customers: list[str] = field(default_factory=list)
    settled: set[str] = field(default_factory=set)  # never deleted
    owners: dict[str, UUID] = field(default_factory=dict)

    def births(self, number: int) -> Iterator[int]:
        """Create customers with one to three subscriptions, one per step."""
        for left in range(number, 0, -1):
            customer = self._new_customer()
            for _ in range(self.choose.choice((1, 1, 1, 2, 2, 3))):
                self.subscribe(customer)
            self.wait()
            yield left

    def changes(self, number: int) -> Iterator[int]:
        """Make changes, one per step, often several of one object in one second."""
        kinds, weights = zip(*_KINDS, strict=True)
        while number > 0:
            (kind,) = self.choose.choices(kinds, weights)
            about = self.choose.choice(self.customers)
            for _ in range(self.choose.choice((1, 1, 2, 3))):
                # An ended subscription cannot change; choose another customer.
                with contextlib.suppress(ApiError, IndexError):
                    kind(self, about)
                    number -= 1
                    yield number
                if self.choose.random() < 0.3:
                    (kind,) = self.choose.choices(kinds, weights)
            self.wait()

    def wait(self) -> None:
        """Advance the clock: often not at all, sometimes by many days."""
        step = self.choose.choices((0, 1, 3600, 4 * DAY), weights=(50, 40, 9, 1))[0]
        if step:
            self.fake.advance(seconds=self.choose.randint(1, step))

    # Changes

    def subscribe(self, customer: str) -> None:
        if len(self.fake.world.subscriptions_of[customer]) >= 3:
            raise IndexError
        options: dict[str, object] = {"customer": customer}
        options["items"] = [{"price": self._price()}]
        if self.choose.random() < 0.15:
            options["trial_period_days"] = self.choose.randint(1, 40)
        elif self.choose.random() < 0.1:
            options["default_payment_method"] = DECLINED
        self._post("subscriptions", options)

    def change_price(self, customer: str) -> None:
        subscription = self._subscription(customer)
        item = self.choose.choice(subscription.items)
        self._update(subscription, items=[{"id": item.id, "price": self._price()}])

    def change_items(self, customer: str) -> None:
        subscription = self._subscription(customer)
        if len(subscription.items) == 1:
            self._update(subscription, items=[{"price": self._price()}])
        else:
            item = self.choose.choice(subscription.items)
            self._update(subscription, items=[{"id": item.id, "deleted": True}])

    def cancel(self, customer: str) -> None:
        self._delete("subscriptions", self._subscription(customer).id)

    def cancel_later(self, customer: str) -> None:
        subscription = self._subscription(customer)
        at_end = not subscription.cancel_at_period_end
        self._update(subscription, cancel_at_period_end=at_end)

    def pause(self, customer: str) -> None:
        subscription = self._subscription(customer)
        verb = "resume" if subscription.status == "paused" else "pause"
        self._post(f"subscriptions/{subscription.id}/{verb}", {})

    def change_card(self, customer: str) -> None:
        card = self.choose.choice((DECLINED, "pm_card_visa"))
        subscription = self._subscription(customer)
        self._update(subscription, default_payment_method=card)

    def begin_period(self, customer: str) -> None:
        self._update(self._subscription(customer), billing_cycle_anchor="now")

    def try_out(self, customer: str) -> None:
        end = self.fake.clock.now + self.choose.randint(1, 40) * DAY
        self._update(self._subscription(customer), trial_end=end)

    def set_unknown_status(self, customer: str) -> None:
        """Set a status that the product does not know, or set it back."""
        with self.fake.world.lock:
            subscription = self._subscription(customer)
            is_new = subscription.status == "hibernating"
            with self.fake.world.updating(subscription, UPDATED):
                subscription.status = "active" if is_new else "hibernating"

    def emit_unknown_type(self, customer: str) -> None:
        with self.fake.world.lock:
            subscription = self._subscription(customer)
            kind = self.choose.choice(("pending_update_expired", "hibernated"))
            self.fake.world.emit(f"customer.subscription.{kind}", subscription)

    def change_name(self, customer: str) -> None:
        name = f"Name {self.choose.random()}"
        self._post(f"customers/{customer}", {"name": name})

    def change_owner(self, customer: str) -> None:
        """Claim another user; the former one has no customer then."""
        if customer not in self.owners:
            raise IndexError
        user_id, _ = self.users.pop()
        self._post(f"customers/{customer}", {"metadata": {"user_id": user_id}})
        self.settled.add(customer)
        self.owners[customer] = user_id

    def delete(self, customer: str) -> None:
        """Delete the customer; half of the time its user gets a new one."""
        if customer in self.settled:
            raise IndexError
        if self.choose.random() < 0.5:
            self.change_name(customer)
        self._delete("customers", customer)
        self.settled.add(customer)
        if customer in self.owners and self.choose.random() < 0.5:
            metadata = {"user_id": self.owners[customer]}
            back = self._post("customers", {"metadata": metadata})
            self.settled.add(back)
            self.customers.append(back)
            self.owners[back] = self.owners[customer]
            self.subscribe(back)

    def check_out_known(self, customer: str) -> None:
        """Complete a checkout of an existing customer, which may be linked."""
        if customer in self.owners:
            self._check_out(customer=customer, user=str(self.owners[customer]))

    def check_out_new(self, _customer: str) -> None:
        """Complete a checkout that creates a customer, with another user's address."""
        (user_id, _), (_, email) = self.users.pop(), self.choose.choice(self.users)
        known = self.choose.random() < 0.7
        self._check_out(user=str(user_id) if known else "no uuid", email=email)
        self.customers.append(list(self.fake.world.customers)[-1].id)

    def change_version(self, _customer: str) -> None:
        """Change the API version of later events."""
        with self.fake.world.lock:
            self.fake.world.api_version = self.choose.choice(VERSIONS)

    # Requests

    def _new_customer(self) -> str:
        user_id, email = self.users.pop()
        dice = self.choose.random()
        if dice < 0.9:
            metadata = {"user_id": str(user_id)}
        else:
            # It claims no user, although a user has its address.
            metadata = {"user_id": "me"} if dice < 0.95 else {}
        customer = self._post("customers", {"metadata": metadata, "email": email})
        self.customers.append(customer)
        if dice < 0.9:
            self.owners[customer] = user_id
        return customer

    def _subscription(self, customer: str) -> Subscription:
        live = list(self.fake.world.live_subscriptions(customer))
        return self.choose.choice(live)

    def _price(self) -> str:
        return self.choose.choice([*PRICES, "price_month"])

    def _check_out(self, *, user: str, email: str = "", customer: str = "") -> None:
        options: dict[str, object] = {
            "mode": "subscription",
            "line_items": [{"price": self._price()}],
            "client_reference_id": user,
        }
        options |= {"customer": customer} if customer else {"customer_email": email}
        self.fake.complete_checkout(self._post("checkout/sessions", options))

    def _update(self, subscription: Subscription, **changes: object) -> None:
        self._post(f"subscriptions/{subscription.id}", changes)

    def _post(self, path: str, params: dict[str, object]) -> str:
        name: str = self.fake.request("POST", f"/v1/{path}", params)["id"]
        return name

    def _delete(self, object_type: str, name: str) -> None:
        self.fake.request("DELETE", f"/v1/{object_type}/{name}")


_KINDS: list[tuple[Callable[[Life, str], None], int]] = [
    (Life.change_price, 30),
    (Life.change_items, 8),
    (Life.cancel, 5),
    (Life.cancel_later, 10),
    (Life.pause, 8),
    (Life.change_card, 6),
    (Life.begin_period, 4),
    (Life.try_out, 4),
    (Life.subscribe, 6),
    (Life.set_unknown_status, 4),
    (Life.emit_unknown_type, 3),
    (Life.change_name, 4),
    (Life.change_owner, 3),
    (Life.delete, 3),
    (Life.check_out_known, 2),
    (Life.check_out_new, 3),
    (Life.change_version, 3),
]


def begin(url: str, fake: FakeStripe, choose: Random, users: int) -> Life:
    """Create users, prices and plans in the empty database at *url*."""
    for price, months in PRICES.items():
        interval, count = ("year", 1) if months == 12 else ("month", months)
        fake.add_price(price, interval=interval, interval_count=count)
    with connect(url) as conn, conn.cursor() as cursor:
        cursor.execute("DELETE FROM app.plans WHERE id = 'paid'")
        cursor.executemany(
            "INSERT INTO app.plans (id, stripe_price_id, monthly_credits)"
            " VALUES (%s, %s, %s)",
            [(price, price, credits) for price, credits in CREDITS.items()],
        )
        found = cursor.execute(
            "INSERT INTO app.users (email) SELECT n || '@example.com'"
            " FROM generate_series(1, %s) AS n RETURNING id, email",
            [users],
        ).fetchall()
    return Life(fake, choose, found)

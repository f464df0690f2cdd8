"""Makes random changes in the fake Stripe, as customers and time do."""

import contextlib
import json
from collections.abc import Callable, Iterator, Sequence
from copy import copy
from dataclasses import dataclass, field
from datetime import UTC, datetime
from random import Random
from typing import Any
from urllib.parse import quote

import stripe

from tests.fake_stripe import ApiError, FakeStripe
from tests.fake_stripe.driving import DECLINED
from tests.fake_stripe.model import Event, Item, Subscription
from tests.simulation.catalog import MONTHLY, PRICES
from tests.simulation.people import People

# Near the end of a month, so that some months lack the day of the anchor.
START = int(datetime(2026, 1, 29, 23, 59, 30, tzinfo=UTC).timestamp())
DAY = 86_400
VERSIONS = (stripe.api_version, "2024-06-20")
UPDATED = "customer.subscription.updated"
# Values that make an object unreadable, and one that the database refuses.
_ODD_CUSTOMER: list[dict[str, Any]] = [
    {"created": None},
    {"created": "yesterday"},
    {"metadata": "user_id"},
]
_ODD_SUBSCRIPTION: list[dict[str, Any]] = [
    {"created": None, "start_date": None},
    {"status": None},
    {"customer": None},
    {"items": {"object": "list", "data": [None]}},
    {"canceled_at": "soon"},
    {"pause_collection": "void"},
]


@dataclass(slots=True)
class Life:
    """`odd` are the objects that are distorted now, `ever_odd` those that were.

    `thin` are bodies of events without objects, to be delivered.
    """

    fake: FakeStripe
    choose: Random
    people: People
    odd: set[str] = field(default_factory=set)
    odd_customers: set[str] = field(default_factory=set)
    ever_odd: set[str] = field(default_factory=set)  # with their customers
    thin: list[tuple[bytes, str]] = field(default_factory=list)
    on_restore: Callable[[str], None] = lambda name: None
    numbers: int = 0

    def births(self, number: int) -> Iterator[int]:
        """Create customers with one to three subscriptions, one per step."""
        for left in range(number, 0, -1):
            customer = self.people.new_customer()
            for _ in range(self.choose.choice((1, 1, 1, 2, 2, 3))):
                with contextlib.suppress(ApiError):
                    self.subscribe(customer)
            self.wait()
            yield left

    def changes(self, number: int) -> Iterator[int]:
        """Make changes, one per step, often several of one object in one second."""
        kinds, weights = zip(*_KINDS, strict=True)
        while number > 0:
            (kind,) = self.choose.choices(kinds, weights)
            about = self.choose.choice(self.people.customers)
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

    # Subscriptions

    def subscribe(self, customer: str) -> None:
        if len(self.fake.world.subscriptions_of[customer]) >= 3:
            raise IndexError
        is_flexible = self.choose.random() < 0.8
        options: dict[str, object] = {
            "customer": customer,
            "billing_mode": {"type": "flexible" if is_flexible else "classic"},
            "items": self._new_items(list(PRICES) if is_flexible else MONTHLY),
        }
        if self.choose.random() < 0.2:
            options |= self._new_trial()
        elif self.choose.random() < 0.1:
            options["default_payment_method"] = DECLINED
        if user := self.people.plan_claim(customer, "subscription"):
            options["metadata"] = {"user_id": str(user)}
        if self.choose.random() < 0.05:
            self.numbers += 1
            self.fake.choose_id("sub", f"su_{self.numbers}")
        self._post("subscriptions", options)

    def change_price(self, customer: str) -> None:
        subscription, item = self._item(customer)
        price = self._price(subscription)
        self._update(subscription, items=[{"id": item.id, **self._priced(price)}])

    def change_quantity(self, customer: str) -> None:
        subscription, item = self._item(customer)
        quantity = self.choose.choice((0, 1, 2, 3, 5))
        self._update(subscription, items=[{"id": item.id, "quantity": quantity}])

    def change_items(self, customer: str) -> None:
        subscription, item = self._item(customer)
        if len(subscription.items) == 1 or self.choose.random() < 0.4:
            price = self._price(subscription)
            self._update(subscription, items=[self._priced(price)])
        else:
            self._update(subscription, items=[{"id": item.id, "deleted": True}])

    def fill_up(self, customer: str) -> None:
        """Give the subscription more items than an object contains."""
        subscription = self._subscription(customer)
        used = {item.price.id for item in subscription.items}
        prices = [name for name in PRICES if name not in used]
        number = self.choose.randint(5, 10)
        added = self.choose.sample(prices, min(number, len(prices)))
        self._update(subscription, items=[self._priced(price) for price in added])

    def cancel(self, customer: str) -> None:
        name = self._subscription(customer).id
        self.fake.request("DELETE", f"/v1/subscriptions/{name}")

    def cancel_later(self, customer: str) -> None:
        subscription = self._subscription(customer)
        soon = self.fake.clock.now + self.choose.randint(1, 20 * DAY)
        ends = ("min_period_end", "max_period_end", soon, "")
        changes: Sequence[dict[str, object]] = [
            {"cancel_at_period_end": subscription.cancel_at is None},
            {"cancel_at": self.choose.choice(ends)},
        ]
        self._update(subscription, **self.choose.choice(changes))

    def use_portal(self, customer: str) -> None:
        """Cancel in the customer portal, or renew there."""
        subscription = self._subscription(customer)
        if subscription.cancel_at is None:
            self.fake.cancel_in_portal(subscription.id)
        else:
            self.fake.renew_in_portal(subscription.id)

    def pause(self, customer: str) -> None:
        subscription = self._subscription(customer)
        verb = "resume" if subscription.status == "paused" else "pause"
        kept: dict[str, object] = {"billing_cycle_anchor": {"type": "unchanged"}}
        options = kept if verb == "resume" and self.choose.random() < 0.5 else {}
        self._post(f"subscriptions/{subscription.id}/{verb}", options)

    def pause_collection(self, customer: str) -> None:
        subscription = self._subscription(customer)
        if subscription.pause_collection is not None:
            self._update(subscription, pause_collection="")
            return
        behaviors = ("keep_as_draft", "mark_uncollectible", "void")
        pause: dict[str, object] = {"behavior": self.choose.choice(behaviors)}
        if self.choose.random() < 0.5:
            resumes_at = self.fake.clock.now + self.choose.randint(1, 20 * DAY)
            pause["resumes_at"] = resumes_at
        self._update(subscription, pause_collection=pause)

    def change_card(self, customer: str) -> None:
        card = self.choose.choice((DECLINED, "pm_card_visa"))
        subscription = self._subscription(customer)
        self._update(subscription, default_payment_method=card)

    def fail_to_pay(self, customer: str) -> None:
        """Begin a period with a card that is declined."""
        changes = {"default_payment_method": DECLINED, "billing_cycle_anchor": "now"}
        self._update(self._subscription(customer), **changes)

    def begin_period(self, customer: str) -> None:
        self._update(self._subscription(customer), billing_cycle_anchor="now")

    def try_out(self, customer: str) -> None:
        """Begin a trial, or end one."""
        subscription = self._subscription(customer)
        end: object = self.fake.clock.now + self.choose.randint(1, 40) * DAY
        if subscription.status == "trialing" and self.choose.random() < 0.5:
            end = "now"
        self._update(subscription, trial_end=end)

    def set_unknown_status(self, customer: str) -> None:
        """Set a status that the product does not know, or set it back."""
        with self.fake.world.lock:
            subscription = self._subscription(customer)
            is_new = subscription.status == "hibernating"
            with self.fake.world.updating(subscription, UPDATED):
                subscription.status = "active" if is_new else "hibernating"

    # Events that change nothing

    def emit_unknown_type(self, customer: str) -> None:
        with self.fake.world.lock:
            subscription = self._subscription(customer)
            kind = self.choose.choice(("pending_update_expired", "hibernated"))
            self.fake.world.emit(f"customer.subscription.{kind}", subscription)

    def emit_for_others(self, customer: str) -> None:
        """Emit events of another account, whose objects have the same ids."""
        owner = {"user_id": str(self.choose.choice(self.people.free).id)}
        place = self.choose.choice(({"account": "acct_1"}, {"context": "acct_1"}))
        with self.fake.world.lock, self.fake.events_of(**place):
            record = copy(self.fake.world.customers.get(customer))
            record.metadata = owner
            self.fake.world.emit("customer.updated", record)
            subscription = copy(self._subscription(customer))
            subscription.status = "canceled"
            self.fake.world.emit("customer.subscription.deleted", subscription)

    def notify(self, customer: str) -> None:
        """Let an event destination send an event without its object."""
        kind = "v1.customer.updated"
        self.thin.append(self.fake.make_thin_event(kind, customer))

    def distort(self, customer: str) -> None:
        """Let Stripe send an object with a value that it cannot have, or stop that."""
        with self.fake.world.lock:
            if customer in self.odd_customers:
                self.restore(customer)
                return
            self.distort_any(customer)
            if customer in self.odd:
                self.change_name(customer)
            else:
                self.change_price(customer)

    def distort_any(self, customer: str) -> None:
        """Distort the customer or one of its subscriptions."""
        name, values = customer, _ODD_CUSTOMER
        places = self.fake.world.subscriptions_of[customer]
        if places and self.choose.random() < 0.5:
            name = self.fake.world.subscriptions.at(self.choose.choice(places)).id
            values = _ODD_SUBSCRIPTION
        self.odd.add(name)
        self.odd_customers.add(customer)
        self.ever_odd |= {name, customer}
        self.fake.distort(name, **self.choose.choice(values))

    def concerns_odd(self, event: Event) -> bool:
        """Return True if the event's customer had an object that cannot be read."""
        about = json.loads(event.data)["object"]
        return {about.get("customer"), about["id"]} & self.ever_odd != set()

    def restore_all(self) -> None:
        for customer in list(self.odd_customers):
            self.restore(customer)

    def restore(self, customer: str) -> None:
        """Let Stripe send the customer and its subscriptions as they are."""
        with self.fake.world.lock:
            bought = self.fake.world.subscriptions_of[customer]
            names = {self.fake.world.subscriptions.at(place).id for place in bought}
            for name in self.odd & {customer, *names}:
                self.odd.discard(name)
                del self.fake.world.distortions[name]
                self.on_restore(name)
            self.odd_customers.discard(customer)

    # Customers

    def change_name(self, customer: str) -> None:
        path = f"customers/{quote(customer, safe='')}"
        self._post(path, {"name": f"Name {self.choose.random()}"})

    def change_owner(self, customer: str) -> None:
        """Claim another user; the former one may have no customer then."""
        if customer not in self.people.claims:
            raise IndexError
        self.people.claim(customer, self.people.draw_user())

    def forget_owner(self, customer: str) -> None:
        self.people.forget_claim(customer)

    def delete(self, customer: str) -> None:
        """Delete the customer; half of the time its user gets a new one."""
        people = self.people
        if customer in people.settled or customer in people.mailed:
            raise IndexError
        if self.choose.random() < 0.5:
            self.change_name(customer)
        self.fake.request("DELETE", f"/v1/customers/{quote(customer, safe='')}")
        if self.choose.random() < 0.5:
            # Deleting the customer has canceled its subscriptions.
            self.fake.deliveries.drop("customer.subscription.deleted")
        people.settled.add(customer)
        is_owned = "customer" in people.claims.get(customer, ())
        if is_owned and self.choose.random() < 0.5:
            self._copy(customer)

    def join(self, customer: str) -> None:
        """Create another customer of the same user."""
        if "customer" not in self.people.claims.get(customer, ()):
            raise IndexError
        self._copy(customer)

    def _copy(self, customer: str) -> None:
        again = self.people.copy_customer(customer)
        self.people.settled.add(again)
        if self.choose.random() < 0.7:
            self.subscribe(again)

    def be_born(self, _customer: str) -> None:
        if self.people.future:
            self.people.be_born()

    def check_out_known(self, customer: str) -> None:
        """Complete a checkout of an existing customer, which may be linked."""
        if customer not in self.people.claims:
            raise IndexError
        self._check_out(customer)

    def check_out_new(self, _customer: str) -> None:
        """Complete a checkout that creates a customer, with another user's address."""
        people = self.people
        claims = {}
        if self.choose.random() < 0.7:
            claims["reference"] = people.draw_user()
        if self.choose.random() < 0.4:
            claims["checkout"] = people.draw_user()
        if self.choose.random() < 0.2:
            claims["subscription"] = people.draw_user()
        self.numbers += 1
        name = f"cus_Bought{self.numbers:06}"
        self.fake.choose_id("cus", name)
        people.claims[name] = claims
        self._check_out(name, people.draw_address())
        people.customers.append(name)

    def change_version(self, _customer: str) -> None:
        """Change the API version of later events."""
        with self.fake.world.lock:
            self.fake.world.api_version = self.choose.choice(VERSIONS)

    # Requests

    def _subscription(self, customer: str) -> Subscription:
        live = list(self.fake.world.live_subscriptions(customer))
        return self.choose.choice(live)

    def _item(self, customer: str) -> tuple[Subscription, Item]:
        subscription = self._subscription(customer)
        return subscription, self.choose.choice(subscription.items)

    def _new_items(self, prices: Sequence[str]) -> list[dict[str, object]]:
        number = self.choose.choices((1, 2, 3, 11), weights=(60, 25, 13, 2))[0]
        if number > len(prices):
            number = 1
        return [self._priced(price) for price in self.choose.sample(prices, number)]

    def _new_trial(self) -> dict[str, object]:
        ends = ("create_invoice", "cancel", "pause")
        behavior = {"missing_payment_method": self.choose.choice(ends)}
        trial: dict[str, object] = {
            "trial_period_days": self.choose.randint(1, 40),
            "trial_settings": {"end_behavior": behavior},
        }
        if self.choose.random() < 0.4:
            trial["default_payment_method"] = "pm_card_visa"
        return trial

    def _price(self, subscription: Subscription) -> str:
        """Return a price that the subscription does not have."""
        used = {item.price.id for item in subscription.items}
        return self.choose.choice([name for name in PRICES if name not in used])

    def _priced(self, price: str) -> dict[str, object]:
        item: dict[str, object] = {"price": price}
        if not PRICES[price].is_metered and self.choose.random() < 0.3:
            item["quantity"] = self.choose.choice((0, 1, 2, 2, 3, 5))
        return item

    def _check_out(self, customer: str, email: str = "") -> None:
        plan, options = self.people.plan_claim, dict[str, object]()
        options["mode"] = "subscription"
        options["line_items"] = self._new_items(MONTHLY)
        if user := plan(customer, "subscription"):
            metadata = {"user_id": str(user)}
            options["subscription_data"] = {"metadata": metadata}
        if user := plan(customer, "checkout"):
            options["metadata"] = {"user_id": str(user)}
        user = plan(customer, "reference")
        options["client_reference_id"] = str(user) if user else "no uuid"
        options |= {"customer_email": email} if email else {"customer": customer}
        self.fake.complete_checkout(self._post("checkout/sessions", options))

    def _update(self, subscription: Subscription, **changes: object) -> None:
        self._post(f"subscriptions/{subscription.id}", changes)

    def _post(self, path: str, params: dict[str, object]) -> str:
        return self.people.post(path, params)


_KINDS: list[tuple[Callable[[Life, str], None], int]] = [
    (Life.change_price, 25),
    (Life.change_quantity, 6),
    (Life.change_items, 10),
    (Life.fill_up, 2),
    (Life.cancel, 5),
    (Life.cancel_later, 8),
    (Life.use_portal, 5),
    (Life.pause, 6),
    (Life.pause_collection, 5),
    (Life.change_card, 6),
    (Life.fail_to_pay, 5),
    (Life.begin_period, 4),
    (Life.try_out, 6),
    (Life.subscribe, 6),
    (Life.set_unknown_status, 3),
    (Life.emit_unknown_type, 3),
    (Life.emit_for_others, 3),
    (Life.notify, 1),
    (Life.distort, 3),
    (Life.change_name, 4),
    (Life.change_owner, 3),
    (Life.forget_owner, 1),
    (Life.delete, 6),
    (Life.join, 2),
    (Life.be_born, 4),
    (Life.check_out_known, 4),
    (Life.check_out_new, 3),
    (Life.change_version, 3),
]

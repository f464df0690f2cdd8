"""Records each version of each object in the fake Stripe."""

import json
from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from uuid import UUID

from tests.fake_stripe import FakeStripe
from tests.fake_stripe.model import Customer, Event, Subscription

# Types of events that contain the whole object.
SUBSCRIPTION_TYPES = {
    f"customer.subscription.{kind}"
    for kind in ("created", "updated", "deleted", "paused", "resumed")
}
CUSTOMER_TYPES = {"customer.created", "customer.updated", "customer.deleted"}
INVOICE_TYPES = {"invoice.paid", "invoice.payment_failed"}
CHECKOUT = "checkout.session.completed"


@dataclass(frozen=True, slots=True)
class SubscriptionState:
    """The state of a subscription; times are Stripe's, in seconds."""

    status: str
    price_id: str | None
    start: int | None
    end: int | None
    anchor: int | None
    cancel_at_period_end: bool
    canceled_at: int | None


@dataclass(frozen=True, slots=True)
class CustomerState:
    """The state of a customer: the claimed user, and whether it is deleted."""

    user_id: UUID | None
    is_deleted: bool


@dataclass(frozen=True, slots=True)
class Version:
    """An object from *since* on: one of *states*, which differ by API version."""

    since: int
    states: tuple[SubscriptionState | CustomerState, ...]


@dataclass(slots=True)
class History:
    """All versions by object, and the version that each event contains or names."""

    fake: FakeStripe
    users: Mapping[str, UUID]
    versions: dict[str, list[Version]] = field(
        default_factory=lambda: defaultdict(list)
    )
    contained: dict[str, tuple[str, int]] = field(default_factory=dict)
    referenced: dict[str, tuple[str, int]] = field(default_factory=dict)
    links: dict[str, tuple[str, UUID | None]] = field(default_factory=dict)

    def note(self, event: Event) -> None:
        """Record the version of *event*, then queue its deliveries."""
        world, name = self.fake.world, json.loads(event.data)["object"]["id"]
        if event.type in SUBSCRIPTION_TYPES:
            self._add(
                event,
                name,
                subscription_states(world.subscriptions.get(name, livemode=False)),
            )
        elif event.type in CUSTOMER_TYPES:
            customer = world.customers.get(name, livemode=False)
            is_deleted = event.type == "customer.deleted"
            self._add(event, name, [self.claim(customer, is_deleted)])
        elif event.type in INVOICE_TYPES:
            about = world.invoices.get(name, livemode=False).subscription
            self.referenced[event.id] = about, len(self.versions[about]) - 1
        elif event.type == CHECKOUT:
            session = world.sessions.get(name, livemode=False)
            if session.customer is not None:
                user_id = self.read_user(session.client_reference_id)
                self.links[event.id] = session.customer, user_id
        self.fake.deliveries.enqueue(event)

    def claim(self, customer: Customer, is_deleted: bool) -> CustomerState:
        return CustomerState(
            self.read_user(customer.metadata.get("user_id")), is_deleted
        )

    def read_user(self, text: str | None) -> UUID | None:
        """Return the user of this id, if there is one."""
        return self.users.get(text or "")

    def list_claims(self, name: str) -> list[CustomerState]:
        """Return all states that a customer has had."""
        states = [state for version in self.versions[name] for state in version.states]
        return [state for state in states if isinstance(state, CustomerState)]

    def newest(
        self, events: Iterable[str], *, has_client: bool = False
    ) -> dict[str, int]:
        """Return the number of the newest version of *events*, by object.

        With a client, events that only name an object count too.
        """
        known = self.contained | self.referenced if has_client else self.contained
        newest: dict[str, int] = {}
        for name, number in (known[event] for event in events if event in known):
            newest[name] = max(number, newest.get(name, -1))
        return newest

    def _add(
        self,
        event: Event,
        name: str,
        states: Iterable[SubscriptionState | CustomerState],
    ) -> None:
        self.versions[name].append(Version(event.created, tuple(states)))
        self.contained[event.id] = name, len(self.versions[name]) - 1


def subscription_states(subscription: Subscription) -> list[SubscriptionState]:
    """Return its state in the current API version, and in those before 2025-03-31."""
    s, items = subscription, subscription.items
    first = min(items, key=lambda item: item.period_end)
    rendered = [
        (first.price.id, first.period_start),
        (items[0].price.id, max(item.period_start for item in items)),
    ]
    return [
        SubscriptionState(
            s.status,
            price,
            start,
            first.period_end,
            s.anchor,
            s.cancel_at_period_end,
            s.canceled_at,
        )
        for price, start in dict.fromkeys(rendered)
    ]

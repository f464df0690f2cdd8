"""What was true of each object in Stripe, version by version, as it happened."""

import json
from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from uuid import UUID

from tests.fake_stripe import FakeStripe
from tests.fake_stripe.model import Customer, Event, Subscription

# The events that show the whole object.
SUBSCRIPTION_TYPES = {
    f"customer.subscription.{kind}"
    for kind in ("created", "updated", "deleted", "paused", "resumed")
}
CUSTOMER_TYPES = {"customer.created", "customer.updated", "customer.deleted"}
INVOICE_TYPES = {"invoice.paid", "invoice.payment_failed"}
CHECKOUT = "checkout.session.completed"


@dataclass(frozen=True, slots=True)
class Paid:
    """A subscription's state, its times in Stripe's seconds."""

    status: str
    price_id: str | None
    start: int | None
    end: int | None
    anchor: int | None
    cancel_at_period_end: bool
    canceled_at: int | None


@dataclass(frozen=True, slots=True)
class Claim:
    """A customer's state: whom its metadata name, and whether it is deleted."""

    user_id: UUID | None
    is_deleted: bool


@dataclass(frozen=True, slots=True)
class Version:
    """What an object was from *since* on: any of *states*, as versions render it."""

    since: int
    states: tuple[Paid | Claim, ...]


@dataclass(slots=True)
class History:
    """All versions by object, and which of them each event shows, or only names."""

    fake: FakeStripe
    users: Mapping[str, UUID]
    versions: dict[str, list[Version]] = field(
        default_factory=lambda: defaultdict(list)
    )
    shown: dict[str, tuple[str, int]] = field(default_factory=dict)
    named: dict[str, tuple[str, int]] = field(default_factory=dict)
    links: dict[str, tuple[str, UUID | None]] = field(default_factory=dict)

    def note(self, event: Event) -> None:
        """Remember what *event* tells, then let it be delivered."""
        world, name = self.fake.world, json.loads(event.data)["object"]["id"]
        if event.type in SUBSCRIPTION_TYPES:
            self._add(event, name, paid(world.subscriptions.get(name, livemode=False)))
        elif event.type in CUSTOMER_TYPES:
            customer = world.customers.get(name, livemode=False)
            is_deleted = event.type == "customer.deleted"
            self._add(event, name, [self.claim(customer, is_deleted)])
        elif event.type in INVOICE_TYPES:
            about = world.invoices.get(name, livemode=False).subscription
            self.named[event.id] = about, len(self.versions[about]) - 1
        elif event.type == CHECKOUT:
            session = world.sessions.get(name, livemode=False)
            if session.customer is not None:
                user_id = self.read_user(session.client_reference_id)
                self.links[event.id] = session.customer, user_id
        self.fake.deliveries.enqueue(event)

    def claim(self, customer: Customer, is_deleted: bool) -> Claim:
        return Claim(self.read_user(customer.metadata.get("user_id")), is_deleted)

    def read_user(self, text: str | None) -> UUID | None:
        """The user of that id, if there is one."""
        return self.users.get(text or "")

    def list_claims(self, name: str) -> list[Claim]:
        """All that a customer has ever claimed."""
        states = [state for version in self.versions[name] for state in version.states]
        return [state for state in states if isinstance(state, Claim)]

    def newest(
        self, events: Iterable[str], *, has_client: bool = False
    ) -> dict[str, int]:
        """The number of the newest version that *events* tell of, by object.

        A client makes something of those that only name one, too.
        """
        told = self.shown | self.named if has_client else self.shown
        newest: dict[str, int] = {}
        for name, number in (told[event] for event in events if event in told):
            newest[name] = max(number, newest.get(name, -1))
        return newest

    def _add(self, event: Event, name: str, states: Iterable[Paid | Claim]) -> None:
        self.versions[name].append(Version(event.created, tuple(states)))
        self.shown[event.id] = name, len(self.versions[name]) - 1


def paid(subscription: Subscription) -> list[Paid]:
    """Its state as rendered now and, first items aside, before API 2025-03-31."""
    s, items = subscription, subscription.items
    counts = min(items, key=lambda item: item.period_end)
    shown = [
        (counts.price.id, counts.period_start),
        (items[0].price.id, max(item.period_start for item in items)),
    ]
    return [
        Paid(
            s.status,
            price,
            start,
            counts.period_end,
            s.anchor,
            s.cancel_at_period_end,
            s.canceled_at,
        )
        for price, start in dict.fromkeys(shown)
    ]

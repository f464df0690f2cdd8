"""Records each version of each object in the fake Stripe, and each claim."""

import json
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Set
from dataclasses import dataclass, field
from decimal import Decimal
from typing import Any, NamedTuple
from uuid import UUID

from tests.fake_stripe import FakeStripe
from tests.fake_stripe.billing_shapes import EMBEDDED_ITEMS
from tests.fake_stripe.model import Event, Item, Subscription
from tests.simulation.catalog import credits_of

# Types of events that contain the whole object.
SUBSCRIPTION_TYPES = {
    f"customer.subscription.{kind}"
    for kind in ("created", "updated", "deleted", "paused", "resumed")
}
CUSTOMER_TYPES = {"customer.created", "customer.updated", "customer.deleted"}
INVOICE_TYPES = {"invoice.paid", "invoice.payment_failed"}
CHECKOUT = "checkout.session.completed"
# Where a claim can be, the strongest first.
SOURCES = ("customer", "subscription", "checkout", "reference", "email")


class Claim(NamedTuple):
    """A user that an object names for a customer; the user may not exist."""

    source: str
    user_id: UUID


@dataclass(frozen=True, slots=True)
class ItemState:
    """An item of a subscription; times are Stripe's, in seconds."""

    id: str
    price_id: str | None
    amount: Decimal | None
    quantity: int | None
    start: int | None
    end: int | None

    @property
    def credits(self) -> Decimal | None:
        """Return the credits that it buys; None if it buys no plan."""
        return credits_of(self.price_id, self.quantity)


@dataclass(frozen=True, slots=True)
class SubscriptionState:
    """The state of a subscription; its items are in the order of their ids."""

    status: str
    anchor: int | None
    cancel_at: int | None
    cancel_at_period_end: bool
    canceled_at: int | None
    trial_end: int | None
    pause_behavior: str | None
    pause_resumes_at: int | None
    items: tuple[ItemState, ...]

    def is_paid(self, item: ItemState) -> bool:
        """Return whether the item is paid for: active, and not known to be free."""
        is_plan = item.credits is not None
        return self.status == "active" and is_plan and item.amount != 0


@dataclass(frozen=True, slots=True)
class CustomerState:
    """The state of a customer: whether it is deleted, the user of its metadata."""

    is_deleted: bool
    user_id: UUID | None


@dataclass(frozen=True, slots=True)
class Version:
    """An object from *since* on: one of *states*, which differ by API version.

    The last states, *partial* ones, have only the items that an event contains.
    """

    since: int
    states: tuple[SubscriptionState | CustomerState, ...]
    partial: tuple[SubscriptionState, ...] = ()


@dataclass(slots=True)
class History:
    """All versions by object, and the version that each event contains or names.

    `foreign` are the events of other accounts, `odd_events` those that contain a
    distorted object, and `odd_customers` the customers that have had one.
    """

    fake: FakeStripe
    versions: dict[str, list[Version]] = field(
        default_factory=lambda: defaultdict(list)
    )
    contained: dict[str, tuple[str, int]] = field(default_factory=dict)
    referenced: dict[str, tuple[str, int]] = field(default_factory=dict)
    checkouts: dict[str, tuple[str, list[Claim]]] = field(default_factory=dict)
    bought_for: dict[str, UUID] = field(default_factory=dict)  # by subscription
    claims: dict[str, set[Claim]] = field(default_factory=lambda: defaultdict(set))
    mailed: dict[str, UUID] = field(default_factory=dict)  # linked by address
    paid: dict[str, set[tuple[int, int]]] = field(
        default_factory=lambda: defaultdict(set)
    )
    initial: dict[UUID, tuple[Any, Any]] = field(default_factory=dict)
    foreign: set[str] = field(default_factory=set)
    odd_events: set[str] = field(default_factory=set)
    odd_customers: set[str] = field(default_factory=set)

    def note(self, event: Event) -> None:
        """Record the version of *event*, then queue its deliveries."""
        if event.account or event.context:
            self.foreign.add(event.id)
        else:
            self._note(event, json.loads(event.data)["object"]["id"])
        self.fake.deliveries.enqueue(event)

    def _note(self, event: Event, name: str) -> None:
        world = self.fake.world
        if event.type in SUBSCRIPTION_TYPES:
            subscription = world.subscriptions.get(name, livemode=False)
            self._note_subscription(event, subscription)
        elif event.type in CUSTOMER_TYPES:
            customer = world.customers.get(name, livemode=False)
            state = CustomerState(
                event.type == "customer.deleted", read_user(customer.metadata)
            )
            self._add_claim(name, "customer", state.user_id)
            self._add(event, name, Version(event.created, (state,)))
        elif event.type in INVOICE_TYPES:
            about = world.invoices.get(name, livemode=False).subscription
            self.referenced[event.id] = about, len(self.versions[about]) - 1
        elif event.type == CHECKOUT:
            session = world.sessions.get(name, livemode=False)
            if session.customer is not None:
                given = {
                    "checkout": read_user(session.metadata),
                    "reference": read_user({"user_id": session.client_reference_id}),
                }
                claims = [Claim(source, user) for source, user in given.items() if user]
                self.checkouts[event.id] = session.customer, claims
                self.claims[session.customer].update(claims)

    def _note_subscription(self, event: Event, subscription: Subscription) -> None:
        name, customer = subscription.id, subscription.customer
        version = self._make_version(event.created, subscription)
        if user_id := read_user(subscription.metadata):
            self.bought_for[name] = user_id
            self._add_claim(customer, "subscription", user_id)
        self._add(event, name, version)

    def note_restored(self, name: str) -> None:
        """Record what happened to an object while all saw it distorted."""
        world, now = self.fake.world, self.fake.clock.now
        if subscription := world.subscriptions.find(name):
            self.versions[name].append(self._make_version(now, subscription))
        elif customer := world.customers.find(name):
            state = CustomerState(customer.deleted, read_user(customer.metadata))
            self._add_claim(name, "customer", state.user_id)
            self.versions[name].append(Version(now, (state,)))

    def _make_version(self, since: int, subscription: Subscription) -> Version:
        version = make_version(since, subscription)
        for state in (*version.states, *version.partial):
            assert isinstance(state, SubscriptionState)
            for item in filter(state.is_paid, state.items):
                assert state.anchor is not None
                assert item.end is not None
                self.paid[subscription.customer].add((state.anchor, item.end))
        return version

    def _add_claim(self, customer: str, source: str, user_id: UUID | None) -> None:
        if user_id is not None:
            self.claims[customer].add(Claim(source, user_id))

    def _add(self, event: Event, name: str, version: Version) -> None:
        self.versions[name].append(version)
        about = name, len(self.versions[name]) - 1
        if name in self.fake.world.distortions:
            self.odd_events.add(event.id)
        elif version.partial:
            # The event contains only a part of the object.
            self.referenced[event.id] = about
        else:
            self.contained[event.id] = about

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

    def used_events(self) -> Set[str]:
        """Return the events that have an effect, if they are delivered."""
        used = self.contained.keys() | self.referenced.keys()
        return (used | self.checkouts.keys()) - self.odd_events

    def claimants(self, customer: str) -> set[UUID]:
        """Return all users that any object has ever named for the customer."""
        mailed = {self.mailed[customer]} if customer in self.mailed else set()
        return {claim.user_id for claim in self.claims[customer]} | mailed

    def paid_periods(self) -> dict[UUID, set[tuple[int, int]]]:
        """Return anchor and end of each item that was ever paid, by possible user."""
        found: dict[UUID, set[tuple[int, int]]] = defaultdict(set)
        for customer in self.paid.keys() & (self.claims.keys() | self.mailed.keys()):
            for user_id in self.claimants(customer):
                found[user_id] |= self.paid[customer]
        return found


def make_version(since: int, subscription: Subscription) -> Version:
    """Return the states in the current API version, and in those before 2025-03-31."""
    states = list(dict.fromkeys(_states(subscription, subscription.items)))
    partial: list[SubscriptionState] = []
    if len(subscription.items) > EMBEDDED_ITEMS:
        partial += _states(subscription, subscription.items[:EMBEDDED_ITEMS])
    return Version(since, tuple(states), tuple(partial))


def _states(s: Subscription, items: list[Item]) -> Iterator[SubscriptionState]:
    pause = s.pause_collection or {}
    start, end = max(i.period_start for i in s.items), s.period_end
    for is_old in (False, True):
        kept = [
            ItemState(
                i.id,
                i.price.id,
                i.price.amount,
                i.quantity,
                start if is_old else i.period_start,
                end if is_old else i.period_end,
            )
            for i in sorted(items, key=lambda i: i.id)
        ]
        yield SubscriptionState(
            s.status,
            s.anchor,
            s.cancel_at,
            s.cancel_at_period_end,
            s.canceled_at,
            s.trial_end,
            pause.get("behavior"),
            pause.get("resumes_at"),
            tuple(kept),
        )


def read_user(metadata: Mapping[str, str | None]) -> UUID | None:
    """Return the user that *metadata* names, who may not exist; None if no UUID."""
    try:
        return UUID(metadata.get("user_id") or "")
    except ValueError:
        return None

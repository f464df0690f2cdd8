"""A Stripe account: objects, clock, events and scheduled actions."""

import copy
import heapq
import random
import string
import threading
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, fields

from . import billing_shapes, shapes
from .clock import DAY, ITEM_PERIODS_SINCE, Clock
from .errors import ApiError
from .model import (
    CheckoutSession,
    Customer,
    Event,
    FrozenClock,
    Invoice,
    Price,
    Product,
    Record,
    Subscription,
)
from .shapes import Json, to_json
from .store import Collection

EVENT_RETENTION = 30 * DAY
_ALPHABET = string.ascii_letters + string.digits


@dataclass(frozen=True, slots=True)
class Origin:
    """The request that caused an event; None if time did."""

    request_id: str | None = None
    idempotency_key: str | None = None
    livemode: bool = False


class World:
    """The account; the caller of each method holds `lock`."""

    def __init__(self, clock: Clock, api_version: str, seed: int) -> None:
        self.lock = threading.RLock()
        self.clock = clock
        self.api_version = api_version
        self.origin = Origin()
        self.on_event: Callable[[Event], None] = lambda event: None
        # The status of a subscription after the last failed payment.
        self.after_failed_payments = "canceled"
        self.customers: Collection[Customer] = Collection("customer")
        self.products: Collection[Product] = Collection("product")
        self.prices: Collection[Price] = Collection("price")
        self.subscriptions: Collection[Subscription] = Collection("subscription")
        self.invoices: Collection[Invoice] = Collection("invoice")
        self.sessions: Collection[CheckoutSession] = Collection("checkout.session")
        self.clocks: Collection[FrozenClock] = Collection("test_clock")
        self.events: Collection[Event] = Collection("event")
        # The account and the organization's context that new events name.
        self.account: str | None = None
        self.context: str | None = None
        # Fields that replace those of the rendered object with this id.
        self.distortions: dict[str, Json] = {}
        self.subscriptions_of: defaultdict[str, list[int]] = defaultdict(list)
        self._chosen_ids: defaultdict[str, list[str]] = defaultdict(list)
        self._ids = random.Random(f"{seed}:ids")
        self._due: list[tuple[int, int, Callable[[], None]]] = []
        self._scheduled = 0

    @property
    def now(self) -> int:
        return self.clock.now

    def choose_id(self, prefix: str, object_id: str) -> None:
        """Let the next new object of the *prefix* have this id."""
        self._chosen_ids[prefix].append(object_id)

    def new_id(self, prefix: str, length: int = 14) -> str:
        if chosen := self._chosen_ids.get(prefix):
            return chosen.pop(0)
        return prefix + "_" + "".join(self._ids.choices(_ALPHABET, k=length))

    def add_subscription(self, subscription: Subscription) -> None:
        self.subscriptions.add(subscription)
        place = self.subscriptions.place(subscription.id)
        self.subscriptions_of[subscription.customer].append(place)

    def live_subscriptions(self, customer: str) -> Iterator[Subscription]:
        for place in self.subscriptions_of.get(customer, ()):
            if not (subscription := self.subscriptions.at(place)).ended:
                yield subscription

    # Shapes and events

    def render(self, record: Record, version: str | None = None) -> Json:
        old = (version or self.api_version)[:10] < ITEM_PERIODS_SINCE
        return self._shape(record, old=old) | self.distortions.get(record.id, {})

    def _shape(self, record: Record, *, old: bool) -> Json:
        match record:
            case Customer():
                if record.deleted:
                    return shapes.deleted(record.id, "customer")
                return shapes.customer(record)
            case Product():
                return shapes.product(record)
            case Price():
                return shapes.price(record)
            case Subscription():
                return billing_shapes.subscription(record, old=old)
            case Invoice():
                return billing_shapes.invoice(record, old=old)
            case CheckoutSession():
                return shapes.checkout_session(record)
            case FrozenClock():
                return shapes.frozen_clock(record)
        raise TypeError(type(record))

    def emit(self, kind: str, record: Record, previous: Json | None = None) -> Event:
        """Emit the event *kind* with a snapshot of *record*."""
        return self.emit_shape(kind, record.livemode, self.render(record), previous)

    def emit_shape(
        self, kind: str, livemode: bool, shape: Json, previous: Json | None = None
    ) -> Event:
        data: Json = {"object": shape}
        if previous is not None:
            data["previous_attributes"] = previous
        event = Event(
            id=self.new_id("evt", 24),
            created=self.now,
            livemode=livemode,
            type=kind,
            api_version=self.api_version,
            data=to_json(data),
            request_id=self.origin.request_id,
            idempotency_key=self.origin.idempotency_key,
            account=self.account,
            context=self.context,
        )
        self.events.add(event)
        self.on_event(event)
        return event

    @contextmanager
    def updating(self, record: Record, kind: str) -> Iterator[None]:
        """Emit *kind* with `previous_attributes` if the block changes *record*.

        If the block fails, the record is restored.
        """
        before, saved = self.render(record), copy.copy(record)
        if isinstance(saved, Subscription):
            saved.items = [copy.copy(item) for item in saved.items]
        try:
            yield
        except ApiError:
            for field in fields(record):
                setattr(record, field.name, getattr(saved, field.name))
            raise
        after = self.render(record)
        previous = difference(before, after)
        # The object contains a part of its items.
        if previous or (
            isinstance(saved, Subscription) and _has_other_items(record, saved)
        ):
            self.emit_shape(kind, record.livemode, after, previous)

    def kept_events_since(self) -> int:
        return self.now - EVENT_RETENTION

    @contextmanager
    def caused_by(self, origin: Origin) -> Iterator[None]:
        with self.lock:
            self.origin = origin
            try:
                yield
            finally:
                self.origin = Origin()

    # Time

    def at(self, moment: int, action: Callable[[], None]) -> None:
        """Run *action* when the clock passes *moment*, if it still applies then."""
        self._scheduled += 1
        heapq.heappush(self._due, (moment, self._scheduled, action))

    def advance(self, *, seconds: int = 0, to: int | None = None) -> None:
        """Move the clock, and run the due actions in their order."""
        target = self.now + seconds if to is None else to
        if target < self.now:
            raise ApiError(400, "The clock only moves forward")
        with self.caused_by(Origin()):
            while self._due and self._due[0][0] <= target:
                moment, _, action = heapq.heappop(self._due)
                self.clock.move_to(moment)
                action()
            self.clock.move_to(target)


def _has_other_items(record: Record, saved: Subscription) -> bool:
    return isinstance(record, Subscription) and record.items != saved.items


def difference(before: Json, after: Json) -> Json:
    """Return the old values of changed fields, nested as in `previous_attributes`."""
    changed: Json = {}
    for key in before.keys() | after.keys():
        old, new = before.get(key), after.get(key)
        if isinstance(old, dict) and isinstance(new, dict):
            if inner := difference(old, new):
                changed[key] = inner
        elif old != new:
            changed[key] = old
    return {key: changed[key] for key in sorted(changed)}

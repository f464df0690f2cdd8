"""The objects of the fake; shapes.py renders them as Stripe does."""

from dataclasses import dataclass, field
from decimal import ROUND_HALF_UP, Decimal
from typing import Any


@dataclass(slots=True)
class Record:
    id: str
    created: int
    livemode: bool


@dataclass(slots=True)
class FrozenClock(Record):
    """A test clock: lists leave its objects out, which follow the fake's clock too."""

    name: str | None = None
    frozen_time: int = 0


@dataclass(slots=True)
class Customer(Record):
    email: str | None = None
    name: str | None = None
    phone: str | None = None
    description: str | None = None
    metadata: dict[str, str] = field(default_factory=dict)
    payment_method: str | None = None
    test_clock: str | None = None
    deleted: bool = False


@dataclass(slots=True)
class Product(Record):
    name: str = "Product"
    description: str | None = None
    active: bool = True
    metadata: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Tier:
    """The price of each unit up to `up_to`, the last of them included."""

    up_to: int | None
    unit_amount: int


@dataclass(slots=True)
class Price(Record):
    product: str = ""
    currency: str = "usd"
    amount: Decimal | None = None  # of one unit; None for tiers
    tiers: tuple[Tier, ...] = ()
    tiers_mode: str | None = None
    interval: str | None = "month"  # None for a one-time price
    interval_count: int = 1
    meter: str | None = None  # of a metered price
    nickname: str | None = None
    lookup_key: str | None = None
    active: bool = True
    metadata: dict[str, str] = field(default_factory=dict)

    @property
    def unit_amount(self) -> int | None:
        """Return the amount of one unit if it is whole; else None."""
        if self.amount is None or self.amount % 1:
            return None
        return int(self.amount)

    def cost(self, quantity: int | None) -> int:
        """Return the amount of *quantity* units; nothing is used of a meter."""
        if quantity is None:
            return 0
        if self.amount is not None:
            return int((self.amount * quantity).quantize(Decimal(1), ROUND_HALF_UP))
        if self.tiers_mode == "volume":
            return self._tier(quantity).unit_amount * quantity
        return sum(self._tier(unit).unit_amount for unit in range(1, quantity + 1))

    def _tier(self, unit: int) -> Tier:
        return next(t for t in self.tiers if t.up_to is None or unit <= t.up_to)


@dataclass(slots=True)
class Item:
    id: str
    created: int
    price: Price
    period_start: int
    period_end: int
    quantity: int | None = 1  # None for a metered price
    metadata: dict[str, str] = field(default_factory=dict)


@dataclass(slots=True)
class Subscription(Record):
    customer: str
    items: list[Item]
    status: str
    anchor: int
    cancel_at_period_end: bool = False
    cancel_at: int | None = None
    canceled_at: int | None = None
    ended_at: int | None = None
    cancellation_reason: str | None = None
    trial_start: int | None = None
    trial_end: int | None = None
    missing_payment_method: str = "create_invoice"
    collection_method: str = "charge_automatically"
    payment_method: str | None = None
    billing_mode: str = "flexible"
    pause_collection: dict[str, Any] | None = None
    paused_at: int | None = None
    paused_reason: str | None = None
    latest_invoice: str | None = None
    test_clock: str | None = None
    description: str | None = None
    metadata: dict[str, str] = field(default_factory=dict)

    @property
    def ended(self) -> bool:
        return self.status in ("canceled", "incomplete_expired")

    @property
    def period_end(self) -> int:
        return min(item.period_end for item in self.items)


@dataclass(frozen=True, slots=True)
class Line:
    id: str
    item: str
    price: Price
    quantity: int | None
    amount: int
    start: int
    end: int


@dataclass(slots=True)
class Invoice(Record):
    customer: str
    subscription: str
    reason: str
    lines: list[Line]
    customer_email: str | None = None
    number: str | None = None
    status: str = "draft"
    attempts: int = 0
    next_attempt: int | None = None
    finalized_at: int | None = None
    paid_at: int | None = None
    voided_at: int | None = None
    uncollectible_at: int | None = None
    test_clock: str | None = None

    @property
    def amount(self) -> int:
        return sum(line.amount for line in self.lines)


@dataclass(slots=True)
class CheckoutSession(Record):
    mode: str
    prices: list[tuple[Price, int | None]]
    customer: str | None = None
    customer_creation: str | None = None
    customer_email: str | None = None  # given by the integration
    typed_email: str | None = None
    client_reference_id: str | None = None
    success_url: str | None = None
    cancel_url: str | None = None
    subscription: str | None = None
    invoice: str | None = None
    payment_intent: str | None = None
    status: str = "open"
    payment_status: str = "unpaid"
    trial_days: int | None = None
    billing_mode: str = "flexible"
    subscription_metadata: dict[str, str] = field(default_factory=dict)
    metadata: dict[str, str] = field(default_factory=dict)


@dataclass(slots=True)
class Event(Record):
    """`data` is JSON from the time of the event, in its API version.

    `account` is the connected account that it happened in, `context` the account as an
    organization's destination names it.
    """

    type: str
    api_version: str
    data: str
    request_id: str | None
    idempotency_key: str | None
    account: str | None = None
    context: str | None = None
    undelivered: set[str] = field(default_factory=set)  # ids of endpoints

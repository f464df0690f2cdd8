"""Adds many accounts without events, to measure a sync."""

import itertools
import uuid
from collections.abc import Sequence
from functools import partial

from . import billing
from .catalog import add_price
from .clock import DAY, add_months, next_boundary
from .model import Customer, Item, Price, Subscription
from .world import World

# Statuses of 20 consecutive subscriptions.
_STATUSES = ["active"] * 15 + ["trialing", "past_due", "canceled", "canceled", "unpaid"]


def seeded_user_id(number: int) -> uuid.UUID:
    """Return `metadata.user_id` of the seeded account *number*, from 0."""
    return uuid.UUID(int=(0x5EED << 112) | (0x4000 << 64) | (0x8000 << 48) | number)


def seed_accounts(
    world: World,
    number: int,
    *,
    subscriptions: int = 1,
    prices: Sequence[str] = ("price_monthly", "price_yearly"),
    livemode: bool = False,
) -> None:
    """Add *number* customers with *subscriptions* each.

    Account i is `cus_Seed` + i in 10 digits, `seed{i}@example.com`, its subscriptions
    `sub_Seed` + a serial number. They were created over the past year, or since the
    newest customer, the oldest first. Missing prices are created; they are yearly if
    the name says so.
    """
    now, first = world.now, len(world.customers)
    newest = (world.customers.newest, world.subscriptions.newest)
    since = max(now - 365 * DAY, *newest)
    chosen = [_price(world, price_id, livemode) for price_id in prices]
    turns = itertools.cycle(range(20))
    for i in range(first, first + number):
        customer = Customer(
            id=f"cus_Seed{i:010d}",
            created=since + (now - since) * (i - first) // number,
            livemode=livemode,
            email=f"seed{i}@example.com",
            name=f"Seed {i}",
            metadata={"user_id": str(seeded_user_id(i))},
        )
        world.customers.add(customer)
        for j in range(subscriptions):
            price = chosen[(i + j) % len(chosen)]
            name = f"sub_Seed{i * subscriptions + j:010d}"
            status = _STATUSES[next(turns)]
            _subscribe(world, customer, name, price, status)


def _price(world: World, price_id: str, livemode: bool) -> Price:
    interval = "year" if "year" in price_id else "month"
    found = world.prices.find(price_id)
    return found or add_price(world, price_id, interval=interval, livemode=livemode)


def _subscribe(
    world: World, customer: Customer, name: str, price: Price, status: str
) -> None:
    now, created = world.now, customer.created
    interval, count = price.interval or "month", price.interval_count
    end = next_boundary(created, interval, count, now)
    start = max(created, add_months(end, -count * (12 if interval == "year" else 1)))
    item = Item(name.replace("sub", "si", 1), created, price, start, end)
    subscription = Subscription(
        id=name,
        created=created,
        livemode=customer.livemode,
        customer=customer.id,
        items=[item],
        status=status,
        anchor=created,
    )
    if status == "trialing":
        subscription.trial_start, subscription.trial_end = created, end
    if subscription.ended:
        subscription.canceled_at = subscription.ended_at = start
    else:
        world.at(end, partial(billing.renew, world, subscription))
    world.add_subscription(subscription)

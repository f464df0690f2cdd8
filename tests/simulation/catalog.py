"""The plans and prices of the simulated account."""

from dataclasses import dataclass
from decimal import Decimal
from typing import Any

from psycopg import Connection

from tests.fake_stripe import FakeStripe


@dataclass(frozen=True, slots=True)
class Offer:
    """A price: its interval in months, 0 for a week, and the plan that it buys.

    `amount` is None for graduated tiers. A metered price has no quantity.
    """

    months: int
    plan: str | None
    amount: Decimal | None
    is_metered: bool = False


FREE_CREDITS = Decimal(2500)
CREDITS = {
    "small": Decimal(50_000),
    "medium": Decimal(60_000),
    "large": Decimal(70_000),
}
# Prices that differ in interval, plan and amount; `gold` has the id of a legacy plan.
PRICES = {
    "price_month": Offer(1, "small", Decimal(2000)),
    "gold": Offer(1, "small", Decimal(1500)),
    "price_quarter": Offer(3, "medium", Decimal(5000)),
    "price_year": Offer(12, "large", Decimal(20_000)),
    "price_large": Offer(1, "large", Decimal(3000)),
    "price_seat": Offer(1, "medium", Decimal(900)),
    "price_gift": Offer(1, "large", Decimal(0)),
    "price_gift_year": Offer(12, "medium", Decimal(0)),
    "price_cents": Offer(1, "small", Decimal("0.25")),
    "price_tiers": Offer(1, "medium", None),
    "price_meter": Offer(1, "small", Decimal("0.5"), is_metered=True),
    "price_other": Offer(1, None, Decimal(500)),
    "price_other_year": Offer(12, None, Decimal(100)),
    "price_other_week": Offer(0, None, Decimal(50)),
    "price_usage": Offer(1, None, Decimal(1), is_metered=True),
}
MONTHLY = [name for name, offer in PRICES.items() if offer.months == 1]


def credits_of(price_id: str | None, quantity: int | None) -> Decimal | None:
    """Return the credits that an item buys; None if it buys no plan."""
    offer = PRICES.get(price_id or "")
    if offer is None or offer.plan is None or quantity == 0:
        return None
    return CREDITS[offer.plan] * (1 if quantity is None else quantity)


def add_prices(fake: FakeStripe) -> None:
    for name, offer in PRICES.items():
        interval, count = ("month", offer.months) if offer.months else ("week", 1)
        if offer.months == 12:
            interval, count = "year", 1
        fake.add_price(
            name,
            interval=interval,
            interval_count=count,
            unit_amount=offer.amount or 0,
            tiers=[(2, 100), (None, 50)] if offer.amount is None else [],
            meter="mtr_1" if offer.is_metered else None,
        )


def add_plans(conn: Connection[Any]) -> None:
    """Replace the paid plan of the schema by the plans of the catalog."""
    with conn.cursor() as cursor:
        cursor.execute("DELETE FROM app.plans WHERE id = 'paid'")
        cursor.executemany(
            "INSERT INTO app.plans (id, monthly_credits) VALUES (%s, %s)",
            CREDITS.items(),
        )
        cursor.executemany(
            "INSERT INTO app.plan_prices (stripe_price_id, plan_id) VALUES (%s, %s)",
            [(name, offer.plan) for name, offer in PRICES.items() if offer.plan],
        )

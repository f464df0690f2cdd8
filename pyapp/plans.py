"""Plans: the credits that a Stripe price buys."""

from decimal import Decimal
from typing import Any, NamedTuple

from psycopg import Connection

from pyapp._core.run import atomic, fetch_all, fetch_one
from pyapp._core.sanitize import storable_text
from pyapp._core.validation import shown, storable_id, validated
from pyapp.errors import PlanNotFoundError


class Plan(NamedTuple):
    """A plan; `stripe_price_id` is None if no price buys it."""

    id: str
    stripe_price_id: str | None
    monthly_credits: Decimal


@validated
def list_plans(conn: Connection[Any], *, limit: int = 100) -> list[Plan]:
    """Return up to *limit* plans, those with the fewest credits first."""
    return fetch_all(conn, Plan, "list_plans", limit=limit)


@validated
def get_plan(conn: Connection[Any], *, plan_id: str) -> Plan:
    """Return the plan, such as `free`.

    Raises:
        PlanNotFoundError: there is no such plan.
    """
    missing = PlanNotFoundError(f"no plan {shown(plan_id)}")
    plan_id = storable_text(plan_id)
    return fetch_one(conn, Plan, "get_plan", missing=missing, plan_id=plan_id)


@validated
def set_plan_price(
    conn: Connection[Any], *, plan_id: str, stripe_price_id: str | None
) -> Plan:
    """Set the Stripe price that buys the plan, None for no price; return the plan.

    Users who pay the price already get the plan's quota at their next sync.

    Raises:
        PlanNotFoundError: there is no such plan.
        PriceTakenError: the price buys another plan.
    """
    price_id = storable_id("stripe_price_id", stripe_price_id)
    with atomic(conn):
        return fetch_one(
            conn,
            Plan,
            "set_plan_price",
            missing=PlanNotFoundError(f"no plan {shown(plan_id)}"),
            plan_id=storable_text(plan_id),
            stripe_price_id=price_id,
        )

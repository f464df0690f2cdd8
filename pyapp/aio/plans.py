# Generated from pyapp/plans.py by .ci/generate_aio.py; do not edit.
"""Plans: the credits that a Stripe price buys."""

from typing import Any

from psycopg import AsyncConnection

from pyapp._core.run_async import atomic, fetch_all, fetch_one
from pyapp._core.sanitize import storable_text
from pyapp._core.validation import shown, storable_id, validated
from pyapp.errors import PlanNotFoundError
from pyapp.plans import Plan


@validated
async def list_plans(conn: AsyncConnection[Any], *, limit: int = 100) -> list[Plan]:
    """Return up to *limit* plans, those with the fewest credits first."""
    return await fetch_all(conn, Plan, "list_plans", limit=limit)


@validated
async def get_plan(conn: AsyncConnection[Any], *, plan_id: str) -> Plan:
    """Return the plan, such as `free`.

    Raises:
        PlanNotFoundError: there is no such plan.
    """
    missing = PlanNotFoundError(f"no plan {shown(plan_id)}")
    plan_id = storable_text(plan_id)
    return await fetch_one(conn, Plan, "get_plan", missing=missing, plan_id=plan_id)


@validated
async def set_plan_price(
    conn: AsyncConnection[Any], *, plan_id: str, stripe_price_id: str | None
) -> Plan:
    """Set the Stripe price that buys the plan, None for no price; return the plan.

    Users who pay the price already get the plan's quota at their next sync.

    Raises:
        PlanNotFoundError: there is no such plan.
        PriceTakenError: the price buys another plan.
    """
    price_id = storable_id("stripe_price_id", stripe_price_id)
    async with atomic(conn):
        return await fetch_one(
            conn,
            Plan,
            "set_plan_price",
            missing=PlanNotFoundError(f"no plan {shown(plan_id)}"),
            plan_id=storable_text(plan_id),
            stripe_price_id=price_id,
        )

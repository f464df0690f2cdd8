# Generated from pyapp/plans.py by .ci/generate_aio.py; do not edit.
"""Plans: their monthly credits, and the Stripe prices that buy them."""

from decimal import Decimal
from typing import Any

from psycopg import AsyncConnection

from pyapp._core.run_async import atomic, fetch_all, fetch_one
from pyapp._core.sanitize import storable_text
from pyapp._core.validation import shown, validated
from pyapp.errors import PlanNotFoundError, PriceNotFoundError, refusal
from pyapp.plans import Plan, PlanPrice, _storable


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
async def create_plan(
    conn: AsyncConnection[Any], *, plan_id: str, monthly_credits: Decimal
) -> Plan:
    """Create a plan without prices and return it; one credit is one US cent of usage.

    Raises:
        PlanExistsError: there is such a plan already.
        RuleError: by plans_id_not_empty_check, the id is empty.
    """
    plan_id = _storable("plan_id", plan_id)
    async with atomic(conn):
        return await fetch_one(
            conn,
            Plan,
            "create_plan",
            plan_id=plan_id,
            monthly_credits=monthly_credits,
        )


@validated
async def set_plan_credits(
    conn: AsyncConnection[Any], *, plan_id: str, monthly_credits: Decimal
) -> Plan:
    """Set the plan's monthly credits and return the plan.

    Its subscribers get the new amount at their next sync. For `free` and `anonymous`,
    it is the quota of payers that are created afterwards; of the earlier ones, only
    users with a Stripe customer are synced.

    Raises:
        PlanNotFoundError: there is no such plan.
    """
    return await fetch_one(
        conn,
        Plan,
        "set_plan_credits",
        missing=PlanNotFoundError(f"no plan {shown(plan_id)}"),
        plan_id=storable_text(plan_id),
        monthly_credits=monthly_credits,
    )


@validated
async def add_plan_price(
    conn: AsyncConnection[Any], *, plan_id: str, stripe_price_id: str
) -> PlanPrice:
    """Let a Stripe price buy the plan, besides its other prices; return both ids.

    Users who pay the price already get the plan at their next sync. Repeating it
    changes nothing.

    Raises:
        PlanNotFoundError: there is no such plan.
        PriceTakenError: the price buys another plan.
        RuleError: by plan_prices_stripe_price_id_length_check, the price is empty.
    """
    price_id = _storable("stripe_price_id", stripe_price_id)
    async with atomic(conn):
        return await fetch_one(
            conn,
            PlanPrice,
            "add_plan_price",
            missing=refusal("plan_prices_pkey"),
            plan_id=storable_text(plan_id),
            stripe_price_id=price_id,
        )


@validated
async def remove_plan_price(
    conn: AsyncConnection[Any], *, stripe_price_id: str
) -> PlanPrice:
    """Let a Stripe price buy no plan any more; return it and the plan that it bought.

    Users who pay the price have the free quota from their next sync on.

    Raises:
        PriceNotFoundError: the price buys no plan.
    """
    return await fetch_one(
        conn,
        PlanPrice,
        "remove_plan_price",
        missing=PriceNotFoundError(f"no plan has the price {shown(stripe_price_id)}"),
        stripe_price_id=storable_text(stripe_price_id),
    )

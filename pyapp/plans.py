"""Plans: what a price buys."""

from dataclasses import dataclass
from decimal import Decimal

from pyapp._core.calls import Call, many, one, query
from pyapp._core.sanitize import storable_text
from pyapp._core.validation import shown, storable_id
from pyapp.errors import PlanNotFoundError


@dataclass(frozen=True, slots=True)
class Plan:
    """A plan; `stripe_price_id` is None where no price buys it."""

    id: str
    stripe_price_id: str | None
    monthly_credits: Decimal


@query
def list_plans(*, limit: int = 100) -> Call[list[Plan]]:
    """Return *limit* plans, the smallest first."""
    return many(Plan, {"limit": limit})


@query
def get_plan(*, plan_id: str) -> Call[Plan]:
    """Return the plan, such as `free`.

    Raises:
        PlanNotFoundError: there is none.
    """
    parameters = {"plan_id": storable_text(plan_id)}
    return one(Plan, parameters, missing=lambda: _not_found(plan_id))


@query
def set_plan_price(*, plan_id: str, stripe_price_id: str | None) -> Call[Plan]:
    """Say which of Stripe's prices buys the plan, None for none, and return the plan.

    Users who pay the price already get the plan's quota at their next sync.

    Raises:
        PlanNotFoundError: there is no such plan.
        PriceTakenError: the price buys another plan.
    """
    return one(
        Plan,
        {
            "plan_id": storable_text(plan_id),
            "stripe_price_id": storable_id("stripe_price_id", stripe_price_id),
        },
        missing=lambda: _not_found(plan_id),
        is_guarded=True,
    )


def _not_found(plan_id: str) -> PlanNotFoundError:
    return PlanNotFoundError(f"no plan {shown(plan_id)}")

"""Plans: their credits, and the Stripe price that buys each."""

from decimal import Decimal

import psycopg
import pytest

from pyapp.errors import PlanNotFoundError, PriceTakenError
from pyapp.plans import get_plan, list_plans, set_plan_price


def test_schema_has_three_plans(conn: psycopg.Connection):
    plans = [(plan.id, plan.monthly_credits) for plan in list_plans(conn)]

    assert plans == [
        ("anonymous", Decimal(1000)),
        ("free", Decimal(2500)),
        ("paid", Decimal(50000)),
    ]


def test_price_is_set_and_removed(conn: psycopg.Connection):
    plan = set_plan_price(conn, plan_id="paid", stripe_price_id="price_1")

    assert plan.stripe_price_id == "price_1"
    assert get_plan(conn, plan_id="paid") == plan
    cleared = set_plan_price(conn, plan_id="paid", stripe_price_id=None)
    assert cleared.stripe_price_id is None


def test_price_belongs_to_one_plan(conn: psycopg.Connection):
    set_plan_price(conn, plan_id="paid", stripe_price_id="price_1")

    with pytest.raises(PriceTakenError):
        set_plan_price(conn, plan_id="free", stripe_price_id="price_1")

    assert get_plan(conn, plan_id="free").stripe_price_id is None


def test_unknown_plan_is_an_error(conn: psycopg.Connection):
    with pytest.raises(PlanNotFoundError, match="gold"):
        get_plan(conn, plan_id="gold")
    with pytest.raises(PlanNotFoundError, match="gold"):
        set_plan_price(conn, plan_id="gold", stripe_price_id=None)

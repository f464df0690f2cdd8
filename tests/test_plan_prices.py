"""Plans: their credits, and the Stripe prices that buy them."""

import threading
from decimal import Decimal

import psycopg
import pytest
from psycopg.errors import QueryCanceled

from pyapp._core.connection import connect
from pyapp.errors import (
    InvalidValueError,
    PlanExistsError,
    PlanNotFoundError,
    PriceNotFoundError,
    PriceTakenError,
    RuleError,
)
from pyapp.plans import (
    Plan,
    PlanPrice,
    add_plan_price,
    create_plan,
    get_plan,
    list_plans,
    remove_plan_price,
    set_plan_credits,
)


def test_schema_has_three_plans(conn: psycopg.Connection):
    assert list_plans(conn) == [
        Plan("anonymous", Decimal(1000), []),
        Plan("free", Decimal(2500), []),
        Plan("paid", Decimal(50000), []),
    ]


def test_plan_is_created_without_prices(conn: psycopg.Connection):
    plan = create_plan(conn, plan_id="team", monthly_credits=Decimal("200000.5"))

    assert plan == Plan("team", Decimal("200000.5"), [])
    assert get_plan(conn, plan_id="team") == plan
    assert list_plans(conn)[-1] == plan


def test_plan_is_created_once(conn: psycopg.Connection):
    with pytest.raises(PlanExistsError) as refusal:
        create_plan(conn, plan_id="free", monthly_credits=Decimal(9))

    assert refusal.value.constraint == "plans_pkey"
    assert get_plan(conn, plan_id="free").monthly_credits == Decimal(2500)


@pytest.mark.parametrize("monthly_credits", ["-1", "NaN", "Infinity"])
def test_credits_of_a_plan_are_an_amount(
    conn: psycopg.Connection, monthly_credits: str
):
    for call in (create_plan, set_plan_credits):
        with pytest.raises(InvalidValueError):
            call(conn, plan_id="paid", monthly_credits=Decimal(monthly_credits))

    assert get_plan(conn, plan_id="paid").monthly_credits == Decimal(50000)


def test_plan_needs_an_id(conn: psycopg.Connection):
    with pytest.raises(RuleError) as refusal:
        create_plan(conn, plan_id="", monthly_credits=Decimal(9))

    assert refusal.value.constraint == "plans_id_not_empty_check"


def test_credits_of_a_plan_are_changed(conn: psycopg.Connection):
    add_plan_price(conn, plan_id="paid", stripe_price_id="price_1")

    plan = set_plan_credits(conn, plan_id="paid", monthly_credits=Decimal(60000))

    assert plan == Plan("paid", Decimal(60000), ["price_1"])
    assert get_plan(conn, plan_id="paid") == plan


def test_plan_has_any_number_of_prices(conn: psycopg.Connection):
    for price in ("price_year", "price_month", "gold-2013", "price_month"):
        found = add_plan_price(conn, plan_id="paid", stripe_price_id=price)
        assert found == PlanPrice(price, "paid")

    prices = ["gold-2013", "price_month", "price_year"]
    assert get_plan(conn, plan_id="paid").stripe_price_ids == prices
    assert list_plans(conn)[-1].stripe_price_ids == prices


def test_removed_price_buys_no_plan(conn: psycopg.Connection):
    add_plan_price(conn, plan_id="paid", stripe_price_id="price_1")
    add_plan_price(conn, plan_id="paid", stripe_price_id="price_2")

    found = remove_plan_price(conn, stripe_price_id="price_1")

    assert found == PlanPrice("price_1", "paid")
    assert get_plan(conn, plan_id="paid").stripe_price_ids == ["price_2"]
    with pytest.raises(PriceNotFoundError, match="price_1"):
        remove_plan_price(conn, stripe_price_id="price_1")
    add_plan_price(conn, plan_id="free", stripe_price_id="price_1")


def test_price_belongs_to_one_plan(conn: psycopg.Connection):
    add_plan_price(conn, plan_id="paid", stripe_price_id="price_1")

    with pytest.raises(PriceTakenError) as refusal:
        add_plan_price(conn, plan_id="free", stripe_price_id="price_1")

    assert refusal.value.constraint == "plan_prices_pkey"
    assert get_plan(conn, plan_id="free").stripe_price_ids == []
    assert get_plan(conn, plan_id="paid").stripe_price_ids == ["price_1"]


def test_price_needs_an_id(conn: psycopg.Connection):
    with pytest.raises(RuleError) as refusal:
        add_plan_price(conn, plan_id="paid", stripe_price_id="")

    assert refusal.value.constraint == "plan_prices_stripe_price_id_length_check"


@pytest.mark.parametrize("price", ["x" * 255, "Gold (2013) ä", "0"])
def test_price_has_any_shape(conn: psycopg.Connection, price: str):
    add_plan_price(conn, plan_id="paid", stripe_price_id=price)

    assert get_plan(conn, plan_id="paid").stripe_price_ids == [price]


def test_price_of_256_characters_is_refused(conn: psycopg.Connection):
    with pytest.raises(InvalidValueError, match="stripe_price_id"):
        add_plan_price(conn, plan_id="paid", stripe_price_id="x" * 256)


def test_unknown_plan_is_an_error(conn: psycopg.Connection):
    with pytest.raises(PlanNotFoundError, match="gold"):
        get_plan(conn, plan_id="gold")
    with pytest.raises(PlanNotFoundError, match="gold"):
        set_plan_credits(conn, plan_id="gold", monthly_credits=Decimal(9))
    with pytest.raises(PlanNotFoundError):
        add_plan_price(conn, plan_id="gold", stripe_price_id="price_1")


def test_concurrent_prices_of_two_plans_belong_to_one(database: str):
    """The second waits for the first, and is refused once that has committed."""
    results: list[Exception] = []

    def add() -> None:
        with connect(database) as other:
            try:
                add_plan_price(other, plan_id="free", stripe_price_id="price_1")
            except PriceTakenError as exc:
                results.append(exc)

    with connect(database) as conn, connect(database) as impatient:
        add_plan_price(conn, plan_id="paid", stripe_price_id="price_1")
        impatient.execute("SET statement_timeout = '50ms'")
        with pytest.raises(QueryCanceled):
            add_plan_price(impatient, plan_id="free", stripe_price_id="price_1")
        thread = threading.Thread(target=add)
        thread.start()
        conn.commit()
        thread.join()

    assert len(results) == 1

"""`pyapp plans`: the plans, and the Stripe prices that buy them."""

import json
from collections.abc import Iterator
from decimal import Decimal
from typing import Any

import psycopg
import pytest

from pyapp._core.connection import connect
from pyapp.plans import add_plan_price, create_plan, get_plan
from pyapp.users import create_user, get_user
from tests.support import run_cli


@pytest.fixture
def conn(
    module_database: str, monkeypatch: pytest.MonkeyPatch
) -> Iterator[psycopg.Connection]:
    """Return a connection to the database that the commands use; no plan is kept."""
    monkeypatch.setenv("DATABASE_URL", module_database)
    with connect(module_database) as connection:
        connection.autocommit = True
        yield connection
        connection.execute("DELETE FROM app.plan_prices")
        connection.execute("DELETE FROM app.plans WHERE id LIKE 'team%'")
        connection.execute(
            "UPDATE app.plans SET monthly_credits = 2500 WHERE id='free'"
        )


def shown(*arguments: str) -> list[str]:
    code, out, err = run_cli("plans", *arguments)
    assert (code, err) == (0, "")
    return out.splitlines()


def read(*arguments: str) -> list[Any]:
    return [json.loads(line) for line in shown(*arguments, "--json")]


def refused(*arguments: str) -> str:
    code, out, err = run_cli("plans", *arguments)
    assert (code in {1, 2}, out) == (True, "")
    assert err.startswith("error: ")
    assert len(err.splitlines()) == 1
    return err.removeprefix("error: ").strip()


def test_plans_are_listed_by_credits_with_each_price(conn: psycopg.Connection):
    create_plan(conn, plan_id="team", monthly_credits=Decimal("2500.50"))
    for price in ("price_year", "price_month"):
        add_plan_price(conn, plan_id="team", stripe_price_id=price)

    assert shown("list") == [
        "plan       credits a month  Stripe prices",
        "anonymous            1,000",
        "free                 2,500",
        "team               2,500.5  price_month",
        "  price_year",
        "paid                50,000",
    ]
    assert read("list")[2] == {
        "id": "team",
        "monthly_credits": "2500.50",
        "stripe_price_ids": ["price_month", "price_year"],
    }


def test_plan_is_added_with_its_prices(conn: psycopg.Connection):
    prices = ("--price", " price_1 ", "--price", "price_2")
    assert read("add", "team", "--credits", "0.75", *prices) == [
        {
            "id": "team",
            "monthly_credits": "0.75",
            "stripe_price_ids": ["price_1", "price_2"],
        }
    ]
    assert shown("add", "team2", "--credits", "1")[-1] == (
        "No price buys it yet; add one by: pyapp plans price team2 PRICE"
    )
    assert refused("add", "team", "--credits", "1") == "there is such a plan already"
    # All of a plan or nothing.
    taken = ("--price", "price_3", "--price", "price_1")
    assert "another plan" in refused("add", "team3", "--credits", "1", *taken)
    assert [plan["id"] for plan in read("list")] == [
        "team",
        "team2",
        "anonymous",
        "free",
        "paid",
    ]


@pytest.mark.parametrize("credits", ["-1", "1,000", "NaN", "1e3", "", "9" * 16])
def test_credits_are_written_in_digits(conn: psycopg.Connection, credits: str):
    reason = refused("add", "team", f"--credits={credits}")
    assert f"--credits: invalid amount {credits!r}" in reason


def test_empty_plan_is_refused(conn: psycopg.Connection):
    assert "PLAN is empty" in refused("add", " ", "--credits", "1")


def test_credits_of_a_plan_are_set(conn: psycopg.Connection):
    create_plan(conn, plan_id="team", monthly_credits=Decimal(1))

    assert shown("set", "team", "--credits", "300000")[1] == ("team          300,000")
    assert get_plan(conn, plan_id="team").monthly_credits == 300_000
    assert refused("set", "team2", "--credits", "1") == "no plan 'team2'"


def test_new_free_credits_are_for_later_users(conn: psycopg.Connection):
    early = create_user(conn, email="early@example.com")

    read("set", "free", "--credits", "3000")
    late = create_user(conn, email="late@example.com")

    assert late.base_quota == 3000
    assert get_user(conn, user_id=early.id).base_quota == 2500


def test_price_is_added_and_removed(conn: psycopg.Connection):
    create_plan(conn, plan_id="team", monthly_credits=Decimal(1))

    for _ in range(2):
        assert shown("price", "team", "price_1")[1].split() == ["team", "1", "price_1"]
    (removed,) = read("price", "team", "price_1", "--remove")
    assert removed["stripe_price_ids"] == []
    assert refused("price", "team", "price_1", "--remove") == (
        "the plan team does not have the price"
    )
    assert refused("price", "team2", "price_1") == "no plan 'team2'"


def test_price_of_another_plan_is_first_removed(conn: psycopg.Connection):
    create_plan(conn, plan_id="team", monthly_credits=Decimal(1))
    add_plan_price(conn, plan_id="team", stripe_price_id="price_1")

    assert refused("price", "paid", "price_1") == (
        "the price buys the plan team; first: pyapp plans price team PRICE --remove"
    )
    assert refused("price", "paid", "price_1", "--remove") == (
        "the plan paid does not have the price"
    )


def test_id_of_a_product_is_reported(conn: psycopg.Connection):
    code, _, err = run_cli("plans", "price", "paid", "prod_1")
    assert (code, err) == (
        0,
        "this looks like the id of a product; a subscription names a price\n",
    )

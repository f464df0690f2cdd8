"""Own prices are set once, listed, and deleted only before they are in force."""

from collections.abc import Callable
from contextlib import suppress
from datetime import UTC, datetime
from decimal import Decimal
from typing import Any

import psycopg
import pytest

from pyapp._core.connection import connect
from pyapp.errors import (
    ModelPriceExistsError,
    ModelPriceInForceError,
    ModelPriceNotFoundError,
    RuleError,
)
from pyapp.prices import (
    ModelPrice,
    delete_model_price,
    list_model_prices,
    set_model_price,
)
from tests.waiting import race

START = datetime(2026, 11, 1, tzinfo=UTC)
LATER = datetime(2100, 1, 1, tzinfo=UTC)
MODEL = "our-model"
PRICES: dict[str, Any] = {
    "model": MODEL,
    "valid_from": START,
    "input_price": Decimal(3),
    "cache_creation_price": Decimal("3.75"),
    "cache_creation_1h_price": Decimal(6),
    "cache_read_price": Decimal("0.3"),
    "output_price": Decimal(15),
}


def test_price_is_returned_and_listed_latest_first(conn: psycopg.Connection):
    first = set_model_price(conn, **PRICES)
    second = set_model_price(conn, **PRICES | {"valid_from": LATER})
    hosted = set_model_price(conn, **PRICES, provider="azure")
    other = set_model_price(conn, **PRICES | {"model": "a"})

    assert first[:8] == (
        None,
        MODEL,
        START,
        Decimal(3),
        Decimal("3.75"),
        Decimal(6),
        Decimal("0.3"),
        Decimal(15),
    )
    assert list_model_prices(conn) == [other, second, first, hosted]
    assert list_model_prices(conn, model=MODEL, limit=2) == [second, first]


def test_same_price_again_changes_nothing(conn: psycopg.Connection):
    first = set_model_price(conn, **PRICES)

    again = set_model_price(conn, **PRICES | {"output_price": Decimal("15.00")})

    assert again == first
    assert list_model_prices(conn) == [first]


@pytest.mark.parametrize("name", [n for n in ModelPrice._fields if n.endswith("price")])
def test_another_price_from_the_same_time_is_refused(
    conn: psycopg.Connection, name: str
):
    first = set_model_price(conn, **PRICES)

    with pytest.raises(ModelPriceExistsError, match="set one from a later time"):
        set_model_price(conn, **PRICES | {name: Decimal(9)})

    assert list_model_prices(conn) == [first]


@pytest.mark.parametrize(
    ("name", "id"),
    [
        ("Azure OpenAI", "azure"),
        ("AWS Bedrock", "aws"),
        ("x.ai", "x-ai"),
        ("Google AI Studio", "google"),
        ("Vertex", "vertex_ai"),
        (" Our Azure Gateway\n", "our azure gateway"),
        ("openai-eu", "openai-eu"),
    ],
)
def test_provider_is_stored_by_its_id(conn: psycopg.Connection, name: str, id: str):
    assert set_model_price(conn, **PRICES, provider=name).provider == id


def test_price_that_is_not_in_force_is_deleted(conn: psycopg.Connection):
    kept = set_model_price(conn, **PRICES)
    planned = set_model_price(conn, **PRICES | {"valid_from": LATER})

    assert delete_model_price(conn, model=MODEL, valid_from=LATER) == planned

    assert list_model_prices(conn) == [kept]
    with pytest.raises(ModelPriceNotFoundError, match=r"our-model.*2100"):
        delete_model_price(conn, model=MODEL, valid_from=LATER)


def test_price_in_force_is_not_deleted(conn: psycopg.Connection):
    price = set_model_price(conn, **PRICES)

    with pytest.raises(ModelPriceInForceError):
        delete_model_price(conn, model=MODEL, valid_from=START)

    assert list_model_prices(conn) == [price]


@pytest.mark.parametrize(
    ("changes", "rule"),
    [
        ({"output_price": None}, "model_prices_input_has_output_check"),
        (
            {"input_price": None, "output_price": None},
            "model_prices_cache_has_input_check",
        ),
        (
            {"cache_creation_price": None},
            "model_prices_cache_creation_1h_has_default_check",
        ),
    ],
)
def test_missing_price_is_refused_by_name(
    conn: psycopg.Connection, changes: dict[str, None], rule: str
):
    with pytest.raises(RuleError, match=rule) as refusal:
        set_model_price(conn, **PRICES | changes)

    assert refusal.value.constraint == rule
    assert list_model_prices(conn) == []


def test_concurrent_writers_set_the_same_price(database: str):
    prices = race(database, [lambda conn: set_model_price(conn, **PRICES)] * 4)

    assert len(set(prices)) == 1


def test_concurrent_writers_set_one_of_several_prices(database: str):
    def attempt(price: int) -> Callable[[psycopg.Connection], ModelPrice | None]:
        def run(conn: psycopg.Connection) -> ModelPrice | None:
            with suppress(ModelPriceExistsError):
                return set_model_price(conn, **PRICES | {"input_price": Decimal(price)})
            return None

        return run

    results = race(database, [attempt(price) for price in range(4)])

    with connect(database) as conn:
        assert list_model_prices(conn) == [price for price in results if price]

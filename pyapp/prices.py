"""The operator's own prices of models: contracts and gateways.

A price belongs to a provider and a model, and holds from a time until the next one of
the two. Recording applies it before the published prices.
"""

from datetime import datetime
from decimal import Decimal
from typing import Any, NamedTuple

from psycopg import Connection

from pyapp._core.new_messages import check_provider
from pyapp._core.run import atomic, fetch_all, fetch_one
from pyapp._core.sanitize import storable_text
from pyapp._core.validation import shown, storable_id, validated
from pyapp.errors import InvalidValueError, ModelPriceNotFoundError, refusal


class ModelPrice(NamedTuple):
    """Prices in USD per million tokens, from `valid_from` on.

    `provider` None is for messages without a provider. Cache writes that are kept for
    an hour cost `cache_creation_price` if `cache_creation_1h_price` is None. If
    `input_price` is None, the published price applies again from `valid_from` on.
    """

    provider: str | None
    model: str
    valid_from: datetime
    input_price: Decimal | None
    cache_creation_price: Decimal | None
    cache_creation_1h_price: Decimal | None
    cache_read_price: Decimal | None
    output_price: Decimal | None
    created_at: datetime


class UsedModel(NamedTuple):
    """The messages of one model and provider, and whether an own price covers them.

    `problem` is None, or says why the own price in force does not cover a call that
    uses what they used.
    """

    provider: str | None
    model: str
    messages: int
    last_finished_at: datetime
    has_input: bool
    has_cache_writes: bool
    has_cache_reads: bool
    has_output: bool
    has_own_price: bool
    problem: str | None


@validated
def set_model_price(
    conn: Connection[Any],
    *,
    model: str,
    valid_from: datetime,
    input_price: Decimal | None,
    output_price: Decimal | None,
    provider: str | None = None,
    cache_creation_price: Decimal | None = None,
    cache_creation_1h_price: Decimal | None = None,
    cache_read_price: Decimal | None = None,
) -> ModelPrice:
    """Set the prices of a model at a provider from a time on, and return them.

    They are in USD per million tokens, and apply to messages that are recorded from now
    on and finished at *valid_from* or later, up to the next price. Messages that are
    already recorded keep their cost, also if *valid_from* is in the past. A call that
    uses the cache has no price if that price is None. *input_price* and *output_price*
    None end the own prices: the published price applies again. Repeating it changes
    nothing.

    Raises:
        ModelPriceExistsError: there are other prices from that time; a price is never
            changed.
        RuleError: by model_prices_input_has_output_check,
            model_prices_cache_has_input_check or
            model_prices_cache_creation_1h_has_default_check, a price is missing.
    """
    with atomic(conn):
        return fetch_one(
            conn,
            ModelPrice,
            "set_model_price",
            missing=refusal("model_prices_model_valid_from_provider_key"),
            provider=check_provider("provider", provider),
            model=_model(model),
            valid_from=valid_from,
            input_price=input_price,
            cache_creation_price=cache_creation_price,
            cache_creation_1h_price=cache_creation_1h_price,
            cache_read_price=cache_read_price,
            output_price=output_price,
        )


@validated
def delete_model_price(
    conn: Connection[Any],
    *,
    model: str,
    valid_from: datetime,
    provider: str | None = None,
) -> ModelPrice:
    """Delete prices that are not yet in force, and return them.

    Raises:
        ModelPriceNotFoundError: there are no such prices.
        ModelPriceInForceError: they are in force; set others from a later time.
    """
    missing = ModelPriceNotFoundError(
        f"no own price of model {shown(model)} from {valid_from.isoformat()}"
    )
    with atomic(conn):
        return fetch_one(
            conn,
            ModelPrice,
            "delete_model_price",
            missing=missing,
            provider=check_provider("provider", provider),
            model=storable_text(model),
            valid_from=valid_from,
        )


@validated
def list_model_prices(
    conn: Connection[Any], *, model: str | None = None, limit: int = 1000
) -> list[ModelPrice]:
    """Return up to *limit* prices, of all models or one.

    They are in the order of models and providers, the latest price first.
    """
    return fetch_all(
        conn,
        ModelPrice,
        "list_model_prices",
        model=model if model is None else storable_text(model),
        limit=limit,
    )


@validated
def list_used_models(
    conn: Connection[Any], *, since: datetime, limit: int = 1000
) -> list[UsedModel]:
    """Return up to *limit* models and providers of the messages recorded *since* then.

    They are in the order of models and providers, with the own price in force now.
    """
    return fetch_all(conn, UsedModel, "list_used_models", since=since, limit=limit)


def _model(model: str) -> str | None:
    if not model:
        raise InvalidValueError("model must not be empty")
    return storable_id("model", model)

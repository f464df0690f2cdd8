# Generated from pyapp/prices.py by .ci/generate_aio.py; do not edit.
"""The operator's own prices of models: contracts and gateways.

A price belongs to a provider and a model, and holds from a time until the next one of
the two. Recording applies it before the published prices.
"""

from datetime import datetime
from decimal import Decimal
from typing import Any

from psycopg import AsyncConnection

from pyapp._core.new_messages import check_provider
from pyapp._core.run_async import atomic, fetch_all, fetch_one
from pyapp._core.sanitize import storable_text
from pyapp._core.validation import shown, validated
from pyapp.errors import ModelPriceNotFoundError, refusal
from pyapp.prices import ModelPrice, UsedModel, _model


@validated
async def set_model_price(
    conn: AsyncConnection[Any],
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
    async with atomic(conn):
        return await fetch_one(
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
async def delete_model_price(
    conn: AsyncConnection[Any],
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
    async with atomic(conn):
        return await fetch_one(
            conn,
            ModelPrice,
            "delete_model_price",
            missing=missing,
            provider=check_provider("provider", provider),
            model=storable_text(model),
            valid_from=valid_from,
        )


@validated
async def list_model_prices(
    conn: AsyncConnection[Any], *, model: str | None = None, limit: int = 1000
) -> list[ModelPrice]:
    """Return up to *limit* prices, of all models or one.

    They are in the order of models and providers, the latest price first.
    """
    return await fetch_all(
        conn,
        ModelPrice,
        "list_model_prices",
        model=model if model is None else storable_text(model),
        limit=limit,
    )


@validated
async def list_used_models(
    conn: AsyncConnection[Any], *, since: datetime, limit: int = 1000
) -> list[UsedModel]:
    """Return up to *limit* models and providers of the messages recorded *since* then.

    They are in the order of models and providers, with the own price in force now.
    """
    return await fetch_all(
        conn, UsedModel, "list_used_models", since=since, limit=limit
    )

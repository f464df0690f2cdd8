"""Stored costs compared with the prices of the present tables; nothing is changed.

The prices are those in force when each message finished: the own price, else the
published price. Tiers, searches, other units and the time for which cache writes are
kept are not stored, so that a message is compared as a plain call.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime
from decimal import Decimal
from typing import Any, NamedTuple

import psycopg
from psycopg.rows import namedtuple_row

from pyapp._core.queries import TOOL_QUERIES
from pyapp._core.validation import MAX_INTEGER
from pyapp.prices import list_model_prices, list_used_models
from pyapp.pricing import published_price

# The date of a release, as OpenAI, Anthropic, Vertex AI and Bedrock write it.
_RELEASE = re.compile(r"[-@:](latest|\d{4}-?\d\d-?\d\d)(-v\d+(:\d+)?)?$", re.ASCII)


@dataclass(slots=True)
class PricedMessages:
    """The messages of one provider and model that finished in a range.

    `cost` is the stored cost in USD, and `cost_today` the cost by the present tables,
    both of the `messages` that have a price today. The other messages are `unpriced`;
    `reason` is why the first of them has no price.
    """

    provider: str | None
    model: str
    messages: int = 0
    cost: Decimal = Decimal(0)
    cost_today: Decimal = Decimal(0)
    unpriced: int = 0
    unpriced_cost: Decimal = Decimal(0)
    reason: str | None = None


class ModelCheck(NamedTuple):
    """A model that messages use; `price` is own or published, None for `reason`."""

    provider: str | None
    model: str
    messages: int
    price: str | None
    reason: str | None


class UnusedPrice(NamedTuple):
    """An own price in force that applies to no message.

    `similar` are the providers and models of messages with the same model or, without
    any, with another spelling of its name, such as one with the date of its release.
    """

    provider: str | None
    model: str
    similar: tuple[tuple[str | None, str], ...]


def compare_prices(
    conn: psycopg.Connection[Any], *, since: datetime, until: datetime
) -> list[PricedMessages]:
    """Compare the messages that finished from *since* until before *until*.

    Messages are read one by one, so that memory stays flat. The result is in the order
    of models and providers.
    """
    found: dict[tuple[str | None, str], PricedMessages] = {}
    for row in _stream(conn, since, until):
        key = (row.provider, row.model)
        group = found.get(key)
        if group is None:
            group = found[key] = PricedMessages(*key)
        cost, reason = row.own_cost, row.problem
        if cost is None and reason is None:
            price = published_price(
                provider=row.provider,
                model=row.model,
                finished_at=row.finished_at,
                input_tokens=row.input_tokens,
                cache_creation_input_tokens=row.cache_creation_input_tokens,
                cache_read_input_tokens=row.cache_read_input_tokens,
                output_tokens=row.output_tokens,
            )
            cost, reason = price.cost, price.reason
        if cost is None:
            group.unpriced += 1
            group.unpriced_cost += row.cost
            group.reason = group.reason or reason
        else:
            group.messages += 1
            group.cost += row.cost
            group.cost_today += cost
    return sorted(found.values(), key=lambda g: (g.model, g.provider or ""))


def check_prices(
    conn: psycopg.Connection[Any], *, since: datetime, at: datetime
) -> tuple[list[ModelCheck], list[UnusedPrice]]:
    """Return which models of the messages recorded *since* have a price *at* a time.

    The second list has the own prices in force that apply to none of the messages.
    """
    used = list_used_models(conn, since=since, limit=MAX_INTEGER)
    checks = []
    for model in used:
        price, reason = ("own" if model.has_own_price else None), model.problem
        if price is None and reason is None:
            published = published_price(
                provider=model.provider,
                model=model.model,
                finished_at=at,
                input_tokens=int(model.has_input),
                cache_creation_input_tokens=int(model.has_cache_writes),
                cache_read_input_tokens=int(model.has_cache_reads),
                output_tokens=int(model.has_output),
            )
            price = None if published.cost is None else "published"
            reason = published.reason
        checks.append(
            ModelCheck(model.provider, model.model, model.messages, price, reason)
        )
    names = [(model.provider, model.model) for model in used]
    unused = [
        UnusedPrice(provider, model, tuple(_similar(model, names)))
        for provider, model in _in_force(conn, at)
        if (provider, model) not in names
    ]
    return checks, unused


def _similar(
    model: str, names: list[tuple[str | None, str]]
) -> list[tuple[str | None, str]]:
    """Return the names with this model or, without any, with another spelling of it."""
    same = [name for name in names if name[1] == model]
    own = _spelling(model)
    return same or [name for name in names if _spelling(name[1]) == own]


def _spelling(model: str) -> str:
    """Return the letters and digits of a model's name, without a host and a date."""
    name = model.casefold().rpartition("/")[2]
    return re.sub(r"\W|_", "", _RELEASE.sub("", name))


def _in_force(
    conn: psycopg.Connection[Any], at: datetime
) -> list[tuple[str | None, str]]:
    """Return the provider and model of each own price in force."""
    found: dict[tuple[str | None, str], bool] = {}
    for price in list_model_prices(conn, limit=MAX_INTEGER):
        # The latest price is first; without an input price, it ends the own prices.
        if price.valid_from <= at:
            found.setdefault(
                (price.provider, price.model), price.input_price is not None
            )
    return [key for key, is_price in found.items() if is_price]


def _stream(
    conn: psycopg.Connection[Any], since: datetime, until: datetime
) -> Iterator[Any]:
    with conn.cursor(row_factory=namedtuple_row) as cursor:
        yield from cursor.stream(
            TOOL_QUERIES["stream_message_prices"].sql, {"since": since, "until": until}
        )

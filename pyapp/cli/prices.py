"""`pyapp prices set | end | delete | list | check | report`."""

from collections.abc import Iterator
from datetime import UTC, datetime, time, timedelta
from decimal import Decimal
from textwrap import wrap
from typing import Annotated, Any

import typer

from pyapp._core.connection import connect
from pyapp._core.validation import MAX_INTEGER
from pyapp.cli.arguments import (
    AsJson,
    AsJsonLines,
    parse_amount,
    parse_duration,
    parse_time,
)
from pyapp.cli.console import (
    counted,
    format_amount,
    print_json,
    print_table,
    say,
    warn,
)
from pyapp.errors import ModelPriceNotFoundError, UnknownModelError
from pyapp.price_report import (
    ModelCheck,
    PricedMessages,
    UnusedPrice,
    check_prices,
    compare_prices,
)
from pyapp.prices import (
    ModelPrice,
    delete_model_price,
    list_model_prices,
    list_used_models,
    set_model_price,
)

NO_PROVIDER = "no provider"
MAX_PROVIDER = 14
_PRICES = ("input", "output", "cache reads", "cache writes", "1h writes")
_LIST_HEADER = ("model", "provider", "from", "input", "output", "read", "write", "1h")
_REPORT_HEADER = (
    "model",
    "provider",
    "messages",
    "stored",
    "today",
    "difference",
    "unpriced",
)
_CHECK_HEADER = ("model", "provider", "messages", "price")
_NOT_STORED = (
    "Tiers, searches, other units and 1-hour cache writes are not stored: each call",
    "is compared as a plain one.",
)

Model = Annotated[
    str, typer.Argument(metavar="MODEL", help="Name, as the messages have it.")
]
Provider = Annotated[
    str | None,
    typer.Option(
        metavar="NAME", help="As the messages have it; default: those without one."
    ),
]
From = Annotated[
    str,
    typer.Option("--from", metavar="TIME|now", help="When it begins to hold, in UTC."),
]
Since = Annotated[
    str | None,
    typer.Option(metavar="TIME", help="Default: the first of this month, in UTC."),
]
Until = Annotated[
    str | None, typer.Option(metavar="TIME", help="Not included; default: now.")
]
Price = Annotated[
    str | None, typer.Option(metavar="USD", help="Per million tokens; default: none.")
]


def register(app: typer.Typer) -> None:
    """Add the commands to `pyapp prices`."""
    app.command("set")(set_price)
    app.command()(end)
    app.command()(delete)
    app.command("list")(list_all)
    app.command()(check)
    app.command()(report)


def set_price(
    model: Model,
    input: Annotated[
        str, typer.Option(metavar="USD", help="Input, per million tokens.")
    ],
    output: Annotated[
        str, typer.Option(metavar="USD", help="Output, per million tokens.")
    ],
    valid_from: From,
    provider: Provider = None,
    cache_read: Price = None,
    cache_write: Price = None,
    cache_write_1h: Price = None,
    as_json: AsJson = False,
) -> None:
    """Set a model's own prices in USD per million tokens.

    They hold from a time until the next ones, before the published prices. A call that
    reads or writes the cache has no price unless that price is given.
    """
    moment = _moment(valid_from)
    prices = {
        "input_price": _parse_price("--input", input),
        "output_price": _parse_price("--output", output),
        "cache_read_price": _parse_price("--cache-read", cache_read),
        "cache_creation_price": _parse_price("--cache-write", cache_write),
        "cache_creation_1h_price": _parse_price("--cache-write-1h", cache_write_1h),
    }
    with connect() as conn:
        found = set_model_price(
            conn, model=model, provider=provider, valid_from=moment, **prices
        )
        since = datetime.now(UTC) - timedelta(days=30)
        used = list_used_models(conn, since=since, limit=MAX_INTEGER)
    if as_json:
        print_json(found._asdict())
    else:
        costs = (
            f"{name} {format_amount(price)}" for name, price in _named_prices(found)
        )
        say(f"{_name(found)} from {_format_time(moment)}: {', '.join(costs)}")
    missing = [
        use
        for use, price in (
            ("read", found.cache_read_price),
            ("write", found.cache_creation_price),
        )
        if price is None
    ]
    if missing:
        warn(f"calls that {' or '.join(missing)} the cache have no price")
    providers = [name.provider for name in used if name.model == found.model]
    if providers and found.provider not in providers:
        others = ", ".join(name or NO_PROVIDER for name in providers)
        warn(f"the model's messages of the last 30 days have other providers: {others}")
    _warn_of_the_past(moment)


def end(
    model: Model, valid_from: From, provider: Provider = None, as_json: AsJson = False
) -> None:
    """End a model's own prices: the published price applies again."""
    moment = _moment(valid_from)
    with connect() as conn:
        found = set_model_price(
            conn,
            model=model,
            provider=provider,
            valid_from=moment,
            input_price=None,
            output_price=None,
        )
        earlier = (
            price.input_price
            for price in list_model_prices(conn, model=found.model, limit=MAX_INTEGER)
            if price.provider == found.provider and price.valid_from < moment
        )
        # Without one, the model or provider is spelled wrong.
        if next(earlier, None) is None:
            raise ModelPriceNotFoundError(
                f"{_name(found)} has no own price at {_format_time(moment)} to end;"
                " see: pyapp prices list"
            )
    if as_json:
        print_json(found._asdict())
    else:
        say(f"{_name(found)} from {_format_time(moment)}: published price")
    _warn_of_the_past(moment)


def delete(
    model: Model, valid_from: From, provider: Provider = None, as_json: AsJson = False
) -> None:
    """Delete prices that are not yet in force."""
    with connect() as conn:
        found = delete_model_price(
            conn, model=model, provider=provider, valid_from=_moment(valid_from)
        )
    if as_json:
        print_json(found._asdict())
    else:
        say(f"{_name(found)} from {_format_time(found.valid_from)}: deleted")


def list_all(as_json: AsJsonLines = False) -> None:
    """List all own prices by model and provider, the latest first."""
    with connect() as conn:
        prices = list_model_prices(conn, limit=MAX_INTEGER)
    if as_json:
        for price in prices:
            print_json(price._asdict())
    elif not prices:
        say("there are no own prices; set one by: pyapp prices set MODEL")
    else:
        print_table(
            _LIST_HEADER,
            map(_list_cells, prices),
            numbers=_LIST_HEADER[3:],
        )


def check(
    within: Annotated[
        str, typer.Option(metavar="DURATION", help="Messages recorded in this time.")
    ] = "30d",
    as_json: AsJsonLines = False,
) -> None:
    """Check that the models of recent messages have a price today.

    Ends with status 1 if one has none: the next call would not be recorded.
    """
    now = datetime.now(UTC)
    with connect() as conn:
        checks, unused = check_prices(conn, since=now - parse_duration(within), at=now)
    if as_json:
        for each in checks:
            print_json({"record": "model", **each._asdict()})
        for price in unused:
            print_json({"record": "unused", **_unused_object(price)})
    elif not checks:
        say(f"no messages were recorded in the last {within}")
    else:
        print_table(
            _CHECK_HEADER,
            map(_check_cells, checks),
            numbers=_CHECK_HEADER[2:3],
            style=lambda cells: "red" if cells[-1] == "none" else None,
        )
        for price in unused:
            for line in _unused_lines(price, within):
                say(line)
    unpriced = sum(found.price is None for found in checks)
    if unpriced:
        models = counted(unpriced, "model has", "models have")
        raise UnknownModelError(
            f"{models} no price: set one by: pyapp prices set MODEL"
        )


def report(
    since: Since = None, until: Until = None, as_json: AsJsonLines = False
) -> None:
    """Compare stored costs with today's price tables, by model and provider.

    Each message is priced for the time at which it finished. Nothing is changed.
    """
    start, stop = _parse_range(since, until)
    with connect() as conn:
        found = compare_prices(conn, since=start, until=stop)
    if as_json:
        for group in found:
            print_json(_report_object(group))
        return
    if not found:
        bounds = (_format_time(bound.replace(microsecond=0)) for bound in (start, stop))
        say(f"no messages from {' until '.join(bounds)}")
        return
    total = PricedMessages(None, "total")
    for group in found:
        total.messages += group.messages
        total.cost += group.cost
        total.cost_today += group.cost_today
        total.unpriced += group.unpriced
        total.unpriced_cost += group.unpriced_cost
    decimals = 2 if max(total.cost, total.cost_today) >= 1000 else 6
    rows = [_report_cells(group, decimals) for group in [*found, total]]
    print_table(
        _REPORT_HEADER,
        rows,
        numbers=_REPORT_HEADER[2:],
    )
    if total.unpriced:
        cost = f"{total.unpriced_cost:,.{decimals}f}"
        say(
            f"messages without a price today: {total.unpriced:,}, {cost} USD;"
            " the sums leave them out"
        )
    for line in _NOT_STORED:
        say(line)


def _parse_range(since: str | None, until: str | None) -> tuple[datetime, datetime]:
    now = datetime.now(UTC)
    month = datetime.combine(now.date().replace(day=1), time(), UTC)
    start, stop = parse_time(since) or month, parse_time(until) or now
    if start >= stop:
        raise typer.BadParameter("--since must be before --until")
    return start, stop


def _moment(text: str) -> datetime:
    moment = parse_time(text)
    assert moment is not None
    # A whole second, which can be typed to delete the price.
    return moment.replace(microsecond=0) if text == "now" else moment


def _parse_price(option: str, text: str | None) -> Decimal | None:
    if text is None:
        return None
    form = "USD per million tokens, as 1.25"
    return parse_amount(option, text, noun="price", form=form)


def _warn_of_the_past(moment: datetime) -> None:
    if moment < datetime.now(UTC) - timedelta(minutes=1):
        warn("recorded messages keep their cost; compare by: pyapp prices report")


def _named_prices(price: ModelPrice) -> Iterator[tuple[str, Decimal]]:
    for name, value in zip(_PRICES, _values(price), strict=True):
        if value is not None:
            yield name, value


def _values(price: ModelPrice) -> tuple[Decimal | None, ...]:
    return (
        price.input_price,
        price.output_price,
        price.cache_read_price,
        price.cache_creation_price,
        price.cache_creation_1h_price,
    )


def _name(price: ModelPrice | UnusedPrice) -> str:
    return f"{price.model} ({price.provider or NO_PROVIDER})"


def _provider(provider: str | None) -> str:
    """Return the cell; a long name is cut, so that a table fits 80 columns."""
    name = provider or ""
    if len(name) <= MAX_PROVIDER:
        return name
    return name[: MAX_PROVIDER - 1] + "\N{HORIZONTAL ELLIPSIS}"


def _notes(provider: str | None, reason: str | None = None) -> list[str]:
    """Return the lines below a row: a provider that is cut, and the reason."""
    is_cut = provider is not None and len(provider) > MAX_PROVIDER
    lines = _wrap(f"provider: {provider}") if is_cut else []
    return [*lines, *_wrap(reason or "")]


def _format_time(moment: datetime) -> str:
    moment = moment.astimezone(UTC)
    if moment.time() == time():
        return f"{moment:%Y-%m-%d}"
    if moment.microsecond or moment.second:
        return moment.replace(tzinfo=None).isoformat(" ")
    return f"{moment:%Y-%m-%d %H:%M}"


def _list_cells(price: ModelPrice) -> tuple[str, ...]:
    shown = ["" if value is None else format_amount(value) for value in _values(price)]
    if price.input_price is None:
        shown[0] = "published"
    when = _format_time(price.valid_from)
    cells = (price.model, _provider(price.provider), when, *shown)
    return (*cells, *_notes(price.provider))


def _check_cells(found: ModelCheck) -> tuple[str, ...]:
    cells = (
        found.model,
        _provider(found.provider),
        f"{found.messages:,}",
        found.price or "none",
    )
    return (*cells, *_notes(found.provider, found.reason))


def _unused_lines(price: UnusedPrice, within: str) -> list[str]:
    text = f"the own price of {_name(price)} applies to no message of the last {within}"
    if price.similar:
        names = (f"{model} ({name or NO_PROVIDER})" for name, model in price.similar)
        text += f"; messages name {', '.join(names)}"
    return _wrap(text)


def _unused_object(price: UnusedPrice) -> dict[str, Any]:
    similar = [{"provider": name, "model": model} for name, model in price.similar]
    return {**price._asdict(), "similar": similar}


def _wrap(text: str) -> list[str]:
    """Return *text* in lines that fit below a table of 80 columns."""
    return wrap(text, 76, break_on_hyphens=False)


def _report_object(group: PricedMessages) -> dict[str, Any]:
    """Return the JSON object; docs/prices.md documents its keys."""
    return {
        "provider": group.provider,
        "model": group.model,
        "messages": group.messages,
        "cost": group.cost,
        "cost_today": group.cost_today,
        "difference": group.cost_today - group.cost,
        "unpriced": group.unpriced,
        "unpriced_cost": group.unpriced_cost,
        "reason": group.reason,
    }


def _report_cells(group: PricedMessages, decimals: int) -> tuple[str, ...]:
    cells = (
        group.model,
        _provider(group.provider),
        f"{group.messages:,}",
        f"{group.cost:,.{decimals}f}",
        f"{group.cost_today:,.{decimals}f}",
        f"{group.cost_today - group.cost:+,.{decimals}f}",
        f"{group.unpriced:,}",
    )
    return (*cells, *_notes(group.provider, group.reason))

"""`pyapp prices` sets, lists, checks and compares the operator's own prices."""

import json
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from pathlib import Path
from typing import Any
from uuid import UUID

import psycopg
import pytest

from pyapp.messages import list_messages, record_messages
from pyapp.prices import (
    UsedModel,
    list_model_prices,
    list_used_models,
    set_model_price,
)
from pyapp.pricing import price_usage
from tests.metering import add_user, new_message, usage_differences
from tests.support import run_cli, use_terminal

PAGE = Path(__file__).parents[1] / "docs" / "prices.md"
NOON = datetime(2026, 11, 10, 12, tzinfo=UTC)
TOKENS = {
    "input_tokens": 1_000_000,
    "cache_creation_input_tokens": 0,
    "cache_read_input_tokens": 0,
    "output_tokens": 0,
}


@pytest.fixture
def conn(committing: psycopg.Connection) -> psycopg.Connection:
    return committing


def shown(*arguments: str) -> list[str]:
    code, out, err = run_cli("prices", *arguments)

    assert (code, err) == (0, "")
    return out.splitlines()


def refused(*arguments: str) -> str:
    code, _, err = run_cli("prices", *arguments)

    assert code != 0
    return err.splitlines()[-1]


def record(conn: psycopg.Connection, **values: object) -> UUID:
    """Record a message of a new user, and return the user."""
    user_id = add_user(conn)
    message = new_message(**{"finished_at": NOON, **TOKENS, **values})
    record_messages(conn, [message], user_id=user_id, margin=Decimal(0))
    return user_id


def set_price(conn: psycopg.Connection, model: str, **values: Any) -> None:
    """Set the own price of a model from noon on: 1 USD unless *values* differ."""
    defaults = {"input_price": Decimal(1), "output_price": Decimal(1)}
    set_model_price(conn, model=model, **{"valid_from": NOON, **defaults, **values})


def test_price_is_set_listed_ended_and_deleted(conn: psycopg.Connection):
    prices = ("--input", "1.10", "--output", "8.8", "--cache-read", "0.11")
    code, out, err = run_cli(
        "prices", "set", "gpt-5", "--provider", "azure", *prices, "--from", "2026-11-01"
    )

    assert code == 0
    assert out == (
        "gpt-5 (azure) from 2026-11-01: input 1.1, output 8.8, cache reads 0.11\n"
    )
    assert err.splitlines() == [
        "calls that write the cache have no price",
        "recorded messages keep their cost; compare by: pyapp prices report",
    ]
    every = ("--cache-write", "3.75", "--cache-write-1h", "6")
    assert shown("set", "m", *prices, *every, "--from", "2100-01-01T06:30") == [
        "m (no provider) from 2100-01-01 06:30: input 1.1, output 8.8,"
        " cache reads 0.11,",
        "cache writes 3.75, 1h writes 6",
    ]
    assert shown("end", "m", "--from", "2100-02-01") == [
        "m (no provider) from 2100-02-01: published price"
    ]
    assert shown("list") == [
        "model  provider  from                  input  output  read  write  1h",
        "gpt-5  azure     2026-11-01              1.1     8.8  0.11",
        "m                2100-02-01        published",
        "m                2100-01-01 06:30        1.1     8.8  0.11   3.75   6",
    ]
    assert shown("delete", "m", "--from", "2100-02-01") == [
        "m (no provider) from 2100-02-01: deleted"
    ]
    assert len(list_model_prices(conn)) == 2


def test_price_for_another_provider_than_the_messages_is_named(
    conn: psycopg.Connection,
):
    for provider in ("anthropic", None):
        record(conn, model="claude", provider=provider)
    conn.commit()
    prices = ("--input", "1", "--output", "1", "--from", "2100-01-01")
    found = {}
    for provider in ("azure", "anthropic"):
        _, _, err = run_cli("prices", "set", "claude", *prices, "--provider", provider)
        found[provider] = err.splitlines()[1:]

    assert found == {
        "azure": [
            "the model's messages of the last 30 days have other providers:"
            " no provider, anthropic"
        ],
        "anthropic": [],
    }


def test_end_of_no_own_price_is_refused(conn: psycopg.Connection):
    """A misspelled name would leave the own price in force in silence."""
    set_price(conn, "m", valid_from=datetime(2100, 1, 1, tzinfo=UTC))
    conn.commit()
    for model, provider, time in (
        ("M", (), "2100-02-01"),
        ("m", ("--provider", "azure"), "2100-02-01"),
        ("m", (), "2099-12-31"),
    ):
        code, out, err = run_cli("prices", "end", model, *provider, "--from", time)
        assert (code, out) == (1, "")
        assert f"has no own price at {time} to end" in err

    assert len(list_model_prices(conn)) == 1


def test_list_in_json_has_exact_numbers(conn: psycopg.Connection):
    shown(
        *("set", "m", "--input", "0.10", "--output", "1", "--cache-read", "0"),
        *("--cache-write", "1", "--from", "2100-01-01"),
    )

    (line,) = shown("list", "--json")

    found = json.loads(line)
    assert (found["input_price"], found["cache_creation_1h_price"]) == ("0.10", None)
    assert (found["provider"], found["valid_from"][:10]) == (None, "2100-01-01")


def test_present_time_is_a_whole_second(conn: psycopg.Connection):
    before = datetime.now(UTC) - timedelta(seconds=1)
    code, _, _ = run_cli(
        "prices", "set", "m", "--input", "1", "--output", "1", "--from", "now"
    )

    (price,) = list_model_prices(conn)
    assert code == 0
    assert price.valid_from.microsecond == 0
    assert before <= price.valid_from <= datetime.now(UTC)


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        (("--input", "1,5", "--output", "1", "--from", "now"), "write USD per million"),
        (("--input", "-1", "--output", "1", "--from", "now"), "write USD per million"),
        (("--input", "NaN", "--output", "1", "--from", "now"), "write USD per million"),
        (("--input", "1", "--output", "1", "--from", "tomorrow"), "invalid time"),
        (("--input", "1", "--from", "now"), "Missing option '--output'"),
        (
            (
                *("--input", "1", "--output", "1", "--cache-write-1h", "1"),
                *("--from", "now"),
            ),
            "needs one of cache writes",
        ),
    ],
)
def test_invalid_price_is_refused(
    conn: psycopg.Connection, arguments: tuple[str, ...], reason: str
):
    assert reason in refused("set", "m", *arguments)
    assert list_model_prices(conn) == []


def test_price_in_force_stays(conn: psycopg.Connection):
    prices = ("--input", "1", "--output", "1", "--from", "2026-11-01")
    run_cli("prices", "set", "m", *prices)

    assert refused("delete", "m", "--from", "2026-11-01") == (
        "error: the price is in force: set one from a later time"
    )
    assert "a price is never changed" in refused(
        "set", "m", "--input", "2", *prices[2:]
    )
    assert "no own price of model 'n'" in refused("delete", "n", "--from", "2026-11-01")


def test_empty_database_says_so(conn: psycopg.Connection):
    assert shown("list") == [
        "there are no own prices; set one by: pyapp prices set MODEL"
    ]
    assert shown("list", "--json") == []
    assert shown("check") == ["no messages were recorded in the last 30d"]
    assert shown("report", "--since", "2026-11-01", "--until", "2026-11-02") == [
        "no messages from 2026-11-01 until 2026-11-02"
    ]


def test_check_names_models_without_a_price(conn: psycopg.Connection):
    for model, provider in (
        ("gpt-5", None),
        ("our-model", None),
        ("our-model", "azure"),
    ):
        record(conn, model=model, provider=provider)
    for model, provider in (("our-model", "azure"), ("gpt-5", "groq")):
        set_price(conn, model, provider=provider)

    code, out, err = run_cli("prices", "check")

    assert code == 1
    assert err == "error: 1 model has no price: set one by: pyapp prices set MODEL\n"
    lines = out.splitlines()
    assert lines[:4] == [
        "model      provider  messages  price",
        "gpt-5                       1  published",
        "our-model                   1  none",
        lines[3],
    ]
    assert "our-model" in lines[3]
    assert lines[-3:] == [
        "our-model  azure            1  own",
        "the own price of gpt-5 (groq) applies to no message of the last 30d;",
        "messages name gpt-5 (no provider)",
    ]


def test_check_prices_the_cache_if_messages_use_it(conn: psycopg.Connection):
    record(conn, model="our-model", cache_read_input_tokens=5)
    set_price(conn, "our-model")

    code, out, _ = run_cli("prices", "check", "--within", "1h")

    assert code == 1
    assert "does not include cache reads" in " ".join(out.split())


def test_check_asks_for_the_prices_that_messages_need(conn: psycopg.Connection):
    """Embedding models have no output, and no price of it."""
    record(conn, model="text-embedding-3-small")

    assert shown("check")[1:] == [
        "text-embedding-3-small                   1  published"
    ]


@pytest.mark.parametrize(
    ("model", "end"),
    [
        ("GPT-5", "; messages name gpt-5-2025-08-07 (no provider)"),
        ("openai/gpt-5-2025-08-07", "; messages name gpt-5-2025-08-07 (no provider)"),
        ("gpt-5-mini", ""),
        ("gpt", ""),
    ],
)
def test_check_names_a_price_of_another_spelling(
    conn: psycopg.Connection, model: str, end: str
):
    record(conn, model="gpt-5-2025-08-07")
    set_price(conn, model)

    text = " ".join(shown("check"))

    assert text.endswith(
        f"own price of {model} (no provider) applies to no message of the last 30d{end}"
    )


def test_check_ignores_old_messages_and_ended_prices(conn: psycopg.Connection):
    record(conn, model="gpt-5")
    for moment, price in ((NOON, Decimal(1)), (NOON + timedelta(days=1), None)):
        set_price(
            conn,
            "gpt-5",
            provider="groq",
            valid_from=moment,
            input_price=price,
            output_price=price,
        )

    assert shown("check")[1:] == ["gpt-5                   1  published"]
    assert shown("check", "--within", "0s") == [
        "no messages were recorded in the last 0s"
    ]


def compare(*arguments: str) -> dict[tuple[str, str | None], dict[str, Any]]:
    lines = shown("report", "--since", "2026-11-10", *arguments, "--json")
    found = [json.loads(line, parse_float=Decimal) for line in lines]
    return {(group["model"], group["provider"]): group for group in found}


def test_report_compares_stored_costs_with_the_prices_of_today(
    conn: psycopg.Connection,
):
    published = price_usage(
        model="gpt-5",
        finished_at=NOON,
        input_tokens=1_000_000,
        cache_creation_input_tokens=0,
        cache_read_input_tokens=0,
        output_tokens=0,
    )
    users = [
        record(conn, model="gpt-5", cost=published),
        record(conn, model="gpt-5", cost=Decimal(1), provider="azure"),
        record(conn, model="gpt-5", cost=Decimal(1), provider="azure"),
        record(conn, model="our-model", cost=Decimal(5)),
        record(conn, model="gpt-5", finished_at=NOON - timedelta(days=1)),
    ]
    set_price(
        conn,
        "gpt-5",
        provider="azure",
        input_price=Decimal("1.25"),
        output_price=Decimal(9),
    )
    before = [list_messages(conn, subject_id=user_id) for user_id in users]

    found = compare()

    assert list(found) == [("gpt-5", None), ("gpt-5", "azure"), ("our-model", None)]
    assert found["gpt-5", None]["messages"] == 1
    assert Decimal(found["gpt-5", None]["difference"]) == 0
    assert Decimal(found["gpt-5", "azure"]["cost"]) == 2
    assert Decimal(found["gpt-5", "azure"]["cost_today"]) == Decimal("2.5")
    assert Decimal(found["gpt-5", "azure"]["difference"]) == Decimal("0.5")
    assert found["our-model", None]["messages"] == 0
    assert found["our-model", None]["unpriced"] == 1
    assert Decimal(found["our-model", None]["unpriced_cost"]) == 5
    assert "our-model" in found["our-model", None]["reason"]
    assert [list_messages(conn, subject_id=user_id) for user_id in users] == before
    assert usage_differences(conn) == []


def test_report_covers_a_half_open_range(conn: psycopg.Connection):
    for finished_at in (NOON, NOON + timedelta(hours=1)):
        record(conn, model="gpt-5", finished_at=finished_at)

    found = compare("--until", "2026-11-10T13:00")

    assert found["gpt-5", None]["messages"] == 1
    assert "--since must be before --until" in refused(
        "report", "--since", "2026-11-10", "--until", "2026-11-10"
    )


def test_page_documents_the_keys_of_the_report(conn: psycopg.Connection):
    record(conn, model="gpt-5")
    text = PAGE.read_text(encoding="utf-8")

    (group,) = compare().values()

    assert [key for key in group if f"`{key}`" not in text] == []


def test_long_names_are_shown_whole_in_80_columns(conn: psycopg.Connection):
    names = [f"a-model-with-a-name-of-{'x' * 60}-{end}" for end in "ab"]
    for name in names:
        record(conn, model=name, provider="a-gateway-of-ours")
        prices = ("--input", "1", "--output", "1", "--from", "2026-11-01")
        run_cli("prices", "set", name, *prices)
    report = ("report", "--since", "2026-11-10", "--until", "2026-11-11")

    for words in (report, ("list",), ("check",)):
        _, out, _ = run_cli("prices", *words)
        lines = out.splitlines()

        assert max(map(len, lines)) <= 80, lines
        whole = out.replace("\n", "").replace(" ", "")
        assert [name for name in names if name not in whole] == []
        assert words[0] == "list" or whole.count("provider:a-gateway-of-ours") == 2


def test_report_fits_a_terminal_of_80_columns(
    conn: psycopg.Connection, monkeypatch: pytest.MonkeyPatch
):
    read_screen = use_terminal(monkeypatch)
    for model in ("gpt-5", "x" * 200):
        record(conn, model=model, provider="p" * 200, cost=Decimal("1234567.891"))
    record(conn, model="gpt-5", cost=Decimal("123456.7"))
    set_price(conn, "gpt-5", provider="p" * 200)

    shown("report", "--since", "2026-11-10")
    run_cli("prices", "check")
    shown("list")

    lines = read_screen()
    assert len(lines) > 12
    assert max(map(len, lines)) <= 80, lines
    (total,) = (line.split() for line in lines if line.startswith("total"))
    assert total == ["total", "2", "1,358,024.59", "2.25", "-1,358,022.34", "1"]
    unpriced = "messages without a price today: 1, 1,234,567.89 USD;"
    assert unpriced in " ".join(lines)


def test_used_models_are_listed_with_their_own_price(conn: psycopg.Connection):
    user_id = add_user(conn)
    now = datetime.now(UTC)
    for provider in (None, "azure", "groq"):
        messages = [
            new_message(model="m", provider=provider),
            new_message(model="m", provider=provider, cache_read_input_tokens=0),
        ]
        record_messages(conn, messages, user_id=user_id)
    for provider, price in ((None, Decimal(1)), ("azure", None)):
        set_price(
            conn,
            "m",
            provider=provider,
            input_price=Decimal(3),
            cache_creation_price=Decimal(3),
            cache_read_price=price,
            output_price=Decimal(15),
        )

    found = list_used_models(conn, since=now - timedelta(hours=1))

    assert [model.provider for model in found] == [None, "azure", "groq"]
    assert {model[1:3] for model in found} == {("m", 2)}
    assert {model[4:8] for model in found} == {(True, True, True, True)}
    assert all(isinstance(model, UsedModel) for model in found)
    assert [model.has_own_price for model in found] == [True, False, False]
    assert [bool(model.problem) for model in found] == [False, True, False]
    assert list_used_models(conn, since=now + timedelta(days=1)) == []

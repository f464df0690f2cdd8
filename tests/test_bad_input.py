"""Every function accepts or refuses every argument, with one line of error.

The arguments are in tests/bad_input. A refusal changes no row, and the caller's
transaction can go on.
"""

import importlib.util
import inspect
import itertools
from collections.abc import Callable, Iterator
from decimal import Decimal
from typing import Any
from uuid import UUID

import psycopg
import pytest
from psycopg.pq import TransactionStatus

from pyapp._core.connection import connect
from pyapp._core.sanitize import storable_text
from pyapp.errors import InvalidValueError, PyappError
from pyapp.messages import (
    find_message_payload,
    list_messages,
    record_message,
)
from pyapp.referrals import list_referrals
from pyapp.stripe_sync.events import list_events, list_failed_events
from pyapp.usage import get_client_usage
from pyapp.users import create_user, get_user, set_user_profile
from tests.bad_input.functions import (
    Arguments,
    Parameter,
    arguments_for,
    fitting_arguments,
    message_fields,
    public_parameters,
)
from tests.bad_input.values import TEN_MEGABYTES, TEXTS, WRONG_TYPES
from tests.support import ROW_COUNTS

MOST = 200  # characters of a message
CALL: Any = {"model": "m", "cost": Decimal("0.5")}
BY_FUNCTION = {
    function: list(parameters)
    for function, parameters in itertools.groupby(
        [*public_parameters(), *message_fields()], lambda found: found.function_name
    )
}


class Untouched:
    """A connection whose attributes cannot be used."""

    def __getattr__(self, name: str) -> Any:
        raise LookupError(name)


@pytest.fixture(scope="module")
def world(shared_database: str) -> Iterator[tuple[psycopg.Connection[Any], Arguments]]:
    """Return a connection, and valid arguments for the rows in its database."""
    with connect(shared_database) as conn:
        yield conn, fitting_arguments(conn)
        conn.rollback()


def shortcomings(
    conn: psycopg.Connection[Any], fitting: Arguments, parameter: Parameter
) -> Iterator[str]:
    """Yield each fault with the value of *parameter* that causes it."""
    before = conn.execute(ROW_COUNTS).fetchone()
    conn.execute("SAVEPOINT untouched")
    for name, value in parameter.values():
        case = f"{parameter.name}, {name}"
        is_sent, result = attempt(conn, parameter, fitting, value)
        if isinstance(result, PyappError):
            text = str(result)
            if not text.isprintable() or len(text) > MOST:
                yield f"{case}: its message is {text[:MOST]!a}"
            if is_sent and conn.execute(ROW_COUNTS).fetchone() != before:
                yield f"{case}: refused, but rows have changed"
        elif isinstance(result, Exception):
            yield f"{case}: {type(result).__name__}: {result}"
        elif value is WRONG_TYPES.get(name) and not is_meant(parameter, value):
            yield f"{case}: accepted"
        if is_sent:
            if conn.info.transaction_status != TransactionStatus.INTRANS:
                yield f"{case}: the transaction is aborted"
            conn.execute("ROLLBACK TO untouched")


def attempt(
    conn: psycopg.Connection[Any], parameter: Parameter, fitting: Arguments, value: Any
) -> tuple[bool, Any]:
    """Return whether a statement was sent, and the result or the error."""
    arguments = arguments_for(parameter, fitting) | {parameter.name: value}
    untouched: Any = Untouched()
    for given in (untouched, conn):
        try:
            return True, parameter.function(given, **arguments)
        except LookupError:
            continue
        except InvalidValueError as exc:
            return given is conn, exc
        except Exception as exc:
            return True, exc
    raise AssertionError("unreachable")


def is_meant(parameter: Parameter, value: Any) -> bool:
    """Return whether *value* is valid although it has another type."""
    amounts = {"cost", "credits", "margin", "monthly_credits"}
    is_amount = parameter.name in amounts or parameter.name.endswith("_price")
    is_function = parameter.name == "on_unpriced" and callable(value)
    return (
        (is_amount and value == 7)
        or is_function
        or parameter.name in {"request", "response"}
    )


@pytest.mark.parametrize("function", BY_FUNCTION)
def test_any_argument_is_accepted_or_refused_in_one_line(
    world: tuple[psycopg.Connection[Any], Arguments], function: str
):
    found = [
        fault
        for parameter in BY_FUNCTION[function]
        for fault in shortcomings(*world, parameter)
    ]

    assert found == []


def test_every_parameter_has_cases():
    cases = {
        function: [len(list(parameter.values())) for parameter in parameters]
        for function, parameters in BY_FUNCTION.items()
    }

    assert len(cases) > 30
    assert min(map(min, cases.values())) > 15
    assert sum(map(sum, cases.values())) > 2500


def test_any_text_is_stored(conn: psycopg.Connection[Any]):
    user = create_user(conn, email="ada@example.com")
    kept = {}
    for name, text in TEXTS.items():
        profile = {"name": text, "image_url": text}
        set_user_profile(conn, user_id=user.id, **profile)
        found = get_user(conn, user_id=user.id)
        kept[name] = (found.name, found.image_url)

    assert kept == {name: (storable_text(text),) * 2 for name, text in TEXTS.items()}


@pytest.mark.parametrize(
    ("function", "arguments"),
    [
        (list_messages, {"subject_id": UUID(int=1), "before_id": UUID(int=2)}),
        (list_referrals, {"user_id": UUID(int=1), "before_id": UUID(int=2)}),
        (list_events, {"before_id": "evt_1"}),
        (list_failed_events, {"after_id": "evt_1"}),
    ],
)
def test_page_id_without_its_time_is_refused(
    function: Callable[..., Any], arguments: Arguments
):
    """It would return the first page again."""
    with pytest.raises(InvalidValueError, match="give both of the last row"):
        function(Untouched(), **arguments)


def test_client_id_with_invalid_characters_finds_its_messages(
    conn: psycopg.Connection[Any],
):
    user = create_user(conn, email="ada@example.com")
    record_message(conn, user_id=user.id, client_id="run\0\ud800", **CALL)

    assert get_client_usage(conn, client_id="run\0\ud800").total.messages == 1


def test_ten_megabytes_are_stored(conn: psycopg.Connection[Any]):
    user = create_user(conn, email="ada@example.com", name=TEN_MEGABYTES)
    call = record_message(conn, user_id=user.id, request=[TEN_MEGABYTES], **CALL)

    kept = find_message_payload(conn, subject_id=user.id, message_id=call.id)
    assert kept is not None
    assert (user.name, kept.last_message) == (TEN_MEGABYTES, TEN_MEGABYTES)


def test_payload_of_100_megabytes_does_not_lose_the_message(
    conn: psycopg.Connection[Any],
):
    user = create_user(conn, email="ada@example.com")
    request = [TEN_MEGABYTES] * 10
    call = record_message(conn, user_id=user.id, request=request, **CALL)

    kept = find_message_payload(conn, subject_id=user.id, message_id=call.id)
    assert kept is not None
    assert str(kept.request).startswith("(not stored: 1000000")


def test_asyncio_functions_refuse_the_same_arguments(
    world: tuple[psycopg.Connection[Any], Arguments],
):
    found, refused = [], 0
    for parameter in public_parameters():
        module = parameter.function.__module__.replace("pyapp.", "pyapp.aio.")
        if importlib.util.find_spec(module) is None:
            continue
        half = getattr(importlib.import_module(module), parameter.function.__name__)
        for name, value in parameter.values():
            arguments = arguments_for(parameter, world[1]) | {parameter.name: value}
            outcomes = [outcome(call, arguments) for call in (parameter.function, half)]
            refused += outcomes[0] is InvalidValueError
            if outcomes[0] is not outcomes[1]:
                found.append((module, parameter.name, name, outcomes))

    assert found == []
    assert refused > 1000


def outcome(
    function: Callable[..., Any], arguments: Arguments
) -> type[Exception] | None:
    """Return the error before the first use of the connection, or that use."""
    try:
        result = function(Untouched(), **arguments)
        if inspect.iscoroutine(result):
            result.send(None)
    except Exception as exc:
        return type(exc)
    return None

"""Every public function with its parameters, and valid arguments for them."""

import importlib
import inspect
import typing
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from datetime import timedelta
from decimal import Decimal
from typing import Any
from uuid import UUID, uuid4

from psycopg import Connection

from pyapp._core.new_messages import JSON, NewMessage, staged_rows
from pyapp.fingerprints import upsert_fingerprint
from pyapp.messages import record_message, record_messages
from pyapp.plans import add_plan_price
from pyapp.prices import set_model_price
from pyapp.referrals import create_referral
from pyapp.sessions import create_session
from pyapp.users import create_user
from tests.bad_input.values import JSONS, LATER, MESSAGES, NOON, values_for
from tests.metering import new_message
from tests.query_parity import find_functions, split_optional

Arguments = Mapping[str, Any]


@dataclass(frozen=True)
class Parameter:
    """A parameter of a function, or a field of the messages recorded in bulk."""

    function: Callable[..., Any]
    name: str
    hint: Any

    @property
    def function_name(self) -> str:
        """Return the qualified name of the function."""
        return f"{self.function.__module__}.{self.function.__name__}"

    def values(self) -> Iterator[tuple[str, Any]]:
        """Yield the arguments to try, each with its name."""
        if self.hint == JSON:
            return iter(JSONS.items())
        if self.name == "messages":
            return iter(MESSAGES.items())
        kinds, is_optional = split_optional(self.hint)
        return values_for(kinds[0], is_optional=is_optional)


def public_parameters() -> list[Parameter]:
    """Return the parameters of every query function that scripts import."""
    return [
        Parameter(getattr(importlib.import_module(found.module), found.name), *pair)
        for found in find_functions()
        if found.module.count(".") == 1
        for pair in _hints(found.call)
    ]


def message_fields() -> list[Parameter]:
    """Return the fields of a message recorded in bulk."""
    return [Parameter(record_in_bulk, *pair) for pair in _hints(NewMessage)]


def record_in_bulk(conn: Connection[Any], **fields: Any) -> Any:
    """Record one message with these fields, unless its values are refused."""
    messages = [NewMessage(**fields)]
    list(staged_rows(messages, None, None))
    return record_messages(conn, messages)


def _hints(thing: Callable[..., Any]) -> Iterator[tuple[str, Any]]:
    hints = typing.get_type_hints(thing)
    names = inspect.signature(thing).parameters
    return ((name, hints[name]) for name in names if name != "conn")


def fitting_arguments(conn: Connection[Any]) -> Arguments:
    """Create rows; return a valid argument for each parameter by name."""
    ada = create_user(conn, email="ada@catalogue.example", name="Ada")
    bob = create_user(conn, email="bob@catalogue.example")
    device = upsert_fingerprint(conn, sig_hash="hash")
    session = create_session(conn, user_id=ada.id)
    cost = Decimal("0.5")
    message = record_message(conn, user_id=ada.id, model="m", cost=cost, request=["a"])
    create_referral(conn, referral_code=ada.referral_code, referred_id=bob.id)
    cleo = create_user(conn, email="cleo@catalogue.example")
    add_plan_price(conn, plan_id="paid", stripe_price_id="price_1")
    set_model_price(
        conn,
        provider="openai",
        model="planned",
        valid_from=LATER,
        input_price=cost,
        output_price=cost,
    )
    return {
        "user_id": ada.id,
        "subject_id": ada.id,
        "referred_id": cleo.id,
        "fingerprint_id": device.id,
        "message_id": message.id,
        "id": uuid4(),
        "after": UUID(int=0),
        "before_id": UUID(int=2**128 - 1),
        "token": session.token,
        "referral_code": ada.referral_code,
        "email": "ada@catalogue.example",
        "name": "Ada",
        "image_url": "https://example.com/a.png",
        "sig_hash": "hash",
        "plan_id": "paid",
        "stripe_price_id": "price_1",
        "provider": "openai",
        "model": "gpt-4o-mini",
        "valid_from": NOON,
        "input_price": cost,
        "output_price": cost,
        "cache_creation_price": cost,
        "cache_creation_1h_price": cost,
        "cache_read_price": cost,
        "published": None,
        "on_unpriced": None,
        "client_id": "run-1",
        "client_request_id": "request-1",
        "input_tokens": 1,
        "cache_creation_input_tokens": 1,
        "cache_creation_1h_input_tokens": 1,
        "cache_read_input_tokens": 1,
        "output_tokens": 1,
        "latency_ms": 1,
        "limit": 10,
        "milliseconds": 5000,
        "kind": "reconcile",
        "cost": cost,
        "credits": cost,
        "monthly_credits": cost,
        "margin": cost,
        "finished_at": NOON,
        "at": None,
        "by": "payer",
        "since": None,
        "until": NOON,
        "before": NOON,
        "ttl": timedelta(days=1),
        "request": ["a"],
        "response": {"a": 1},
        "messages": [new_message(client_id="run-1")],
    }


# Arguments of functions for which the one of that name is not valid.
FITTING_ELSEWHERE: Mapping[str, Arguments] = {
    "delete_model_price": {"model": "planned", "valid_from": LATER},
    "list_used_models": {"since": NOON},
    "create_plan": {"plan_id": "team"},
    "create_user": {"email": "new@example.com"},
    "set_user_email": {"email": "new@example.com"},
}


def arguments_for(parameter: Parameter, fitting: Arguments) -> dict[str, Any]:
    """Return valid arguments for all of the function's parameters."""
    name = parameter.function.__name__
    names = (
        [field for field, _ in _hints(NewMessage)]
        if parameter.function is record_in_bulk
        else list(inspect.signature(parameter.function).parameters)[1:]
    )
    found = {**fitting, **FITTING_ELSEWHERE.get(name, {})}
    missing = ", ".join(name for name in names if name not in found)
    assert not missing, (
        f"no valid value for {missing} of {parameter.function_name}:"
        " add one to fitting_arguments in tests/bad_input/functions.py"
    )
    return {name: found[name] for name in names}

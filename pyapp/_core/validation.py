"""Validates arguments before anything is sent to the server.

The server would refuse an invalid value and abort the caller's transaction, or accept
one with another meaning, such as a time without a time zone.
"""

import functools
import inspect
import types
import typing
from collections.abc import Callable, Mapping
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from typing import Any, TypeAlias, TypeVar, cast
from uuid import UUID

from pyapp._core.sanitize import storable_text
from pyapp.errors import InvalidValueError

F = TypeVar("F", bound=Callable[..., Any])
Check: TypeAlias = Callable[[str, Any], Any]

MAX_INTEGER = 2**31 - 1
MAX_AMOUNT = Decimal(10) ** 15
MAX_REFERRAL_CREDITS = Decimal(10) ** 6
MAX_DECIMALS = 100
MAX_ID_LENGTH = 255


def validated(function: F) -> F:
    """Check the keyword arguments of *function* by their annotations, then call it.

    Raises: InvalidValueError, before anything is sent.
    """
    checks = argument_checks(function)

    def check(arguments: Mapping[str, Any]) -> None:
        for name, value in arguments.items():
            if name in checks:
                checks[name](name, value)

    @functools.wraps(function)
    def call(*args: Any, **arguments: Any) -> Any:
        check(arguments)
        return function(*args, **arguments)

    @functools.wraps(function)
    async def call_async(*args: Any, **arguments: Any) -> Any:
        check(arguments)
        return await function(*args, **arguments)

    is_async = inspect.iscoroutinefunction(function)
    return cast("F", call_async if is_async else call)


def argument_checks(function: Callable[..., Any]) -> Mapping[str, Check]:
    """Return a check for each parameter of *function* whose annotation has one.

    A check returns the value, or raises InvalidValueError if it does not fit.
    """
    checks = {}
    for name, hint in typing.get_type_hints(function).items():
        kinds = _members(hint)
        check = _check_of(kinds[0])
        if check is not None and name != "return":
            checks[name] = _optional(check) if len(kinds) > 1 else check
    return checks


def check_uuid(name: str, value: Any) -> UUID:
    """Return *value* if it is a UUID; strings are refused."""
    if isinstance(value, UUID):
        return value
    raise InvalidValueError(f"{name} must be a UUID, not {shown(value)}")


def check_text(name: str, value: Any) -> str:
    """Return *value* if it is a string, storable or not."""
    if isinstance(value, str):
        return value
    raise InvalidValueError(f"{name} must be text, not {shown(value)}")


def check_count(name: str, value: Any, most: int = MAX_INTEGER) -> int:
    """Return *value* if it is a whole number from 0 to *most*; a bool is refused."""
    if type(value) is int and 0 <= value <= most:
        return value
    raise InvalidValueError(
        f"{name} must be a whole number from 0 to {most}, not {shown(value)}"
    )


def check_hour_writes(hour: int, written: int) -> None:
    """Refuse more cache writes for one hour than there are cache writes."""
    if hour > written:
        raise InvalidValueError(
            f"cache_creation_1h_input_tokens ({hour}) exceed"
            f" cache_creation_input_tokens ({written})"
        )


def check_amount(name: str, value: Any, most: Decimal = MAX_AMOUNT) -> Decimal:
    """Return an amount from 0 to *most*, a Decimal or an int, as a Decimal."""
    # A float is refused because its decimal value depends on how it is rounded.
    amount = Decimal(value) if type(value) is int else value
    if not isinstance(amount, Decimal):
        raise InvalidValueError(f"{name} must be a Decimal, not {shown(value)}")
    if not amount.is_finite() or not 0 <= amount <= most:
        raise InvalidValueError(
            f"{name} must be from 0 to {most:f}, not {shown(value)}"
        )
    exponent = amount.as_tuple().exponent
    if isinstance(exponent, int) and exponent < -MAX_DECIMALS:
        raise InvalidValueError(f"{name} has more than {MAX_DECIMALS} decimals")
    return amount


def check_time(name: str, value: Any) -> datetime:
    """Return an aware *value* in UTC."""
    if not isinstance(value, datetime):
        raise InvalidValueError(f"{name} must be a datetime, not {shown(value)}")
    if value.utcoffset() is None:
        raise InvalidValueError(f"{name} must have a time zone")
    try:
        return value.astimezone(UTC)
    except OverflowError as exc:
        raise InvalidValueError(f"{name} is out of range: {value}") from exc


def check_duration(name: str, value: Any) -> timedelta:
    """Return *value* if it is a timedelta that can be added to the present time."""
    if not isinstance(value, timedelta):
        raise InvalidValueError(f"{name} must be a timedelta, not {shown(value)}")
    try:
        datetime.now(UTC) + value
    except OverflowError as exc:
        raise InvalidValueError(f"{name} is out of range: {value}") from exc
    return value


def check_choice(name: str, value: Any, choices: tuple[str, ...]) -> str:
    """Return *value* if it is one of *choices*."""
    if isinstance(value, str) and value in choices:
        return value
    raise InvalidValueError(
        f"{name} must be one of {', '.join(choices)}, not {shown(value)}"
    )


def check_function(name: str, value: Any) -> Any:
    """Return *value* if it can be called."""
    if callable(value):
        return value
    raise InvalidValueError(f"{name} must be a function, not {shown(value)}")


def check_cursor(name: str, time: datetime | None, id: object) -> None:
    """Refuse an id without its time: it would return the first page again."""
    if id is not None and time is None:
        raise InvalidValueError(f"{name}_id needs {name}: give both of the last row")


def storable_id(name: str, value: Any) -> str | None:
    """Return an id chosen by another system, with invalid characters replaced.

    An id that is too long for an index is refused; None stays None.
    """
    if value is None:
        return None
    text = storable_text(check_text(name, value))
    if len(text) > MAX_ID_LENGTH:
        raise InvalidValueError(
            f"{name} has {len(text)} characters; the limit is {MAX_ID_LENGTH}"
        )
    return text


def shown(value: Any) -> str:
    """Return *value* in ASCII, in one line of at most 60 characters."""
    try:
        text = ascii(value)
    except Exception:
        text = type(value).__name__
    return text if len(text) <= 60 else text[:57] + "..."


_CHECKS: Mapping[Any, Check] = {
    UUID: check_uuid,
    str: check_text,
    int: check_count,
    Decimal: check_amount,
    datetime: check_time,
    timedelta: check_duration,
}


def _check_of(kind: Any) -> Check | None:
    if typing.get_origin(kind) is typing.Literal:
        return functools.partial(check_choice, choices=typing.get_args(kind))
    if typing.get_origin(kind) is Callable:
        return check_function
    return _CHECKS.get(kind)


def _members(hint: Any) -> list[Any]:
    """Return the types of `T | None`, T first; of any other annotation, itself."""
    if typing.get_origin(hint) not in (typing.Union, types.UnionType):
        return [hint]
    members = sorted(typing.get_args(hint), key=lambda kind: kind is types.NoneType)
    is_optional = len(members) == 2 and members[1] is types.NoneType
    return members if is_optional else [hint]


def _optional(check: Check) -> Check:
    return lambda name, value: None if value is None else check(name, value)

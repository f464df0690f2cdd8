"""Form-encoded parameters: items[0][price]=x, metadata[user_id]=y, created[gte]=1."""

import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any
from urllib.parse import parse_qsl, urlencode

from .errors import ApiError, invalid

_NAME = re.compile(r"[^\[\]]+|\[[^\[\]]*\]")


def decode(encoded: str) -> dict[str, Any]:
    """Return nested dictionaries of strings; a list has the keys 0, 1, …"""
    decoded: dict[str, Any] = {}
    for name, value in parse_qsl(encoded, keep_blank_values=True):
        *path, last = [part.strip("[]") for part in _NAME.findall(name)] or [""]
        place = decoded
        for part in path:
            place = place.setdefault(part or str(len(place)), {})
            if not isinstance(place, dict):
                raise invalid(name, f"Invalid parameter: {name}")
        place[last or str(len(place))] = value
    return decoded


def encode(params: Mapping[str, Any]) -> str:
    """Reverse `decode`, for dictionaries, lists, numbers, booleans and text."""
    return urlencode(list(_flatten("", params.items())))


def _flatten(
    prefix: str, items: Iterable[tuple[Any, Any]]
) -> Iterator[tuple[str, Any]]:
    for key, value in items:
        name = f"{prefix}[{key}]" if prefix else str(key)
        if isinstance(value, Mapping):
            yield from _flatten(name, value.items())
        elif isinstance(value, list | tuple):
            yield from _flatten(name, enumerate(value))
        elif value is not None:
            yield name, str(value).lower() if isinstance(value, bool) else value


class Params:
    """The parameters of a request; an unread one is an error, as in Stripe."""

    def __init__(self, values: dict[str, Any], prefix: str = "") -> None:
        self._values = values
        self._prefix = prefix
        self._unread = set(values)

    def __contains__(self, name: str) -> bool:
        return name in self._values

    def _read(self, name: str) -> Any:
        self._unread.discard(name)
        return self._values.get(name)

    def _path(self, name: str) -> str:
        return f"{self._prefix}[{name}]" if self._prefix else name

    def text(self, name: str) -> str | None:
        """Return the value; None if it is absent or empty, which unsets."""
        value = self._read(name)
        if isinstance(value, dict):
            raise invalid(self._path(name), "Invalid string: expected no nesting")
        return value or None

    def require(self, name: str) -> str:
        value = self.text(name)
        if value is None:
            path = self._path(name)
            raise ApiError(
                400,
                f"Missing required param: {path}.",
                code="parameter_missing",
                param=path,
            )
        return value

    def integer(self, name: str) -> int | None:
        value = self.text(name)
        if value is not None and not re.fullmatch(r"-?\d{1,18}", value):
            raise ApiError(
                400,
                f"Invalid integer: {value}",
                code="parameter_invalid_integer",
                param=self._path(name),
            )
        return None if value is None else int(value)

    def boolean(self, name: str) -> bool | None:
        value = self.text(name)
        if value not in (None, "true", "false"):
            raise invalid(self._path(name), f"Invalid boolean: {value}")
        return None if value is None else value == "true"

    def number(self, name: str) -> float | None:
        value = self.text(name)
        try:
            return None if value is None else float(value)
        except ValueError:
            raise invalid(self._path(name), f"Invalid number: {value}") from None

    def choice(self, name: str, *allowed: str) -> str | None:
        value = self.text(name)
        if value is not None and value not in allowed:
            raise invalid(
                self._path(name),
                f"Invalid {self._path(name)}: must be one of {', '.join(allowed)}",
            )
        return value

    def nested(self, name: str) -> "Params":
        value = self._read(name)
        if value in (None, ""):
            value = {}
        if not isinstance(value, dict):
            raise invalid(self._path(name), "Invalid object")
        return Params(value, self._path(name))

    def has_object(self, name: str) -> bool:
        """Return False if the value is absent or empty, which unsets."""
        return self._read(name) not in (None, "")

    def entries(self, name: str) -> "Iterator[Params]":
        """Return the objects of a list, in order."""
        listed = self.nested(name)
        for key in sorted(listed._values, key=lambda k: (len(k), k)):
            yield listed.nested(key)

    def texts(self, name: str) -> list[str]:
        value = self._read(name)
        if not isinstance(value, dict):
            return [] if value in (None, "") else [value]
        return [str(v) for v in value.values()]

    def ignore(self, *names: str) -> None:
        """Accept parameters without an effect in the fake."""
        self._unread.difference_update(names)

    def merge_metadata(self, metadata: dict[str, str]) -> dict[str, str]:
        """Return *metadata* with the given keys; an empty value removes its key."""
        if "metadata" not in self:
            return metadata
        given = self._read("metadata")
        if not isinstance(given, dict):
            return {}
        merged = metadata | {str(k): str(v) for k, v in given.items()}
        return {k: v for k, v in merged.items() if v != ""}

    def only(self, *names: str) -> bool:
        return self._values.keys() <= {*names, "expand"}

    def done(self) -> None:
        for name in sorted(self._unread):
            path = self._path(name)
            raise ApiError(
                400,
                f"Received unknown parameter: {path}",
                code="parameter_unknown",
                param=path,
            )


@dataclass(frozen=True, slots=True)
class Page:
    """The parameters of a list request; times are [since, before)."""

    limit: int = 10
    starting_after: str | None = None
    ending_before: str | None = None
    since: int | None = None
    before: int | None = None


def read_page(params: Params) -> Page:
    limit = params.integer("limit")
    if limit is not None and not 1 <= limit <= 100:
        raise invalid("limit", f"Invalid limit: {limit} is not between 1 and 100")
    after, before = params.text("starting_after"), params.text("ending_before")
    if after and before:
        raise invalid(
            "starting_after", "You may pass starting_after or ending_before, not both"
        )
    since, until = read_range(params, "created")
    return Page(10 if limit is None else limit, after, before, since, until)


def read_range(params: Params, name: str) -> tuple[int | None, int | None]:
    """Return created=1 or created[gte|gt|lte|lt]=1 as [since, before)."""
    if name in params and not isinstance(params._values[name], dict):
        exact = params.integer(name)
        return exact, None if exact is None else exact + 1
    bounds = params.nested(name)
    after, last = bounds.integer("gt"), bounds.integer("lte")
    since, before = bounds.integer("gte"), bounds.integer("lt")
    bounds.done()
    if after is not None:
        since = after + 1 if since is None else max(since, after + 1)
    if last is not None:
        before = last + 1 if before is None else min(before, last + 1)
    return since, before

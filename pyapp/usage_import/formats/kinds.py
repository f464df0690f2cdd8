"""What a module of a format provides: a Body, or a Format."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Iterable, Sequence
from typing import ClassVar, NamedTuple

from pyapp.errors import InvalidValueError
from pyapp.usage_import.fields import Object
from pyapp.usage_import.responses import Chain, ModelResponse


def _never(_: Object) -> bool:
    return False


class Body(NamedTuple):
    """A format of responses, wherever in a line they are.

    A response with usage has one of `keys`. `is_known` is for objects of the format
    without usage, if it has any.
    """

    has_usage: Callable[[Object], bool]
    read: Callable[[Chain], ModelResponse | None]
    is_known: Callable[[Object], bool] = _never
    keys: Collection[str] = ("usage",)


class Unfinished(NamedTuple):
    """Usage that began at a line and did not end before its file did."""

    line: int
    reason: str


class Format(ABC):
    """A format of lines; an instance reads one file."""

    @abstractmethod
    def may_read(self, kind: str | None, keys: Collection[str]) -> bool:
        """Tell whether a line of this type and with these keys can be of this format.

        *kind* is its `type` if that is text. The answer is kept for all such lines.
        """

    @abstractmethod
    def read(self, line: Object, number: int) -> Sequence[ModelResponse] | None:
        """Return the responses of *line*, or None if it is of another format.

        *number* is that of the line in its file.

        Raises: BadUsageError if the usage of the line cannot be billed.
        """

    def finish(self) -> Iterable[ModelResponse | Unfinished]:
        """Return what is left at the end of the file."""
        return ()


class Lines(Format):
    """Bodies that are whole lines, or in the object at a key of a line.

    A line can be one if it has one of KEYS; BODY is in it, or at one of PLACES.
    """

    KEYS: ClassVar[frozenset[str]]
    PLACES: ClassVar[tuple[str, ...]] = ()
    BODY: ClassVar[Body]

    def may_read(self, kind: str | None, keys: Collection[str]) -> bool:
        """Tell whether the line has a key of the format."""
        return not self.KEYS.isdisjoint(keys) or any(p in keys for p in self.PLACES)

    def read(self, line: Object, number: int) -> Sequence[ModelResponse] | None:
        """Return the response of the line."""
        for place in (None, *self.PLACES):
            part = line if place is None else line.get(place)
            if isinstance(part, dict) and self.BODY.has_usage(part):
                chain = [line] if place is None else [line, part]
                found = self.BODY.read(chain)
                return () if found is None else (found,)
        return None


class Lists(Format):
    """A format with several responses in a line, of which each may be broken."""

    def __init__(self) -> None:
        self._broken: list[Unfinished] = []

    def read_each(
        self,
        parts: Iterable[Object],
        number: int,
        read: Callable[[Object], ModelResponse | None],
    ) -> Sequence[ModelResponse]:
        """Return the responses of *parts*; a broken one is reported at the end."""
        found = []
        for part in parts:
            try:
                response = read(part)
            except InvalidValueError as exc:
                self._broken.append(Unfinished(number, str(exc)))
                continue
            if response is not None:
                found.append(response)
        return found

    def finish(self) -> Iterable[Unfinished]:
        """Return the reasons of the broken parts, with their lines."""
        return self._broken

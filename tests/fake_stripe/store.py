"""Objects in order of creation; a page takes constant time."""

from bisect import bisect_left, bisect_right
from collections.abc import Callable, Iterator, Sequence
from typing import Generic, TypeVar

from .errors import missing
from .model import Record
from .params import Page

R = TypeVar("R", bound=Record)


class Collection(Generic[R]):
    def __init__(self, object_type: str) -> None:
        self.object_type = object_type
        self._records: list[R] = []
        self._places: dict[str, int] = {}

    def __len__(self) -> int:
        return len(self._records)

    def __iter__(self) -> Iterator[R]:
        return iter(self._records)

    @property
    def newest(self) -> int:
        """Return the creation time of the newest object, or 0."""
        return self._records[-1].created if self._records else 0

    def add(self, record: R) -> R:
        """Append an object; ids are unique, and `created` never decreases."""
        if record.id in self._places:
            raise ValueError(f"{record.id} exists already")
        if record.created < self.newest:
            raise ValueError(f"{record.id} is older than the newest {self.object_type}")
        self._places[record.id] = len(self._records)
        self._records.append(record)
        return record

    def find(self, object_id: str) -> R | None:
        place = self._places.get(object_id)
        return None if place is None else self._records[place]

    def at(self, place: int) -> R:
        return self._records[place]

    def place(self, object_id: str) -> int:
        return self._places[object_id]

    def get(
        self, object_id: str, *, livemode: bool | None = None, param: str = "id"
    ) -> R:
        """Return the record, or raise Stripe's error for an unknown id."""
        record = self.find(object_id)
        if record is None:
            raise missing(self.object_type, object_id, param)
        if livemode is not None and record.livemode != livemode:
            mode, other = ("live", "test") if livemode else ("test", "live")
            note = (
                f"; a similar object exists in {other} mode, but a {mode} mode key "
                "was used to make this request."
            )
            raise missing(self.object_type, object_id, param, note)
        return record

    def page(
        self,
        ask: Page,
        keep: Callable[[R], bool],
        places: Sequence[int] | None = None,
    ) -> tuple[list[R], bool]:
        """Return one page, the newest first, and whether there are more.

        *places* limits the list to these ascending positions.
        """
        if places is None:
            places = range(len(self._records))

        def created(place: int) -> int:
            return self._records[place].created

        low, high = 0, len(places)
        if ask.since is not None:
            low = bisect_left(places, ask.since, key=created)
        if ask.before is not None:
            high = bisect_left(places, ask.before, key=created)
        if ask.starting_after is not None:
            cursor = self._cursor(ask.starting_after, "starting_after")
            high = min(high, bisect_left(places, cursor))
        if ask.ending_before is not None:
            cursor = self._cursor(ask.ending_before, "ending_before")
            low = max(low, bisect_right(places, cursor))
        forward = ask.ending_before is not None
        found: list[R] = []
        for slot in range(low, high) if forward else range(high - 1, low - 1, -1):
            record = self._records[places[slot]]
            if not keep(record):
                continue
            if len(found) == ask.limit:
                return (found[::-1] if forward else found), True
            found.append(record)
        return (found[::-1] if forward else found), False

    def _cursor(self, object_id: str, param: str) -> int:
        place = self._places.get(object_id)
        if place is None:
            raise missing(self.object_type, object_id, param)
        return place

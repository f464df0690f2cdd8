"""Stripe's lists, page by page, newest first, from where one was left.

The next page is asked for while this one is worked on; there are never more than two.
"""

import json
import threading
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime, timedelta
from queue import SimpleQueue
from typing import Any

import stripe

from pyapp.errors import StripeRequestError
from pyapp.stripe_sync.client import StripeResponse, list_page
from pyapp.stripe_sync.mirror import ObjectType
from pyapp.stripe_sync.shapes import find_created, find_id

OBJECT_TYPES: tuple[ObjectType, ...] = ("customers", "subscriptions")
# Those created in the second at which a page was cut; more would only be fetched again.
_LONGEST_TAIL = 1000


@dataclass(frozen=True, slots=True)
class Cursor:
    """What has been listed: *object_type* down to *created*, of that second *tail*."""

    object_type: ObjectType = "customers"
    after: str | None = None
    created: int | None = None
    tail: Sequence[str] = field(default=())

    def dump(self) -> str:
        """Return it as text; `load` is the way back."""
        return json.dumps(asdict(self))

    @classmethod
    def load(cls, text: str | None) -> "Cursor":
        """Return the cursor that *text* describes, the beginning for None."""
        return cls(**json.loads(text)) if text else cls()


@dataclass(frozen=True, slots=True)
class Page:
    """One page, true as of a moment, and the span of creation times that it covers.

    Whatever was created in (since, until] and is there is in `ids`; `since` is None on
    the last page. `cursor` is where to go on after it.
    """

    object_type: ObjectType
    shapes: Sequence[Mapping[str, Any]]
    as_of: datetime
    since: datetime | None
    until: datetime
    ids: Sequence[str]
    cursor: Cursor


def list_pages(
    client: stripe.StripeClient, cursor: Cursor, page_size: int
) -> Iterator[Page]:
    """Return the pages of `cursor.object_type` from *cursor* on.

    Raises:
        StripeRequestError: Stripe refuses, or is out of reach for minutes.
    """
    questions: SimpleQueue[Cursor | None] = SimpleQueue()
    answers: SimpleQueue[StripeResponse | Exception] = SimpleQueue()

    def ask() -> None:
        while (wanted := questions.get()) is not None:
            try:
                answers.put(_ask(client, wanted, page_size))
            except Exception as exc:
                answers.put(exc)

    # One thread, which keeps its connection; a daemon, for whoever presses Ctrl-C does
    # not wait until Stripe has time again.
    threading.Thread(target=ask, daemon=True).start()
    questions.put(cursor)
    try:
        while True:
            answer = answers.get()
            if isinstance(answer, Exception):
                raise answer
            page = _read(cursor, answer)
            cursor = page.cursor
            if page.since is not None:
                questions.put(cursor)
            yield page
            if page.since is None:
                return
    finally:
        questions.put(None)


def _ask(client: stripe.StripeClient, cursor: Cursor, page_size: int) -> StripeResponse:
    parameters: dict[str, Any] = {"limit": page_size}
    if cursor.object_type == "subscriptions":
        # Without it those that were canceled are left out.
        parameters["status"] = "all"
    after = {} if cursor.after is None else {"starting_after": cursor.after}
    answer = list_page(client, cursor.object_type, **parameters, **after)
    if answer is None:
        # The last one listed has been deleted since: its second is listed again.
        answer = list_page(
            client, cursor.object_type, **parameters, created={"lte": cursor.created}
        )
    if answer is None:
        raise StripeRequestError(f"Stripe does not list {cursor.object_type}")
    return answer


def _read(cursor: Cursor, answer: StripeResponse) -> Page:
    shapes = answer.data["data"]
    listed = [name for shape in shapes if (name := find_id(shape))]
    # What was created within the last second may not have been there yet.
    newest = answer.as_of - timedelta(seconds=1)
    until = newest if cursor.created is None else _moment(cursor.created)
    ids = [*cursor.tail, *listed]
    if not shapes or not answer.data["has_more"]:
        return Page(cursor.object_type, shapes, answer.as_of, None, until, ids, cursor)
    times = [time for shape in shapes if (time := find_created(shape)) is not None]
    if not listed or not times:
        raise StripeRequestError(
            f"Stripe lists {cursor.object_type} without ids or times"
        )
    created = times[-1]
    tail = [
        name
        for shape in shapes
        if (name := find_id(shape)) and find_created(shape) in (created, None)
    ]
    if created == cursor.created:
        tail = [*cursor.tail, *tail]
    there = Cursor(cursor.object_type, listed[-1], created, tail[-_LONGEST_TAIL:])
    return Page(
        cursor.object_type, shapes, answer.as_of, _moment(created), until, ids, there
    )


def _moment(seconds: int) -> datetime:
    return datetime.fromtimestamp(seconds, UTC)

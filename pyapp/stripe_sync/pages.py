"""List Stripe's objects page by page, newest first, from a cursor on.

The next page is requested while the current one is processed.
"""

import json
import threading
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime, timedelta
from queue import SimpleQueue
from typing import Any

import stripe

from pyapp.errors import StripeRequestError
from pyapp.stripe_sync.client import StripeResponse, list_page
from pyapp.stripe_sync.objects import JsonObject, find_created, find_id
from pyapp.stripe_sync.store import ObjectType

OBJECT_TYPES: tuple[ObjectType, ...] = ("customers", "subscriptions")
# Ids kept of the second at which a page ended; objects beyond it are fetched again.
_MAX_TAIL = 1000


@dataclass(frozen=True, slots=True)
class Cursor:
    """The position in the list of *object_type*, after object *after*.

    That object was created at *created*; *tail* has the listed ids of that second.
    """

    object_type: ObjectType = "customers"
    after: str | None = None
    created: int | None = None
    tail: Sequence[str] = field(default=())

    def dump(self) -> str:
        """Return the cursor as text for `load`."""
        return json.dumps(asdict(self))

    @classmethod
    def load(cls, text: str) -> "Cursor":
        """Return the cursor in *text*.

        Raises: TypeError or ValueError, if it cannot be read.
        """
        saved = cls(**json.loads(text))
        if not (
            saved.object_type in OBJECT_TYPES
            and isinstance(saved.after, str | None)
            and isinstance(saved.created, int | None)
            and isinstance(saved.tail, list)
        ):
            raise ValueError("not the cursor of a list")
        return saved


@dataclass(frozen=True, slots=True)
class Page:
    """One page of a list, true at `as_of`, and the creation times that it covers.

    `ids` has every object that exists and was created in (since, until]. `since` is
    None on the last page. `cursor` is the position after the page.
    """

    object_type: ObjectType
    objects: Sequence[JsonObject]
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
        StripeRequestError: Stripe refused, or was unavailable for minutes.
    """
    cursors: SimpleQueue[Cursor | None] = SimpleQueue()
    responses: SimpleQueue[StripeResponse | Exception] = SimpleQueue()

    def fetch_pages() -> None:
        while (wanted := cursors.get()) is not None:
            try:
                responses.put(_fetch_page(client, wanted, page_size))
            except Exception as exc:
                responses.put(exc)

    # One thread, which reuses its connection; a daemon, so that Ctrl-C does not wait
    # for Stripe.
    threading.Thread(target=fetch_pages, daemon=True).start()
    cursors.put(cursor)
    try:
        while True:
            response = responses.get()
            if isinstance(response, Exception):
                raise response
            page = _read_page(cursor, response)
            cursor = page.cursor
            if page.since is not None:
                cursors.put(cursor)
            yield page
            if page.since is None:
                return
    finally:
        cursors.put(None)


def _fetch_page(
    client: stripe.StripeClient, cursor: Cursor, page_size: int
) -> StripeResponse:
    parameters: dict[str, Any] = {"limit": page_size}
    if cursor.object_type == "subscriptions":
        # Stripe leaves out canceled subscriptions by default.
        parameters["status"] = "all"
    after = {} if cursor.after is None else {"starting_after": cursor.after}
    response = list_page(client, cursor.object_type, **parameters, **after)
    if response is None:
        # Object `after` was deleted: list its second again.
        response = list_page(
            client, cursor.object_type, **parameters, created={"lte": cursor.created}
        )
    if response is None:
        raise StripeRequestError(f"Stripe does not list {cursor.object_type}")
    return response


def _read_page(cursor: Cursor, response: StripeResponse) -> Page:
    objects, as_of = response.data["data"], response.as_of
    listed = [found for one in objects if (found := find_id(one))]
    # The list may not yet contain objects created within the last second.
    newest = as_of - timedelta(seconds=1)
    until = newest if cursor.created is None else _read_time(cursor.created)
    ids = [*cursor.tail, *listed]
    if not objects or not response.data["has_more"]:
        return Page(cursor.object_type, objects, as_of, None, until, ids, cursor)
    times = [time for one in objects if (time := find_created(one)) is not None]
    if not listed or not times:
        raise StripeRequestError(
            f"Stripe lists {cursor.object_type} without ids or times"
        )
    created = times[-1]
    tail = [
        found
        for one in objects
        if (found := find_id(one)) and find_created(one) in (created, None)
    ]
    if created == cursor.created:
        tail = [*cursor.tail, *tail]
    end = Cursor(cursor.object_type, listed[-1], created, tail[-_MAX_TAIL:])
    since = _read_time(created)
    return Page(cursor.object_type, objects, as_of, since, until, ids, end)


def _read_time(seconds: int) -> datetime:
    return datetime.fromtimestamp(seconds, UTC)

"""List Stripe's objects page by page, newest first, from a cursor on.

The next page is requested while the current one is processed.
"""

import json
import threading
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from datetime import UTC, datetime, timedelta
from queue import SimpleQueue
from typing import Any

import stripe

from pyapp.errors import StripeRequestError
from pyapp.stripe_sync.client import StripeResponse, list_page
from pyapp.stripe_sync.objects import (
    count_without_id,
    find_created,
    find_id,
    find_last_id,
)
from pyapp.stripe_sync.store import ObjectType

OBJECT_TYPES: tuple[ObjectType, ...] = ("customers", "subscriptions")
# The most objects that Stripe lists in one response.
LARGEST_PAGE = 100
# Ids kept of the second at which a page ended; objects beyond it are fetched again.
_MAX_TAIL = 1000


@dataclass(frozen=True, slots=True)
class Cursor:
    """The position in the list of *object_type*, after object *after*.

    That object was created at *created*; *tail* has the listed ids of that second. The
    *without_id* objects that follow it have no valid id, and were listed too.
    """

    object_type: ObjectType = "customers"
    after: str | None = None
    created: int | None = None
    tail: Sequence[str] = field(default=())
    without_id: int = 0

    def __str__(self) -> str:
        place = (
            "the first page" if self.after is None else f"the page after {self.after}"
        )
        return f"{place} of {self.object_type}"

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
            and isinstance(saved.without_id, int)
        ):
            raise ValueError("not the cursor of a list")
        return saved


@dataclass(frozen=True, slots=True)
class Page:
    """One page of a list, true at `as_of`, and the creation times that it covers.

    `objects` follow *after*, and may contain anything that JSON can, even null. `ids`
    has every object that exists and was created in (since, until]. `since` is None on
    the last page. `cursor` is the position after the page.
    """

    object_type: ObjectType
    after: str | None
    objects: Sequence[Any]
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
        StripeRequestError: Stripe refused, was unavailable for minutes, or sent a page
            after which no other can be requested.
    """
    cursors: SimpleQueue[Cursor | None] = SimpleQueue()
    pages: SimpleQueue[Page | Exception] = SimpleQueue()

    def fetch_pages() -> None:
        while (wanted := cursors.get()) is not None:
            try:
                pages.put(_fetch_page(client, wanted, page_size))
            except Exception as exc:
                pages.put(exc)

    # One thread, which reuses its connection; a daemon, so that Ctrl-C does not wait
    # for Stripe.
    threading.Thread(target=fetch_pages, daemon=True).start()
    cursors.put(cursor)
    try:
        while True:
            page = pages.get()
            if isinstance(page, Exception):
                raise page
            if page.since is not None:
                cursors.put(page.cursor)
            yield page
            if page.since is None:
                return
    finally:
        cursors.put(None)


def _fetch_page(client: stripe.StripeClient, cursor: Cursor, page_size: int) -> Page:
    try:
        page = _request_page(client, cursor, page_size)
        if page is None and page_size < LARGEST_PAGE:
            # An object with another id is needed to continue.
            page = _request_page(client, cursor, LARGEST_PAGE)
        if page is None:
            raise StripeRequestError("none of its objects has a valid id of its own")
    except StripeRequestError as exc:
        raise StripeRequestError(f"{cursor} cannot be read: {exc}") from exc
    return page


def _request_page(
    client: stripe.StripeClient, cursor: Cursor, size: int
) -> Page | None:
    """Return the page after *cursor*, or None if it has no id to continue after."""
    parameters: dict[str, Any] = {"limit": size}
    if cursor.object_type == "subscriptions":
        # Stripe leaves out canceled subscriptions by default.
        parameters["status"] = "all"
    after = {} if cursor.after is None else {"starting_after": cursor.after}
    response = list_page(client, cursor.object_type, **parameters, **after)
    if response is not None:
        if after and cursor.after in map(find_id, read_list(response)[0]):
            raise StripeRequestError(f"Stripe lists {cursor.after} again")
        return _read_page(cursor, response, cursor.without_id)
    # Object `after` was deleted: list its second again.
    response = list_page(
        client, cursor.object_type, **parameters, created={"lte": cursor.created}
    )
    if response is None:
        raise StripeRequestError(f"Stripe does not list {cursor.object_type}")
    return _read_page(cursor, response, 0)


def _read_page(
    cursor: Cursor, response: StripeResponse, without_id: int
) -> Page | None:
    """Return the page, less *without_id* objects that the page before contained.

    It returns None if there are others and it has no id to continue after.
    """
    listed, has_more = read_list(response)
    as_of = response.as_of
    objects = listed[count_without_id(listed[:without_id]) :]
    # The list may not yet contain objects created within the last second.
    newest = as_of - timedelta(seconds=1)
    until = newest if cursor.created is None else _read_time(cursor.created)
    listed_ids = [found for one in listed if (found := find_id(one))]
    ids = [*cursor.tail, *listed_ids]
    after = find_last_id(listed)
    is_last = not listed or not has_more
    if not is_last and after in (None, cursor.after):
        return None
    times = [time for one in listed if (time := find_created(one)) is not None]
    # Without times, the page covers none: the next one covers its span too.
    created = times[-1] if times else cursor.created
    tail = [
        found
        for one in listed
        if (found := find_id(one)) and find_created(one) in (created, None)
    ]
    if created == cursor.created:
        tail = [*cursor.tail, *tail]
    if after is None:
        end = replace(cursor, without_id=len(listed))
    else:
        count = count_without_id(reversed(listed))
        end = Cursor(cursor.object_type, after, created, tail[-_MAX_TAIL:], count)
    since = until if created is None else _read_time(created)
    return Page(
        cursor.object_type,
        cursor.after,
        objects,
        as_of,
        None if is_last else since,
        until,
        ids,
        end,
    )


def read_list(response: StripeResponse) -> tuple[Sequence[Any], bool]:
    """Return the objects of a list, and whether there are more.

    Raises:
        StripeRequestError: the response is not a list.
    """
    data: Any = response.data
    objects = data.get("data") if isinstance(data, Mapping) else None
    if not isinstance(objects, list):
        raise StripeRequestError("Stripe's response is not a list")
    return objects, bool(data.get("has_more"))


def _read_time(seconds: int) -> datetime:
    return datetime.fromtimestamp(seconds, UTC)

"""Lists with any content are read to their end, or end with an error."""

from collections import Counter
from dataclasses import dataclass
from datetime import datetime
from types import SimpleNamespace
from typing import Any

import pytest
import stripe
from hypothesis import given, settings
from hypothesis import strategies as st

from pyapp.errors import StripeRequestError
from pyapp.stripe_sync import client as api
from pyapp.stripe_sync.objects import find_created, find_id
from pyapp.stripe_sync.pages import LARGEST_PAGE, Cursor, Page, list_pages
from pyapp.stripe_sync.replay import EventCursor, Listing

NOW = 1_800_000_000
DATE = "Fri, 15 Jan 2027 08:00:00 GMT"


@dataclass
class Lister:
    """Lists these objects, the newest first, as Stripe does."""

    objects: list[Any]

    def raw_request(self, method_: str, url_: str, **params: Any) -> Any:
        limit, found = params["limit"], self.objects
        created = params.get("created") or {}
        if "lte" in created and "starting_after" not in params:
            found = [o for o in found if (find_created(o) or 0) <= created["lte"]]
        if after := params.get("starting_after"):
            found = found[self._place(after, "starting_after") + 1 :]
        if before := params.get("ending_before"):
            found = found[: self._place(before, "ending_before")]
            listed, has_more = found[-limit:], len(found) > limit
        else:
            listed, has_more = found[:limit], len(found) > limit
        data = {"object": "list", "data": listed, "has_more": has_more}
        return SimpleNamespace(data=data, headers={"Date": DATE})

    def _place(self, name: str, parameter: str) -> int:
        for place, one in enumerate(self.objects):
            if find_id(one) == name:
                return place
        raise stripe.InvalidRequestError(
            "no such object", parameter, code="resource_missing"
        )


def make_list(*kinds: str) -> list[Any]:
    """Return objects of these kinds, two of them in each second."""
    found: list[Any] = []
    for number, kind in enumerate(kinds):
        one: Any = {"id": f"cus_{number}", "created": NOW - 10 - number // 2}
        if kind == "no id":
            del one["id"]
        elif kind == "NUL":
            one["id"] += "\0"
        elif kind == "no time":
            one["created"] = None
        elif kind == "null":
            one = None
        found.append(one)
    return found


KINDS = st.sampled_from(["good"] * 4 + ["no id", "NUL", "no time", "null"])
LISTS = st.lists(KINDS, max_size=14).map(lambda kinds: make_list(*kinds))


def read(
    objects: list[Any], page_size: int, cursor: Cursor | None = None
) -> list[Page]:
    client: Any = Lister(objects)
    return list(list_pages(client, cursor or Cursor(), page_size))


@settings(max_examples=300, deadline=None)
@given(objects=LISTS, page_size=st.integers(1, 5))
def test_pages_contain_each_object_once(objects: list[Any], page_size: int):
    pages = read(objects, page_size)
    assert [one for page in pages for one in page.objects] == objects


@settings(max_examples=300, deadline=None)
@given(objects=LISTS, page_size=st.integers(1, 5))
def test_page_names_each_object_of_its_span(objects: list[Any], page_size: int):
    """Otherwise a stored object would seem to be missing from Stripe."""
    pages = read(objects, page_size)
    for page in pages:
        for one in objects:
            created, name = find_created(one), find_id(one)
            if created is None or name is None:
                continue
            moment = datetime.fromtimestamp(created, page.until.tzinfo)
            is_in = moment <= page.until and not (page.since and moment <= page.since)
            assert name in page.ids or not is_in
    assert pages[-1].since is None


@settings(max_examples=100, deadline=None)
@given(objects=LISTS, page_size=st.integers(1, 5), number=st.integers(0, 5))
def test_saved_cursor_continues_after_its_page(
    objects: list[Any], page_size: int, number: int
):
    pages = read(objects, page_size)
    number = min(number, len(pages) - 1)
    cursor = Cursor.load(pages[number].cursor.dump())
    rest = [one for page in pages[number + 1 :] for one in page.objects]
    read_again = [
        one for page in read(objects, page_size, cursor) for one in page.objects
    ]
    assert read_again == rest


@settings(max_examples=300, deadline=None)
@given(objects=LISTS, page_size=st.integers(1, 5))
def test_events_are_read_once_the_oldest_first(objects: list[Any], page_size: int):
    client: Any = Lister(objects)
    run: Any = SimpleNamespace(counts=Counter())
    listing, cursor = Listing(client, page_size, run), EventCursor(None)
    found: list[Any] = []
    while page := listing.list_after(cursor):
        found += page
        cursor = cursor.advance(page)
        assert len(found) <= len(objects)
    assert found == objects[::-1]


MANY = make_list("good", "good", *["null"] * LARGEST_PAGE, "good")


@pytest.mark.parametrize("page_size", [1, 2, LARGEST_PAGE])
def test_page_without_a_valid_id_ends_with_an_error(page_size: int):
    with pytest.raises(
        StripeRequestError, match=r"^the page after cus_1 of customers cannot be read: "
    ):
        read(MANY, page_size)
    with pytest.raises(StripeRequestError, match=r"^the first page of customers "):
        read(MANY[2:], page_size)


@pytest.mark.parametrize("page_size", [1, 2, LARGEST_PAGE])
def test_events_without_a_valid_id_end_with_an_error(page_size: int):
    client: Any = Lister(MANY)
    run: Any = SimpleNamespace(counts=Counter())
    listing = Listing(client, page_size, run)
    with pytest.raises(StripeRequestError, match=r"has a valid id$"):
        listing.list_after(EventCursor(None))
    with pytest.raises(
        StripeRequestError, match=r"ending_before cus_102 has a valid id$"
    ):
        listing.list_after(EventCursor(None, "cus_102"))


@dataclass
class Repeater:
    """Sends the same response to each request."""

    data: Any

    def raw_request(self, method_: str, url_: str, **params: Any) -> Any:
        return SimpleNamespace(data=self.data, headers={"Date": DATE})


@pytest.mark.parametrize(
    "data", [None, [], "text", {}, {"data": None}, {"data": {}}, {"error": {}}]
)
def test_response_that_is_not_a_list_ends_with_an_error(data: Any):
    client: Any = Repeater(data)
    with pytest.raises(StripeRequestError, match=r"^the first page of .* not a list$"):
        list(list_pages(client, Cursor(), 10))
    run: Any = SimpleNamespace(counts=Counter())
    with pytest.raises(StripeRequestError, match=r"not a list$"):
        Listing(client, 10, run).list_after(EventCursor(None))


def test_repeated_page_ends_with_an_error():
    client: Any = Repeater({"data": make_list("good", "good"), "has_more": True})
    with pytest.raises(StripeRequestError, match=r"Stripe lists cus_1 again$"):
        list(list_pages(client, Cursor(), 2))
    run: Any = SimpleNamespace(counts=Counter())
    with pytest.raises(
        StripeRequestError, match=r"Stripe lists the event cus_1 again$"
    ):
        Listing(client, 2, run).list_after(EventCursor(None, "cus_1"))


def test_unreadable_json_names_the_page(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(api, "sleep", lambda _: None)

    class Broken:
        def raw_request(self, *_: Any, **params: Any) -> Any:
            if "starting_after" in params:
                text = "Invalid response body from API: {"
                raise stripe.APIError(text)
            return Lister(make_list(*["good"] * 4)).raw_request("get", "", **params)

    client: Any = Broken()
    with pytest.raises(
        StripeRequestError,
        match=r"^the page after cus_1 of customers cannot be read: APIError: Inval",
    ):
        list(list_pages(client, Cursor(), 2))

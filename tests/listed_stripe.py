"""A Stripe account that lists given objects unchanged, by the fake's HTTP server.

The objects may be incomplete or invalid, which those of the fake never are.
"""

import json
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from email.utils import formatdate
from typing import Any
from urllib.parse import unquote

import stripe

from tests.fake_stripe import ApiError, FakeStripe
from tests.fake_stripe.api import Api, Header, Reply
from tests.fake_stripe.errors import missing
from tests.fake_stripe.params import Params, decode, read_page
from tests.fake_stripe.world import World

# Items that Stripe includes in a subscription; the others are listed separately.
_ITEMS = 10


class ListedObjects(Api):
    """The API of an account with these objects; `lists` has them by type.

    `now` is the time of responses, None for the current time.
    As Stripe does, lists leave out deleted objects and those of test clocks, and a
    subscription includes ten items.
    """

    def __init__(self, world: World) -> None:
        super().__init__(world)
        self.lists: dict[str, Sequence[Any]] = {"customers": [], "subscriptions": []}
        self.now: int | None = None

    def put(self, stripe_object: Mapping[str, Any]) -> None:
        """Add a customer or subscription, or replace it; ignore other objects.

        A customer that an object names is added if it is unknown.
        """
        object_type = f"{stripe_object.get('object')}s"
        if object_type in self.lists:
            others = [
                one
                for one in self.lists[object_type]
                if one["id"] != stripe_object["id"]
            ]
            self.lists[object_type] = [stripe_object, *others]
        customer = stripe_object.get("customer")
        if customer and all(one["id"] != customer for one in self.lists["customers"]):
            created = stripe_object.get("created", int(time.time()))
            self.put({"id": customer, "object": "customer", "created": created})

    def handle(
        self, method: str, path: str, query: str, body: str, header: Header
    ) -> Reply:
        object_type, _, object_id = path.removeprefix("/v1/").partition("/")
        try:
            if object_id:
                shape = self._find(object_type, unquote(object_id))
            else:
                shape = self._list_page(object_type, Params(decode(query)))
            reply = Reply(200, json.dumps(shape))
        except ApiError as error:
            reply = Reply(error.status, json.dumps(error.body()))
        reply.headers["Date"] = formatdate(self.now or time.time(), usegmt=True)
        return reply

    def _find(self, object_type: str, object_id: str) -> Any:
        for one in self.lists.get(object_type, []):
            if isinstance(one, Mapping) and one.get("id") == object_id:
                return with_first_items(one)
        raise missing(object_type.removesuffix("s"), object_id)

    def _list_page(self, object_type: str, params: Params) -> Any:
        page = read_page(params)
        if object_type == "subscription_items":
            objects = self._list_items(params.require("subscription"))
        else:
            objects = [
                with_first_items(one)
                for one in self.lists.get(object_type, [])
                if not isinstance(one, Mapping)
                or not (one.get("deleted") or one.get("test_clock"))
            ]
        if page.starting_after is not None:
            ids = [isinstance(one, Mapping) and one.get("id") for one in objects]
            if page.starting_after not in ids:
                kind = object_type.removesuffix("s")
                raise missing(kind, page.starting_after, "starting_after")
            objects = objects[ids.index(page.starting_after) + 1 :]
        return {
            "object": "list",
            "url": f"/v1/{object_type}",
            "has_more": len(objects) > page.limit,
            "data": objects[: page.limit],
        }

    def _list_items(self, subscription: str) -> list[Any]:
        for one in self.lists["subscriptions"]:
            if isinstance(one, Mapping) and one.get("id") == subscription:
                return list(one["items"]["data"])
        raise missing("subscription", subscription, "subscription")


def with_first_items(stripe_object: Any) -> Any:
    """Return a subscription with its first ten items; other objects unchanged."""
    try:
        items = stripe_object["items"]["data"]
        is_cut = len(items) > _ITEMS
    except (KeyError, TypeError):
        return stripe_object
    if not is_cut:
        return stripe_object
    page = stripe_object["items"] | {"data": items[:_ITEMS], "has_more": True}
    return stripe_object | {"items": page}


@contextmanager
def listed_stripe() -> Iterator[tuple[ListedObjects, stripe.StripeClient]]:
    """Serve an account without objects; yield it, and a client of it."""
    with FakeStripe() as fake:
        fake.api = listed = ListedObjects(fake.world)
        yield listed, fake.client()

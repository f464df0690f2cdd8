"""The endpoint /v1/subscription_items."""

from . import billing_shapes, shapes
from .call import Call
from .clock import ITEM_PERIODS_SINCE
from .errors import missing
from .model import Item, Subscription
from .params import read_page
from .shapes import Json
from .subscription_params import Change, read_item_change
from .subscriptions import change_items, changeable


def create(call: Call) -> Json:
    subscription = changeable(call, call.params.require("subscription"))
    change = read_item_change(call, None, call.params)
    change_items(call, subscription, [change])
    return _show(call, subscription, subscription.items[-1])


def retrieve(call: Call, item_id: str) -> Json:
    return _show(call, *_find(call, item_id))


def update(call: Call, item_id: str) -> Json:
    subscription, item = _find(call, item_id)
    change_items(call, subscription, [read_item_change(call, item, call.params)])
    return _show(call, *_find(call, item_id))


def delete(call: Call, item_id: str) -> Json:
    subscription, item = _find(call, item_id)
    call.params.ignore("clear_usage")
    gone = Change(item, None, None, {}, removed=True)
    change_items(call, subscription, [gone])
    return shapes.deleted(item_id, "subscription_item")


def list_page(call: Call) -> Json:
    """List the items of a subscription in its own order."""
    params = call.params
    name, ask = params.require("subscription"), read_page(params)
    params.done()
    subscriptions = call.world.subscriptions
    about = subscriptions.get(name, livemode=call.livemode, param="subscription")
    places = {item.id: place for place, item in enumerate(about.items)}
    for param in ("starting_after", "ending_before"):
        if (cursor := getattr(ask, param)) not in (None, *places):
            raise missing("subscription_item", cursor, param)
    low, high = places.get(ask.starting_after or "", -1) + 1, len(places)
    if ask.ending_before is not None:
        high = places[ask.ending_before]
        low = max(0, high - ask.limit)
        more = low > 0
    else:
        more = high - low > ask.limit
        high = min(high, low + ask.limit)
    data = [_show(call, about, item) for item in about.items[low:high]]
    url = "/v1/subscription_items"
    return {"object": "list", "url": url, "has_more": more, "data": data}


def _find(call: Call, item_id: str) -> tuple[Subscription, Item]:
    for subscription in call.world.subscriptions:
        for item in subscription.items:
            if item.id == item_id and subscription.livemode == call.livemode:
                return subscription, item
    raise missing("subscription_item", item_id)


def _show(call: Call, subscription: Subscription, item: Item) -> Json:
    old = call.version[:10] < ITEM_PERIODS_SINCE
    return billing_shapes.item(item, subscription.id, old=old)

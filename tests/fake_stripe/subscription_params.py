"""Reads the parameters of creating and updating a subscription."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

from . import billing
from .call import Call
from .catalog import read_quantity, recurring_price
from .clock import DAY
from .errors import invalid
from .model import Item, Price, Subscription
from .params import Params
from .shapes import Json

# A subscription has at most so many items.
MOST_ITEMS = 20
# From this version on, new subscriptions are flexible.
FLEXIBLE_SINCE = "2025-09-30"
_IGNORED = (
    "automatic_tax",
    "currency",
    "off_session",
    "payment_settings",
    "proration_date",
)


def read_item(call: Call, entry: Params, anchor: int) -> Item:
    price = recurring_price(call, entry.require("price"), "items[0][price]")
    quantity = read_quantity(entry, price)
    item = billing.new_item(call.world, price, quantity, anchor)
    item.metadata = entry.merge_metadata({})
    entry.done()
    return item


def read_common(call: Call, subscription: Subscription) -> None:
    params, now = call.params, call.world.now
    subscription.metadata = params.merge_metadata(subscription.metadata)
    for name, field in (
        ("description", "description"),
        ("default_payment_method", "payment_method"),
    ):
        if name in params:
            setattr(subscription, field, params.text(name))
    params.ignore(*_IGNORED, "proration_behavior", "days_until_due")
    if method := collection_method(params):
        subscription.collection_method = method
    behavior = params.nested("trial_settings").nested("end_behavior")
    missing_method = behavior.choice(
        "missing_payment_method", "cancel", "create_invoice", "pause"
    )
    subscription.missing_payment_method = (
        missing_method or subscription.missing_payment_method
    )
    if "pause_collection" in params:
        subscription.pause_collection = _read_pause(params, now)
    details = params.nested("cancellation_details")
    details.ignore("comment", "feedback", "feedback_option")
    details.done()


def _read_pause(params: Params, now: int) -> Json | None:
    if not params.has_object("pause_collection"):
        return None
    pause = params.nested("pause_collection")
    pause.require("behavior")
    behavior = pause.choice("behavior", "keep_as_draft", "mark_uncollectible", "void")
    resumes_at = pause.integer("resumes_at")
    pause.done()
    if resumes_at is not None and resumes_at <= now:
        raise invalid(
            "pause_collection[resumes_at]",
            "Invalid pause_collection[resumes_at]: must be a timestamp in the future.",
        )
    return {"behavior": behavior, "resumes_at": resumes_at}


def read_cancellation(params: Params, subscription: Subscription, now: int) -> None:
    """Plan or revoke the end, after the periods have changed."""
    if "cancel_at" in params and "cancel_at_period_end" in params:
        raise invalid(
            "cancel_at",
            "You may only specify one of these parameters: cancel_at, "
            "cancel_at_period_end.",
        )
    at_end = params.boolean("cancel_at_period_end")
    if "cancel_at" in params:
        plan_end(subscription, _read_cancel_at(params, subscription, now), now)
    elif at_end is not None:
        plan_end(subscription, subscription.period_end if at_end else None, now)
        subscription.cancel_at_period_end = at_end
    elif subscription.cancel_at_period_end:
        # It follows the period, unlike a time that was resolved.
        subscription.cancel_at = subscription.period_end


def plan_end(subscription: Subscription, moment: int | None, now: int) -> None:
    """Let the subscription end at *moment*; None revokes it."""
    subscription.cancel_at, subscription.cancel_at_period_end = moment, False
    subscription.canceled_at = None if moment is None else now
    reason = None if moment is None else "cancellation_requested"
    subscription.cancellation_reason = reason


def _read_cancel_at(params: Params, subscription: Subscription, now: int) -> int | None:
    ends = [item.period_end for item in subscription.items]
    text = params.text("cancel_at")
    if text in ("min_period_end", "max_period_end"):
        return min(ends) if text == "min_period_end" else max(ends)
    moment = params.integer("cancel_at")
    if moment is not None and moment <= now:
        raise invalid(
            "cancel_at",
            "Invalid cancel_at: must be a timestamp in the future.",
        )
    return moment


def collection_method(params: Params) -> str | None:
    return params.choice("collection_method", "charge_automatically", "send_invoice")


def read_trial_end(call: Call, params: Params) -> int | None:
    now, days = call.world.now, params.integer("trial_period_days")
    if params.text("trial_end") == "now":
        return None
    moment = params.integer("trial_end")
    if moment is not None and moment <= now:
        raise invalid("trial_end", "Invalid timestamp: must be in the future")
    return now + days * DAY if days else moment


def set_trial(subscription: Subscription, now: int, trial_end: int) -> None:
    subscription.status = "trialing"
    subscription.trial_start = subscription.trial_start or now
    subscription.trial_end = subscription.anchor = trial_end
    for item in subscription.items:
        item.period_start, item.period_end = subscription.trial_start, trial_end


def read_billing_mode(call: Call, params: Params) -> str:
    default = "flexible" if call.version[:10] >= FLEXIBLE_SINCE else "classic"
    mode = params.nested("billing_mode")
    mode.ignore("flexible")
    chosen = mode.choice("type", "flexible", "classic")
    mode.done()
    return chosen or default


def check_items(items: Sequence[Item], billing_mode: str) -> None:
    """Raise the error for too many items, or for intervals that cannot be mixed."""
    if len(items) > MOST_ITEMS:
        raise invalid(
            "items",
            f"A subscription can have at most {MOST_ITEMS} items.",
        )
    if billing_mode == "classic" and len({turn(i.price) for i in items}) > 1:
        raise invalid(
            "items",
            "All prices on a subscription must have the same `recurring.interval` and "
            "`recurring.interval_count` in the billing mode `classic`.",
        )
    if len({item.price.currency for item in items}) > 1:
        raise invalid("items", "All prices on a subscription must have one currency.")


@dataclass(frozen=True, slots=True)
class Change:
    """`item` is None for a new one; `metadata` is that afterwards."""

    item: Item | None
    price: Price | None
    quantity: int | None
    metadata: dict[str, str]
    removed: bool = False


def read_change(call: Call, subscription: Subscription, entry: Params) -> Change:
    """Read an entry of the parameter `items`."""
    item_id = entry.text("id")
    item = next((i for i in subscription.items if i.id == item_id), None)
    if item_id and item is None:
        raise invalid("items[0][id]", f"No such subscription item: '{item_id}'")
    change = read_item_change(call, item, entry)
    change = replace(change, removed=bool(entry.boolean("deleted")))
    entry.done()
    return change


def read_item_change(call: Call, item: Item | None, entry: Params) -> Change:
    """Read the parameters of one item, which is new if *item* is None."""
    price = None
    if "price" in entry or item is None:
        price = recurring_price(call, entry.require("price"), "items[0][price]")
    kept = price or (item.price if item else None)
    assert kept is not None
    before = item.quantity if item else None
    # A meter that becomes a seat counts as one.
    quantity = read_quantity(entry, kept, 1 if before is None else before)
    metadata = entry.merge_metadata(item.metadata if item else {})
    entry.ignore("clear_usage")
    return Change(item, price, quantity, metadata)


def apply_changes(
    call: Call, subscription: Subscription, changes: list[Change]
) -> list[Item]:
    """Replace the items; items with a new interval begin a period now."""
    items, begun = list(subscription.items), []
    for change in changes:
        item, price, quantity = change.item, change.price, change.quantity
        if item is None:
            assert price is not None
            added = billing.new_item(call.world, price, quantity, subscription.anchor)
            added.metadata = change.metadata
            if subscription.status == "trialing":
                added.period_end = subscription.anchor
            items.append(added)
            continue
        place = items.index(item)
        if change.removed:
            del items[place]
            continue
        changed = items[place] = replace(
            item,
            price=price or item.price,
            quantity=quantity,
            metadata=change.metadata,
        )
        if turn(changed.price) != turn(item.price):
            begun.append(changed)
    if not items:
        raise invalid("items", "A subscription must have at least one active plan.")
    check_items(items, subscription.billing_mode)
    subscription.items = items
    return [] if subscription.status == "trialing" else begun


def turn(price: Price) -> tuple[str | None, int]:
    return price.interval, price.interval_count

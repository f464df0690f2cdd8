"""The endpoints /_fake/…: control of the fake by another process, without a key.

Parameters are form-encoded, as for Stripe; replies are JSON.
"""

import json
import re
from collections.abc import Callable
from decimal import Decimal
from typing import TYPE_CHECKING, Any, cast, get_args
from urllib.parse import unquote_plus

from . import shapes
from .api import Reply
from .deliveries import Delivery
from .errors import ApiError, invalid, missing
from .faults import Kind
from .params import Params, decode
from .shapes import Json, to_json

if TYPE_CHECKING:
    from .fake import FakeStripe


def control(fake: "FakeStripe", method: str, path: str, query: str, body: str) -> Reply:
    params = Params(decode(body or query))
    try:
        for verb, pattern, handler in _ROUTES:
            if verb == method and (match := re.fullmatch(pattern, path)):
                reply = handler(fake, params, *match.groups())
                params.done()
                return Reply(200, to_json(reply))
        raise ApiError(404, f"Unrecognized request URL ({method}: {path}).")
    except ApiError as error:
        return Reply(error.status, to_json(error.body()))


def _clock(fake: "FakeStripe", params: Params) -> Json:
    seconds, to = params.integer("seconds"), params.integer("to")
    if seconds or to:
        fake.advance(seconds=seconds or 0, to=to)
    return {"now": fake.clock.now}


def _stats(fake: "FakeStripe", params: Params) -> Json:
    return fake.stats()


def _reset_stats(fake: "FakeStripe", params: Params) -> Json:
    fake.reset_stats()
    return {}


def _settings(fake: "FakeStripe", params: Params) -> Json:
    with fake.world.lock:
        if version := params.text("api_version"):
            fake.world.api_version = version
        for name in ("account", "context"):  # of later events; empty for none
            if name in params:
                setattr(fake.world, name, params.text(name))
        ends = ("canceled", "unpaid", "past_due")
        if end := params.choice("after_failed_payments", *ends):
            fake.world.after_failed_payments = end
    return {"api_version": fake.world.api_version}


def _add_fault(fake: "FakeStripe", params: Params) -> Json:
    kind = params.choice("kind", *get_args(Kind))
    when = params.choice("when", "before", "after", "body")
    options = {
        "method": params.text("method"),
        "path": params.text("path"),
        "skip": params.integer("skip"),
        "share": params.number("share"),
        "status": params.integer("status"),
        "retry_after": params.number("retry_after"),
        "should_retry": params.boolean("should_retry"),
        "seconds": params.number("seconds"),
        "when": when,
    }
    given: dict[str, Any] = {
        name: value for name, value in options.items() if value is not None
    }
    if "times" in params:  # empty: until cleared
        given["times"] = params.integer("times")
    fake.faults.add(cast(Kind, kind or "error"), **given)
    return {}


def _clear_faults(fake: "FakeStripe", params: Params) -> Json:
    fake.faults.clear()
    return {}


def _delivery_faults(fake: "FakeStripe", params: Params) -> Json:
    faults = fake.deliveries.faults
    for name in ("duplicate", "drop", "delay"):
        if (share := params.number(name)) is not None:
            setattr(faults, name, share)
    for name in ("delay_seconds", "shuffle"):
        if (number := params.integer(name)) is not None:
            setattr(faults, name, number)
    return {}


def _add_endpoint(fake: "FakeStripe", params: Params) -> Json:
    secrets = params.texts("secrets") or [params.require("secret")]
    kinds = params.texts("enabled_events") or ["*"]
    endpoint = fake.deliveries.add_endpoint(secrets, params.text("url"), kinds)
    return {"id": endpoint.id}


def _show(delivery: Delivery) -> Json:
    return {
        "number": delivery.number,
        "event": delivery.event.id,
        "type": delivery.event.type,
        "state": delivery.state,
        "due": delivery.due,
        "answer": delivery.answer,
    }


def _list_deliveries(fake: "FakeStripe", params: Params) -> Json:
    state = params.text("state")
    found = [d for d in list(fake.deliveries.all) if state in (None, d.state)]
    return {"data": [_show(delivery) for delivery in found]}


def _take(fake: "FakeStripe", params: Params) -> Json:
    delivery = fake.deliveries.take()
    if delivery is None:
        return {"delivery": None}
    shown = {"payload": delivery.payload.decode(), "signature": delivery.signature}
    return {"delivery": _show(delivery) | shown}


def _settle(fake: "FakeStripe", params: Params, number: str, how: str) -> Json:
    if int(number) >= len(fake.deliveries.all):
        raise missing("delivery", number)
    delivery = fake.deliveries.all[int(number)]
    fake.deliveries.settle(delivery, delivered=how == "succeed")
    return _show(delivery)


def _deliver(fake: "FakeStripe", params: Params) -> Json:
    limit, workers = params.integer("limit"), params.integer("workers") or 1
    return dict(fake.deliveries.deliver(limit=limit, workers=workers))


def _redeliver(fake: "FakeStripe", params: Params) -> Json:
    dropped, taken = params.boolean("dropped"), params.boolean("taken")
    number = fake.deliveries.redeliver(dropped=bool(dropped), taken=bool(taken))
    return {"queued": number}


def _release(fake: "FakeStripe", params: Params) -> Json:
    fake.deliveries.release()
    return {}


def _drop(fake: "FakeStripe", params: Params) -> Json:
    kinds, limit = params.texts("types"), params.integer("limit")
    return {"data": [_show(d) for d in fake.deliveries.drop(*kinds, limit=limit)]}


def _add_price(fake: "FakeStripe", params: Params) -> Json:
    amount = params.text("unit_amount")
    price = fake.add_price(
        params.require("id"),
        interval=params.text("interval") or "month",
        interval_count=params.integer("interval_count") or 1,
        unit_amount=2000 if amount is None else Decimal(amount),
        meter=params.text("meter"),
    )
    return shapes.price(price)


def _portal(fake: "FakeStripe", params: Params, name: str, how: str) -> Json:
    act = fake.cancel_in_portal if how == "cancel" else fake.renew_in_portal
    act(unquote_plus(name))
    return fake.world.render(fake.world.subscriptions.get(unquote_plus(name)))


def _choose_id(fake: "FakeStripe", params: Params) -> Json:
    fake.choose_id(params.require("prefix"), params.require("id"))
    return {}


def _distort(fake: "FakeStripe", params: Params) -> Json:
    """Take the values as JSON."""
    values = json.loads(params.require("values"))
    fake.distort(params.require("id"), **values)
    return {}


def _thin_event(fake: "FakeStripe", params: Params) -> Json:
    payload, signature = fake.make_thin_event(
        params.require("type"), params.require("id")
    )
    return {"payload": payload.decode(), "signature": signature}


def _complete(fake: "FakeStripe", params: Params, session_id: str) -> Json:
    unpaid = bool(params.boolean("unpaid"))
    fake.complete_checkout(session_id, params.text("email"), unpaid=unpaid)
    return fake.world.render(fake.world.sessions.get(session_id))


def _finish_payment(
    fake: "FakeStripe", params: Params, session_id: str, how: str
) -> Json:
    fake.finish_payment(session_id, succeeded=how == "succeed")
    return fake.world.render(fake.world.sessions.get(session_id))


def _seed(fake: "FakeStripe", params: Params) -> Json:
    number = params.integer("accounts")
    if number is None:
        raise invalid("accounts", "Missing required param: accounts.")
    fake.seed_accounts(number)
    return fake.stats()


_ROUTES: list[tuple[str, str, Callable[..., Json]]] = [
    ("GET", "/_fake/clock", _clock),
    ("POST", "/_fake/clock", _clock),
    ("GET", "/_fake/stats", _stats),
    ("DELETE", "/_fake/stats", _reset_stats),
    ("POST", "/_fake/settings", _settings),
    ("POST", "/_fake/faults", _add_fault),
    ("DELETE", "/_fake/faults", _clear_faults),
    ("POST", "/_fake/delivery_faults", _delivery_faults),
    ("POST", "/_fake/endpoints", _add_endpoint),
    ("GET", "/_fake/deliveries", _list_deliveries),
    ("POST", "/_fake/deliveries/take", _take),
    ("POST", r"/_fake/deliveries/(\d+)/(succeed|fail)", _settle),
    ("POST", "/_fake/deliver", _deliver),
    ("POST", "/_fake/redeliver", _redeliver),
    ("POST", "/_fake/release", _release),
    ("POST", "/_fake/drop", _drop),
    ("POST", "/_fake/prices", _add_price),
    ("POST", r"/_fake/portal/([^/]+)/(cancel|renew)", _portal),
    ("POST", "/_fake/ids", _choose_id),
    ("POST", "/_fake/distortions", _distort),
    ("POST", "/_fake/thin_events", _thin_event),
    ("POST", r"/_fake/checkout/([^/]+)/complete", _complete),
    ("POST", r"/_fake/checkout/([^/]+)/(succeed|fail)", _finish_payment),
    ("POST", "/_fake/seed", _seed),
]

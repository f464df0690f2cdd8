"""Handles a request: key, version, route, idempotency, errors."""

import base64
import binascii
import re
from collections import Counter, OrderedDict
from collections.abc import Callable
from dataclasses import dataclass, field
from email.utils import formatdate
from typing import Any
from urllib.parse import unquote_plus

from . import (
    catalog,
    checkout,
    customers,
    events,
    invoices,
    items,
    subscriptions,
)
from .call import Call
from .errors import ApiError
from .params import Params, decode
from .shapes import Json, to_json
from .world import Origin, World

Header = Callable[[str], str | None]  # its value by name
Handler = Callable[..., Json | str]

_KEY = re.compile(r"(sk|rk)_(test|live)_\w+")
_VERSION = re.compile(r"\d{4}-\d\d-\d\d(\.[a-z]+)?")
_MAX_REPLIES = 10_000

ROUTES: list[tuple[str, str, Handler]] = [
    ("POST", "customers", customers.create),
    ("GET", "customers", customers.list_page),
    ("GET", "customers/:id", customers.retrieve),
    ("POST", "customers/:id", customers.update),
    ("DELETE", "customers/:id", customers.delete),
    ("POST", "test_helpers/test_clocks", customers.create_clock),
    ("GET", "test_helpers/test_clocks/:id", customers.retrieve_clock),
    ("POST", "products", catalog.create_product),
    ("GET", "products", catalog.list_products),
    ("GET", "products/:id", catalog.retrieve_product),
    ("POST", "prices", catalog.create_price),
    ("GET", "prices", catalog.list_prices),
    ("GET", "prices/:id", catalog.retrieve_price),
    ("POST", "prices/:id", catalog.update_price),
    ("POST", "subscriptions", subscriptions.create),
    ("GET", "subscriptions", subscriptions.list_page),
    ("GET", "subscriptions/:id", subscriptions.retrieve),
    ("POST", "subscriptions/:id", subscriptions.update),
    ("DELETE", "subscriptions/:id", subscriptions.cancel),
    ("POST", "subscriptions/:id/pause", subscriptions.pause),
    ("POST", "subscriptions/:id/resume", subscriptions.resume),
    ("POST", "subscription_items", items.create),
    ("GET", "subscription_items", items.list_page),
    ("GET", "subscription_items/:id", items.retrieve),
    ("POST", "subscription_items/:id", items.update),
    ("DELETE", "subscription_items/:id", items.delete),
    ("GET", "invoices", invoices.list_page),
    ("GET", "invoices/:id", invoices.retrieve),
    ("POST", "invoices/:id/pay", invoices.pay),
    ("POST", "checkout/sessions", checkout.create),
    ("GET", "checkout/sessions", checkout.list_page),
    ("GET", "checkout/sessions/:id", checkout.retrieve),
    ("POST", "checkout/sessions/:id/expire", checkout.expire),
    ("GET", "events", events.list_page),
    ("GET", "events/:id", events.retrieve),
]
_COMPILED = [
    (
        method,
        f"/v1/{path}",
        re.compile(f"/v1/{path.replace(':id', '([^/]+)')}"),
        handler,
    )
    for method, path, handler in ROUTES
]


@dataclass(slots=True)
class Reply:
    status: int
    body: str
    headers: dict[str, str] = field(default_factory=dict)


class Api:
    def __init__(self, world: World) -> None:
        self.world = world
        self.requests: Counter[str] = Counter()  # by "GET /v1/customers/:id"
        self._replies: OrderedDict[str, tuple[str, str, Reply]] = OrderedDict()
        self._count = 0

    def handle(
        self, method: str, path: str, query: str, body: str, header: Header
    ) -> Reply:
        with self.world.lock:
            self._count += 1
            request_id = f"req_{self._count:014d}"
            try:
                reply = self._handle(method, path, query, body, header, request_id)
            except ApiError as error:
                reply = Reply(error.status, to_json(error.body()))
            reply.headers["Request-Id"] = request_id
            # The fake's time, even if the reply is sent late.
            reply.headers["Date"] = formatdate(self.world.now, usegmt=True)
            return reply

    def _handle(
        self,
        method: str,
        path: str,
        query: str,
        body: str,
        header: Header,
        request_id: str,
    ) -> Reply:
        name, handler, ids = _route(method, path)
        self.requests[f"{method} {name}"] += 1
        livemode = _livemode(header("Authorization") or "")
        version = header("Stripe-Version") or self.world.api_version
        if not _VERSION.fullmatch(version):
            raise ApiError(400, f"Invalid Stripe API version: {version}")
        if handler is None:
            raise ApiError(404, f"Unrecognized request URL ({method}: {path}).")
        # A running clock may have passed something due.
        self.world.advance()
        key = header("Idempotency-Key") if method == "POST" else None
        if key is not None and (before := self._replies.get(key)) is not None:
            return _replay(before, path, body)
        params = Params(decode(body if method == "POST" else query))
        expand = params.texts("expand")
        call = Call(self.world, params, livemode, version)
        with self.world.caused_by(Origin(request_id, key)):
            try:
                shape = handler(call, *ids)
                if isinstance(shape, dict):
                    for wanted in expand:
                        call.expand(shape, wanted)
                    shape = to_json(shape)
                reply = Reply(200, shape, {"Stripe-Version": version})
            except ApiError as error:
                # A declined card has an effect, so its reply is kept too.
                if error.status != 402:
                    raise
                reply = Reply(error.status, to_json(error.body()))
        if key is not None:
            self._replies[key] = (path, body, Reply(reply.status, reply.body))
            if len(self._replies) > _MAX_REPLIES:
                self._replies.popitem(last=False)
        return reply


def _route(method: str, path: str) -> tuple[str, Handler | None, tuple[Any, ...]]:
    for verb, name, pattern, handler in _COMPILED:
        if verb == method and (match := pattern.fullmatch(path)):
            # As the clients encode an id: a space is a plus sign.
            return name, handler, tuple(map(unquote_plus, match.groups()))
    return path, None, ()


def _livemode(authorization: str) -> bool:
    """Return True for a live key; refuse a missing or malformed one."""
    scheme, _, key = authorization.partition(" ")
    if scheme == "Basic":
        try:
            key = base64.b64decode(key).decode().partition(":")[0]
        except (binascii.Error, UnicodeDecodeError):
            key = ""
    if not key:
        raise ApiError(401, "You did not provide an API key.")
    if not _KEY.fullmatch(key):
        shown = f"{key[:3]}{'*' * 8}{key[-4:]}" if len(key) > 12 else "*" * 8
        raise ApiError(401, f"Invalid API Key provided: {shown}")
    return "_live_" in key


def _replay(before: tuple[str, str, Reply], path: str, body: str) -> Reply:
    if before[:2] != (path, body):
        raise ApiError(
            400,
            "Keys for idempotent requests can only be used with the same parameters "
            "they were first used with.",
            kind="idempotency_error",
        )
    reply = before[2]
    return Reply(reply.status, reply.body, {"Idempotent-Replayed": "true"})

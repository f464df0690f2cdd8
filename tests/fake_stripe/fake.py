"""FakeStripe, the whole fake; __main__ runs it as a process."""

import json
import threading
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from decimal import Decimal
from types import TracebackType
from typing import Any

import stripe

from . import checkout, events, seed, subscriptions
from .api import Api
from .catalog import add_price
from .clock import Clock
from .deliveries import Deliveries, sign
from .errors import ApiError
from .faults import Faults
from .model import Price
from .params import encode
from .server import Server
from .shapes import Json, to_json
from .world import World

TEST_KEY = "sk_test_fake"
TEST_SECRET = "whsec_fake"


class FakeStripe:
    """A Stripe account behind an HTTP server; thread-safe.

    The clock stands at *start*, by default the current time, until `advance`; with
    *running*, it runs from there. Initially there is one endpoint with *secrets*, which
    gets deliveries by `deliveries.take`, or by `deliveries.deliver` if it has a URL.
    """

    def __init__(
        self,
        *,
        seed: int = 0,
        start: int | None = None,
        running: bool = False,
        api_version: str = stripe.api_version,
        secrets: Sequence[str] = (TEST_SECRET,),
        webhook_url: str | None = None,
        enabled_events: Sequence[str] = ("*",),
    ) -> None:
        self.clock = Clock(start, running=running)
        self.world = World(self.clock, api_version, seed)
        self.api = Api(self.world)
        self.faults = Faults(seed)
        self.deliveries = Deliveries(self.world, seed)
        self.world.on_event = self.deliveries.enqueue
        self.deliveries.add_endpoint(secrets, webhook_url, enabled_events)
        self.statuses: Counter[int] = Counter()
        self.base_url = ""
        self._server: Server | None = None

    def start(self, host: str = "127.0.0.1", port: int = 0) -> str:
        """Serve in a thread; return the base URL."""
        self._server = Server(self, host, port)
        self.base_url = f"http://{host}:{self._server.server_address[1]}"
        serve = self._server.serve_forever
        threading.Thread(target=serve, args=(0.01,), daemon=True).start()
        return self.base_url

    def stop(self) -> None:
        """Stop serving; the objects stay for another `start`."""
        if self._server is not None:
            self._server.shutdown()
            self._server.server_close()
            self._server.close_connections()
            self._server = None

    def __enter__(self) -> "FakeStripe":
        self.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.stop()

    def client(
        self, key: str = TEST_KEY, *, max_network_retries: int = 0, **options: Any
    ) -> stripe.StripeClient:
        """Return Stripe's client, connected to this fake."""
        return stripe.StripeClient(
            key,
            base_addresses={"api": self.base_url},
            max_network_retries=max_network_retries,
            **options,
        )

    def request(
        self,
        method: str,
        path: str,
        params: Mapping[str, Any] | None = None,
        *,
        key: str = TEST_KEY,
    ) -> Json:
        """Return the reply of the API without HTTP and faults; several times faster.

        Raises:
            ApiError: the reply is an error.
        """
        encoded = encode(params or {})
        query, body = ("", encoded) if method == "POST" else (encoded, "")
        header = {"Authorization": f"Bearer {key}"}.get
        answer = self.api.handle(method, path, query, body, header)
        reply: Json = json.loads(answer.body)
        if answer.status != 200:
            error = reply["error"]
            raise ApiError(answer.status, error["message"], code=error.get("code"))
        return reply

    def advance(self, *, seconds: int = 0, to: int | None = None) -> int:
        """Move the clock, and run the actions that become due; return the time."""
        with self.world.lock:
            self.world.advance(seconds=seconds, to=to)
            return self.clock.now

    def add_price(
        self,
        price_id: str,
        *,
        interval: str | None = "month",
        interval_count: int = 1,
        unit_amount: int | Decimal = 2000,
        tiers: Sequence[tuple[int | None, int]] = (),
        meter: str | None = None,
        livemode: bool = False,
    ) -> Price:
        """Add a price with this id, which the API does not offer.

        Without *interval* it is a one-time price, with *tiers* of (up_to, unit_amount)
        a graduated one, with *meter* a metered one. A fractional *unit_amount* is
        rendered as `unit_amount_decimal` only.
        """
        with self.world.lock:
            return add_price(
                self.world,
                price_id,
                interval=interval,
                interval_count=interval_count,
                unit_amount=unit_amount,
                tiers=tiers,
                meter=meter,
                livemode=livemode,
            )

    def complete_checkout(
        self, session_id: str, email: str | None = None, *, unpaid: bool = False
    ) -> None:
        """Complete the session, as a customer that pays; *unpaid*, by a bank debit."""
        with self.world.lock:
            checkout.complete(self.world, session_id, email, unpaid=unpaid)

    def finish_payment(self, session_id: str, *, succeeded: bool = True) -> None:
        """Let the bank debit of a completed session succeed or fail."""
        with self.world.lock:
            checkout.finish_payment(self.world, session_id, succeeded=succeeded)

    def cancel_in_portal(self, subscription_id: str) -> None:
        """Cancel at the period's end, as a customer does in the customer portal."""
        with self.world.lock:
            subscription = self.world.subscriptions.get(subscription_id)
            subscriptions.cancel_in_portal(self.world, subscription)

    def renew_in_portal(self, subscription_id: str) -> None:
        """Revoke the cancellation, as a customer does in the customer portal."""
        with self.world.lock:
            subscription = self.world.subscriptions.get(subscription_id)
            subscriptions.renew_in_portal(self.world, subscription)

    def choose_id(self, prefix: str, object_id: str) -> None:
        """Give the next new object this id, as `su_1` to one of the prefix `sub`."""
        with self.world.lock:
            self.world.choose_id(prefix, object_id)

    def distort(self, object_id: str, **values: Any) -> None:
        """Let all later snapshots of the object have *values*, which may be false."""
        with self.world.lock:
            self.world.distortions.setdefault(object_id, {}).update(values)

    @contextmanager
    def events_of(
        self, *, account: str | None = None, context: str | None = None
    ) -> Iterator[None]:
        """Let events name a connected account, or an organization's context."""
        self.world.account, self.world.context = account, context
        try:
            yield
        finally:
            self.world.account = self.world.context = None

    def make_thin_event(
        self, event_type: str, object_id: str, **fields: Any
    ) -> tuple[bytes, str]:
        """Return a notification about the object, and its signature.

        Its type is `v1.` and that of the snapshot event. *fields* are added to it.
        """
        with self.world.lock:
            shape = events.thin_event(self.world, event_type, object_id) | fields
        payload = to_json(shape).encode()
        return payload, sign(payload, self.deliveries.endpoints[0].secrets)

    def seed_accounts(self, number: int, **options: Any) -> None:
        with self.world.lock:
            seed.seed_accounts(self.world, number, **options)

    def stats(self) -> Json:
        with self.world.lock:
            return {
                "now": self.clock.now,
                "requests": dict(self.api.requests),
                "statuses": {str(k): v for k, v in self.statuses.items()},
                "faults": dict(self.faults.met),
                "deliveries": dict(self.deliveries.states()),
                "customers": len(self.world.customers),
                "subscriptions": len(self.world.subscriptions),
                "events": len(self.world.events),
            }

    def reset_stats(self) -> None:
        with self.world.lock:
            self.api.requests.clear()
            self.statuses.clear()
            self.faults.met.clear()

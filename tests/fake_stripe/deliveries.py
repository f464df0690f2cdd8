"""Webhook deliveries: signed, and with faults on demand."""

import hashlib
import heapq
import hmac
import random
import time
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from http.client import HTTPConnection, HTTPException, HTTPSConnection
from urllib.parse import urlsplit

from . import shapes
from .model import Event
from .world import World


def sign(payload: bytes, secrets: Sequence[str], timestamp: int | None = None) -> str:
    """Return the `Stripe-Signature` header, with one v1 for each secret.

    The default time is that of the system clock, which the verification uses.
    """
    moment = int(time.time()) if timestamp is None else timestamp
    parts = [f"t={moment}"]
    for secret in secrets:
        signed = b"%d.%s" % (moment, payload)
        digest = hmac.new(secret.encode(), signed, hashlib.sha256).hexdigest()
        parts.append(f"v1={digest}")
    return ",".join(parts)


@dataclass(slots=True)
class Endpoint:
    """A receiver of events: by its URL, or by `Deliveries.take`."""

    id: str
    secrets: tuple[str, ...]
    url: str | None = None
    enabled_events: tuple[str, ...] = ("*",)


@dataclass(slots=True)
class DeliveryFaults:
    """Shares of deliveries, 0 to 1, chosen by the seed when the event is emitted.

    A dropped delivery is never sent and not repeated. A delayed one waits for the
    fake's clock. Each delivery is chosen from the next `shuffle` ones.
    """

    duplicate: float = 0.0
    drop: float = 0.0
    delay: float = 0.0
    delay_seconds: int = 3600
    shuffle: int = 1


@dataclass(eq=False, slots=True)
class Delivery:
    """One attempt to bring one event to one endpoint.

    `state` is pending, taken, delivered, failed or dropped.
    """

    number: int
    event: Event
    endpoint: Endpoint
    due: int
    deliveries: "Deliveries" = field(repr=False)
    state: str = "pending"
    payload: bytes = field(default=b"", repr=False)
    signature: str = field(default="", repr=False)
    answer: str = ""

    def succeed(self) -> None:
        """Record a 2xx response."""
        self.deliveries.settle(self, delivered=True)

    def fail(self, answer: str = "") -> None:
        """Record any other response, or none."""
        self.deliveries.settle(self, delivered=False, answer=answer)


class Deliveries:
    def __init__(self, world: World, seed: int) -> None:
        self.faults = DeliveryFaults()
        self.endpoints: list[Endpoint] = []
        self.all: list[Delivery] = []
        self._world = world
        self._random = random.Random(f"{seed}:deliveries")
        self._queue: list[Delivery] = []
        self._delayed: list[tuple[int, int, Delivery]] = []

    def add_endpoint(
        self,
        secrets: Sequence[str],
        url: str | None = None,
        enabled_events: Sequence[str] = ("*",),
    ) -> Endpoint:
        with self._world.lock:
            name = self._world.new_id("we", 24)
            endpoint = Endpoint(name, tuple(secrets), url, tuple(enabled_events))
            self.endpoints.append(endpoint)
            return endpoint

    def enqueue(self, event: Event) -> None:
        """Queue *event* for each endpoint that receives its type."""
        for endpoint in self.endpoints:
            if any(fnmatchcase(event.type, kind) for kind in endpoint.enabled_events):
                event.undelivered.add(endpoint.id)
                copies = 1 + self._happens(self.faults.duplicate)
                dropped = self._happens(self.faults.drop)
                for _ in range(copies):
                    self._add(event, endpoint, dropped=dropped)

    def _happens(self, share: float) -> bool:
        # Each fault draws one number, even with a share of 0, so that a new share
        # does not change the choices of the other faults.
        return self._random.random() < share

    def _add(self, event: Event, endpoint: Endpoint, *, dropped: bool) -> None:
        late, lateness = self._happens(self.faults.delay), self._random.random()
        due = self._world.now
        if late:
            due += 1 + int(lateness * self.faults.delay_seconds)
        delivery = Delivery(len(self.all), event, endpoint, due, self)
        self.all.append(delivery)
        if dropped:
            delivery.state = "dropped"
        else:
            self._push(delivery)

    def _push(self, delivery: Delivery) -> None:
        delivery.state = "pending"
        if delivery.due > self._world.now:
            entry = (delivery.due, delivery.number, delivery)
            heapq.heappush(self._delayed, entry)
        else:
            self._queue.append(delivery)

    def take(self) -> Delivery | None:
        """Return the next due delivery, signed; None if there is none.

        The caller records its result by `succeed()` or `fail()`.
        """
        with self._world.lock:
            while self._delayed and self._delayed[0][0] <= self._world.now:
                self._queue.append(heapq.heappop(self._delayed)[2])
            if not self._queue:
                return None
            near = min(len(self._queue), max(1, self.faults.shuffle))
            delivery = self._queue.pop(int(self._random.random() * near))
            delivery.state = "taken"
            delivery.payload = shapes.event(delivery.event).encode()
            delivery.signature = sign(delivery.payload, delivery.endpoint.secrets)
            return delivery

    def settle(self, delivery: Delivery, *, delivered: bool, answer: str = "") -> None:
        with self._world.lock:
            delivery.state = "delivered" if delivered else "failed"
            delivery.answer = answer
            if delivered:
                delivery.event.undelivered.discard(delivery.endpoint.id)

    def drop(self, *types: str, limit: int | None = None) -> list[Delivery]:
        """Drop pending deliveries of these types, by default of all; return them."""
        with self._world.lock:
            chosen = [d for d in self.pending() if not types or d.event.type in types]
            chosen = chosen[:limit]
            for delivery in chosen:
                delivery.state = "dropped"
            self._queue = [d for d in self._queue if d.state == "pending"]
            self._delayed = [e for e in self._delayed if e[2].state == "pending"]
            heapq.heapify(self._delayed)
            return chosen

    def release(self) -> None:
        """Make the delayed deliveries due now."""
        with self._world.lock:
            for _, _, delivery in sorted(self._delayed, key=lambda e: e[:2]):
                delivery.due = self._world.now
                self._queue.append(delivery)
            self._delayed.clear()

    def redeliver(self, *, dropped: bool = False, taken: bool = False) -> int:
        """Queue failed deliveries again; return their number.

        Optionally also dropped ones, or taken ones without a result.
        """
        states = ["failed", *["dropped"] * dropped, *["taken"] * taken]
        with self._world.lock:
            chosen = [d for d in self.all if d.state in states]
            for delivery in chosen:
                delivery.due = self._world.now
                self._push(delivery)
            return len(chosen)

    def pending(self) -> list[Delivery]:
        """Return pending deliveries, in the order of their events."""
        with self._world.lock:
            return [d for d in self.all if d.state == "pending"]

    def states(self) -> Counter[str]:
        with self._world.lock:
            return Counter(delivery.state for delivery in self.all)

    # Over HTTP

    def deliver(self, *, limit: int | None = None, workers: int = 1) -> Counter[str]:
        """POST due deliveries to their endpoints; count delivered and failed ones."""
        waiting: list[Delivery] = []
        while limit is None or len(waiting) < limit:
            if (delivery := self.take()) is None:
                break
            waiting.append(delivery)
        with ThreadPoolExecutor(workers) as pool:
            return Counter(pool.map(self._post, waiting))

    def _post(self, delivery: Delivery) -> str:
        try:
            status = post(delivery)
        except (OSError, HTTPException, ValueError) as error:
            delivery.fail(repr(error))
        else:
            settled = delivery.succeed if 200 <= status < 300 else delivery.fail
            settled()
            delivery.answer = str(status)
        return delivery.state


def post(delivery: Delivery) -> int:
    """POST one delivery to its endpoint; return the status."""
    url = urlsplit(delivery.endpoint.url or "")
    if url.hostname is None:
        raise ValueError("the endpoint has no URL")
    kind = HTTPSConnection if url.scheme == "https" else HTTPConnection
    connection = kind(url.hostname, url.port, timeout=30)
    headers = {
        "Content-Type": "application/json; charset=utf-8",
        "Stripe-Signature": delivery.signature,
        "User-Agent": "Stripe/1.0 (+https://stripe.com/docs/webhooks)",
    }
    try:
        path = url.path or "/"
        connection.request("POST", path, delivery.payload, headers)
        response = connection.getresponse()
        response.read()
        return response.status
    finally:
        connection.close()

"""Runs one seed: changes, deliveries, and the checks of their result."""

import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import chain
from queue import Queue
from random import Random
from typing import Any
from unittest.mock import patch

from psycopg import Connection, IsolationLevel
from stripe import StripeClient

from pyapp._core.connection import connect
from pyapp.stripe_sync import Outcome, handle_webhook, reconcile, replay_events
from pyapp.stripe_sync import client as api
from tests.fake_stripe import TEST_SECRET, Delivery, FakeStripe
from tests.simulation.checks import check_equal, check_inbox, check_rows, read_mirror
from tests.simulation.history import (
    CHECKOUT,
    CUSTOMER_TYPES,
    INVOICE_TYPES,
    History,
)
from tests.simulation.life import START, Life, begin

WORKERS = 8
# Number of checks during the changes.
CHECKS = 20
# Types that the endpoint receives, more than the product uses.
TYPES = (*CUSTOMER_TYPES, *INVOICE_TYPES, CHECKOUT, "customer.subscription.*")
# Errors that the fake's faults cause, as stored with failed events.
TRANSIENT = ("RateLimitError", "APIError", "APIConnectionError")


class SimulationError(AssertionError):
    """A check failed; the message names the seed."""


@dataclass(slots=True)
class Report:
    """The totals of a seed."""

    events: int = 0
    outcomes: Counter[str] = field(default_factory=Counter)
    delivered: set[str] = field(default_factory=set)
    runs: int = 0
    replayed: int = 0
    seconds: float = 0.0


def simulate(url: str, seed: int, customers: int = 300, changes: int = 2000) -> Report:
    """Run *seed* in the empty database at *url*.

    Every third seed handles deliveries without a client; every second one reconciles
    concurrently.

    Raises:
        SimulationError: the database differs from the history of Stripe.
    """
    began = time.monotonic()
    choose = Random(seed)
    with FakeStripe(seed=seed, start=START, enabled_events=TYPES) as fake:
        life = begin(url, fake, choose, customers + changes // 4)
        _add_faults(fake, choose)
        users = {str(user_id): user_id for user_id, _ in life.users}
        history = History(fake, users)
        fake.world.on_event = history.note
        simulation = _Simulation(url, fake, history, seed)
        with patch.object(api, "sleep", lambda _seconds: None):
            simulation.run(life, customers, changes)
        simulation.report.events = len(fake.world.events)
    simulation.report.seconds = time.monotonic() - began
    return simulation.report


def _add_faults(fake: FakeStripe, choose: Random) -> None:
    faults = fake.deliveries.faults
    faults.duplicate, faults.drop, faults.delay = 0.2, 0.1, 0.15
    faults.shuffle = choose.choice((1, 5, 50))
    for kind in ("rate_limit", "error", "cut"):
        fake.faults.add(kind, method="GET", share=0.05, times=None)
    # A slow response is out of date when it arrives.
    fake.faults.add("slow", method="GET", share=0.2, times=None, seconds=0.05)


@dataclass(slots=True)
class _Simulation:
    url: str
    fake: FakeStripe
    history: History
    seed: int
    report: Report = field(default_factory=Report)
    effects: Counter[str] = field(default_factory=Counter)
    work: "Queue[Delivery | None]" = field(default_factory=lambda: Queue(100))
    lock: threading.Lock = field(default_factory=threading.Lock)
    failure: BaseException | None = None

    @property
    def has_client(self) -> bool:
        return self.seed % 3 != 0

    def run(self, life: Life, customers: int, changes: int) -> None:
        patience = life.choose.choice((0.02, 0.2, 0.7))
        often = (customers + changes) // CHECKS
        with self._workers() as settle:
            for number in chain(life.births(customers), life.changes(changes)):
                if life.choose.random() < patience:
                    self._queue_deliveries()
                if number % often == 0:
                    self._check("during the changes", self._check_rows)
            self.fake.deliveries.release()
            settle()
            self._check("after the deliveries", self._check_deliveries)
            if life.choose.random() < 0.5:
                self.fake.advance(seconds=life.choose.randint(1, 100))
            self._reconcile()
            self._check("after reconciliation", self._check_equal)
            self._resend_lost(life.choose)
            settle()
            self._replay()
            if not self.has_client:
                # Without a client, ties went by arrival until this run.
                self._reconcile()
            self._check("after late deliveries", self._check_equal)

    @contextmanager
    def _workers(self) -> Iterator[Callable[[], None]]:
        """Start the workers; yield a function that waits until all is delivered."""
        is_over = threading.Event()
        with ThreadPoolExecutor(WORKERS + 1) as threads:
            futures = [threads.submit(self._handle_all) for _ in range(WORKERS)]
            reconciling = None
            if self.seed % 2 == 0:
                reconciling = threads.submit(self._reconcile_until, is_over)

            def settle() -> None:
                is_over.set()
                if reconciling:
                    reconciling.result()
                self._settle()

            try:
                yield settle
            finally:
                is_over.set()
                for _ in futures:
                    self.work.put(None)
            for future in futures:
                future.result()

    def _queue_deliveries(self) -> None:
        while (delivery := self.fake.deliveries.take()) is not None:
            self.work.put(delivery)
        if self.failure:
            raise self.failure

    def _settle(self) -> None:
        """Repeat failed deliveries until none fails."""
        while True:
            self._queue_deliveries()
            self.work.join()
            if self.failure:
                raise self.failure
            if not self.fake.deliveries.redeliver():
                return

    def _handle_all(self) -> None:
        client = self.fake.client() if self.has_client else None
        with connect(self.url) as conn:
            while (delivery := self.work.get()) is not None:
                try:
                    if not self.failure:
                        self._handle(conn, delivery, client)
                except BaseException as exc:
                    self.failure = exc
                finally:
                    self.work.task_done()
            self.work.task_done()

    def _handle(
        self, conn: Connection[Any], delivery: Delivery, client: StripeClient | None
    ) -> None:
        outcome = handle_webhook(
            conn, delivery.payload, delivery.signature, TEST_SECRET, client
        )
        with self.lock:
            self.report.outcomes[outcome.result] += 1
        if outcome.result != "failed":
            delivery.succeed()
            self._record(outcome)
            return
        delivery.fail()
        if not str(outcome.error).startswith(TRANSIENT):
            raise SimulationError(f"seed {self.seed}, a delivery failed: {outcome}")

    def _record(self, outcome: Outcome) -> None:
        with self.lock:
            self.report.delivered.add(outcome.event_id)
            self.effects[outcome.event_id] += outcome.result != "duplicate"

    def _replay(self) -> None:
        """Replay the events that are still lost and that Stripe still has."""
        client = self.fake.client()
        with connect(self.url) as conn:
            replay = replay_events(conn, client, on_outcome=self._record, page_size=10)
        self.report.replayed = replay.seen
        kept_since = self.fake.world.kept_events_since()
        used = self.history.contained | self.history.referenced | self.history.links
        unknown = used.keys() - self.report.delivered
        left = [
            event.id
            for event in self.fake.world.events
            if event.id in unknown and event.created >= kept_since
        ]
        if left or replay.results["failed"]:
            raise SimulationError(f"seed {self.seed}: {replay} leaves {left}")

    def _reconcile(self, page_size: int = 100) -> None:
        with connect(self.url) as conn:
            reconcile(conn, self.fake.client(), page_size=page_size)
        self.report.runs += 1

    def _reconcile_until(self, is_over: threading.Event) -> None:
        while not is_over.is_set():
            self._reconcile(page_size=20)
            self._check("during the changes", self._check_rows)

    def _resend_lost(self, choose: Random) -> None:
        """Deliver half of the lost events of stored objects."""
        with connect(self.url) as conn:
            known = read_mirror(conn).keys()
        for delivery in self.fake.deliveries.all:
            name, _ = self.history.contained.get(delivery.event.id, (None, 0))
            is_known = name is None or name in known
            if delivery.state == "dropped" and is_known and choose.random() < 0.5:
                delivery.fail()
        self.fake.deliveries.redeliver()

    def _check_rows(self, conn: Connection[Any]) -> list[str]:
        # Read before the rows, so that each of these deliveries is visible.
        delivered = set(self.report.delivered)
        return check_rows(conn, self.history, delivered, has_client=self.has_client)

    def _check_deliveries(self, conn: Connection[Any]) -> list[str]:
        return [*self._check_effects(conn), *self._check_rows(conn)]

    def _check_equal(self, conn: Connection[Any]) -> list[str]:
        equal = check_equal(conn, self.history, self.report.delivered)
        return [*self._check_effects(conn), *equal]

    def _check_effects(self, conn: Connection[Any]) -> list[str]:
        doubled = [event for event, number in self.effects.items() if number != 1]
        inbox = check_inbox(conn, self.report.delivered)
        return [*(f"{event} was applied twice" for event in doubled), *inbox]

    def _check(self, when: str, check: Callable[[Connection[Any]], list[str]]) -> None:
        with connect(self.url) as conn:
            conn.isolation_level = IsolationLevel.REPEATABLE_READ
            faults = check(conn)
        if faults:
            raise SimulationError(
                f"seed {self.seed}, {when}, 1 of {len(faults)}: {faults[0]}"
            )

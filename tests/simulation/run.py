"""Runs one seed: changes, deliveries, and the checks of their result."""

import json
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
from uuid import UUID

from psycopg import Connection, IsolationLevel
from stripe import StripeClient

from pyapp._core.connection import connect
from pyapp.errors import InvalidPayloadError
from pyapp.stripe_sync import Outcome, handle_webhook, replay_events
from pyapp.stripe_sync import client as api
from tests.fake_stripe import TEST_SECRET, Delivery, FakeStripe
from tests.fake_stripe.faults import Kind
from tests.simulation.begin import add_born, begin
from tests.simulation.checks import (
    check_equal,
    check_inbox,
    check_rows,
    list_conflicts,
    read_mirror,
)
from tests.simulation.history import CHECKOUT, CUSTOMER_TYPES, INVOICE_TYPES, History
from tests.simulation.life import START, Life
from tests.simulation.runs import RunRecord, run_killed, run_once, run_predicted
from tests.simulation.users import UserRow, read_users

WORKERS = 8
# Number of checks during the changes.
CHECKS = 20
# Types that the endpoint receives, more than the product uses.
TYPES = (*CUSTOMER_TYPES, *INVOICE_TYPES, CHECKOUT, "customer.subscription.*")
# Errors that the fake's faults cause, as stored with failed events.
TRANSIENT = ("RateLimitError", "APIError", "APIConnectionError")
_REQUEST_FAULTS: tuple[Kind, ...] = ("rate_limit", "error", "cut")


class SimulationError(AssertionError):
    """A check failed; the message names the seed."""


def is_refused(conn: Connection[Any], payload: bytes, signature: str) -> bool:
    """Return True if the body is refused with the advice to let snapshots be sent."""
    try:
        handle_webhook(conn, payload, signature, TEST_SECRET)
    except InvalidPayloadError as exc:
        return "snapshot" in str(exc)
    return False


@dataclass(slots=True)
class Report:
    """The totals of a seed; `failed` are the events that contain an odd object."""

    events: int = 0
    outcomes: Counter[str] = field(default_factory=Counter)
    delivered: set[str] = field(default_factory=set)
    failed: set[str] = field(default_factory=set)
    refused: int = 0
    runs: int = 0
    replayed: int = 0
    seconds: float = 0.0


def simulate(url: str, seed: int, customers: int = 300, changes: int = 2000) -> Report:
    """Run *seed* in the empty database at *url*.

    Every third seed handles deliveries without a client; every second one reconciles
    concurrently; two of four replay the lost events before they reconcile.

    Raises:
        SimulationError: the database differs from the history of Stripe.
    """
    began = time.monotonic()
    choose = Random(seed)
    with FakeStripe(seed=seed, start=START, enabled_events=TYPES) as fake:
        life, history = begin(url, fake, choose, 2 * customers + changes // 3)
        _add_faults(fake, choose)
        simulation = _Simulation(url, fake, history, life, seed)
        with patch.object(api, "sleep", lambda _seconds: None):
            simulation.run(customers, changes)
        simulation.report.events = len(fake.world.events)
    simulation.report.seconds = time.monotonic() - began
    return simulation.report


def _add_faults(fake: FakeStripe, choose: Random) -> None:
    faults = fake.deliveries.faults
    faults.duplicate, faults.drop, faults.delay = 0.2, 0.1, 0.15
    faults.shuffle = choose.choice((1, 5, 50))
    _add_request_faults(fake, 0.05)
    # A slow response is out of date when it arrives.
    fake.faults.add("slow", method="GET", share=0.2, times=None, seconds=0.05)


def _add_request_faults(fake: FakeStripe, share: float) -> None:
    for kind in _REQUEST_FAULTS:
        fake.faults.add(kind, method="GET", share=share, times=None)


@dataclass(slots=True)
class _Simulation:
    url: str
    fake: FakeStripe
    history: History
    life: Life
    seed: int
    report: Report = field(default_factory=Report)
    effects: Counter[str] = field(default_factory=Counter)
    work: "Queue[Delivery | None]" = field(default_factory=lambda: Queue(100))
    lock: threading.Lock = field(default_factory=threading.Lock)
    backends: list[int] = field(default_factory=list)
    failure: BaseException | None = None

    @property
    def has_client(self) -> bool:
        return self.seed % 3 != 0

    def run(self, customers: int, changes: int) -> None:
        life = self.life
        patience = life.choose.choice((0.02, 0.2, 0.7))
        often = (customers + changes) // CHECKS
        with self._workers() as settle, connect(self.url) as conn:
            conn.autocommit = True
            for number in chain(life.births(customers), life.changes(changes)):
                add_born(conn, life, self.history)
                if life.choose.random() < patience:
                    self._queue_deliveries()
                if number % often == 0:
                    self._refuse_thin_events(conn)
                    self._kill_worker(conn)
                    self._check("during the changes", self._check_rows)
            self.life.restore_all()
            self.fake.deliveries.release()
            settle()
            self._check("after the deliveries", self._check_deliveries)
            # Nothing changes any more that a slow response could miss. No object is
            # refused because of repeated errors.
            self.fake.faults.clear()
            _add_request_faults(self.fake, 0.02)
            born = self._give_birth(conn)
            self._check(
                "after births", lambda conn: self._check_rows(conn, linked=born)
            )
            if self.seed % 4 < 2:
                self._replay()
            if life.choose.random() < 0.5:
                self.fake.advance(seconds=life.choose.randint(1, 100))
            self._reconcile_with_odd_objects(conn)
            self._reconcile(conn)
            self._check("after reconciliation", self._check_equal)
            self._resend_lost(life.choose)
            settle()
            self._replay()
            self._match_addresses(conn)
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

    # Deliveries

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
        conn = self._connect()
        while (delivery := self.work.get()) is not None:
            try:
                if not self.failure:
                    self._handle(conn, delivery, client)
            except BaseException as exc:
                if not conn.closed:
                    self.failure = exc
                # The backend was killed; Stripe repeats the delivery.
                delivery.fail()
                conn = self._connect()
            finally:
                self.work.task_done()
        self.work.task_done()
        conn.close()

    def _connect(self) -> Connection[Any]:
        conn = connect(self.url)
        with self.lock:
            self.backends.append(conn.info.backend_pid)
        return conn

    def _kill_worker(self, conn: Connection[Any]) -> None:
        with self.lock:
            process = self.life.choose.choice(self.backends[-WORKERS:])
        conn.execute("SELECT pg_terminate_backend(%s)", [process])

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
        if delivery.event.id in self.history.odd_events:
            # Stripe gives up after some days.
            delivery.state = "dropped"
            with self.lock:
                self.report.failed.add(outcome.event_id)
            return
        is_transient = outcome.is_busy or str(outcome.error).startswith(TRANSIENT)
        if not is_transient and not self.life.concerns_odd(delivery.event):
            raise SimulationError(f"seed {self.seed}, a delivery failed: {outcome}")

    def _record(self, outcome: Outcome) -> None:
        with self.lock:
            self.report.delivered.add(outcome.event_id)
            self.report.failed.discard(outcome.event_id)
            self.effects[outcome.event_id] += outcome.result != "duplicate"
        is_odd = outcome.event_id in self.history.odd_events
        is_foreign = outcome.event_id in self.history.foreign
        if is_odd or (is_foreign and outcome.result not in {"ignored", "duplicate"}):
            event = self.fake.world.events.get(outcome.event_id)
            raise SimulationError(
                f"seed {self.seed}, {outcome} should have no effect: {event.data}"
            )

    def _refuse_thin_events(self, conn: Connection[Any]) -> None:
        while self.life.thin:
            body = self.life.thin.pop()
            if not is_refused(conn, *body):
                raise SimulationError(f"seed {self.seed}, accepted {body}")

    def _replay(self) -> None:
        """Replay the events that are still lost and that Stripe still has."""
        client, outcomes = self.fake.client(), list[Outcome]()
        with connect(self.url) as conn, connect(self.url) as reading:
            reading.autocommit = True
            before = {user.id: user for user in read_users(reading)}

            def check(outcome: Outcome) -> None:
                outcomes.append(outcome)
                self._check_outcome(reading, outcome, before)

            replay = replay_events(conn, client, on_outcome=check, page_size=10)
        for outcome in outcomes:
            if outcome.result != "failed":
                self._record(outcome)
        self.report.replayed += replay.seen
        failed = {one.event_id for one in outcomes if one.result == "failed"}
        self.report.failed |= failed
        kept_since = self.fake.world.kept_events_since()
        unknown = self.history.used_events() - self.report.delivered
        left = [
            event.id
            for event in self.fake.world.events
            if event.id in unknown and event.created >= kept_since
        ]
        if left or failed - self.history.odd_events:
            raise SimulationError(f"seed {self.seed}: {replay} leaves {left}, {failed}")

    def _check_outcome(
        self, conn: Connection[Any], outcome: Outcome, users: dict[UUID, UserRow]
    ) -> None:
        """Check that the outcome names the users that the event has changed."""
        event = self.fake.world.events.get(outcome.event_id)
        about = json.loads(event.data)["object"]
        customer = about["id"] if about["object"] == "customer" else about["customer"]
        possible = self.history.claimants(customer or "")
        after = {user.id: user for user in read_users(conn, possible)}
        changed = {name for name, user in after.items() if users[name] != user}
        users.update(after)
        conflict = outcome.conflicting_user_id
        if changed != set(outcome.user_ids) or not {conflict} <= {None, *possible}:
            self._fail(
                "in a replay", [f"{outcome} should name {changed} of {possible}"]
            )

    def _resend_lost(self, choose: Random) -> None:
        """Deliver half of the lost events of stored objects."""
        with connect(self.url) as conn:
            known = read_mirror(conn).rows.keys()
        for delivery in self.fake.deliveries.all:
            name, _ = self.history.contained.get(delivery.event.id, (None, 0))
            is_known = name is None or name in known
            if delivery.state == "dropped" and is_known and choose.random() < 0.5:
                delivery.fail()
        self.fake.deliveries.redeliver()

    # Odd objects, births, addresses

    def _give_birth(self, conn: Connection[Any]) -> set[UUID]:
        """Let claimed users exist while nothing else happens; return them."""
        people = self.life.people
        claimed = set().union(*(claims.values() for claims in people.claims.values()))
        people.born = [person for person in people.future if person.id in claimed]
        people.future = [person for person in people.future if person.id not in claimed]
        born = {person.id for person in people.born}
        add_born(conn, self.life, self.history)
        return born

    def _reconcile_with_odd_objects(self, conn: Connection[Any]) -> None:
        """Reconcile while Stripe lists some odd objects: no other is affected."""
        customers = self.life.people.customers
        for customer in self.life.choose.sample(customers, min(10, len(customers))):
            record = self.fake.world.customers.get(customer)
            if not record.deleted and record.test_clock is None:
                self.life.distort_any(customer)
        odd = set(self.life.odd_customers)
        self._check_run(conn, "with odd objects", odd=set(self.life.odd))
        self.report.refused = len(self.life.odd)
        self._check(
            "after reconciliation with odd objects",
            lambda conn: self._check_equal(conn, odd),
        )
        self.life.restore_all()

    def _match_addresses(self, conn: Connection[Any]) -> None:
        """Link customers to the users with their addresses, if they are verified."""
        with connect(self.url) as reading:
            links = read_mirror(reading).links
        owners = {link.user_id for link in links.values()}
        for customer, person in self.life.people.mailed.items():
            clock = self.fake.world.customers.get(customer).test_clock
            # No list contains the customers of a test clock.
            is_compared = clock is None or customer in links
            if person.is_verified and person.id not in owners and is_compared:
                self.history.mailed[customer] = person.id
        self._reconcile(conn, match_email=True)

    # Reconciliations

    def _check_run(self, conn: Connection[Any], when: str, **options: Any) -> RunRecord:
        conn.autocommit = False
        last, faults = run_predicted(conn, self.fake, **options)
        conn.autocommit = True
        self.report.runs += 3
        self._fail(when, faults)
        return last

    def _reconcile(self, conn: Connection[Any], **options: Any) -> None:
        record = self._check_run(conn, "in a reconciliation", **options)
        expected = list_conflicts(conn, self.history)
        found = {
            one.object_id: one.user_id
            for one in record.differences
            if one.kind == "conflict"
        }
        world = self.fake.world
        listed = {s.id for s in world.subscriptions if s.test_clock is None}
        wrong = [
            f"{name} is in conflict for {user}, and the run found {found.get(name)}"
            for name, user in expected.items()
            if name in listed and found.get(name) != user
        ]
        customers = {s.id: s.customer for s in world.subscriptions}
        gone = {customer.id for customer in world.customers if customer.deleted}
        wrong += [
            f"{name} is not in conflict"
            for name in found.keys() - expected
            if customers.get(name, name) not in gone
        ]
        self._fail("in the conflicts", wrong)

    def _reconcile_until(self, is_over: threading.Event) -> None:
        choose = Random(f"{self.seed} reconciles")
        while not is_over.is_set():
            with connect(self.url) as conn:
                dice = choose.random()
                if dice < 0.3:
                    run_once(conn, self.fake, dry_run=True)
                elif dice < 0.6:
                    run_killed(conn, self.fake, choose)
                else:
                    run_once(conn, self.fake, page_size=20)
            self.report.runs += 1
            self._check("during the changes", self._check_rows)
        with connect(self.url) as conn:
            run_once(conn, self.fake)  # to its end, if the last one was killed

    # Checks

    def _check_rows(self, conn: Connection[Any], **options: Any) -> list[str]:
        # Read before the rows, so that each of these deliveries is visible.
        delivered = set(self.report.delivered)
        return check_rows(
            conn, self.history, delivered, has_client=self.has_client, **options
        )

    def _check_deliveries(self, conn: Connection[Any]) -> list[str]:
        rows = self._check_rows(conn, is_settled=True)
        return [*self._check_effects(conn), *rows]

    def _check_equal(
        self, conn: Connection[Any], odd: set[str] | None = None
    ) -> list[str]:
        equal = check_equal(
            conn,
            self.history,
            self.report.delivered,
            has_client=self.has_client,
            odd=odd or set(),
        )
        return [*self._check_effects(conn), *equal]

    def _check_effects(self, conn: Connection[Any]) -> list[str]:
        doubled = [event for event, number in self.effects.items() if number != 1]
        inbox = check_inbox(conn, self.report.delivered, self.report.failed)
        return [*(f"{event} was applied twice" for event in doubled), *inbox]

    def _check(self, when: str, check: Callable[[Connection[Any]], list[str]]) -> None:
        with connect(self.url) as conn:
            conn.isolation_level = IsolationLevel.REPEATABLE_READ
            faults = check(conn)
        self._fail(when, faults)

    def _fail(self, when: str, faults: list[str]) -> None:
        if faults:
            raise SimulationError(
                f"seed {self.seed}, {when}, 1 of {len(faults)}: {faults[0]}"
            )

"""Changes the fake Stripe, and runs its webhooks, reconciliations and replays."""

from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import chain
from random import Random

from pyapp._core.connection import connect
from pyapp.stripe_sync import (
    handle_webhook,
    reconcile,
    replay_events,
    retry_failed_events,
)
from tests.fake_stripe import TEST_SECRET, Delivery, FakeStripe
from tests.simulation.begin import add_born, begin
from tests.simulation.checks import check_equal, check_inbox, check_rows
from tests.simulation.history import History
from tests.simulation.life import START, Life
from tests.simulation.run import TYPES, is_refused
from tests.soak.ledger import BrokenRuleError, Client, Connection, Ledger


@dataclass(slots=True)
class Account:
    """A fake Stripe, and the ids of its delivered events."""

    ledger: Ledger
    fake: FakeStripe
    life: Life
    history: History
    delivered: set[str] = field(default_factory=set)
    waiting: deque[Delivery] = field(default_factory=deque)
    steps: Iterator[int] = field(init=False)

    def __post_init__(self) -> None:
        self.steps = self._make_changes()

    def change(self, client: Client) -> None:
        """Make one change, and queue deliveries, failed ones included."""
        next(self.steps)
        if self.life.people.born:
            client.commit(lambda conn: add_born(conn, self.life, self.history))
        if client.choose.random() < 0.05:
            self.fake.deliveries.redeliver()
        self._queue_deliveries()
        # No faster than the deliveries are handled.
        self.ledger.is_over.wait(0.005 if len(self.waiting) < 100 else 0.5)

    def deliver(self, client: Client) -> None:
        """Handle one delivery, as the webhook endpoint does."""
        try:
            delivery = self.waiting.popleft()
        except IndexError:
            self.ledger.is_over.wait(0.05)
            return
        # Stripe repeats the delivery unless it is confirmed.
        delivery.fail()
        if client.conn is None or client.conn.closed:
            client.conn = connect(self.ledger.url)
        if self.life.thin and not is_refused(client.conn, *self.life.thin.pop()):
            raise BrokenRuleError("an event without its object was accepted")
        outcome = handle_webhook(
            client.conn,
            delivery.payload,
            delivery.signature,
            TEST_SECRET,
            self.fake.client(),
        )
        if outcome.result == "failed":
            if not self.life.concerns_odd(delivery.event):
                raise BrokenRuleError(f"a delivery failed: {outcome}")
            if delivery.event.id in self.history.odd_events:
                # Stripe gives up after some days.
                delivery.state = "dropped"
            return
        delivery.succeed()
        with self.ledger.lock:
            self.delivered.add(outcome.event_id)
            self.ledger.counts["deliveries"] += 1

    def reconcile_or_replay(self, client: Client) -> None:
        """Reconcile or replay, by chance."""
        self.ledger.is_over.wait(client.choose.random() * 3)
        if client.conn is None or client.conn.closed:
            client.conn = connect(self.ledger.url)
        if client.choose.random() < 0.5:
            is_dry_run = client.choose.random() < 0.2
            reconcile(client.conn, self.fake.client(), is_dry_run, page_size=50)
            self.ledger.note("reconciliations")
        else:
            replay_events(client.conn, self.fake.client())
            self.ledger.note("replays")

    def settle(self) -> None:
        """Handle all remaining deliveries, and replay the lost ones."""
        client = Client(self.ledger, "deliveries", Random())
        self.life.restore_all()
        self.fake.deliveries.release()
        while self.waiting or self.fake.deliveries.redeliver():
            self._queue_deliveries()
            while self.waiting:
                self.deliver(client)
        client.close()
        with connect(self.ledger.url) as conn:
            replay_events(conn, self.fake.client())
            # Stripe no longer has the events that a replay failed to apply long ago.
            for _ in retry_failed_events(conn, self.fake.client()):
                pass
            # The first run may be the rest of one that was killed.
            for _ in range(2):
                reconcile(conn, self.fake.client())

    def check(self, conn: Connection) -> list[str]:
        """Return the faults of the Stripe mirror (rule 8)."""
        known = {event.id for event in self.fake.world.events}
        found = {row[0] for row in conn.execute("SELECT id FROM app.stripe_events")}
        failed = self.history.odd_events - self.delivered
        # A replay also stores events that were not delivered.
        processed = self.delivered | ((found & known) - failed)
        return [
            *check_inbox(conn, processed, failed),
            *check_rows(conn, self.history, processed, has_client=True),
            *check_equal(conn, self.history, processed, has_client=True),
        ]

    def _make_changes(self) -> Iterator[int]:
        while True:
            yield from chain(self.life.births(2), self.life.changes(30))

    def _queue_deliveries(self) -> None:
        self.waiting.extend(iter(self.fake.deliveries.take, None))


def open_account(ledger: Ledger, fake: FakeStripe, users: int = 3000) -> Account:
    """Create users and the first customers in the empty database."""
    life, history = begin(ledger.url, fake, Random(ledger.seed), users)
    faults = fake.deliveries.faults
    faults.duplicate, faults.drop, faults.delay, faults.shuffle = 0.1, 0.05, 0.1, 20
    account = Account(ledger, fake, life, history)
    for _ in life.births(20):
        pass
    return account


def make_fake(seed: int) -> FakeStripe:
    return FakeStripe(seed=seed, start=START, enabled_events=TYPES)

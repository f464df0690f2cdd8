"""Kill a worker during a delivery, and compare its database with a twin.

The killed worker must leave the state from before, or that of the undisturbed twin.
"""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from multiprocessing.connection import Client, Connection, Listener
from pathlib import Path
from typing import Any, TypeAlias

import psycopg
import stripe

from pyapp._core.connection import connect
from pyapp.stripe_sync import handle_webhook
from tests.fake_stripe import TEST_KEY, TEST_SECRET, Delivery, FakeStripe

ROOT = Path(__file__).parents[1]
STATE = """
    SELECT jsonb_build_object(
        'events', (
            SELECT jsonb_object_agg(e.id, e.status) FROM app.stripe_events AS e
        ),
        'customers', (
            SELECT jsonb_agg(to_jsonb(c) - 'as_of' ORDER BY c.id)
            FROM app.stripe_customers AS c
        ),
        'subscriptions', (
            SELECT jsonb_agg(to_jsonb(s) - 'as_of' ORDER BY s.id)
            FROM app.stripe_subscriptions AS s
        ),
        'users', (
            SELECT jsonb_agg(to_jsonb(u) - 'updated_at' ORDER BY u.id)
            FROM app.users AS u
        )
    )
"""
State = dict[str, Any]
Pipe: TypeAlias = "Connection[Any, Any]"


def work(url: str, base_url: str, pipe: Pipe) -> None:
    """Send both process ids, handle the received delivery, send the result."""
    client = stripe.StripeClient(TEST_KEY, base_addresses={"api": base_url})
    with connect(url) as conn:
        pipe.send((os.getpid(), conn.info.backend_pid))
        payload, signature = pipe.recv()
        try:
            outcome = handle_webhook(conn, payload, signature, TEST_SECRET, client)
            pipe.send(outcome.result)
        except psycopg.OperationalError:
            pipe.send("lost")


def fork_workers(address: str) -> None:
    """Fork a worker for each line of stdin; a new process would take a second."""
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    for line in sys.stdin:
        if os.fork() == 0:
            with Client(address) as pipe:
                url, base_url = json.loads(line)
                work(url, base_url, pipe)
            os._exit(0)


@dataclass(slots=True)
class Worker:
    """A process with a connection; `backend` is the pid of its server process."""

    pipe: Pipe
    pid: int
    backend: int
    delivery: Delivery

    def begin(self) -> None:
        self.pipe.send((self.delivery.payload, self.delivery.signature))

    def is_stopped_by(self, conn: psycopg.Connection[Any], condition: str) -> bool:
        """Return True once its backend meets *condition*, False if it ends first."""
        query = f"SELECT FROM pg_stat_activity WHERE pid = %s AND {condition}"
        while not self.pipe.poll():
            if conn.execute(query.encode(), [self.backend]).rowcount:
                return True
        return False

    def kill(self) -> None:
        # The process may have ended.
        with suppress(ProcessLookupError):
            os.kill(self.pid, signal.SIGKILL)

    def wait(self) -> None:
        with suppress(EOFError, ConnectionError):
            while True:
                self.pipe.recv()


@dataclass(slots=True)
class Twins:
    """The tested database and its undisturbed twin."""

    fake: FakeStripe
    url: str
    twin: str
    listener: Listener
    workers: subprocess.Popen[str]
    client: stripe.StripeClient
    connections: dict[str, psycopg.Connection[Any]] = field(default_factory=dict)

    def connection(self, url: str) -> psycopg.Connection[Any]:
        """Return an autocommit connection, open until `disconnect`."""
        if url not in self.connections:
            self.connections[url] = connect(url)
            self.connections[url].autocommit = True
        return self.connections[url]

    def disconnect(self) -> None:
        """Close all connections, before the server restarts."""
        while self.connections:
            self.connections.popitem()[1].close()

    def try_one(
        self, delivery: Delivery, interrupt: Callable[[Worker, float], None]
    ) -> bool:
        """Start a worker and call *interrupt* with it; return True if it was lost.

        *interrupt* begins the delivery; it also gets the seconds that the twin took.
        """
        before = self.state(self.url)
        result, seconds = self.handle(self.twin, delivery)
        after = self.state(self.twin)

        worker = self._start(delivery)
        interrupt(worker, seconds)
        worker.wait()
        self._wait_for_exit(worker.backend)
        found = self.state(self.url)
        assert found in (before, after), f"half applied: {difference(found, after)}"

        is_lost: bool = found["events"] != after["events"]
        again, _ = self.handle(self.url, delivery)
        assert again == (result if is_lost else "duplicate")
        assert self.state(self.url) == after
        return is_lost

    def state(self, url: str) -> State:
        """Return all rows that deliveries change."""
        row = self.connection(url).execute(STATE).fetchone()
        assert row is not None
        state: State = row[0]
        return state

    def handle(self, url: str, delivery: Delivery) -> tuple[str, float]:
        """Handle the delivery; return the result and its seconds."""
        payload, signature = delivery.payload, delivery.signature
        conn, began = self.connection(url), time.monotonic()
        outcome = handle_webhook(conn, payload, signature, TEST_SECRET, self.client)
        return outcome.result, time.monotonic() - began

    def _start(self, delivery: Delivery) -> Worker:
        assert self.workers.stdin is not None
        self.workers.stdin.write(json.dumps([self.url, self.fake.base_url]) + "\n")
        self.workers.stdin.flush()
        pipe = self.listener.accept()
        pid, backend = pipe.recv()
        return Worker(pipe, pid, backend, delivery)

    def _wait_for_exit(self, backend: int) -> None:
        """Wait until the killed client's server process has ended."""
        query = "SELECT FROM pg_stat_activity WHERE pid = %s"
        while self.connection(self.url).execute(query, [backend]).rowcount:
            time.sleep(0.001)


@contextmanager
def make_twins(fake: FakeStripe, url: str, twin: str) -> Iterator[Twins]:
    """Start the process that forks workers."""
    with Listener(family="AF_UNIX") as listener:
        command = [sys.executable, "-m", "tests.killing", listener.address]
        with subprocess.Popen(
            command, stdin=subprocess.PIPE, text=True, cwd=ROOT
        ) as workers:
            twins = Twins(fake, url, twin, listener, workers, fake.client())
            yield twins
            twins.disconnect()


def difference(found: State, wanted: State) -> str:
    """Return the first three rows that differ."""
    rows = [
        f"{kind}: {json.dumps(row)}"
        for kind, rows in found.items()
        for row in rows or ()
        if row not in (wanted[kind] or ())
    ]
    return "\n".join(rows[:3])


if __name__ == "__main__":
    fork_workers(sys.argv[1])

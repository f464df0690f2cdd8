"""Records which commits were confirmed to clients, and which were given up."""

import threading
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from decimal import Decimal
from random import Random
from typing import Any, TypeVar
from uuid import UUID

import psycopg

from pyapp._core.connection import connect
from pyapp.errors import DatabaseUnavailableError

T = TypeVar("T")
Connection = psycopg.Connection[Any]
Key = tuple[UUID, UUID]  # a message's payer and id

# Errors of a killed server; no client may see any other database error.
LOST = (psycopg.OperationalError, DatabaseUnavailableError)
FORBIDDEN = (psycopg.errors.DeadlockDetected, psycopg.errors.LockNotAvailable)


class BrokenRuleError(AssertionError):
    """A rule is broken; the message names it."""


@dataclass(slots=True)
class Ledger:
    """Shared by all clients; each write is recorded after its commit returned."""

    url: str
    seed: int
    is_over: threading.Event = field(default_factory=threading.Event)
    lock: threading.Lock = field(default_factory=threading.Lock)
    counts: Counter[str] = field(default_factory=Counter)
    lost: Counter[str] = field(default_factory=Counter)
    messages: dict[Key, tuple[Decimal, bool]] = field(default_factory=dict)
    given_up: list[list[Key]] = field(default_factory=list)
    users: dict[UUID, str] = field(default_factory=dict)  # with their codes
    referrals: dict[UUID, UUID] = field(default_factory=dict)  # referred: referrer
    sessions: dict[str, UUID] = field(default_factory=dict)
    signed_out: set[str] = field(default_factory=set)
    failure: BaseException | None = None

    def note(self, kind: str, number: int = 1) -> None:
        with self.lock:
            self.counts[kind] += number

    def fail(self, failure: BaseException) -> None:
        """Stop all clients; keep the first failure."""
        with self.lock:
            self.failure = self.failure or failure
        self.is_over.set()


@dataclass(slots=True)
class Client:
    """A client that connects again after it lost its connection."""

    ledger: Ledger
    name: str
    choose: Random
    conn: Connection | None = None

    def run(self, work: Callable[["Client"], None]) -> None:
        """Repeat *work* until the end; a lost connection is not a failure."""
        while not self.ledger.is_over.is_set():
            try:
                work(self)
            except LOST:
                self.note_lost()
            except BaseException as exc:
                self.ledger.fail(exc)
        self.close()

    def commit(self, work: Callable[[Connection], T]) -> T:
        """Run *work* in a transaction; it is committed when this returns."""
        if self.conn is None or self.conn.closed:
            self.conn = connect(self.ledger.url)
        try:
            with self.conn.transaction():
                return work(self.conn)
        except FORBIDDEN as exc:
            raise BrokenRuleError(f"a client got this error: {exc}") from exc

    def note_lost(self) -> None:
        with self.ledger.lock:
            self.ledger.lost[self.name] += 1
        self.close()
        time.sleep(0.05)

    def close(self) -> None:
        if self.conn is not None:
            self.conn.close()
            self.conn = None

"""Ctrl-C at every moment of a call, inside a transaction of the caller.

As in test_cancellation.py, the database contains exactly the transactions reported as
committed. Here each wait for the server is interrupted in turn: before the response is
read, and after it.
"""

from collections.abc import Callable
from decimal import Decimal
from typing import Any
from uuid import UUID, uuid4

import psycopg
import pytest

from pyapp._core import connection_types
from pyapp._core.connection import connect
from pyapp.errors import PyappError
from pyapp.messages import record_message, record_messages
from pyapp.plans import create_plan
from pyapp.users import create_user, set_user_email
from tests.metering import add_user, new_message

ONE = Decimal(1)
TAKEN = "t\xe4ken@example.com"
NEW = "n\xe9w@example.com"
USERS = "SELECT count(*) FROM app.users WHERE email = %s"
MESSAGES = "SELECT count(*) FROM app.messages"


class Interrupted:
    """A generator of psycopg that is interrupted once, when the response arrives."""

    def __init__(self, gen: Any) -> None:
        self.gen = gen
        self.is_due = True

    def __next__(self) -> Any:
        return next(self.gen)

    def send(self, ready: Any) -> Any:
        if self.is_due:
            self.is_due = False
            raise KeyboardInterrupt
        return self.gen.send(ready)


class Interruptible:
    """Raises KeyboardInterrupt in the wait of number `at`, or at its end."""

    at = 0
    is_answered = False

    def wait(self, gen: Any, *args: Any, **kwargs: Any) -> Any:
        self.at -= 1
        if self.at == 0 and not self.is_answered:
            gen = Interrupted(gen)
        try:
            return super().wait(gen, *args, **kwargs)  # type: ignore[misc]
        finally:
            if self.at == 0 and self.is_answered:
                raise KeyboardInterrupt


class Ours(Interruptible, connection_types.Connection):
    """The connection of pyapp.connect."""


class Plain(Interruptible, psycopg.Connection[Any]):
    """The connection of psycopg.connect.

    If the response is an error and is interrupted, psycopg closes the connection and
    ends its blocks without an error; only pyapp's connections report that.
    """


def record_some(conn: psycopg.Connection[Any], user: UUID) -> object:
    return record_messages(conn, [new_message(user_id=user) for _ in range(3)])


REFUSED: dict[str, Callable[[psycopg.Connection[Any], UUID], object]] = {
    "plan": lambda conn, _: create_plan(conn, plan_id="free", monthly_credits=ONE),
    "e-mail": lambda conn, _: create_user(conn, email="no address"),
    "change": lambda conn, user: set_user_email(conn, user_id=user, email=TAKEN),
}
WRITES = {
    "atomic": (
        lambda conn, user: set_user_email(conn, user_id=user, email=NEW),
        lambda conn: conn.execute(USERS, [NEW]),
    ),
    "atomic insert": (
        lambda conn, _: create_user(conn, email=NEW),
        lambda conn: conn.execute(USERS, [NEW]),
    ),
    "plain": (
        lambda conn, user: record_message(
            conn, id=uuid4(), model="m", user_id=user, cost=ONE, credits=ONE
        ),
        lambda conn: conn.execute(MESSAGES),
    ),
    "many statements": (record_some, lambda conn: conn.execute(MESSAGES)),
}


def interrupt(
    conn: Any, call: Callable[[Any, UUID], object], user: UUID, *, name: str
) -> tuple[str, bool]:
    """Return how the call in a block ended, and whether the block was committed."""
    outcome = "returned"
    at, conn.at = conn.at, 0
    try:
        with conn.transaction():
            create_user(conn, email=name)
            conn.at = at
            try:
                call(conn, user)
            except KeyboardInterrupt:
                outcome = "interrupted"
            except PyappError:
                outcome = "refused"
            conn.at = 0
    except psycopg.Error:
        return outcome, False
    return outcome, True


@pytest.mark.parametrize(
    ("kind", "is_answered"), [(Ours, False), (Ours, True), (Plain, True)]
)
@pytest.mark.parametrize("refused", REFUSED)
def test_interrupted_refusal_keeps_the_transaction(
    database: str, refused: str, kind: Any, is_answered: bool
):
    with connect(database) as conn:
        user = add_user(conn)
        create_user(conn, email=TAKEN)
    outcomes = []
    for at in range(1, 20):
        with kind.connect(database) as conn:
            conn.at, conn.is_answered = at, is_answered
            name = f"{at}@example.com"
            outcome, is_committed = interrupt(conn, REFUSED[refused], user, name=name)
        with connect(database) as conn:
            row = conn.execute(USERS, [name]).fetchone()
        assert row == (int(is_committed),)
        assert is_committed or kind is Ours
        outcomes.append(outcome)
        if outcome == "refused":
            break
    assert len(outcomes) > 3
    assert outcomes[-1] == "refused"


@pytest.mark.parametrize("is_answered", [False, True])
@pytest.mark.parametrize("write", WRITES)
def test_interrupted_write_is_undone_or_its_transaction_fails(
    database: str, write: str, is_answered: bool
):
    call, count = WRITES[write]
    with connect(database) as conn:
        user = add_user(conn)
    outcomes = []
    for at in range(1, 30):
        name = f"{at}@example.com"
        with Ours.connect(database) as conn:
            conn.at, conn.is_answered = at, is_answered
            outcome, is_committed = interrupt(conn, call, user, name=name)
        with connect(database) as conn:
            row = conn.execute(USERS, [name]).fetchone()
            assert row == (int(is_committed),)
            written = count(conn).fetchone()
        outcomes.append(outcome)
        if outcome == "returned":
            break
        assert written == (0,)
    assert written is not None
    assert written > (0,)
    assert outcomes[-1] == "returned"
    assert "interrupted" in outcomes

"""Creates the plans and the users of a simulation, and users that are born later."""

from random import Random
from typing import Any
from uuid import UUID, uuid5

from psycopg import Connection

from pyapp._core.connection import connect
from tests.fake_stripe import FakeStripe
from tests.simulation.catalog import add_plans, add_prices
from tests.simulation.history import History
from tests.simulation.life import Life
from tests.simulation.people import People, Person

_NAMESPACE = UUID("b0f7c3a6-62a4-4f0c-8a52-0d1a5f9d6d1e")


def begin(
    url: str, fake: FakeStripe, choose: Random, users: int
) -> tuple[Life, History]:
    """Create users, prices and plans in the empty database at *url*."""
    history = History(fake)
    people = [
        Person(uuid5(_NAMESPACE, str(number)), f"{number}@example.com", number % 2 == 0)
        for number in range(users)
    ]
    absent = users // 8
    life = Life(
        fake,
        choose,
        People(
            fake,
            choose,
            free=people[absent:],
            future=people[absent // 3 : absent],
            never=people[: absent // 3],
        ),
    )
    add_prices(fake)
    with connect(url) as conn:
        add_plans(conn)
        for person in people[absent:]:
            add_person(conn, person, history)
    fake.world.on_event, life.on_restore = history.note, history.note_restored
    return life, history


def add_born(conn: Connection[Any], life: Life, history: History) -> None:
    """Insert the users that are born by now, each in a transaction of its own."""
    while life.people.born:
        with conn.transaction():
            add_person(conn, life.people.born[0], history)
        life.people.born.pop(0)


def add_person(conn: Connection[Any], person: Person, history: History) -> None:
    """Insert the user; the period that it has before any claim is its first one."""
    row = conn.execute(
        "INSERT INTO app.users (id, email, email_verified_at)"
        " VALUES (%s, %s, CASE WHEN %s THEN now() END) ON CONFLICT (id) DO NOTHING"
        " RETURNING quota_anchor, next_quota_reset",
        [person.id, person.email, person.is_verified],
    ).fetchone()
    if row is not None:
        history.initial[person.id] = row

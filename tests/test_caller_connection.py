"""Functions check the connection that they get, and do not depend on its loaders."""

import asyncio
from typing import Any
from uuid import uuid4

import psycopg
import pytest
import sqlalchemy
from psycopg.adapt import AdaptersMap, Buffer, Loader
from sqlalchemy.ext.asyncio import AsyncSession, create_async_engine
from sqlalchemy.orm import Session, scoped_session, sessionmaker

from pyapp import aio, messages, plans, users
from pyapp._core.caller_connection import RETURNED_TYPES
from pyapp._core.connection import connect
from pyapp.errors import InvalidValueError
from pyapp.stripe_sync.transactions import check_idle

engine = sqlalchemy.create_engine("postgresql+psycopg://unused")
async_engine = create_async_engine("postgresql+psycopg://unused")
SESSION = "pass session.connection().connection.driver_connection"
OTHER_DRIVER = "the functions work on connections of psycopg 3 only"


class OwnSession(Session):
    """A session of an application."""


def stand_in(module: str, name: str) -> Any:
    """Return an object of a class in a package that is not installed here."""
    return type(name, (), {"__module__": module})()


@pytest.mark.parametrize(
    ("given", "remedy"),
    [
        (Session(engine), SESSION),
        (OwnSession(engine), SESSION),
        (scoped_session(sessionmaker(engine)), SESSION),
        (engine, "pass the driver_connection of one of its connections"),
        (
            stand_in("django.utils.connection", "ConnectionProxy"),
            "pass connection.connection, after connection.ensure_",
        ),
        (None, "in Django, call connection.ensure_connection() first"),
        (stand_in("psycopg2.extensions", "connection"), OTHER_DRIVER),
        (stand_in("asyncpg.connection", "Connection"), OTHER_DRIVER),
        (psycopg.Cursor.__new__(psycopg.Cursor), "pass its connection"),
        ("postgresql://localhost", "open one with pyapp.connect"),
        (psycopg.AsyncConnection.__new__(psycopg.AsyncConnection), "in pyapp.aio"),
    ],
    ids=lambda value: type(value).__name__,
)
def test_error_of_another_object_says_what_to_pass(given: Any, remedy: str):
    for call in (
        lambda: plans.list_plans(given),
        lambda: users.anonymize_user(given, user_id=uuid4()),
        lambda: check_idle(given),
    ):
        with pytest.raises(InvalidValueError, match="must be a Connection of") as exc:
            call()
        assert remedy in str(exc.value)
        assert "\n" not in str(exc.value)


@pytest.mark.parametrize(
    ("given", "remedy"),
    [
        (
            AsyncSession(async_engine),
            "pass (await (await session.connection()).get_raw",
        ),
        (psycopg.Connection.__new__(psycopg.Connection), "of the same name in pyapp"),
        (stand_in("asyncpg.pool", "PoolConnectionProxy"), OTHER_DRIVER),
    ],
    ids=lambda value: type(value).__name__,
)
def test_error_for_asyncio_says_what_to_pass(given: Any, remedy: str):
    for work in (
        aio.plans.list_plans(given),
        aio.users.anonymize_user(given, user_id=uuid4()),
    ):
        with pytest.raises(InvalidValueError, match="an AsyncConnection of") as exc:
            asyncio.run(work)
        assert remedy in str(exc.value)


class Refusing(Loader):
    """A loader that an application has registered, for its own statements."""

    def load(self, data: Buffer) -> Any:
        raise AssertionError("the application's loader is used")


@pytest.mark.parametrize("cursor", [psycopg.Cursor, psycopg.ClientCursor])
def test_results_do_not_depend_on_loaders_of_the_connection(
    shared_database: str, cursor: Any
):
    context = AdaptersMap(psycopg.adapters)
    for name in RETURNED_TYPES:
        context.register_loader(name, Refusing)
    with psycopg.connect(
        shared_database, context=context, cursor_factory=cursor
    ) as conn:
        user = users.create_user(conn, email="ada@example.com")
        id = messages.record_message(
            conn, user_id=user.id, model="gpt-5", output_tokens=1, request={"a": [1]}
        ).id
        found = messages.find_message_payload(conn, subject_id=user.id, message_id=id)
        listed = plans.list_plans(conn)

        assert found is not None
        assert found.request == {"a": [1]}
        with pytest.raises(AssertionError, match="application's"):
            conn.execute("SELECT TRUE").fetchone()
        conn.rollback()
    with connect(shared_database) as own:
        assert plans.list_plans(own) == listed

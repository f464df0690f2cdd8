"""Open connections go on after a migration has changed a type or a result."""

import asyncio
from collections.abc import Callable, Iterator
from typing import Any

import psycopg
import pytest

import pyapp
import pyapp.aio.users
from pyapp._core.run import atomic
from pyapp.aio.connection import connect as connect_async
from pyapp.users import User, create_user, get_user, set_user_email
from tests.support import execute

CHANGE = "ALTER TABLE app.users ALTER COLUMN image_url TYPE varchar(2000)"
UNDO = "ALTER TABLE app.users ALTER COLUMN image_url TYPE text"
# psycopg prepares a statement after five executions.
TIMES = 7
TRIGGER = """
    CREATE FUNCTION app.copy_image() RETURNS trigger LANGUAGE plpgsql AS $$
    BEGIN
        NEW.name := concat('image ', NEW.image_url);
        RETURN NEW;
    END;
    $$;
    CREATE TRIGGER users_copy_image BEFORE UPDATE ON app.users
    FOR EACH ROW EXECUTE FUNCTION app.copy_image();
"""


@pytest.fixture(params=[True, False], ids=["autocommit", "transactions"])
def prepared(
    database: str, request: pytest.FixtureRequest
) -> Iterator[tuple[psycopg.Connection[Any], Callable[[], User], str]]:
    """Return a connection with a prepared statement, the call, and the database."""
    with pyapp.connect(database) as conn:
        conn.autocommit = request.param
        user_id = create_user(conn, email="ada@example.com").id
        conn.commit()

        def call() -> User:
            return get_user(conn, user_id=user_id)

        for _ in range(TIMES):
            call()
        conn.commit()
        yield conn, call, database


Prepared = tuple[psycopg.Connection[Any], Callable[[], User], str]


def test_call_outside_a_transaction_goes_on(prepared: Prepared) -> None:
    conn, call, url = prepared
    before = call()
    conn.commit()
    for statement in (CHANGE, UNDO):
        execute(url, statement)

        for _ in range(TIMES):
            assert call() == before
            conn.commit()


@pytest.mark.parametrize("prepared", [False], indirect=True, ids=["transactions"])
def test_call_that_begins_an_atomic_block_goes_on(prepared: Prepared) -> None:
    conn, call, url = prepared
    execute(url, CHANGE)

    with atomic(conn):
        user = call()

    assert user.image_url is None


def test_call_in_a_transaction_fails_once(prepared: Prepared) -> None:
    """Statements before it are rolled back, so that it cannot be repeated alone."""
    conn, call, url = prepared
    execute(url, CHANGE)

    def call_in_transaction() -> User:
        with conn.transaction():
            conn.execute("SELECT 1")
            return call()

    with pytest.raises(psycopg.errors.FeatureNotSupported):
        call_in_transaction()

    assert call_in_transaction().image_url is None


def test_plans_of_triggers_are_renewed(database: str) -> None:
    """DEALLOCATE ALL does not end the plans of PL/pgSQL."""
    execute(database, TRIGGER)
    with pyapp.connect(database) as conn:
        user_id = create_user(conn, email="ada@example.com").id
        for _ in range(TIMES):
            set_user_email(conn, user_id=user_id, email="ada@example.com")
            conn.commit()
        execute(database, CHANGE)

        user = set_user_email(conn, user_id=user_id, email="ada@example.com")

        assert user.name == "image "


def test_plans_of_triggers_fail_once_in_transactions(database: str) -> None:
    execute(database, TRIGGER)
    with pyapp.connect(database) as conn:
        conn.prepare_threshold = None
        user_id = create_user(conn, email="ada@example.com").id
        conn.commit()

        def call_in_transaction() -> User:
            with conn.transaction():
                conn.execute("SELECT 1")
                return set_user_email(conn, user_id=user_id, email="ada@example.com")

        for _ in range(TIMES):
            call_in_transaction()
        execute(database, CHANGE)

        with pytest.raises(psycopg.errors.DatatypeMismatch):
            call_in_transaction()

        assert call_in_transaction().name == "image "


def test_async_call_outside_a_transaction_goes_on(database: str) -> None:
    async def test() -> None:
        async with await connect_async(database) as conn:
            user = await pyapp.aio.users.create_user(conn, email="ada@example.com")
            for autocommit in (False, True):
                await conn.commit()
                await conn.set_autocommit(autocommit)
                for _ in range(TIMES):
                    await pyapp.aio.users.get_user(conn, user_id=user.id)
                await conn.commit()
                execute(database, UNDO if autocommit else CHANGE)
                for _ in range(TIMES):
                    found = await pyapp.aio.users.get_user(conn, user_id=user.id)
                    assert found == user

    asyncio.run(test())


def test_plain_psycopg_fails_until_its_pool_is_drained(database: str) -> None:
    """As docs/changing-the-schema.md says of SQL of one's own, under autocommit."""
    own = "SELECT u.image_url FROM app.users AS u"
    with pyapp.pool(database, max_size=1) as connections:
        with connections.connection() as conn:
            conn.autocommit = True
            for _ in range(TIMES):
                conn.execute(own)
            execute(database, CHANGE)
            for _ in range(2):
                with pytest.raises(psycopg.errors.FeatureNotSupported):
                    conn.execute(own)
            conn.autocommit = False
        connections.drain()
        with connections.connection() as conn:
            assert conn.execute(own).fetchall() == []


def test_replaced_function_has_no_old_plans(database: str) -> None:
    execute(database, TRIGGER)
    with pyapp.connect(database) as conn:
        conn.prepare_threshold = None
        user_id = create_user(conn, email="ada@example.com").id
        for _ in range(TIMES):
            set_user_email(conn, user_id=user_id, email="ada@example.com")
        conn.commit()
        replaced = TRIGGER.partition("CREATE TRIGGER")[0].replace("image '", "icon '")
        execute(database, CHANGE, replaced.replace("CREATE", "CREATE OR REPLACE"))

        with conn.transaction():
            conn.execute("SELECT 1")
            user = set_user_email(conn, user_id=user_id, email="ada@example.com")

        assert user.name == "icon "


def test_async_plans_of_triggers_fail_once_in_transactions(database: str) -> None:
    execute(database, TRIGGER)

    async def test() -> None:
        async with await connect_async(database) as conn:
            conn.prepare_threshold = None
            user = await pyapp.aio.users.create_user(conn, email="ada@example.com")
            await conn.commit()

            async def call_in_transaction() -> User:
                async with conn.transaction():
                    await conn.execute("SELECT 1")
                    return await pyapp.aio.users.set_user_email(
                        conn, user_id=user.id, email="ada@example.com"
                    )

            for _ in range(TIMES):
                await call_in_transaction()
            execute(database, CHANGE)
            with pytest.raises(psycopg.errors.DatatypeMismatch):
                await call_in_transaction()
            assert (await call_in_transaction()).name == "image "

    asyncio.run(test())

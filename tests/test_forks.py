"""A connection works only in the process that opened it, not in a forked one."""

import asyncio
import gc
import multiprocessing
import os
import re
import subprocess
import sys
import textwrap
import traceback
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from uuid import UUID

import psycopg
import pytest

from pyapp import aio
from pyapp._core.connection import connect, pool
from pyapp._core.connection_types import Connection, Pool
from pyapp.aio.connection_types import AsyncConnection, AsyncPool
from pyapp.errors import ForkedConnectionError
from pyapp.users import create_user, find_user_by_email, get_user

PROCESSES = 4
HOOKS = {"gunicorn": "def post_fork", "uwsgi": "@postfork", "celery": "from celery"}
USERS = "SELECT count(*) FROM app.users"


def in_child(work: Callable[[], object]) -> str:
    """Return the error of *work* in a forked process, or its result."""
    read, write = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            text = repr(work())
        except Exception as exc:
            text = f"{type(exc).__name__}: {exc}"
        except BaseException:
            text = traceback.format_exc()
        os.write(write, text.encode())
        os._exit(0)
    os.close(write)
    with os.fdopen(read, encoding="utf-8") as answer:
        text = answer.read()
    os.waitpid(child, 0)
    return text


def use(connections: Pool) -> object:
    with connections.connection(timeout=5) as conn:
        return conn.execute("SELECT 1").fetchone()


@pytest.mark.parametrize(
    "work",
    [
        use,
        Pool.open,
        Pool.getconn,
        Pool.wait,
        Pool.check,
        Pool.drain,
        lambda connections: connections.resize(1, 2),
    ],
    ids=["connection", "open", "getconn", "wait", "check", "drain", "resize"],
)
def test_pool_raises_an_error_in_a_forked_process(
    shared_database: str, work: Callable[[Pool], object]
):
    with pool(shared_database) as connections:
        text = in_child(lambda: work(connections))

        assert text == (
            f"ForkedConnectionError: process {os.getpid()} opened this connection or"
            " pool, and this process was forked from it: call pyapp.connect or"
            " pyapp.pool after the fork"
        )
        assert use(connections) == (1,)


@pytest.mark.parametrize("name", ["getconn", "open", "wait", "check", "drain"])
def test_asyncio_pool_raises_an_error_in_a_forked_process(
    shared_database: str, name: str
):
    async def open_it() -> AsyncPool:
        return await aio.pool(shared_database)

    async def use_it(connections: AsyncPool) -> None:
        await getattr(connections, name)()

    with asyncio.Runner() as runner:
        connections = runner.run(open_it())
        text = in_child(lambda: asyncio.run(use_it(connections)))
        runner.run(connections.close())

    assert text.startswith("ForkedConnectionError: ")


@pytest.mark.parametrize("is_begun", [False, True])
def test_inherited_connection_raises_and_its_owner_continues(
    database: str, is_begun: bool
):
    with connect(database) as conn:
        user = create_user(conn, email="ada@example.com")
        if not is_begun:
            conn.commit()

        for work in (
            lambda: conn.execute(USERS),
            lambda: get_user(conn, user_id=user.id),
            lambda: conn.commit() if is_begun else conn.execute(USERS),
            conn.cancel,
            conn.cancel_safe,
        ):
            assert in_child(work).startswith("ForkedConnectionError: ")

        assert get_user(conn, user_id=user.id) == user
    with connect(database) as conn:
        assert get_user(conn, user_id=user.id) == user


def close_all(conn: Connection, connections: Pool, lent: Connection) -> str:
    """Close everything in a child; the sockets are the parent's."""
    lent.close()
    connections.putconn(lent)
    connections.close()
    conn.close()
    return "closed"


def finish_all(conn: Connection, connections: Pool, lent: Connection) -> str:
    """Finish everything, as a garbage collection could."""
    conn.pgconn.finish()
    lent.pgconn.finish()
    connections.__del__()
    for each in list(connections._pool):
        each.pgconn.finish()
    gc.collect()
    return "closed"


@pytest.mark.parametrize("close", [close_all, finish_all])
def test_closing_in_a_forked_process_does_not_affect_the_parent(
    database: str, close: Callable[[Connection, Pool, Connection], str]
):
    with connect(database) as conn, pool(database, min_size=3) as connections:
        assert isinstance(conn, Connection)
        user = create_user(conn, email="ada@example.com")
        lent = connections.getconn()
        assert isinstance(lent, Connection)
        lent.execute("CREATE TEMP TABLE mine (id int)")

        assert in_child(lambda: close(conn, connections, lent)) == "'closed'"

        assert lent.execute("SELECT count(*) FROM mine").fetchone() == (0,)
        connections.putconn(lent)
        for _ in range(3):
            assert use(connections) == (1,)
        assert get_user(conn, user_id=user.id) == user
        assert connections.get_stats().get("connections_lost", 0) == 0


def test_child_that_exits_does_not_affect_the_parent(database: str):
    """The child leaves the `with` blocks of its parent and exits normally."""
    script = textwrap.dedent(
        """
        import os, sys, pyapp
        with pyapp.pool(min_size=2) as pool, pyapp.connect() as own:
            with pool.connection() as conn:
                conn.execute("CREATE TEMP TABLE mine (id int)")
                own.execute("CREATE TEMP TABLE mine (id int)")
                child = os.fork()
                if child == 0:
                    sys.exit(7)
                assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 7
                conn.execute("SELECT FROM mine")
                own.execute("SELECT FROM mine")
        print("done")
        """
    )
    run = subprocess.run(
        [sys.executable, "-W", "error::ResourceWarning", "-c", script],
        env={**os.environ, "DATABASE_URL": database},
        capture_output=True,
        text=True,
        timeout=60,
    )

    assert (run.returncode, run.stdout) == (0, "done\n"), run.stderr
    assert "Traceback" not in run.stderr


POOL: list[Pool] = []


def open_pool(url: str) -> None:
    POOL.append(pool(url, max_size=2))


def read_email(user_id: UUID) -> str | None:
    with POOL[-1].connection() as conn:
        return get_user(conn, user_id=user_id).email


def test_pools_opened_after_the_fork_read_their_own_rows(database: str):
    with pool(database) as connections, connections.connection() as conn:
        users = [create_user(conn, email=f"{n}@example.com") for n in range(200)]
        conn.commit()
        fork = multiprocessing.get_context("fork")
        with fork.Pool(PROCESSES, open_pool, [database]) as workers:
            emails = workers.map(read_email, [user.id for user in users])

        assert emails == [user.email for user in users]
        assert find_user_by_email(conn, email="7@example.com") == users[7]


def test_inherited_pool_returns_no_row_in_any_worker(database: str):
    """With psycopg's own pool, a worker may get another worker's row."""
    with pool(database, min_size=2) as connections:
        with connections.connection() as conn:
            users = [create_user(conn, email=f"{n}@example.com") for n in range(8)]
        POOL.append(connections)
        fork = multiprocessing.get_context("fork")
        with fork.Pool(PROCESSES) as workers:
            results = [workers.apply_async(read_email, [user.id]) for user in users]
            for result in results:
                with pytest.raises(ForkedConnectionError):
                    result.get(timeout=30)


def test_asyncio_connection_raises_an_error_in_a_forked_process(shared_database: str):
    async def open_it() -> psycopg.AsyncConnection:
        return await aio.connect(shared_database)

    async def count(conn: psycopg.AsyncConnection) -> object:
        return await (await conn.execute(USERS)).fetchone()

    async def close(conn: psycopg.AsyncConnection) -> None:
        await conn.close()

    with asyncio.Runner() as runner:
        conn = runner.run(open_it())
        assert isinstance(conn, AsyncConnection)
        assert in_child(lambda: asyncio.run(count(conn))).startswith("ForkedConn")
        assert in_child(lambda: asyncio.run(close(conn))) == "None"
        assert runner.run(count(conn))
        runner.run(close(conn))


@pytest.mark.parametrize("host", ["gunicorn", "uwsgi", "celery"])
def test_hooks_of_the_documentation_open_a_pool_in_each_worker(
    database: str, monkeypatch: pytest.MonkeyPatch, host: str
):
    """A fork calls the hooks as the servers do, with stubs for their imports."""
    page = Path(__file__).parents[1] / "docs" / "connections.md"
    blocks = re.findall(
        r"^```py\n(.*?)^```$", page.read_text(encoding="utf-8"), re.M | re.S
    )
    (code,) = (block for block in blocks if HOOKS[host] in block)
    monkeypatch.setenv("DATABASE_URL", database)
    stub = SimpleNamespace(connect=lambda hook: hook)
    application = SimpleNamespace()
    for name, module in {
        "application": application,
        "celery": SimpleNamespace(),
        "celery.signals": SimpleNamespace(
            worker_process_init=stub, worker_process_shutdown=stub
        ),
        "uwsgidecorators": SimpleNamespace(postfork=stub.connect),
    }.items():
        monkeypatch.setitem(sys.modules, name, module)
    names: dict[str, Any] = {}
    exec(compile(code, str(page), "exec"), names)

    def work() -> object:
        if host == "gunicorn":
            names["post_fork"](None, None)
        else:
            names["open_pool"]()
        result = use(names.get("pool") or application.pool)
        if host == "gunicorn":
            names["worker_exit"](None, None)
        elif host == "celery":
            names["close_pool"]()
        return result

    with pool(database):
        assert in_child(work) == in_child(work) == "(1,)"

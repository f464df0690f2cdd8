"""The functions for asyncio return the same rows and raise the same errors."""

import asyncio
import inspect
import shutil
import subprocess
import sys
from collections import Counter
from collections.abc import Awaitable, Callable
from decimal import Decimal
from pathlib import Path
from typing import Any
from uuid import uuid4

import psycopg
import pytest
from psycopg import AsyncConnection
from psycopg.pq import TransactionStatus
from psycopg.rows import dict_row

import pyapp
from pyapp import aio
from pyapp._core.connection import connect
from pyapp.errors import (
    DatabaseUnavailableError,
    EmailTakenError,
    PriceTakenError,
    PyappError,
    ReferralLimitReachedError,
    UserNotFoundError,
)
from pyapp.messages import NewMessage
from pyapp.users import find_user_by_email
from tests.metering import add_user, new_message
from tests.temp_server import free_port

Test = Callable[[AsyncConnection[Any]], Awaitable[None]]


def run(url: str, test: Test, **options: Any) -> None:
    """Run *test* on a connection that rolls back at the end."""

    async def connected() -> None:
        async with await AsyncConnection.connect(url, **options) as conn:
            try:
                await test(conn)
            finally:
                await conn.rollback()

    asyncio.run(connected())


@pytest.mark.parametrize("is_autocommit", [False, True])
def test_topics_work_together(shared_database: str, is_autocommit: bool):
    async def test(conn: AsyncConnection[Any]) -> None:
        await conn.execute("BEGIN" if is_autocommit else "SELECT 1")
        friend = await aio.users.create_user(conn, email="bob@example.com")
        user = await aio.users.create_user(conn, email="ada@example.com")
        device = await aio.fingerprints.upsert_fingerprint(conn)
        new = await aio.sessions.create_session(
            conn, user_id=user.id, fingerprint_id=device.id
        )
        found = await aio.sessions.find_session(conn, token=new.token)
        assert found is not None
        assert (found.user, found.fingerprint) == (user, device)

        await aio.referrals.redeem_referral(
            conn, referral_code=friend.referral_code, referred_id=user.id
        )
        await aio.messages.record_message(
            conn, user_id=user.id, model="m", cost=Decimal("1.5"), credits=Decimal(150)
        )
        quota = await aio.quota.get_user_quota(conn, user_id=user.id)
        assert (quota.quota, quota.credits_used) == (Decimal(3000), Decimal(150))

        assert (await aio.plans.get_plan(conn, plan_id="free")).id == "free"
        remains = await aio.users.anonymize_user(conn, user_id=user.id)
        assert remains.email is None
        assert await aio.sessions.find_session(conn, token=new.token) is None
        assert await aio.users.list_users(conn, limit=1) != []
        await conn.execute("ROLLBACK")

    run(shared_database, test, autocommit=is_autocommit, row_factory=dict_row)


def test_connections_and_pools_have_the_same_settings(
    shared_database: str, monkeypatch: pytest.MonkeyPatch
):
    for name in ("connect", "pool"):
        sync, twin = getattr(pyapp, name), getattr(aio, name)
        assert inspect.iscoroutinefunction(twin)
        expected = inspect.signature(sync).parameters
        assert inspect.signature(twin).parameters == expected
    settings = "SELECT current_setting('TimeZone'), current_setting('application_name')"
    monkeypatch.setenv("DATABASE_URL", shared_database)

    async def test() -> None:
        async with await aio.connect() as conn:
            assert await (await conn.execute(settings)).fetchone() == ("UTC", "pyapp")
        async with await aio.pool(max_size=2) as pool, pool.connection() as conn:
            assert await (await conn.execute(settings)).fetchone() == ("UTC", "pyapp")

    asyncio.run(test())


@pytest.mark.parametrize("open_it", [aio.connect, aio.pool])
def test_error_without_a_server_hides_the_password(open_it: Any):
    url = f"postgresql://me:hunter2@localhost:{free_port()}/mine"

    with pytest.raises(DatabaseUnavailableError, match="start it with") as caught:
        asyncio.run(open_it(url))

    assert "hunter2" not in str(caught.value)


def test_many_messages_are_recorded_by_copy(shared_database: str):
    async def test(conn: AsyncConnection[Any]) -> None:
        device = await aio.fingerprints.upsert_fingerprint(conn)
        messages: list[NewMessage] = [
            new_message(user_id=None, fingerprint_id=device.id) for _ in range(100)
        ]

        counts = await aio.messages.record_messages(conn, [*messages, *messages])

        assert counts.recorded == 100

    run(shared_database, test)


def test_refusals_keep_the_transaction(shared_database: str):
    async def test(conn: AsyncConnection[Any]) -> None:
        await aio.plans.add_plan_price(conn, plan_id="paid", stripe_price_id="price_1")
        user = await aio.users.create_user(conn, email="ada@example.com")
        for _ in range(10):
            with pytest.raises(PriceTakenError):
                await aio.plans.add_plan_price(
                    conn, plan_id="free", stripe_price_id="price_1"
                )
            with pytest.raises(EmailTakenError):
                await aio.users.create_user(conn, email="ADA@example.com")
            with pytest.raises(UserNotFoundError):
                await aio.users.anonymize_user(conn, user_id=uuid4())
            assert conn.info.transaction_status == TransactionStatus.INTRANS

        assert await aio.users.get_user(conn, user_id=user.id) == user

    run(shared_database, test)


def test_refusal_of_the_first_call_leaves_no_transaction(database: str):
    async def test(conn: AsyncConnection[Any]) -> None:
        await aio.plans.add_plan_price(conn, plan_id="paid", stripe_price_id="price_1")
        await conn.commit()
        for refused in (
            aio.plans.add_plan_price(conn, plan_id="free", stripe_price_id="price_1"),
            aio.plans.create_plan(conn, plan_id="free", monthly_credits=Decimal(9)),
            aio.users.anonymize_user(conn, user_id=uuid4()),
        ):
            with pytest.raises(PyappError):
                await refused
            assert conn.info.transaction_status == TransactionStatus.IDLE

    run(database, test)


def test_calls_do_not_commit(database: str):
    async def test(conn: AsyncConnection[Any]) -> None:
        await aio.users.create_user(conn, email="ä@example.com")
        await conn.rollback()
        user = await aio.users.create_user(conn, email="ada@example.com")
        await conn.rollback()
        with pytest.raises(UserNotFoundError):
            await aio.users.anonymize_user(conn, user_id=user.id)

    run(database, test)

    with connect(database) as conn:
        assert find_user_by_email(conn, email="ada@example.com") is None


def test_calls_work_in_a_pipeline_of_the_caller(shared_database: str):
    async def test(conn: AsyncConnection[Any]) -> None:
        async with conn.pipeline():
            await aio.plans.add_plan_price(
                conn, plan_id="paid", stripe_price_id="price_1"
            )
            with pytest.raises(PriceTakenError):
                await aio.plans.add_plan_price(
                    conn, plan_id="free", stripe_price_id="price_1"
                )
            user = await aio.users.create_user(conn, email="ada@example.com")
            assert (await aio.users.anonymize_user(conn, user_id=user.id)).name is None

    run(shared_database, test)


def test_connection_is_usable_after_a_cancelled_call(database: str):
    """A deadline ends the call, its block rolls back, and the next one works."""
    with psycopg.connect(database) as holder:
        user = add_user(holder)
        holder.commit()
        holder.execute("SELECT FROM app.users FOR UPDATE")

        async def test(conn: AsyncConnection[Any]) -> None:
            with pytest.raises(TimeoutError):
                async with conn.transaction():
                    await asyncio.wait_for(
                        aio.users.set_user_email(
                            conn, user_id=user, email="ada@example.com"
                        ),
                        timeout=0.1,
                    )
            holder.rollback()
            changed = await aio.users.set_user_email(
                conn, user_id=user, email="ada@example.com"
            )
            assert changed.email == "ada@example.com"

        run(database, test)


def test_concurrent_tasks_do_not_exceed_the_referral_limit(database: str):
    with connect(database) as conn:
        owner, *users = (add_user(conn) for _ in range(13))
        row = conn.execute(
            "SELECT referral_code FROM app.users WHERE id = %s", [owner]
        ).fetchone()
    assert row is not None

    async def redeem(user: Any) -> str:
        async with await AsyncConnection.connect(database) as conn:
            try:
                await aio.referrals.redeem_referral(
                    conn, referral_code=row[0], referred_id=user
                )
            except ReferralLimitReachedError:
                return "refused"
            return "done"

    async def race() -> list[str]:
        return await asyncio.gather(*map(redeem, users))

    assert Counter(asyncio.run(race())) == {"done": 5, "refused": 7}


def test_generator_reports_a_syntax_error_in_one_line(tmp_path: Path):
    program = tmp_path / ".ci" / "generate_aio.py"
    program.parent.mkdir()
    shutil.copy(Path(__file__).parents[1] / ".ci" / "generate_aio.py", program)
    (tmp_path / "pyapp").mkdir()
    (tmp_path / "pyapp" / "entitlements.py").write_text("import re\ndef f(:\n")
    run = subprocess.run([sys.executable, program], capture_output=True, text=True)
    assert (run.returncode, run.stderr) == (
        1,
        "pyapp/entitlements.py:2: invalid syntax\n",
    )

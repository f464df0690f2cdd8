"""Code that mypy must accept or refuse in a script; it is checked and never run.

`make lint` runs mypy with `warn_unused_ignores`: it fails if mypy no longer reports one
of the mistakes below, or if a result does not have the asserted type.
"""

from datetime import timedelta
from decimal import Decimal
from typing import Any, assert_type
from uuid import UUID

import psycopg

import pyapp
from pyapp import aio
from pyapp.messages import Message, NewMessage, RecordedMessage, RecordedMessages
from pyapp.quota import Quota
from pyapp.referrals import Referral, ReferralSummary
from pyapp.sessions import NewSession, Session, ValidSession
from pyapp.users import User


def accepted(conn: psycopg.Connection[Any], user_id: UUID, token: str) -> None:
    """Use the functions correctly."""
    user = pyapp.users.get_user(conn, user_id=user_id)
    assert_type(user, User)
    assert_type(user.email, str | None)
    assert_type(pyapp.users.find_user_by_email(conn, email="a@b.example"), User | None)
    assert_type(pyapp.users.list_users(conn, limit=3), list[User])
    assert_type(pyapp.users.anonymize_user(conn, user_id=user_id), User)
    new = pyapp.sessions.create_session(conn, user_id=user_id, ttl=timedelta(days=1))
    assert_type(new, NewSession)
    found = pyapp.sessions.find_session(conn, token=token)
    assert_type(found, ValidSession | None)
    assert_type(pyapp.sessions.extend_session(conn, token=token), Session | None)
    assert_type(pyapp.sessions.delete_session(conn, token=token), bool)
    assert_type(pyapp.sessions.delete_expired_sessions(conn), int)
    made = pyapp.referrals.redeem_referral(
        conn, referral_code="ref-", referred_id=user_id, credits=Decimal(5)
    )
    assert_type(made, Referral)
    summary = pyapp.referrals.get_referral_summary(conn, user_id=user_id)
    assert_type(summary, ReferralSummary)
    recorded = pyapp.messages.record_message(conn, user_id=user_id, model="m")
    assert_type(recorded, RecordedMessage)
    many: list[NewMessage] = []
    assert_type(pyapp.messages.record_messages(conn, many), RecordedMessages)
    listed = pyapp.messages.list_messages(conn, subject_id=user_id)
    assert_type(listed, list[Message])
    with pyapp.connect() as own, pyapp.pool() as pool, pool.connection() as pooled:
        assert_type(pyapp.quota.get_user_quota(own, user_id=user_id).quota, Decimal)
        pyapp.quota.get_user_quota(pooled, user_id=user_id)


async def awaited(conn: psycopg.AsyncConnection[Any], user_id: UUID) -> None:
    """Use the functions for asyncio correctly."""
    assert_type(await aio.users.get_user(conn, user_id=user_id), User)
    quota: Quota = await aio.quota.get_user_quota(conn, user_id=user_id)
    assert_type(quota.credits_used, Decimal)
    assert_type(await aio.users.anonymize_user(conn, user_id=user_id), User)
    async with await aio.connect() as own, await aio.pool() as pool:
        assert_type(await aio.users.get_user(own, user_id=user_id), User)
        async with pool.connection() as pooled:
            assert_type(await aio.users.get_user(pooled, user_id=user_id), User)


async def refused(
    conn: psycopg.Connection[Any],
    other: psycopg.AsyncConnection[Any],
    user_id: UUID,
) -> None:
    """Make mistakes that a type checker must report."""
    pyapp.users.get_user(conn, id=user_id)  # type: ignore[call-arg]
    pyapp.users.get_user(conn)  # type: ignore[call-arg]
    pyapp.users.get_user(conn, user_id)  # type: ignore[call-arg]
    pyapp.users.get_user(conn, user_id=str(user_id))  # type: ignore[arg-type]
    pyapp.users.get_user(other, user_id=user_id)  # type: ignore[arg-type]
    pyapp.users.anonymize_user(conn, user=user_id)  # type: ignore[call-arg]
    found = pyapp.users.find_user_by_email(conn, email="a@b.c")
    print(found.name)  # type: ignore[union-attr]
    pyapp.sessions.create_session(conn, user_id=user_id, ttl=30)  # type: ignore[arg-type]
    pyapp.users.get_user(conn, user_id=user_id).name = "Ada"  # type: ignore[misc]
    await aio.users.get_user(conn, user_id=user_id)  # type: ignore[arg-type]
    await aio.users.get_user(other, id=user_id)  # type: ignore[call-arg]
    user = await aio.users.get_user(other, user_id=user_id)
    print(user.nick)  # type: ignore[attr-defined]

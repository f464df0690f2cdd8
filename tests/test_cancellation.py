"""Calls that are cancelled at random times, inside transactions of the caller.

The database contains exactly the transactions reported as committed. Each call runs in
a task between two inserts of the caller; the task is cancelled after a random time. The
caller handles the cancellation, or lets it end the block. A failure prints the seed.
"""

import asyncio
import random
import statistics
import sys
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Coroutine
from dataclasses import dataclass, field
from decimal import Decimal
from typing import Any
from uuid import UUID, uuid4

import anyio
import psycopg
import pytest
from psycopg import AsyncConnection
from psycopg.pq import TransactionStatus

from pyapp import aio
from pyapp._core.connection import connect
from pyapp.errors import PyappError
from pyapp.users import create_user
from tests.metering import add_fingerprint, add_user, new_message, usage_differences

LOOPS: dict[str, Callable[[], asyncio.AbstractEventLoop]] = {
    "asyncio": asyncio.new_event_loop
}
if sys.platform != "win32":
    import uvloop

    LOOPS["uvloop"] = uvloop.new_event_loop

# Rounds in each of the four tests; the calls take turns.
ROUNDS = 150
# Each call is first measured so many times without a cancellation.
WARM_UP = 3
UNCANCELLED = 60.0
TAKEN = "t\xe4ken@example.com"
NOTE = "INSERT INTO public.notes VALUES (%s, %s)"
Connect = Callable[[str], Awaitable[AsyncConnection[Any]]]
CONNECTIONS: dict[str, Connect] = {
    "pyapp": aio.connect,
    "psycopg": AsyncConnection.connect,
}


@dataclass
class Kind:
    """A call, and a query for the row that it writes under an id."""

    call: Callable[[AsyncConnection[Any], UUID], Coroutine[Any, Any, object]]
    probe: str = "SELECT FALSE"
    seconds: list[float] = field(default_factory=list)


def kinds_of_calls(user: UUID, device: UUID, code: str) -> dict[str, Kind]:
    """Return calls of all kinds: atomic, single, of many statements, and refused."""
    by_email = "SELECT count(*) = 1 FROM app.users WHERE email = %(id)s || '@x.example'"
    message: dict[str, Any] = {
        "model": "m",
        "user_id": user,
        "cost": Decimal(1),
        "credits": Decimal(1),
        "request": [{"role": "user", "content": "hello"}],
    }
    by_id = "SELECT count(*) = 1 FROM app.messages WHERE id = %(id)s::uuid"
    users = aio.users

    async def record_many(conn: AsyncConnection[Any], id: UUID) -> object:
        new = [new_message(user_id=user) for _ in range(20)]
        new.append(new_message(user_id=user, id=id))
        return await aio.messages.record_messages(conn, new)

    async def refer(conn: AsyncConnection[Any], id: UUID) -> object:
        return await aio.referrals.redeem_referral(
            conn, referral_code=code, referred_id=user
        )

    return {
        "change": Kind(
            lambda conn, id: users.set_user_email(
                conn, user_id=user, email=f"{id}@x.example"
            ),
            by_email,
        ),
        "insert": Kind(
            lambda conn, id: users.create_user(conn, email=f"{id}@x.example"), by_email
        ),
        "record": Kind(
            lambda conn, id: aio.messages.record_message(conn, id=id, **message), by_id
        ),
        "record many": Kind(record_many, by_id),
        "upsert": Kind(
            lambda conn, id: aio.fingerprints.upsert_fingerprint(
                conn, fingerprint_id=id
            ),
            "SELECT count(*) = 1 FROM app.fingerprints WHERE id = %(id)s::uuid",
        ),
        "session": Kind(
            lambda conn, id: aio.sessions.create_session(
                conn, user_id=user, fingerprint_id=device
            )
        ),
        "erasure": Kind(lambda conn, id: users.anonymize_user(conn, user_id=id)),
        "read": Kind(lambda conn, id: aio.quota.get_user_quota(conn, user_id=user)),
        "refused plan": Kind(
            lambda conn, id: aio.plans.create_plan(
                conn, plan_id="free", monthly_credits=Decimal(9)
            ),
        ),
        "refused e-mail": Kind(
            lambda conn, id: users.create_user(conn, email=f"no address {id}"),
        ),
        "refused change": Kind(
            lambda conn, id: users.set_user_email(conn, user_id=user, email=TAKEN),
        ),
        "refused referral": Kind(refer),
    }


@dataclass
class Round:
    """One transaction of the caller, and its reported outcome."""

    id: UUID
    kind: str
    handles: bool
    goes_on: bool
    outcome: str = "not reached"
    is_committed: bool = False


async def cancel_later(task: "asyncio.Future[object]", seconds: float) -> str:
    """Cancel *task* after so many seconds, more exactly than the loop's timers."""
    until = time.perf_counter() + seconds
    while not task.done() and time.perf_counter() < until:
        await asyncio.sleep(0)
    task.cancel()
    try:
        await task
    except PyappError:
        return "refused"
    return "returned"


async def play(
    conn: AsyncConnection[Any], kind: Kind, this: Round, seconds: float
) -> None:
    """Run the call of *this* round in a transaction, and cancel it."""
    async with conn.transaction():
        await conn.execute(NOTE, [this.id, "before"])
        began = time.perf_counter()
        task = asyncio.ensure_future(kind.call(conn, this.id))
        try:
            this.outcome = await cancel_later(task, seconds)
            if seconds == UNCANCELLED:
                kind.seconds.append(time.perf_counter() - began)
        except asyncio.CancelledError:
            this.outcome = "cancelled"
            if not this.handles:
                raise
        if this.goes_on:
            await conn.execute(NOTE, [this.id, "after"])
    this.is_committed = True


async def play_all(
    url: str, opens: Connect, kinds: dict[str, Kind], seed: int
) -> list[Round]:
    chance = random.Random(seed)
    played = []
    conn = await opens(url)
    for n in range(WARM_UP * len(kinds) + ROUNDS):
        name = list(kinds)[n % len(kinds)]
        kind = kinds[name]
        this = Round(uuid4(), name, chance.random() < 0.7, chance.random() < 0.5)
        seconds = UNCANCELLED
        if n >= WARM_UP * len(kinds):
            seconds = chance.uniform(0, 1.5 * statistics.median(kind.seconds))
        try:
            await play(conn, kind, this, seconds)
        except (psycopg.Error, asyncio.CancelledError, PyappError):
            assert not this.is_committed
        played.append(this)
        if conn.closed:
            conn = await opens(url)
        assert conn.info.transaction_status == TransactionStatus.IDLE, this
    await conn.close()
    return played


@pytest.mark.parametrize("opens", CONNECTIONS)
@pytest.mark.parametrize("loop", LOOPS)
def test_exactly_the_transactions_reported_as_committed_are_stored(
    database: str, loop: str, opens: str
):
    """psycopg's own connections may end a block without an error after a cancellation,
    so only refused calls, which keep the transaction usable, are made on them."""
    seed = random.SystemRandom().randrange(2**32)
    with connect(database) as conn:
        conn.execute("CREATE TABLE public.notes (id uuid, place text)")
        user, device = add_user(conn), add_fingerprint(conn)
        create_user(conn, email=TAKEN)
        row = conn.execute(
            "SELECT referral_code FROM app.users WHERE id = %s", [user]
        ).fetchone()
        assert row is not None
    kinds = kinds_of_calls(user, device, row[0])
    if opens == "psycopg":
        kinds = {name: kind for name, kind in kinds.items() if "refused" in name}

    with asyncio.Runner(loop_factory=LOOPS[loop]) as runner:
        played = runner.run(play_all(database, CONNECTIONS[opens], kinds, seed))

    with connect(database) as conn:
        for this in played:
            case = f"seed {seed}: {this}"
            notes = conn.execute(
                "SELECT place FROM public.notes WHERE id = %s ORDER BY place DESC",
                [this.id],
            ).fetchall()
            expected = ["before", "after"] if this.goes_on else ["before"]
            assert [place for (place,) in notes] == (
                expected if this.is_committed else []
            ), case
            if this.kind == "change":
                continue
            found = conn.execute(kinds[this.kind].probe, {"id": str(this.id)})
            is_there = found.fetchone() == (True,)
            is_kept = this.is_committed and this.outcome == "returned"
            if kinds[this.kind].probe != "SELECT FALSE":
                assert is_there == is_kept, case
        assert usage_differences(conn) == []
    outcomes = Counter(this.outcome for this in played)
    assert outcomes["cancelled"] > ROUNDS / 10, outcomes


@pytest.mark.parametrize("loop", LOOPS)
def test_cancel_scope_that_cancels_repeatedly_ends_the_call(database: str, loop: str):
    """anyio, and therefore FastAPI, cancels at each turn of the loop."""
    with connect(database) as holder:
        user = add_user(holder)
        holder.commit()
        holder.execute("SELECT FROM app.users WHERE id = %s FOR UPDATE", [user])

        async def time_out() -> float:
            async with await aio.connect(database) as conn:
                await conn.execute("SELECT 1")
                began = time.monotonic()
                with pytest.raises(TimeoutError), anyio.fail_after(0.3):
                    await aio.users.set_user_email(
                        conn, user_id=user, email="new@example.com"
                    )
                taken = time.monotonic() - began
                await conn.execute("SELECT 1")
            return taken

        with asyncio.Runner(loop_factory=LOOPS[loop]) as runner:
            taken = runner.run(asyncio.wait_for(time_out(), 30))

    assert taken < 5

"""Referrals redeemed at once: exact limits, clear refusals, no deadlock."""

import threading
from collections import Counter
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from decimal import Decimal
from itertools import permutations
from uuid import UUID

import psycopg
import pytest

from pyapp.errors import (
    AlreadyReferredError,
    MutualReferralError,
    ReferralCodeNotFoundError,
    ReferralError,
    ReferralLimitReachedError,
    ReferralNotFoundError,
)
from pyapp.referrals import (
    cancel_referral,
    complete_referral,
    create_referral,
    redeem_referral,
)
from pyapp.users import anonymize_user, get_user
from tests.metering import add_user
from tests.waiting import wait_for_lock

BONUS = Decimal(500)

Attempt = Callable[[psycopg.Connection], object]


def race(url: str, attempts: Iterable[Attempt]) -> Counter[str]:
    """Run all *attempts* at once, each on its own connection; count the outcomes."""
    attempts = list(attempts)
    start = threading.Barrier(len(attempts))

    def run(attempt: Attempt) -> str:
        with psycopg.connect(url) as conn:
            conn.execute("SELECT 1")
            start.wait(timeout=60)
            try:
                attempt(conn)
            except ReferralError as refusal:
                # The transaction can go on.
                conn.execute("SELECT 1")
                return type(refusal).__name__
            return "done"

    with ThreadPoolExecutor(len(attempts)) as threads:
        return Counter(threads.map(run, attempts))


def redeem(code: str, user: UUID) -> Attempt:
    return lambda conn: redeem_referral(conn, referral_code=code, referred_id=user)


def add_users(url: str, number: int, **columns: object) -> list[UUID]:
    with psycopg.connect(url) as conn:
        return [add_user(conn, **columns) for _ in range(number)]


def codes_of(url: str, users: Iterable[UUID]) -> list[str]:
    with psycopg.connect(url) as conn:
        return [get_user(conn, user_id=user).referral_code for user in users]


def accounts_are_exact(url: str) -> bool:
    """Say whether every user's count and credits are those of completed referrals."""
    with psycopg.connect(url) as conn:
        wrong = conn.execute(
            """
            SELECT u.id
            FROM app.users AS u
            LEFT JOIN app.referrals AS r
                ON u.id IN (r.referrer_id, r.referred_id) AND r.status = 'completed'
            GROUP BY u.id
            HAVING u.referral_credits <> COALESCE(sum(r.credits), 0)
                OR u.referral_count <> count(*) FILTER (WHERE r.referrer_id = u.id)
                OR u.referral_count > u.referral_limit
            """
        ).fetchall()
    return wrong == []


def test_fifty_redeem_one_code_with_limit_five(database: str):
    (ada,) = add_users(database, 1)
    users = add_users(database, 50)
    (code,) = codes_of(database, [ada])

    outcomes = race(database, [redeem(code, user) for user in users])

    assert outcomes == {"done": 5, ReferralLimitReachedError.__name__: 45}
    with psycopg.connect(database) as conn:
        owner = get_user(conn, user_id=ada)
        granted = [get_user(conn, user_id=user).referral_credits for user in users]
    assert (owner.referral_count, owner.referral_credits) == (5, 5 * BONUS)
    assert Counter(granted) == {BONUS: 5, Decimal(0): 45}
    assert accounts_are_exact(database)


def test_one_user_redeems_ten_codes_at_once(database: str):
    (user,) = add_users(database, 1)
    codes = codes_of(database, add_users(database, 10))

    outcomes = race(database, [redeem(code, user) for code in codes])

    assert outcomes == {"done": 1, AlreadyReferredError.__name__: 9}
    assert accounts_are_exact(database)


def test_two_users_redeem_each_others_code_at_once(database: str):
    for _ in range(5):
        ada, bob = add_users(database, 2)
        of_ada, of_bob = codes_of(database, [ada, bob])

        outcomes = race(database, [redeem(of_ada, bob), redeem(of_bob, ada)])

        assert outcomes == {"done": 1, MutualReferralError.__name__: 1}
    assert accounts_are_exact(database)


def test_everybody_redeems_everybodys_code_at_once(database: str):
    users = add_users(database, 6)
    codes = codes_of(database, users)
    pairs = list(permutations(range(6), 2))

    outcomes = race(database, [redeem(codes[a], users[b]) for a, b in pairs])

    # Each user is referred at most once; a deadlock would have raised.
    assert 3 <= outcomes["done"] <= 6
    assert sum(outcomes.values()) == len(pairs)
    assert accounts_are_exact(database)


def test_pending_referrals_completed_at_once_pass_the_limit_by_none(database: str):
    (ada,) = add_users(database, 1)
    users = add_users(database, 8)
    (code,) = codes_of(database, [ada])
    with psycopg.connect(database) as conn:
        for user in users:
            create_referral(conn, referral_code=code, referred_id=user)

    # Each of them twice.
    outcomes = race(database, [complete(user) for user in users * 2])

    assert outcomes["done"] == 5
    refused = {ReferralLimitReachedError.__name__, ReferralNotFoundError.__name__}
    assert set(outcomes) == {"done"} | refused
    assert accounts_are_exact(database)


def complete(user: UUID) -> Attempt:
    return lambda conn: complete_referral(conn, referred_id=user)


def cancel(user: UUID) -> Attempt:
    return lambda conn: cancel_referral(conn, referred_id=user)


@pytest.mark.parametrize("first", [complete, cancel])
@pytest.mark.parametrize("second", [complete, cancel])
def test_pending_referral_ends_once(database: str, first, second):
    ada, bob = add_users(database, 2)
    (code,) = codes_of(database, [ada])
    with psycopg.connect(database) as conn, psycopg.connect(database) as other:
        create_referral(conn, referral_code=code, referred_id=bob)
        conn.commit()
        first(bob)(conn)

        with ThreadPoolExecutor() as threads:
            ending = threads.submit(second(bob), other)
            wait_for_lock(conn, other)
            conn.commit()
            with pytest.raises(ReferralNotFoundError):
                ending.result()
        other.commit()

        owner = get_user(conn, user_id=ada)
    assert owner.referral_count == (1 if first is complete else 0)
    assert accounts_are_exact(database)


def test_code_redeemed_during_a_cancellation_waits_and_counts(database: str):
    ada, bob, carl = add_users(database, 3)
    old, new = codes_of(database, [ada, carl])
    with psycopg.connect(database) as conn, psycopg.connect(database) as other:
        create_referral(conn, referral_code=old, referred_id=bob)
        conn.commit()
        cancel_referral(conn, referred_id=bob)

        with ThreadPoolExecutor() as threads:
            redeeming = threads.submit(redeem(new, bob), other)
            wait_for_lock(conn, other)
            conn.commit()
            redeeming.result()
        other.commit()

        counts = [get_user(conn, user_id=user).referral_count for user in (ada, carl)]
    assert counts == [0, 1]
    assert accounts_are_exact(database)


def test_replacement_does_not_deadlock_with_a_completion(database: str):
    ada, bob, carl = add_users(database, 3)
    old, new = codes_of(database, [ada, carl])
    with psycopg.connect(database) as conn, psycopg.connect(database) as other:
        create_referral(conn, referral_code=old, referred_id=bob)
        conn.commit()
        cancel_referral(conn, referred_id=bob)

        with ThreadPoolExecutor() as threads:
            completing = threads.submit(complete(bob), other)
            wait_for_lock(conn, other)
            create_referral(conn, referral_code=new, referred_id=bob)
            conn.commit()
            with pytest.raises(ReferralNotFoundError):
                completing.result()
        other.commit()

        assert complete_referral(conn, referred_id=bob).referrer_id == carl
    assert accounts_are_exact(database)


def test_cancel_complete_and_redeem_at_once_end_in_one_referral(database: str):
    for _ in range(5):
        ada, bob, carl = add_users(database, 3)
        old, new = codes_of(database, [ada, carl])
        with psycopg.connect(database) as conn:
            create_referral(conn, referral_code=old, referred_id=bob)

        ends = [complete(bob), cancel(bob)]
        outcomes = race(database, [*ends * 3, *[redeem(new, bob)] * 2])

        # The pending one ends once; a cancelled one may leave room for the other.
        assert outcomes["done"] in (1, 2)
        assert sum(outcomes.values()) == 8
    assert accounts_are_exact(database)


def test_code_of_a_user_being_anonymized_waits_and_is_refused(database: str):
    ada, bob = add_users(database, 2)
    (code,) = codes_of(database, [ada])
    with psycopg.connect(database) as eraser, psycopg.connect(database) as conn:
        anonymize_user(eraser, user_id=ada)
        with ThreadPoolExecutor() as threads:
            redeeming = threads.submit(redeem(code, bob), conn)
            wait_for_lock(eraser, conn)
            eraser.commit()
            with pytest.raises(ReferralCodeNotFoundError):
                redeeming.result()

        assert get_user(conn, user_id=bob).referral_credits == 0

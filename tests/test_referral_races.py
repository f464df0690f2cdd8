"""Concurrent referrals: exact limits and totals, clear refusals, no deadlock."""

from collections import Counter
from collections.abc import Callable, Iterable
from datetime import UTC, datetime
from decimal import Decimal
from itertools import permutations
from uuid import UUID

import psycopg
import pytest
from psycopg.errors import RestrictViolation, SerializationFailure

from pyapp._core.connection import connect
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
from tests.metering import add_user, refer, referral_differences, referral_totals
from tests.test_referrals import INSERT, code_of
from tests.waiting import Pair, race, run_blocked

BONUS = Decimal(500)
EARLIER = datetime(2026, 1, 1, tzinfo=UTC)

Attempt = Callable[[psycopg.Connection], object]


def add_users(url: str, number: int) -> list[UUID]:
    with connect(url) as conn:
        return [add_user(conn) for _ in range(number)]


def codes_of(url: str, users: Iterable[UUID]) -> list[str]:
    with connect(url) as conn:
        return [code_of(conn, user) for user in users]


def redeem(code: str, user: UUID) -> Attempt:
    return lambda conn: redeem_referral(conn, referral_code=code, referred_id=user)


def complete(user: UUID) -> Attempt:
    return lambda conn: complete_referral(conn, referred_id=user)


def cancel(user: UUID) -> Attempt:
    return lambda conn: cancel_referral(conn, referred_id=user)


def count_outcomes(url: str, attempts: Iterable[Attempt]) -> Counter[str]:
    """Run all *attempts* at once; count the outcomes, and check all totals."""

    def outcome(attempt: Attempt) -> Callable[[psycopg.Connection], str]:
        def run(conn: psycopg.Connection) -> str:
            try:
                attempt(conn)
            except ReferralError as refusal:
                # The transaction can still be used.
                conn.execute("SELECT 1")
                return type(refusal).__name__
            return "done"

        return run

    found = Counter(race(url, map(outcome, attempts)))
    with connect(url) as conn:
        assert referral_differences(conn) == []
    return found


def test_fifty_users_redeem_one_code_with_limit_five(database: str):
    ada, *users = add_users(database, 51)
    (code,) = codes_of(database, [ada])

    outcomes = count_outcomes(database, [redeem(code, user) for user in users])

    assert outcomes == {"done": 5, ReferralLimitReachedError.__name__: 45}
    with connect(database) as conn:
        owner = get_user(conn, user_id=ada)
        granted = [get_user(conn, user_id=user).referral_credits for user in users]
    assert (owner.referral_count, owner.referral_credits) == (5, 5 * BONUS)
    assert Counter(granted) == {BONUS: 5, Decimal(0): 45}


def test_one_user_redeems_ten_codes(database: str):
    user, *owners = add_users(database, 11)
    codes = codes_of(database, owners)

    outcomes = count_outcomes(database, [redeem(code, user) for code in codes])

    assert outcomes == {"done": 1, AlreadyReferredError.__name__: 9}


def test_two_users_redeem_the_code_of_each_other(database: str):
    for _ in range(5):
        ada, bob = add_users(database, 2)
        of_ada, of_bob = codes_of(database, [ada, bob])

        outcomes = count_outcomes(database, [redeem(of_ada, bob), redeem(of_bob, ada)])

        assert outcomes == {"done": 1, MutualReferralError.__name__: 1}


def test_six_users_redeem_the_codes_of_all_others(database: str):
    users = add_users(database, 6)
    codes = codes_of(database, users)
    pairs = list(permutations(range(6), 2))

    outcomes = count_outcomes(database, [redeem(codes[a], users[b]) for a, b in pairs])

    # Each user is referred at most once; a deadlock would raise an error.
    assert 3 <= outcomes["done"] <= 6
    assert sum(outcomes.values()) == len(pairs)


def test_pending_referrals_are_completed_up_to_the_limit(database: str):
    ada, *users = add_users(database, 9)
    (code,) = codes_of(database, [ada])
    with connect(database) as conn:
        for user in users:
            create_referral(conn, referral_code=code, referred_id=user)

    outcomes = count_outcomes(database, [complete(user) for user in users * 2])

    assert outcomes["done"] == 5
    refused = {ReferralLimitReachedError.__name__, ReferralNotFoundError.__name__}
    assert set(outcomes) == {"done"} | refused


def test_cancel_complete_and_redeem_end_in_one_referral(database: str):
    for _ in range(5):
        ada, bob, carl = add_users(database, 3)
        old, new = codes_of(database, [ada, carl])
        with connect(database) as conn:
            create_referral(conn, referral_code=old, referred_id=bob)

        ends = [complete(bob), cancel(bob)]
        outcomes = count_outcomes(database, [*ends * 3, *[redeem(new, bob)] * 2])

        # The pending referral ends once; after a cancellation the other may succeed.
        assert outcomes["done"] in (1, 2)
        assert sum(outcomes.values()) == 8


@pytest.fixture
def pending(pair: Pair) -> list[UUID]:
    """Return three users; there is a pending referral of the second by the first."""
    conn, _ = pair
    ada, bob, carl = (add_user(conn) for _ in range(3))
    create_referral(conn, referral_code=code_of(conn, ada), referred_id=bob)
    conn.commit()
    return [ada, bob, carl]


@pytest.mark.parametrize("first", [complete, cancel])
@pytest.mark.parametrize("second", [complete, cancel])
def test_pending_referral_ends_once(pair: Pair, pending: list[UUID], first, second):
    conn, other = pair
    ada, bob, _ = pending
    first(bob)(conn)

    with pytest.raises(ReferralNotFoundError):
        run_blocked(conn, other, second(bob))

    count = 1 if first is complete else 0
    assert get_user(conn, user_id=ada).referral_count == count
    assert referral_differences(conn) == []


def test_redeeming_waits_for_a_cancellation(pair: Pair, pending: list[UUID]):
    conn, other = pair
    ada, bob, carl = pending
    cancel(bob)(conn)

    run_blocked(conn, other, redeem(code_of(conn, carl), bob))

    assert referral_totals(conn, ada, carl) == [(0, 0), (1, 500)]
    assert referral_differences(conn) == []


def test_replacement_does_not_deadlock_with_a_completion(
    pair: Pair, pending: list[UUID]
):
    conn, other = pair
    _, bob, carl = pending
    cancel(bob)(conn)

    def replace_and_commit() -> None:
        create_referral(conn, referral_code=code_of(conn, carl), referred_id=bob)
        conn.commit()

    with pytest.raises(ReferralNotFoundError):
        run_blocked(conn, other, complete(bob), release=replace_and_commit)
    other.commit()

    assert complete_referral(conn, referred_id=bob).referrer_id == carl
    assert referral_differences(conn) == []


@pytest.mark.parametrize("is_reversed", [False, True])
def test_plain_sql_locks_both_users_in_id_order(pair: Pair, is_reversed: bool):
    """The trigger waits for the first user before it locks the second."""
    conn, other = pair
    low, high = sorted([add_user(conn), add_user(conn)])
    users = [high, low] if is_reversed else [low, high]
    conn.commit()
    lock = "SELECT FROM app.users WHERE id = %s FOR NO KEY UPDATE NOWAIT"
    conn.execute(lock, [low])

    def lock_high_and_commit() -> None:
        conn.execute(lock, [high])
        conn.commit()

    def insert(waiting: psycopg.Connection) -> None:
        waiting.execute(INSERT, [*users, None])

    run_blocked(conn, other, insert, release=lock_high_and_commit)

    assert referral_differences(conn) == []


def test_code_of_a_user_being_anonymized_is_refused(pair: Pair):
    eraser, conn = pair
    ada, bob = add_user(eraser), add_user(eraser)
    code = code_of(eraser, ada)
    eraser.commit()
    anonymize_user(eraser, user_id=ada)

    with pytest.raises(ReferralCodeNotFoundError):
        run_blocked(eraser, conn, redeem(code, bob))

    assert referral_totals(conn, bob) == [(0, 0)]


def test_concurrent_restores_cannot_both_use_one_count(pair: Pair):
    """The second waits for the first, and then sees its referral."""
    first, second = pair
    ada = add_user(first, referral_count=1, referral_credits=500)
    bob, cleo = (add_user(first, referral_credits=500) for _ in range(2))
    first.commit()
    first.execute(INSERT, [ada, bob, EARLIER])

    with pytest.raises(RestrictViolation):
        run_blocked(
            first, second, lambda conn: conn.execute(INSERT, [ada, cleo, EARLIER])
        )


def test_restore_by_repeatable_read_is_refused(database: str):
    """Its snapshot may lack a referral that another restore has committed."""
    with connect(database) as conn:
        ada = add_user(conn, referral_count=1, referral_credits=500)
        bob = add_user(conn, referral_credits=500)
        conn.commit()
        conn.isolation_level = psycopg.IsolationLevel.REPEATABLE_READ

        with pytest.raises(RestrictViolation, match="READ COMMITTED"):
            conn.execute(INSERT, [ada, bob, EARLIER])
        conn.rollback()

        conn.isolation_level = psycopg.IsolationLevel.SERIALIZABLE
        conn.execute(INSERT, [ada, bob, EARLIER])
        conn.commit()
        assert referral_totals(conn, ada, bob) == [(1, 500), (0, 500)]


def test_completion_by_repeatable_read_is_exact_or_fails(pair: Pair):
    late, early = pair
    ada, bob, cleo = (add_user(early) for _ in range(3))
    early.commit()
    late.isolation_level = psycopg.IsolationLevel.REPEATABLE_READ
    late.execute("SELECT 1 FROM app.users")
    refer(early, ada, bob)
    early.commit()
    with pytest.raises(SerializationFailure):
        refer(late, ada, cleo)
    late.rollback()

    refer(late, ada, cleo)
    late.commit()

    totals = referral_totals(early, ada, bob, cleo)
    assert totals == [(2, 1000), (0, 500), (0, 500)]

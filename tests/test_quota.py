"""Quota: exact in every period, at every instant, after every change of the reset."""

from datetime import UTC, datetime, timedelta
from decimal import Decimal
from random import Random
from uuid import UUID, uuid4

import psycopg
import pytest

from pyapp.errors import FingerprintNotFoundError, UserNotFoundError
from pyapp.messages import record_message, record_messages
from pyapp.quota import (
    Quota,
    get_fingerprint_quota,
    get_user_quota,
    list_fingerprint_quotas,
    list_user_quotas,
)
from tests.metering import (
    MICROSECOND,
    add_fingerprint,
    add_months,
    add_user,
    credits_in,
    new_message,
    period_at,
)

ANCHOR = datetime(2026, 1, 31, 10, 30, tzinfo=UTC)
NOON = datetime(2026, 3, 20, 12, tzinfo=UTC)


def spend(
    conn: psycopg.Connection, user_id: UUID, credits: str, at: datetime = NOON
) -> None:
    record_message(
        conn,
        user_id=user_id,
        model="m",
        cost=Decimal(0),
        credits=Decimal(credits),
        finished_at=at,
    )


def move_reset(conn: psycopg.Connection, user_id: UUID, reset: datetime | None) -> None:
    conn.execute(
        "UPDATE app.users SET next_quota_reset = %s WHERE id = %s", (reset, user_id)
    )


def test_quota_has_every_column(conn: psycopg.Connection):
    reset = add_months(ANCHOR, 2)
    user_id = add_user(
        conn, base_quota=100, quota_anchor=ANCHOR, next_quota_reset=reset
    )
    spend(conn, user_id, "30.5")

    assert get_user_quota(conn, user_id=user_id, at=NOON) == Quota(
        subject_id=user_id,
        period_start=add_months(ANCHOR, 1),
        end_date=reset,
        quota=Decimal(100),
        credits_used=Decimal("30.5"),
        subscription_active=False,
        credits_remaining=Decimal("69.5"),
        is_exceeded=False,
        is_blocked=False,
    )


@pytest.mark.parametrize(
    ("used", "status", "exceeded", "blocked", "remaining"),
    [
        ("99.999999", None, False, False, "0.000001"),
        ("100", None, True, True, "0"),
        ("100.000001", None, True, True, "0"),
        ("100", "active", True, False, "0"),
        ("100", "trialing", True, False, "0"),
        ("100", "past_due", True, False, "0"),
        ("100", "canceled", True, True, "0"),
        ("100", "unpaid", True, True, "0"),
        ("100", "paused", True, True, "0"),
        ("100", "incomplete", True, True, "0"),
        ("100", "a status of tomorrow", True, True, "0"),
    ],
)
def test_exceeded_quota_blocks_without_an_active_subscription(
    conn: psycopg.Connection,
    used: str,
    status: str | None,
    exceeded: bool,
    blocked: bool,
    remaining: str,
):
    user_id = add_user(
        conn,
        base_quota=100,
        quota_anchor=ANCHOR,
        stripe_subscription_id=status and "sub_1",
        subscription_status=status,
    )
    spend(conn, user_id, used)

    quota = get_user_quota(conn, user_id=user_id, at=NOON)

    assert (quota.is_exceeded, quota.is_blocked) == (exceeded, blocked)
    assert (quota.credits_used, quota.credits_remaining) == (
        Decimal(used),
        Decimal(remaining),
    )


def test_new_payer_has_the_quota_of_its_plan(conn: psycopg.Connection):
    user_id, fingerprint = add_user(conn), add_fingerprint(conn)

    assert get_user_quota(conn, user_id=user_id).quota == 2500
    assert get_fingerprint_quota(conn, fingerprint_id=fingerprint).quota == 1000


def test_referral_credits_are_part_of_the_quota(conn: psycopg.Connection):
    user_id = add_user(conn, base_quota=100, referral_credits=50)
    spend(conn, user_id, "120", datetime.now(UTC))

    quota = get_user_quota(conn, user_id=user_id)

    assert [quota.quota, quota.credits_remaining] == [150, 30]
    assert not quota.is_exceeded


def test_message_at_the_end_belongs_to_the_next_period(conn: psycopg.Connection):
    end = add_months(ANCHOR, 2)
    user_id = add_user(conn, quota_anchor=ANCHOR, next_quota_reset=end)
    spend(conn, user_id, "1", end - MICROSECOND)
    spend(conn, user_id, "2", end)
    spend(conn, user_id, "4", end + MICROSECOND)

    before = get_user_quota(conn, user_id=user_id, at=end - MICROSECOND)
    after = get_user_quota(conn, user_id=user_id, at=end)

    assert (before.end_date, before.credits_used) == (end, Decimal(1))
    assert (after.period_start, after.credits_used) == (end, Decimal(6))
    assert after.end_date == add_months(ANCHOR, 3)


def test_earlier_instant_counts_up_to_the_next_reset(
    conn: psycopg.Connection,
):
    reset = add_months(ANCHOR, 4)
    user_id = add_user(conn, quota_anchor=ANCHOR, next_quota_reset=reset)
    for months in (0, 1, 3):
        spend(conn, user_id, str(10**months), add_months(ANCHOR, months))

    quota = get_user_quota(conn, user_id=user_id, at=add_months(ANCHOR, 1))

    assert (quota.period_start, quota.end_date) == (add_months(ANCHOR, 1), reset)
    assert quota.credits_used == 1010


def test_lapsed_reset_does_not_freeze_the_count(conn: psycopg.Connection):
    user_id = add_user(
        conn, quota_anchor=ANCHOR, next_quota_reset=add_months(ANCHOR, 1)
    )
    spend(conn, user_id, "1", add_months(ANCHOR, 1))
    spend(conn, user_id, "2", add_months(ANCHOR, 4))

    quota = get_user_quota(conn, user_id=user_id, at=add_months(ANCHOR, 4))

    assert quota.period_start == add_months(ANCHOR, 4)
    assert quota.end_date == add_months(ANCHOR, 5)
    assert quota.credits_used == 2


def test_quota_without_a_reset_counts_from_the_anchor_until_now(
    conn: psycopg.Connection,
):
    user_id = add_user(conn, quota_anchor=ANCHOR, next_quota_reset=None)
    spend(conn, user_id, "1", ANCHOR)
    spend(conn, user_id, "2", NOON - MICROSECOND)
    spend(conn, user_id, "4", NOON)
    now = conn.execute("SELECT now()").fetchone()

    quota = get_user_quota(conn, user_id=user_id, at=NOON)

    assert (quota.period_start, quota.end_date) == (ANCHOR, NOON)
    assert quota.credits_used == 3
    assert (get_user_quota(conn, user_id=user_id).end_date,) == now


@pytest.mark.parametrize("zone", ["UTC", "America/St_Johns", "Pacific/Kiritimati"])
def test_credits_used_equal_a_recount_after_every_reset_change(
    conn: psycopg.Connection, zone: str
):
    conn.execute("SELECT set_config('TimeZone', %s, FALSE)", (zone,))
    choose = Random(zone)
    anchors = [
        datetime(year, month, day, 23, 59, 59, 999999, tzinfo=UTC)
        for year in (2023, 2024)
        for month, day in [(1, 29), (1, 30), (1, 31), (2, 28), (3, 1)]
    ]
    for anchor in anchors:
        user_id = add_user(conn, quota_anchor=anchor)
        first = add_months(anchor, 1)
        times = [
            add_months(anchor, months) + shift
            for months in range(6)
            for shift in (-MICROSECOND, timedelta(0), MICROSECOND, timedelta(days=9))
        ]
        times += [first + timedelta(seconds=choose.randrange(10**7)) for _ in range(40)]
        messages = [
            new_message(
                finished_at=at, credits=Decimal(choose.randrange(10**9)) / 10**6
            )
            for at in times
        ]
        record_messages(conn, messages, user_id=user_id)

        # Ahead, on a boundary, lapsed by months, within a day, and none.
        for reset in [
            first,
            add_months(anchor, 3),
            add_months(anchor, 2) - timedelta(days=95),
            first + timedelta(days=11, hours=7, microseconds=1),
            None,
        ]:
            move_reset(conn, user_id, reset)
            for at in choose.sample(times, 6):
                quota = get_user_quota(conn, user_id=user_id, at=at)
                period = period_at(anchor, reset, at)
                assert (quota.period_start, quota.end_date) == (
                    period.start,
                    period.end,
                )
                assert quota.credits_used == credits_in(period, messages)


def test_fingerprint_has_its_own_quota(conn: psycopg.Connection):
    reset = add_months(ANCHOR, 2)
    fingerprint = add_fingerprint(
        conn, base_quota=10, quota_anchor=ANCHOR, next_quota_reset=reset
    )
    user_id = add_user(conn, quota_anchor=ANCHOR, next_quota_reset=reset)
    for credits, user in ((1, None), (1, user_id), (9, None)):
        message = new_message(
            finished_at=NOON,
            credits=Decimal(credits),
            user_id=user,
            fingerprint_id=fingerprint,
        )
        record_messages(conn, [message])

    quota = get_fingerprint_quota(conn, fingerprint_id=fingerprint, at=NOON)

    assert [quota.credits_used, quota.quota] == [10, 10]
    assert (quota.period_start, quota.end_date) == (add_months(ANCHOR, 1), reset)
    assert (quota.is_exceeded, quota.is_blocked) == (True, True)
    assert get_user_quota(conn, user_id=user_id, at=NOON).credits_used == 1


def test_unknown_payer_is_an_error(conn: psycopg.Connection):
    with pytest.raises(UserNotFoundError):
        get_user_quota(conn, user_id=uuid4())
    with pytest.raises(FingerprintNotFoundError):
        get_fingerprint_quota(conn, fingerprint_id=uuid4())


def test_lists_equal_single_quotas_on_every_page(conn: psycopg.Connection):
    users = sorted(add_user(conn, quota_anchor=ANCHOR) for _ in range(5))
    # A caller may choose the id of a fingerprint, even the one that sorts first.
    fingerprints = sorted([UUID(int=0), *(add_fingerprint(conn) for _ in range(4))])
    add_fingerprint(conn, id=UUID(int=0))
    for user_id in users[:3]:
        spend(conn, user_id, "7")

    found_users, after = [], None
    while page := list_user_quotas(conn, at=NOON, after=after, limit=2):
        found_users += page
        after = page[-1].subject_id
    found_fingerprints, after = [], None
    while more := list_fingerprint_quotas(conn, at=NOON, after=after, limit=2):
        found_fingerprints += more
        after = more[-1].subject_id

    assert [quota.subject_id for quota in found_users] == users
    assert all(quota.email for quota in found_users)
    for quota in found_users:
        single = get_user_quota(conn, user_id=quota.subject_id, at=NOON)
        assert [getattr(quota, name) for name in Quota._fields] == list(single)
    assert [quota.subject_id for quota in found_fingerprints] == fingerprints
    assert found_fingerprints == [
        get_fingerprint_quota(conn, fingerprint_id=fingerprint, at=NOON)
        for fingerprint in fingerprints
    ]

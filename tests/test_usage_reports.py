"""Sums over messages: of a client's run or request, and by group."""

import itertools
import random
from collections import defaultdict
from collections.abc import Iterable, Iterator
from datetime import UTC, date, datetime, timedelta
from decimal import Decimal
from typing import Any, get_args
from unittest.mock import patch
from uuid import UUID

import psycopg
import pytest

from pyapp.errors import InvalidValueError
from pyapp.messages import NewMessage, record_message, record_messages
from pyapp.roles import apply_roles
from pyapp.usage import (
    UsageGroup,
    UsageKey,
    get_client_usage,
    get_request_usage,
    list_usage,
)
from pyapp.users import anonymize_user
from tests.metering import MICROSECOND, add_fingerprint, add_user, new_message

MARCH = datetime(2026, 3, 1, tzinfo=UTC)
APRIL = datetime(2026, 4, 1, tzinfo=UTC)
KEYS: tuple[UsageKey, ...] = get_args(UsageKey)
FIELDS = {
    "day": "day",
    "month": "day",
    "model": "model",
    "provider": "provider",
    "client": "client_id",
    "payer": "subject_id",
}
COUNTS = (
    "input_tokens",
    "cache_creation_input_tokens",
    "cache_read_input_tokens",
    "output_tokens",
)
# Half-open ranges: of whole days in UTC, and others.
RANGES = [
    (None, None),
    (MARCH, APRIL),
    (MARCH + timedelta(days=3), None),
    (None, MARCH + timedelta(days=3)),
    (MARCH + timedelta(hours=7), APRIL - timedelta(seconds=1)),
    (MARCH, MARCH),
]


def record_random(conn: psycopg.Connection) -> list[NewMessage]:
    """Record messages of three payers from February to April, also at midnight."""
    payers = [
        {"user_id": add_user(conn)},
        {"user_id": add_user(conn)},
        {"fingerprint_id": add_fingerprint(conn)},
    ]
    moments = [
        MARCH,
        APRIL,
        MARCH - MICROSECOND,
        APRIL - MICROSECOND,
        *(MARCH + random.uniform(-20, 50) * timedelta(days=1) for _ in range(60)),
    ]
    messages = [
        new_message(
            **random.choice(payers),
            finished_at=moment,
            model=random.choice(["small", "large", "Gr\xf6\xdfe"]),
            provider=random.choice(["aws", "google", None]),
            client_id=random.choice(["run-1", "run-2", None]),
            cost=Decimal(random.randrange(10**6)) / 10**7,
            credits=Decimal(random.randrange(10**6)) / 10**6,
            **{name: random.randrange(1000) for name in COUNTS},
        )
        for moment in moments
    ]
    record_messages(conn, messages)
    return messages


def key_of(by: UsageKey, message: NewMessage) -> Any:
    day = message.finished_at.astimezone(UTC).date()
    return {
        "day": day,
        "month": day.replace(day=1),
        "model": message.model,
        "provider": message.provider,
        "client": message.client_id,
        "payer": message.user_id or message.fingerprint_id,
    }[by]


def sums_of(messages: Iterable[NewMessage]) -> tuple[Any, ...]:
    messages = list(messages)
    counts = [sum(getattr(m, name) for m in messages) for name in COUNTS]
    cost = sum((m.cost for m in messages if m.cost is not None), Decimal(0))
    credits = sum((m.credits for m in messages if m.credits is not None), Decimal(0))
    return len(messages), *counts, sum(counts), cost, credits


def expected(by: UsageKey, messages: Iterable[NewMessage]) -> dict[Any, Any]:
    """Return the sums of each group, counted without the database."""
    groups = defaultdict(list)
    for message in messages:
        groups[key_of(by, message)].append(message)
    return {key: sums_of(group) for key, group in groups.items()}


def found_sums(by: UsageKey, groups: Iterable[UsageGroup]) -> Iterator[tuple[Any, Any]]:
    return ((getattr(group, FIELDS[by]), group[-8:]) for group in groups)


@pytest.mark.parametrize("by", KEYS)
def test_groups_are_the_sums_of_their_messages(conn: psycopg.Connection, by: UsageKey):
    """For one payer and all, for ranges of whole days and others."""
    messages = record_random(conn)
    payers = {message.user_id or message.fingerprint_id for message in messages}
    for (since, until), payer in itertools.product(RANGES, [None, *payers]):
        chosen = [
            message
            for message in messages
            if (payer is None or key_of("payer", message) == payer)
            and (since is None or message.finished_at >= since)
            and (until is None or message.finished_at < until)
        ]

        groups = list_usage(conn, by=by, subject_id=payer, since=since, until=until)

        assert dict(found_sums(by, groups)) == expected(by, chosen)
        assert len(groups) == len(expected(by, chosen))


@pytest.mark.parametrize("by", ["day", "month", "payer"])
def test_daily_sums_give_the_same_groups_as_messages(
    conn: psycopg.Connection, by: UsageKey
):
    payer = record_random(conn)[0]
    for since, until in RANGES:
        for subject_id in (None, payer.user_id or payer.fingerprint_id):
            scope: Any = {"subject_id": subject_id, "since": since, "until": until}
            by_day = list_usage(conn, by=by, **scope)
            with patch("pyapp.usage._DAILY", frozenset()):
                by_message = list_usage(conn, by=by, **scope)

            assert by_day == by_message


def test_whole_days_are_read_from_the_daily_sums(conn: psycopg.Connection):
    """A day without its messages shows which table was read."""
    messages = record_random(conn)
    conn.execute("ALTER TABLE app.messages DISABLE TRIGGER USER")
    conn.execute("DELETE FROM app.messages")

    days = list_usage(conn, by="day", since=MARCH, until=APRIL)
    cut = list_usage(conn, by="day", since=MARCH + MICROSECOND, until=APRIL)

    in_march = [m for m in messages if MARCH <= m.finished_at < APRIL]
    assert dict(found_sums("day", days)) == expected("day", in_march)
    assert cut == []


def test_days_and_months_are_in_the_order_of_time(conn: psycopg.Connection):
    record_random(conn)

    for by in ("day", "month"):
        days = [group.day for group in list_usage(conn, by=by)]
        assert days == sorted(days, key=str)
        assert len(days) > 2


@pytest.mark.parametrize("by", ["model", "provider", "client", "payer"])
def test_other_groups_are_in_the_order_of_cost_then_key(
    conn: psycopg.Connection, user_id: UUID, by: UsageKey
):
    other = add_user(conn)
    low, high = sorted([user_id, other])
    dear = add_fingerprint(conn)
    costs: list[tuple[dict[str, UUID], str | None, str]] = [
        ({"user_id": high}, None, "1"),
        ({"user_id": low}, "a", "1"),
        ({"fingerprint_id": dear}, "b", "2"),
    ]
    record_messages(
        conn,
        [
            new_message(
                **payer,
                model=name or "x",
                provider=name,
                client_id=name,
                cost=Decimal(cost),
            )
            for payer, name, cost in costs
        ],
    )

    groups = list_usage(conn, by=by)

    names = {"model": ["b", "a", "x"], "payer": [dear, low, high]}
    keys = [getattr(group, FIELDS[by]) for group in groups]
    assert keys == names.get(by, ["b", "a", None])
    assert [group.cost for group in groups] == [2, 1, 1]
    assert [g.day for g in list_usage(conn, by=by, limit=2)] == [None, None]


def test_payer_has_its_kind_and_address(conn: psycopg.Connection):
    ada, gone = add_user(conn, email="ada@example.com"), add_user(conn)
    device = add_fingerprint(conn)
    for payer in ({"user_id": ada}, {"user_id": gone}, {"fingerprint_id": device}):
        record_messages(conn, [new_message(**payer)])
    anonymize_user(conn, user_id=gone)

    payers = {
        group.subject_id: (group.kind, group.email)
        for group in list_usage(conn, by="payer")
    }
    models = list_usage(conn, by="model")

    assert payers == {
        ada: ("user", "ada@example.com"),
        gone: ("user", None),
        device: ("fingerprint", None),
    }
    assert [(g.subject_id, g.kind, g.email) for g in models] == [(None, None, None)]


def test_days_are_in_utc_in_every_session(conn: psycopg.Connection, user_id: UUID):
    moments = (MARCH - MICROSECOND, MARCH, APRIL - MICROSECOND, APRIL)
    messages = [new_message(user_id=user_id, finished_at=at) for at in moments]
    record_messages(conn, messages)
    conn.execute("SET LOCAL TimeZone = 'Pacific/Kiritimati'")

    for cut in (timedelta(0), MICROSECOND):
        scope: Any = {"since": MARCH - timedelta(days=40) + cut, "until": None}
        days = list_usage(conn, by="day", **scope)
        months = list_usage(conn, by="month", **scope)

        assert [(g.day, g.messages) for g in days] == [
            (date(2026, 2, 28), 1),
            (date(2026, 3, 1), 1),
            (date(2026, 3, 31), 1),
            (date(2026, 4, 1), 1),
        ]
        assert [(g.day, g.messages) for g in months] == [
            (date(2026, 2, 1), 1),
            (date(2026, 3, 1), 2),
            (date(2026, 4, 1), 1),
        ]


def test_sums_beyond_32_bits_are_exact(conn: psycopg.Connection, user_id: UUID):
    most = 2**31 - 1
    messages = [
        new_message(
            user_id=user_id,
            **dict.fromkeys(COUNTS, most),
            cost=Decimal("9999999999.000001"),
            credits=Decimal("0.000001"),
        )
        for _ in range(3)
    ]
    record_messages(conn, messages)

    for by in KEYS:
        (group,) = list_usage(conn, by=by)
        assert group[-8:] == (
            3,
            *[3 * most] * 4,
            12 * most,
            Decimal("29999999997.000003"),
            Decimal("0.000003"),
        )


def test_reading_role_lists_payers(conn: psycopg.Connection, user_id: UUID):
    record_messages(conn, [new_message(user_id=user_id)])
    apply_roles(conn)
    conn.execute("SET LOCAL ROLE pyapp_readonly")

    for since in (None, MARCH + MICROSECOND):
        (payer,) = list_usage(conn, by="payer", since=since)
        assert (payer.subject_id, payer.kind) == (user_id, "user")


def test_wrong_clock_does_not_widen_the_index(conn: psycopg.Connection):
    """A message of 1970 among a thousand: a month is still read by few pages."""
    user = add_user(conn)
    conn.execute("SET LOCAL session_replication_role = replica")
    conn.execute(
        """
        INSERT INTO app.messages (
            subject_id, id, user_id, finished_at, input_tokens,
            cache_creation_input_tokens, cache_read_input_tokens, output_tokens, model,
            cost, credits
        )
        SELECT
            %(user)s, gen_random_uuid(), %(user)s,
            CASE WHEN n %% 1000 = 0 THEN '1970-01-01Z'
                ELSE timestamptz '2025-01-01Z' + n * interval '26 minutes' END,
            0, 0, 0, 0, 'm', 0, 0
        FROM generate_series(1, 20000) AS n
        """,
        {"user": user},
    )
    conn.execute("SELECT brin_summarize_new_values('app.messages_finished_at_idx')")
    conn.execute("SET LOCAL enable_seqscan = off; SET LOCAL enable_indexscan = off")
    row = conn.execute(
        "EXPLAIN (ANALYZE, FORMAT JSON) SELECT sum(credits) FROM app.messages"
        " WHERE finished_at >= '2025-03-01Z' AND finished_at < '2025-04-01Z'"
    ).fetchone()
    pages = conn.execute(
        "SELECT pg_relation_size('app.messages') / current_setting('block_size')::int"
    ).fetchone()

    assert row
    assert pages
    scan = row[0][0]["Plan"]
    while scan["Node Type"] != "Bitmap Heap Scan":
        (scan,) = scan["Plans"]
    assert scan["Plans"][0]["Index Name"] == "messages_finished_at_idx"
    assert 0 < scan["Lossy Heap Blocks"] < pages[0] / 3


def test_unknown_key_and_time_without_zone_are_refused(conn: psycopg.Connection):
    wrong: Any = "week"
    with pytest.raises(InvalidValueError, match="by must be one of day, month, model"):
        list_usage(conn, by=wrong)
    with pytest.raises(InvalidValueError, match="since must have a time zone"):
        list_usage(conn, by="day", since=MARCH.replace(tzinfo=None))

    assert list_usage(conn, by="day") == []


def test_usage_of_a_client_and_of_a_request_is_by_model(
    conn: psycopg.Connection, user_id: UUID
):
    other = add_user(conn)
    for payer, model, request_id in [
        (user_id, "b", "r1"),
        (user_id, "a", "r1"),
        (user_id, "b", "r2"),
        (other, "a", "r1"),
    ]:
        record_message(
            conn,
            user_id=payer,
            model=model,
            cost=Decimal("0.1"),
            output_tokens=10,
            client_id="run",
            client_request_id=request_id,
        )

    run = get_client_usage(conn, client_id="run")
    request = get_request_usage(conn, client_request_id="r1", subject_id=user_id)
    nothing = get_client_usage(conn, client_id="none")

    assert [(m.model, m.messages, m.cost) for m in (run.total, *run.models)] == [
        (None, 4, Decimal("0.4")),
        ("a", 2, Decimal("0.2")),
        ("b", 2, Decimal("0.2")),
    ]
    assert [(m.model, m.total_tokens) for m in request.models] == [("a", 10), ("b", 10)]
    assert (request.total.messages, request.total.credits) == (2, Decimal(24))
    assert (nothing.total.messages, nothing.total.cost) == (0, Decimal(0))
    assert nothing.models == ()

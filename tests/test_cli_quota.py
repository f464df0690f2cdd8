"""`pyapp quota` shows the sums of the messages in the period."""

import functools
import json
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from uuid import UUID

import pytest
from psycopg import Connection

from pyapp import quota as queries
from pyapp.cli import console
from pyapp.cli import quota as command
from pyapp.messages import NewMessage, record_messages
from pyapp.users import anonymize_user
from tests.metering import (
    MICROSECOND,
    add_fingerprint,
    add_months,
    add_user,
    credits_in,
    new_message,
    period_at,
)
from tests.support import run_cli, use_terminal

MIDNIGHT = datetime(2099, 1, 31, tzinfo=UTC)
NOTHING = timedelta(0)
ADA, BOB, FINGERPRINT = (UUID(int=n) for n in (1, 2, 3))


@pytest.fixture
def conn(committing: Connection) -> Connection:
    return committing


def shown(*arguments: str) -> list[str]:
    """Return the lines that `pyapp quota` prints."""
    code, out, err = run_cli("quota", *arguments)

    assert (code, err) == (0, "")
    return out.splitlines()


def exact(*arguments: str) -> list[dict[str, object]]:
    """Return the objects that `pyapp quota --json` prints."""
    return [json.loads(line) for line in shown(*arguments, "--json")]


def refused(*arguments: str) -> tuple[int, str]:
    """Return the exit code and the error of a `pyapp quota` that fails."""
    code, out, err = run_cli("quota", *arguments)

    assert out == ""
    return code, err


def add_ada(conn: Connection, credits: str = "1234.567") -> None:
    """Add a user with a quota of 2,500 who has used *credits*."""
    add_user(conn, id=ADA, email="ada@example.com", next_quota_reset=MIDNIGHT)
    spend(conn, ADA, credits)


def spend(conn: Connection, user_id: UUID, credits: str) -> None:
    record_messages(conn, [new_message(credits=Decimal(credits))], user_id=user_id)


def test_a_user_is_found_by_email_and_by_id(conn: Connection) -> None:
    add_ada(conn)
    table = [
        "payer                used  quota  remaining  ends (UTC)  blocked",
        "ada@example.com  1,234.57  2,500   1,265.43  2099-01-31  no",
    ]

    assert shown("ADA@example.com") == table
    assert shown(str(ADA)) == table


def test_an_end_within_a_day_is_shown_with_its_time(conn: Connection) -> None:
    end = datetime(2099, 3, 1, 23, 59, 59, tzinfo=UTC)
    add_user(conn, id=ADA, next_quota_reset=end)

    assert "  2099-03-01 23:59  " in shown(str(ADA))[1]


def test_a_fingerprint_that_has_used_its_quota_is_blocked(conn: Connection) -> None:
    add_fingerprint(conn, id=FINGERPRINT, base_quota=10)
    message = new_message(credits=Decimal(10), fingerprint_id=FINGERPRINT)
    record_messages(conn, [message])

    assert shown(str(FINGERPRINT))[1].endswith("  yes")
    assert exact(str(FINGERPRINT))[0]["kind"] == "fingerprint"


def test_a_subscriber_is_counted_and_never_blocked(conn: Connection) -> None:
    add_user(
        conn,
        id=ADA,
        base_quota=10,
        stripe_subscription_id="sub_1",
        subscription_status="active",
    )
    spend(conn, ADA, "10.01")

    assert shown(str(ADA))[1].split()[1:4] == ["10.01", "10", "0.00"]
    assert shown(str(ADA))[1].endswith("  no")


def test_json_is_exact(conn: Connection) -> None:
    add_ada(conn, "0.000001")

    (found,) = exact("ada@example.com")

    assert found == {
        "kind": "user",
        "subject_id": str(ADA),
        "email": "ada@example.com",
        "period_start": found["period_start"],
        "end_date": "2099-01-31T00:00:00+00:00",
        "quota": "2500",
        "credits_used": "0.000001",
        "credits_remaining": "2499.999999",
        "subscription_active": False,
        "is_exceeded": False,
        "is_blocked": False,
        "plan_id": None,
        "subscription_status": None,
        "ends_at": None,
        "trial_end": None,
        "pause_behavior": None,
        "pause_resumes_at": None,
        "reason": "no_customer",
    }


def test_all_lists_users_and_fingerprints_with_usage(
    conn: Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    """All pages form one table with aligned columns."""
    monkeypatch.setattr(command, "PAGE", 2)
    monkeypatch.setattr(console, "PAGE", 2)
    add_ada(conn)
    for number in range(4):
        add_user(conn, email=f"{number}@example.com", next_quota_reset=MIDNIGHT)
        add_fingerprint(conn)
    add_fingerprint(conn, id=FINGERPRINT, next_quota_reset=MIDNIGHT)
    record_messages(conn, [new_message(fingerprint_id=FINGERPRINT)])
    anonymize_user(conn, user_id=ADA)

    lines = shown("--all")

    rows = [line for line in lines if not line.startswith("  ")]
    assert [row.split()[0] for row in rows[:2]] == ["payer", f"{str(ADA)[:30]}\u2026"]
    # A value that is cut is below its row.
    assert (lines[2].strip(), lines[-1].strip()) == (str(ADA), str(FINGERPRINT))
    assert len(rows) == len(exact("--all")) + 1 == 7
    assert len({len(row.rpartition("  ")[0]) for row in rows[1:]}) == 1


def test_credits_used_is_the_sum_of_the_messages_in_the_period(
    conn: Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Including months without the anchor's day and long-lapsed resets."""
    anchors = [
        datetime(year, 1, day, 13, 14, 15, 926535, tzinfo=UTC)
        for year in (2023, 2024)
        for day in (29, 30, 31)
    ]
    users: dict[str, tuple[datetime, datetime, list[NewMessage]]] = {}
    for anchor in anchors:
        reset, messages = add_months(anchor, 1), list(scattered(anchor))
        user_id = add_user(conn, quota_anchor=anchor, next_quota_reset=reset)
        record_messages(conn, messages, user_id=user_id)
        users[str(user_id)] = anchor, reset, messages
    boundaries = [add_months(anchor, n) for anchor in anchors for n in (1, 2, 3)]

    for moment in {b - early for b in boundaries for early in (MICROSECOND, NOTHING)}:
        at = functools.partial(queries.list_user_quotas, at=moment)
        monkeypatch.setattr(command, "list_user_quotas", at)
        for found in exact("--all"):
            anchor, reset, messages = users[str(found["subject_id"])]
            period = period_at(anchor, reset, moment)
            used = credits_in(period, messages)
            assert Decimal(str(found["credits_used"])) == used
            assert found["end_date"] == period.end.isoformat()
            assert used > 0 or moment.year != anchor.year


def scattered(anchor: datetime) -> Iterator[NewMessage]:
    """Yield messages at and around the boundaries of five periods, and in between."""
    for number, months in enumerate(range(-1, 5)):
        boundary = add_months(anchor, months)
        for part, distance in enumerate(
            (-MICROSECOND, NOTHING, MICROSECOND, timedelta(days=9, hours=5))
        ):
            moment, credits = boundary + distance, Decimal(2) ** (4 * number + part)
            yield new_message(finished_at=moment, credits=credits / 10**6)


def test_a_reset_lapsed_by_three_months_does_not_freeze_the_count(
    conn: Connection,
) -> None:
    now = datetime.now(UTC)
    anchor, reset = add_months(now, -7) + timedelta(minutes=5), add_months(now, -3)
    add_user(conn, id=ADA, quota_anchor=anchor, next_quota_reset=reset)
    all_messages = scattered(add_months(anchor, 4))
    messages = [m for m in all_messages if m.finished_at < now + timedelta(days=1)]
    record_messages(conn, messages, user_id=ADA)

    (found,) = exact(str(ADA))

    period = period_at(anchor, reset, now)
    assert period.start > reset + timedelta(days=50)
    assert Decimal(str(found["credits_used"])) == credits_in(period, messages) > 0
    assert found["end_date"] == period.end.isoformat()


def test_an_empty_database_says_so(conn: Connection) -> None:
    assert shown("--all") == ["there are no users, and no fingerprints with usage"]
    assert exact("--all") == []


def test_long_address_is_cut_in_its_row_and_whole_below_it(
    conn: Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In a pipe and in a terminal of 80 columns."""
    email = "a" * 100 + "@example.com"
    add_user(conn, email=email, next_quota_reset=MIDNIGHT)

    piped = shown("--all")
    read_screen = use_terminal(monkeypatch)
    assert shown("--all") == []

    assert read_screen() == piped
    heading, row, *whole = piped
    assert len(heading) == 80
    assert row.startswith("a" * 30)
    assert row.endswith("  no")
    assert "a\N{HORIZONTAL ELLIPSIS}  0.00  2,500  " in row
    assert "".join(line.strip() for line in whole) == email


def test_an_address_cannot_steer_the_terminal(conn: Connection) -> None:
    add_user(conn, email="a\x1b[31m@example.com")

    assert shown("--all")[1].startswith("a\N{REPLACEMENT CHARACTER}[31m@example.com ")


def test_an_unknown_payer_is_named_in_one_line(conn: Connection) -> None:
    none = f"error: no user and no fingerprint {BOB}\n"
    create = "error: no user b@c.de; create one with: pyapp users add b@c.de\n"

    assert refused(str(BOB)) == (1, none)
    assert refused("b@c.de") == (1, create)


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        ((), "name a user or a fingerprint, or give --all"),
        (("a@b.c", "--all"), "name a user or a fingerprint, or give --all"),
        (("ada",), "'ada' is neither an e-mail address nor a UUID"),
    ],
)
def test_exactly_one_payer_or_all_must_be_given(
    conn: Connection, arguments: tuple[str, ...], reason: str
) -> None:
    code, error = refused(*arguments)

    assert (code, error) == (2, f"error: {reason}; see: pyapp quota --help\n")


def test_a_missing_schema_names_the_command_to_run(
    empty_database: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DATABASE_URL", empty_database)

    code, error = refused("--all")

    assert code == 1
    assert error.endswith("run: pyapp db migrate\n")
    assert error.count("\n") == 1


def test_blocked_payers_are_selected_and_sorted(conn: Connection) -> None:
    """Each order has a reason to be asked for; ties are in the order of ids."""
    for number, used in enumerate(("5", "30", "20"), start=1):
        user_id = add_user(
            conn,
            id=UUID(int=number),
            email=f"{'cAb'[number - 1]}@example.com",
            base_quota=Decimal(20),
            next_quota_reset=MIDNIGHT - timedelta(days=number),
        )
        record_messages(conn, [new_message(credits=Decimal(used))], user_id=user_id)

    def order(*arguments: str) -> list[int]:
        return [UUID(str(each["subject_id"])).int for each in exact(*arguments)]

    assert order("--all") == [1, 2, 3]
    assert order("--all", "--blocked") == [2, 3]
    assert order("--all", "--sort", "used") == [2, 3, 1]
    assert order("--all", "--sort", "remaining") == [2, 3, 1]
    assert order("--all", "--sort", "ends") == [3, 2, 1]
    assert order("--all", "--sort", "payer") == [2, 3, 1]
    assert order("--all", "--sort", "used", "--limit", "2", "--blocked") == [2, 3]
    assert order("--all", "--limit", "1") == [1]
    assert len(shown("--all", "--blocked", "--limit", "1")) == 2


def test_a_sorted_list_is_bounded_without_a_limit(
    conn: Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(command, "SORTED", 2)
    assert shown("--all", "--blocked") == ["no payer is blocked"]
    for number in range(3):
        add_user(conn, email=f"{number}@example.com")

    code, out, err = run_cli("quota", "--all", "--sort", "payer", "--json")

    assert code == 0
    assert [json.loads(line)["email"][0] for line in out.splitlines()] == ["0", "1"]
    assert err == "the first 2 of 3 payers are shown; see --limit\n"


@pytest.mark.parametrize(
    "option", [("--blocked",), ("--sort", "used"), ("--limit", "1")]
)
def test_options_of_a_list_need_all(conn: Connection, option: tuple[str, ...]) -> None:
    code, err = refused("ada@example.com", *option)

    assert code == 2
    assert "--blocked, --sort and --limit need --all" in err


def test_unknown_order_is_refused_with_the_known_ones(conn: Connection) -> None:
    code, err = refused("--all", "--sort", "size")

    assert code == 2
    assert "'size' is not one of used, remaining, ends, payer" in err

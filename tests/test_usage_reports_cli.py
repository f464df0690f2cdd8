"""`pyapp usage` shows tokens, cost and credits by group."""

import csv
import json
from datetime import UTC, datetime, timedelta, tzinfo
from decimal import Decimal
from typing import Any
from uuid import UUID

import pytest
from psycopg import Connection
from rich.cells import cell_len

from pyapp.cli import usage_report as command
from pyapp.messages import record_messages
from pyapp.usage import list_usage
from pyapp.users import anonymize_user
from tests.metering import add_fingerprint, add_user, new_message
from tests.support import run_cli, use_terminal

ADA, BOB, FINGERPRINT = (UUID(int=n) for n in (1, 2, 3))
MARCH = ("--since", "2026-03-01", "--until", "2026-04-01")
NOON = datetime(2026, 3, 9, 12, tzinfo=UTC)
KEYS = ("day", "month", "model", "provider", "client", "payer")


@pytest.fixture
def conn(committing: Connection) -> Connection:
    add_user(committing, id=ADA, email="ada@example.com")
    return committing


def shown(*arguments: str, warning: str = "") -> list[str]:
    """Return the lines that `pyapp usage` prints."""
    code, out, err = run_cli("usage", *arguments)

    assert (code, err) == (0, warning)
    return out.splitlines()


def refused(*arguments: str) -> tuple[int, str]:
    """Return the exit code and the error of a `pyapp usage` that fails."""
    code, out, err = run_cli("usage", *arguments)

    assert out == ""
    return code, err


def spend(conn: Connection, **values: Any) -> None:
    """Record one message, of ada at noon on 9 March unless *values* differ."""
    payer = {} if "fingerprint_id" in values else {"user_id": ADA}
    message = {"finished_at": NOON, "model": "m", **payer, **values}
    record_messages(conn, [new_message(**message)])


def test_table_has_a_row_for_each_group_and_the_total(conn: Connection) -> None:
    spend(conn, model="gpt-5", cost=Decimal("1234.5"), credits=Decimal(148140))
    spend(conn, model="gpt-5-mini", output_tokens=2_000_000, cost=Decimal("0.00004"))

    assert shown("--by", "model", *MARCH) == [
        "usage from 2026-03-01 until 2026-04-01 (UTC)",
        "model       messages     tokens  cost (USD)     credits",
        "gpt-5              1         10  1,234.5000  148,140.00",
        "gpt-5-mini         1  2,000,006      0.0000        1.00",
        "total              2  2,000,016  1,234.5000  148,141.00",
    ]


def test_token_counts_are_shown_in_place_of_the_cost(conn: Connection) -> None:
    spend(conn)
    spend(conn, input_tokens=1_000_000)

    assert shown("--by", "month", "--tokens", *MARCH)[1:] == [
        "month        input  cache writes  cache reads  output",
        "2026-03  1,000,001             4            6       8",
        "total    1,000,001             4            6       8",
    ]


@pytest.mark.parametrize("by", KEYS)
def test_json_is_exact_and_names_the_group(conn: Connection, by: str) -> None:
    names = {"provider": "aws", "client_id": "run-1"}
    spend(conn, **names, cost=Decimal("0.0000001"), credits=Decimal("1E-6"))

    (line,) = shown("--by", by, *MARCH, "--json")

    keys = {"day": "2026-03-09", "month": "2026-03", "model": "m", "provider": "aws"}
    key = {**keys, "client": "run-1", "payer": str(ADA)}[by]
    payer = {"kind": "user", "email": "ada@example.com"} if by == "payer" else {}
    assert json.loads(line) == {
        by: key,
        **payer,
        "messages": 1,
        "input_tokens": 1,
        "cache_creation_input_tokens": 2,
        "cache_read_input_tokens": 3,
        "output_tokens": 4,
        "total_tokens": 10,
        "cost": "0.0000001",
        "credits": "0.000001",
    }


@pytest.mark.parametrize("by", KEYS)
def test_csv_has_the_keys_of_json_and_no_total(conn: Connection, by: str) -> None:
    spend(conn, provider="aws", cost=Decimal("0.0000001"))
    spend(conn, finished_at=NOON - timedelta(days=7), cost=Decimal(1))

    rows = list(csv.DictReader(shown("--by", by, *MARCH, "--csv")))
    objects = [json.loads(line) for line in shown("--by", by, *MARCH, "--json")]

    assert rows == [
        {key: "" if value is None else str(value) for key, value in found.items()}
        for found in objects
    ]
    assert sum(int(row["messages"]) for row in rows) == 2


@pytest.mark.parametrize("first", ["=", "+", "-", "@", "\uff1d", "\t="])
def test_csv_cell_is_never_a_formula(conn: Connection, first: str) -> None:
    name = f'{first}HYPERLINK("http://example.com","x, y")'
    spend(conn, model=name, provider=name, client_id=name)

    for by in ("model", "provider", "client"):
        ((cell, *_),) = list(csv.reader(shown("--by", by, *MARCH, "--csv")))[1:]
        # The names of providers are in lower case.
        assert cell.lower().endswith('hyperlink("http://example.com","x, y")')
        assert cell[0] not in "=+-@\uff1d\uff0b\uff0d\uff20\t\r\n"


def test_names_cannot_steer_the_terminal(conn: Connection) -> None:
    spend(conn, model="m\x1b[31m", client_id="two\nlines")

    for by, printed in (
        ("model", "m\N{REPLACEMENT CHARACTER}[31m"),
        ("client", "two\N{REPLACEMENT CHARACTER}lines"),
    ):
        assert shown("--by", by, *MARCH)[2].startswith(printed)
        assert shown("--by", by, *MARCH, "--csv")[1].startswith(printed)


def test_messages_without_provider_or_client_are_a_group(conn: Connection) -> None:
    spend(conn, provider="aws", client_id="run")
    spend(conn, cost=Decimal(2))

    for by in ("provider", "client"):
        assert [line.split()[0] for line in shown("--by", by, *MARCH)[2:]] == [
            "(none)",
            {"provider": "aws", "client": "run"}[by],
            "total",
        ]
        (line, _) = shown("--by", by, *MARCH, "--json")
        assert json.loads(line)[by] is None
        assert shown("--by", by, *MARCH, "--csv")[1].startswith(",1,")


def test_payers_are_named_by_address_or_id(conn: Connection) -> None:
    add_fingerprint(conn, id=FINGERPRINT)
    add_user(conn, id=BOB)
    for payer in ({"user_id": ADA}, {"user_id": BOB}, {"fingerprint_id": FINGERPRINT}):
        spend(conn, **payer)
    anonymize_user(conn, user_id=BOB)

    names = [line.split()[0] for line in shown("--by", "payer", *MARCH)[2:]]
    objects = [json.loads(line) for line in shown("--by", "payer", *MARCH, "--json")]

    assert names == ["ada@example.com", str(BOB), str(FINGERPRINT), "total"]
    assert [(one["payer"], one["kind"], one["email"]) for one in objects] == [
        (str(ADA), "user", "ada@example.com"),
        (str(BOB), "user", None),
        (str(FINGERPRINT), "fingerprint", None),
    ]


def test_one_payer_is_named_and_counted_alone(conn: Connection) -> None:
    add_fingerprint(conn, id=FINGERPRINT)
    add_user(conn, id=BOB)
    spend(conn)
    spend(conn, user_id=BOB)
    spend(conn, fingerprint_id=FINGERPRINT)
    anonymize_user(conn, user_id=BOB)

    for payer, name in (
        (("--user", "ADA@example.com"), "ada@example.com"),
        (("--user", str(ADA)), "ada@example.com"),
        (("--user", str(BOB)), f"user {BOB}"),
        (("--fingerprint", str(FINGERPRINT)), f"fingerprint {FINGERPRINT}"),
    ):
        for by in KEYS:
            title, owner, _, *_, total = shown("--by", by, *payer, *MARCH)
            assert title == "usage from 2026-03-01 until 2026-04-01 (UTC)"
            assert owner == f"of {name}"
            assert total.split()[:2] == ["total", "1"]


def test_default_is_the_present_month(
    conn: Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Clock(datetime):
        @classmethod
        def now(cls, tz: tzinfo | None = None) -> "Clock":
            return cls(2025, 12, 31, 23, 59, 59, tzinfo=tz)

    monkeypatch.setattr(command, "datetime", Clock)
    for moment in ("2025-11-30T23:59:59.999999", "2025-12-01", "2026-01-01"):
        spend(conn, finished_at=datetime.fromisoformat(moment).replace(tzinfo=UTC))

    title, _, day, _ = shown("--by", "day")

    assert title == "usage from 2025-12-01 until 2026-01-01 (UTC)"
    assert day.split()[:2] == ["2025-12-01", "1"]


def test_range_with_one_end_is_open_at_the_other(conn: Connection) -> None:
    for day in (8, 9, 10):
        spend(conn, finished_at=NOON.replace(day=day))

    since = shown("--by", "day", "--since", "2026-03-09T12:00")
    until = shown("--by", "day", "--until", "2026-03-09T13:00+01:00")

    assert since[0] == "usage from 2026-03-09 12:00:00 (UTC)"
    assert [line.split()[0] for line in since[2:]] == [
        "2026-03-09",
        "2026-03-10",
        "total",
    ]
    assert until[0] == "usage until 2026-03-09 12:00:00 (UTC)"
    assert [line.split()[0] for line in until[2:]] == ["2026-03-08", "total"]


def test_limit_leaves_the_total_as_it_is(conn: Connection) -> None:
    for number in range(5):
        spend(conn, client_id=f"run-{number}", cost=Decimal(10 - number))
    half_past = ("--since", "2026-03-01T00:30")
    note = "only the first 2 groups are shown (--limit); the total counts all"

    for scope in (MARCH, half_past):
        assert [line.split()[:3] for line in shown("--by", "client", *scope)[2:]] == [
            *(["run-" + str(n), "1", "10"] for n in range(5)),
            ["total", "5", "50"],
        ]
        cut = shown("--by", "client", *scope, "--limit", "2")
        assert [line.split()[:3] for line in cut[2:-1]] == [
            ["run-0", "1", "10"],
            ["run-1", "1", "10"],
            ["total", "5", "50"],
        ]
        assert cut[-1] == note
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(command, "SHOWN", 2)
            assert shown("--by", "client", *scope) == cut
            assert len(shown("--by", "client", *scope, "--json")) == 5
        assert len(shown("--by", "client", *scope, "--csv", "--limit", "3")) == 4


def test_empty_result_says_so(conn: Connection) -> None:
    nothing = "no messages from 2026-03-01 until 2026-04-01 (UTC)"
    names = (
        "messages,input_tokens,cache_creation_input_tokens,cache_read_input_tokens,"
        "output_tokens,total_tokens,cost,credits"
    )

    assert shown("--by", "day", *MARCH) == [nothing]
    assert shown("--by", "day", *MARCH, "--json", warning=nothing + "\n") == []
    header = shown("--by", "payer", *MARCH, "--csv", warning=nothing + "\n")
    assert header == [f"payer,kind,email,{names}"]


@pytest.mark.parametrize("option", [(), ("--tokens",)])
def test_80_columns_hold_long_names_and_large_sums(
    conn: Connection, monkeypatch: pytest.MonkeyPatch, option: tuple[str, ...]
) -> None:
    """Ten digits for messages, tokens, dollars and credits; a cut name is repeated."""
    short, long = "claude", f"anthropic/{'claude-' * 20}\u4e2d"
    spend(conn, model=short)
    spend(conn, model=long)
    counts: dict[str, Any] = dict.fromkeys(command._SUMS, 4_938_271_605)

    def grown(*args: Any, **values: Any) -> Any:
        return [group._replace(**counts) for group in list_usage(*args, **values)]

    monkeypatch.setattr(command, "list_usage", grown)
    piped = shown("--by", "model", *MARCH, *option)
    read_screen = use_terminal(monkeypatch)
    assert shown("--by", "model", *MARCH, *option) == []

    assert read_screen() == piped
    _, heading, first, *whole, second, total = piped
    assert {cell_len(line) for line in (heading, first, second, total)} == {80}
    assert max(map(cell_len, piped)) == 80
    assert first.startswith("anthropic/")
    assert "\N{HORIZONTAL ELLIPSIS}  4,938,271,605  " in first
    assert "".join(line.strip() for line in whole) == long
    assert second.startswith(f"{short} ")
    assert "  9,876,543,210  " in total


def test_arguments_that_contradict_each_other_are_refused(conn: Connection) -> None:
    see = "; see: pyapp usage --help\n"
    keys = ", ".join(KEYS)

    assert refused("--by", "week") == (
        2,
        f"error: --by: 'week' is not one of {keys}{see}",
    )
    assert refused() == (2, f"error: Missing option '--by'{see}")
    for extra, reason in (
        (("--json", "--csv"), "give one of --json, --csv and --tokens"),
        (("--csv", "--tokens"), "give one of --json, --csv and --tokens"),
        (
            ("--user", "a@b.c", "--fingerprint", str(ADA)),
            "name one payer: --user or --fingerprint",
        ),
        (
            ("--since", "2026-03-01", "--until", "2026-03-01"),
            "--until must be later than --since",
        ),
    ):
        code, err = refused("--by", "day", *extra)
        assert (code, err) == (2, f"error: {reason}{see}")
    assert refused("--by", "day", "--fingerprint", str(BOB)) == (
        1,
        f"error: no fingerprint {BOB}\n",
    )

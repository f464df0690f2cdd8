"""`pyapp referrals show`."""

import json
from collections.abc import Iterator
from decimal import Decimal

import psycopg
import pytest

from pyapp._core.connection import connect
from pyapp.referrals import create_referral, find_referral, redeem_referral
from pyapp.users import User, anonymize_user, create_user
from tests.support import run_cli

MISSING = "00000000-0000-0000-0000-00000000dead"


@pytest.fixture
def conn(
    module_database: str, monkeypatch: pytest.MonkeyPatch
) -> Iterator[psycopg.Connection]:
    monkeypatch.setenv("DATABASE_URL", module_database)
    with connect(module_database) as connection:
        connection.autocommit = True
        yield connection


def shown(*arguments: str) -> list[str]:
    code, out, err = run_cli("referrals", "show", *arguments)
    assert (code, err) == (0, "")
    return out.splitlines()


def add_three(conn: psycopg.Connection, name: str) -> tuple[User, User, User]:
    """Create three users: the first has referred the second, who refers the third."""
    one, two, three = (
        create_user(conn, email=f"{name}{number}@example.com") for number in range(3)
    )
    redeem_referral(
        conn,
        referral_code=one.referral_code,
        referred_id=two.id,
        credits=Decimal(500),
    )
    create_referral(
        conn,
        referral_code=two.referral_code,
        referred_id=three.id,
        credits=Decimal("12.50"),
    )
    return one, two, three


def test_both_sides_are_shown_with_their_states(conn: psycopg.Connection):
    one, two, three = add_three(conn, "ada")
    found = find_referral(conn, referred_id=two.id)
    assert found is not None
    day = f"{found.created_at:%Y-%m-%d}"

    assert shown("ada1@example.com") == [
        "ada1@example.com",
        f"  code         {two.referral_code}",
        "  made         0 completed of 5 allowed, 1 pending",
        "  credits      500 a period",
        f"  referred by  user {one.id}, completed {day}:",
        "               500 credits",
        "",
        "referred user                         status   credits  created     completed",
        f"{three.id}  pending     12.5  {day}",
    ]
    (first, *_, row) = shown(str(one.id))
    assert first == "ada0@example.com"
    assert row.split() == [str(two.id), "completed", "500", day, day]
    assert shown(str(three.id))[-1] == (
        f"  referred by  user {two.id}, pending: 12.5 credits"
    )
    assert shown(str(one.id))[4] == "  referred by  no user"


def test_json_has_the_summary_and_both_sides(conn: psycopg.Connection):
    one, two, three = add_three(conn, "bob")

    (line,) = shown("bob1@example.com", "--json")
    values = json.loads(line)

    assert values["user_id"] == str(two.id)
    assert values["email"] == "bob1@example.com"
    assert values["referral_credits"] == "500"
    assert values["referred_by"]["referrer_id"] == str(one.id)
    assert values["referred_by"]["status"] == "completed"
    assert [each["referred_id"] for each in values["referrals"]] == [str(three.id)]
    (line,) = shown(str(one.id), "--json")
    assert json.loads(line)["referred_by"] is None


def test_limit_says_that_there_are_more(conn: psycopg.Connection):
    _, two, _ = add_three(conn, "cleo")
    other = create_user(conn, email="cleo9@example.com")
    create_referral(conn, referral_code=two.referral_code, referred_id=other.id)

    assert str(other.id) in shown(str(two.id), "--limit", "1")[-2]
    assert shown(str(two.id), "--limit", "1")[-1] == (
        "There are more than 1; see --limit."
    )
    assert str(other.id) in shown(str(two.id), "--limit", "2")[-2]


def test_anonymized_user_is_named_by_its_id(conn: psycopg.Connection):
    one, _, _ = add_three(conn, "dan")
    anonymize_user(conn, user_id=one.id)

    assert shown(str(one.id))[0] == f"user {one.id} (anonymized)"


def test_unknown_user_is_an_error(conn: psycopg.Connection):
    for name, status in (("none@example.com", 1), (MISSING, 1), ("x", 2)):
        code, out, err = run_cli("referrals", "show", name)
        assert (code, out) == (status, "")
        assert err.startswith("error: ")

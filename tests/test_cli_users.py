"""`pyapp users` and `pyapp sessions`: accounts, sign-ins, exports and erasures."""

import json
import re
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from uuid import uuid4

import psycopg
import pytest

from pyapp._core.connection import connect
from pyapp.roles import ROLES
from pyapp.sessions import create_session, list_user_sessions
from pyapp.users import anonymize_user, create_user, export_user
from tests.metering import add_fingerprint, add_user
from tests.personal_data import Person, add_person
from tests.role_logins import role_logins
from tests.support import run_cli, unfolded

Connection = psycopg.Connection[Any]
LONG = f"{'x' * 64}@{'y' * 60}.example.com"


@pytest.fixture(scope="module", autouse=True)
def _database(module_database: str) -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("DATABASE_URL", module_database)
        yield


@pytest.fixture
def own(module_database: str) -> Iterator[Connection]:
    """Return a connection that commits to the database of the commands."""
    with connect(module_database) as conn:
        conn.autocommit = True
        yield conn


@pytest.fixture
def person(own: Connection) -> Person:
    return add_person(own, f"p{uuid4().hex[:12]}")


def email_of(person: Person) -> str:
    return f"{person.word}-users-email@example.com"


def run(*words: str, answer: str = "") -> str:
    """Return the output of a command that succeeds, of at most 80 columns."""
    code, out, err = run_cli(*words, answer=answer)
    assert (code, err) == (0, "")
    if "--json" not in words and "export" not in words:
        # The answer, which a terminal echoes, ends the line of the question.
        lines = out.replace("[y/N]: ", "[y/N]:\n").splitlines()
        assert max(map(len, lines)) <= 80
    return out


def run_json(*words: str) -> list[dict[str, Any]]:
    """Return the objects that the command prints, one a line."""
    return [json.loads(line) for line in run(*words, "--json").splitlines()]


def test_users_are_added_and_listed_with_their_ids(own: Connection):
    gone = create_user(own, email="gone@example.com")
    anonymize_user(own, user_id=gone.id)

    added = run("users", "add", " Bo@example.com", "--name", "Bo \x1b[7m")
    *_, user_id = added.split()
    lines = run("users", "list").splitlines()

    assert added == f"Bo@example.com is user {user_id}\n"
    assert re.split("  +", lines[0]) == ["user", "e-mail", "name"]
    assert f"{gone.id}  (anonymized)" in lines
    listed = next(line for line in lines if line.startswith(user_id))
    assert re.split("  +", listed)[1:] == [
        "Bo@example.com",
        "Bo \N{REPLACEMENT CHARACTER}[7m",
    ]


def test_an_address_can_be_added_once(own: Connection):
    run("users", "add", "twice@example.com")

    code, out, err = run_cli("users", "add", "TWICE@example.com")

    assert (code, out) == (1, "")
    assert err == "error: another user has this e-mail\n"


def test_users_are_searched_by_address_and_name(own: Connection):
    by_name = create_user(own, email="one@example.com", name="Zoë Quartz")
    by_address = create_user(own, email="quartz@example.com")

    found = run_json("users", "list", "--search", "QUARTZ")

    assert {user["id"] for user in found} == {str(by_name.id), str(by_address.id)}
    assert run("users", "list", "--search", "no such text").startswith("no user")
    assert run_json("users", "list", "--search", "no such text") == []


def test_a_new_user_is_printed_as_json(own: Connection):
    (added,) = run_json("users", "add", "json@example.com")

    assert (added["email"], added["quota"]) == ("json@example.com", "2500")


def test_show_has_profile_plan_quota_sessions_and_referrals(
    own: Connection, person: Person
):
    shown = run("users", "show", email_of(person))
    (values,) = run_json("users", "show", str(person.user_id))

    lines = dict(
        re.split("  +", line.strip(), maxsplit=1)
        for line in shown.splitlines()
        if line.startswith("  ") and line[2] != " "
    )
    assert lines["user"] == str(person.user_id)
    assert lines["name"] == f"{person.word}-users-name"
    assert lines["quota"].startswith("14.81 of 3,500 credits used until ")
    assert lines["blocked"] == "no"
    assert lines["sessions"] == "1 valid, 0 expired"
    assert "1 of 5 completed, 1 pending" in unfolded(shown)
    assert values["stripe_customer_id"] == person.customer_id
    assert values["credits_used"] == "14.814815"
    assert (values["valid_sessions"], values["pending_referrals"]) == (1, 1)
    assert person.token not in shown


def test_names_of_any_length_fit_the_width(own: Connection):
    user = create_user(own, email=LONG, name="z" * 300)

    for command in (
        ("users", "show", LONG),
        ("users", "list", "--search", LONG),
        ("sessions", "list", LONG),
        ("sessions", "revoke", LONG, "--yes"),
        ("users", "anonymize", LONG, "--yes"),
    ):
        run(*command)

    shown = run("users", "show", str(user.id))
    assert shown.startswith(f"user {user.id} (anonymized)\n")


class TestExport:
    def test_lines_are_those_of_the_function(self, own: Connection, person: Person):
        with own.transaction():
            expected = [
                json.loads(row.json_text)
                for row in export_user(own, user_id=person.user_id)
            ]

        for words in ((), ("--json",)):
            out = run("users", "export", email_of(person), *words)
            assert [json.loads(line) for line in out.splitlines()] == expected

    def test_lines_are_ascii_and_the_file_is_utf8(
        self, own: Connection, tmp_path: Path
    ):
        name = "Zoë \N{GRINNING FACE} \x85 \u2028"
        user = create_user(own, email="zoe@example.com", name=name)
        file = tmp_path / "zoe.jsonl"

        out = run("users", "export", str(user.id))
        run("users", "export", str(user.id), "--output", str(file))

        assert out.isascii()
        assert json.loads(out.splitlines()[0])["name"] == name
        text = file.read_text(encoding="utf-8")
        assert name in text
        assert [json.loads(line) for line in text.split("\n") if line] == [
            json.loads(line) for line in out.splitlines()
        ]

    def test_file_is_private_and_replaces_an_earlier_one(
        self, person: Person, tmp_path: Path
    ):
        file = tmp_path / "person.jsonl"
        file.write_text("earlier")

        out = run("users", "export", email_of(person), "--output", str(file))
        (counts,) = run_json("users", "export", email_of(person), "--output", str(file))

        assert stat.S_IMODE(file.stat().st_mode) == 0o600
        lines = file.read_text().splitlines()
        assert out.startswith(f"{len(lines)} records of ")
        assert counts["records"] == len(lines) == sum(counts["kinds"].values())
        assert list(tmp_path.iterdir()) == [file]

    def test_failure_leaves_the_earlier_file(
        self, person: Person, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ):
        file = tmp_path / "person.jsonl"
        file.write_text("earlier")

        def fail(_: int) -> None:
            raise OSError(28, "No space left on device")

        monkeypatch.setattr("os.fsync", fail)
        code, out, err = run_cli(
            "users", "export", email_of(person), "--output", str(file)
        )

        assert (code, out) == (1, "")
        assert err == f"error: cannot write {file}: No space left on device\n"
        assert file.read_text() == "earlier"
        assert list(tmp_path.iterdir()) == [file]

    def test_device_is_not_replaced(self, person: Person):
        code, _, err = run_cli(
            "users", "export", email_of(person), "--output", "/dev/null"
        )

        assert (code, err) == (1, "error: --output: /dev/null is not a file\n")
        assert Path("/dev/null").is_char_device()


class TestAnonymize:
    def test_question_names_the_user_and_no_answer_erases_nothing(
        self, own: Connection, person: Person
    ):
        code, out, _ = run_cli("users", "anonymize", email_of(person), answer="n\n")

        assert code == 1
        assert email_of(person) in unfolded(out)
        assert out.endswith("Nothing is erased; --yes erases without asking.\n")
        assert list_user_sessions(own, user_id=person.user_id)

    def test_answer_says_what_is_erased_what_is_kept_and_the_next_command(
        self, own: Connection, person: Person
    ):
        out = run("users", "anonymize", email_of(person), answer="y\n")

        text = unfolded(out)
        assert f"{email_of(person)} is anonymized" in text
        assert "Erased: e-mail address" in text
        assert "Kept: messages" in text
        for payer in (person.user_id, person.fingerprint_id):
            assert f"  pyapp db erase-archived DIR --payer {payer}\n" in out
        assert list_user_sessions(own, user_id=person.user_id) == []
        again = run("users", "anonymize", str(person.user_id), "--yes")
        assert again.startswith(f"user {person.user_id} is anonymized\n")

    def test_an_active_subscription_is_to_be_canceled_at_stripe(
        self, own: Connection, person: Person
    ):
        own.execute(
            "UPDATE app.users SET subscription_status = 'active' WHERE id = %s",
            [person.user_id],
        )

        text = unfolded(run("users", "anonymize", email_of(person), "--yes"))

        assert "is active: Stripe charges the customer until it is canceled" in text

    def test_json_has_the_payers_and_asks_no_question(self, person: Person):
        words = ("users", "anonymize", str(person.user_id), "--json")
        code, out, err = run_cli(*words, answer="y\n")
        assert (code, out) == (2, "")
        assert "--yes" in err

        (values,) = run_json(*words[:-1], "--yes")

        assert values["payers"] == [str(person.user_id), str(person.fingerprint_id)]
        assert values["anonymized_at"].endswith("+00:00")


class TestSessions:
    def test_sessions_of_a_user_and_of_a_fingerprint_are_listed(
        self, own: Connection, person: Person
    ):
        other = add_user(own)
        create_session(own, user_id=other, fingerprint_id=person.fingerprint_id)
        own.execute(
            """
            UPDATE app.sessions
            SET created_at = '2026-01-01Z', expires_at = '2026-01-02Z'
            WHERE user_id = %s
            """,
            [other],
        )

        of_user = run("sessions", "list", email_of(person)).splitlines()
        of_device = run("sessions", "list", str(person.fingerprint_id)).splitlines()
        objects = run_json("sessions", "list", str(person.fingerprint_id))

        assert re.split("  +", of_user[0])[0] == "fingerprint"
        assert [line.split()[0] for line in of_user[1:]] == [str(person.fingerprint_id)]
        assert re.split("  +", of_device[0])[0] == "user"
        assert [(line.split()[0], line.split()[-1]) for line in of_device[1:]] == [
            (str(person.user_id), "yes"),
            (str(other), "no"),
        ]
        assert [one["is_valid"] for one in objects] == [True, False]
        assert set(objects[0]) == {
            "user_id",
            "fingerprint_id",
            "created_at",
            "expires_at",
            "is_valid",
        }
        newest = run("sessions", "list", str(person.fingerprint_id), "--limit", "1")
        assert newest.endswith("There are more than 1; see --limit.\n")

    def test_payer_without_sessions_is_named(self, own: Connection):
        device = add_fingerprint(own)
        unknown = uuid4()

        out = run("sessions", "list", str(device))
        code, _, err = run_cli("sessions", "list", str(unknown))

        assert out == f"fingerprint {device} has no sessions\n"
        assert (code, err) == (1, f"error: no user and no fingerprint {unknown}\n")

    def test_revoke_ends_all_sessions_after_a_question(
        self, own: Connection, person: Person
    ):
        create_session(own, user_id=person.user_id)
        words = ("sessions", "revoke", str(person.user_id))

        code, out, _ = run_cli(*words)
        assert code == 1
        assert out.endswith("Nothing is ended; --yes ends them without asking.\n")
        assert len(list_user_sessions(own, user_id=person.user_id)) == 2

        assert "2 sessions of " in unfolded(run(*words, answer="y\n"))
        (values,) = run_json(*words, "--yes")
        assert (values["user_id"], values["sessions"]) == (str(person.user_id), 0)


# The roles that can run each command, besides the owner.
APP, _, READONLY = ROLES
ABLE = {
    ("users", "list"): {APP, READONLY},
    ("users", "show", "{}"): {APP, READONLY},
    ("sessions", "list", "{}"): {APP, READONLY},
    ("users", "add", "new@example.com"): {APP},
    ("users", "export", "{}"): {APP},
    ("sessions", "revoke", "{}", "--yes"): {APP},
    ("users", "anonymize", "{}", "--yes"): {APP},
}


def test_a_command_that_the_login_cannot_run_names_the_role(
    module_database: str, monkeypatch: pytest.MonkeyPatch, person: Person
):
    with role_logins(module_database) as logins:
        for words, able in ABLE.items():
            command = [word.format(person.user_id) for word in words]
            for role in (READONLY, APP):
                monkeypatch.setenv("DATABASE_URL", logins[role])
                code, _, err = run_cli(*command)
                if role in able:
                    assert (code, err) == (0, ""), command
                else:
                    assert code == 1
                    assert "permission denied for " in err, command
                    assert "GRANT pyapp_app TO " in err

"""Each command works with its role of sql/roles.sql, and names it to other logins."""

import json
from collections.abc import Iterator

import pytest

from pyapp._core.connection import connect
from pyapp.cli.privileges import ROLES, find_grant
from pyapp.devtools.migrations.migrator import migrate
from tests.metering import add_user
from tests.role_logins import login_name, role_logins
from tests.support import execute, run_cli

# A command for each entry of ROLES that ends with status 0.
COMMANDS = {
    "stats": "stats --json",
    "quota": "quota --all",
    "usage": "usage --by day",
    "plans list": "plans list",
    "prices list": "prices list",
    "referrals show": "referrals show {user}",
    "users list": "users list",
    "users show": "users show {user}",
    "sessions list": "sessions list {user}",
    "stripe events": "stripe events",
    "db check --data": "db check --data",
    "users": "users add {new}@example.com",
    "sessions": "sessions revoke {user} --yes",
}
# They need a log, or Stripe; tests of the roles run their statements.
ELSEWHERE = {"import", "stripe"}
WATCHING = ("db status", "doctor")


@pytest.fixture(scope="module")
def logins(module_database: str) -> Iterator[dict[str, str]]:
    """Return a login for each role, and one without a role, by name."""
    execute(module_database, "DROP SCHEMA app CASCADE")
    migrate(module_database)
    with role_logins(module_database) as found:
        plain = {"none": found["pyapp_sync"]}
        execute(module_database, f"REVOKE pyapp_sync FROM {login_name(plain['none'])}")
        yield {"owner": module_database} | found | plain


@pytest.fixture(scope="module")
def user(logins: dict[str, str]) -> str:
    """Return the id of a user."""
    with connect(logins["owner"]) as conn:
        return str(add_user(conn))


def words(name: str, user: str, new: str) -> list[str]:
    return COMMANDS[name].format(user=user, new=new).split()


def test_each_role_has_a_command():
    assert COMMANDS.keys() | ELSEWHERE == ROLES.keys()


@pytest.mark.parametrize("name", COMMANDS)
def test_command_works_with_its_role_and_names_it_to_others(
    logins: dict[str, str], user: str, monkeypatch: pytest.MonkeyPatch, name: str
):
    monkeypatch.setenv("DATABASE_URL", logins["none"])
    code, out, err = run_cli(*words(name, user, "b"))
    grant = f"GRANT {ROLES[name]} TO {login_name(logins['none'])}"
    if name == "stats":  # it leaves out what the role may not read
        assert (code, json.loads(out)["remedy"].replace('"', "")) == (0, grant)
    else:
        assert (code, out, err.endswith(f"{grant}\n")) == (1, "", True)
        assert err.count("\n") == 1

    monkeypatch.setenv("DATABASE_URL", logins[ROLES[name]])
    code, _, err = run_cli(*words(name, user, "a"))
    assert (code, err) == (0, "")


@pytest.mark.parametrize(
    "command", ["db maintain", "db roles", "plans set paid --credits 7"]
)
def test_command_of_the_owner_names_the_owner(
    logins: dict[str, str], monkeypatch: pytest.MonkeyPatch, command: str
):
    for login in ("pyapp_readonly", "none"):
        monkeypatch.setenv("DATABASE_URL", logins[login])
        code, _, err = run_cli(*command.split())

        owner = login_name(logins["owner"])
        assert (code, err.count("\n")) == (1, 1)
        assert err.endswith(f"connect as the owner of the schema, {owner}\n")


def test_role_that_lacks_a_new_grant_needs_the_roles_again(
    logins: dict[str, str], monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setenv("DATABASE_URL", logins["pyapp_readonly"])

    assert str(find_grant(["quota", "--all"])).endswith("run: pyapp db roles")


def test_unreachable_database_has_no_grant(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("DATABASE_URL", "postgresql://me@localhost:1/none")

    assert find_grant(["quota", "--all"]) is None

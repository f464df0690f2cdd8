"""`pyapp db check | adopt`: the schema, compared with the SQL files and migrations."""

import contextlib
from collections.abc import Iterator
from typing import Annotated, Any

import typer

from pyapp._core.config import load_settings
from pyapp._core.connection import connect
from pyapp.cli.arguments import AsJson, Scratch
from pyapp.cli.console import counted, print_json, say
from pyapp.cli.data_check import run_data_check
from pyapp.devtools.checks.schema_diff import (
    NO_ROLES,
    Comparison,
    SchemaCheck,
)
from pyapp.devtools.checks.schema_diff import check as check_schema
from pyapp.devtools.migrations import migrator
from pyapp.devtools.migrations.adopt import adopt as adopt_migrations
from pyapp.devtools.migrations.history import refuse_earlier
from pyapp.devtools.migrations.states import MEANINGS, MigrationStatus
from pyapp.errors import MissingPrivilegeError, SchemaCheckError

COLOURS = {"-": "red", "+": "green", "--": "bold", " ": None}
EQUAL = "equal sql/roles.sql"
DIFFER = (
    "differ from sql/roles.sql: pyapp db roles restores their grants; revoke by hand"
    " what PUBLIC and other roles give them"
)
# docs/operations.md has the whole list.
BEYOND = "publications, event triggers"


def schema_url(url: str | None = None) -> str:
    """Return *url*, else DATABASE_URL, for a command that works on the schema.

    Raises:
        MigrationError: the database has migrations of the earlier history.
    """
    url = url or load_settings().database_url
    # A role that may not read the marks may still use the schema.
    with contextlib.suppress(MissingPrivilegeError), connect(url) as conn:
        refuse_earlier(conn)
    return url


def adopt(scratch: Scratch = None, as_json: AsJson = False) -> None:
    """Mark migrations on a database built by psql or by the earlier migrations.

    Its structure is first proved on a copy. All data is kept.
    """
    url = load_settings().database_url
    marked = adopt_migrations(url, scratch_url=scratch)
    pending = migrator.pending(url)
    if as_json:
        print_json({"marked": marked, "pending": pending})
        return
    if not marked:
        say("Nothing to adopt: the database has marks; run: pyapp db migrate")
        return
    for name in marked:
        say(f"Marked {name}")
    if pending:
        say("Apply the later migrations with: pyapp db migrate")
    say("If roles use the schema, update them with: pyapp db roles")
    say("Compare owners, foreign keys in force and privileges with: pyapp db check")


def check(
    url: Annotated[
        str | None, typer.Option(help="Live database; default DATABASE_URL.")
    ] = None,
    scratch: Scratch = None,
    data: Annotated[
        bool,
        typer.Option("--data", help="Compare stored sums with their rows instead."),
    ] = False,
    repair: Annotated[
        bool, typer.Option("--repair", help="With --data: correct the sums.")
    ] = False,
    limit: Annotated[
        int | None,
        typer.Option(
            metavar="N",
            min=0,
            max=100_000,
            help="With --data: at most N rows of each kind.",
        ),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Compare the SQL files, the migrations and a live database; or check its data."""
    if data:
        if scratch is not None:
            raise typer.BadParameter("--scratch cannot be used with --data")
        most = 20 if limit is None else limit
        run_data_check(
            schema_url(url), limit=most, is_repairing=repair, as_json=as_json
        )
        return
    if repair or limit is not None:
        raise typer.BadParameter("--repair and --limit need --data")
    result = check_schema(schema_url(url), scratch_url=scratch)
    if as_json:
        print_json(_as_object(result))
    else:
        _say_result(result)
    if result.differences:
        differences = counted(result.differences, "difference")
        raise SchemaCheckError(f"the schemas are not equal: {differences}")


def say_migrations(statuses: list[MigrationStatus]) -> None:
    """Print each migration and its state."""
    for status in statuses:
        moment = status.applied_at
        when = f" {moment:%Y-%m-%d %H:%M:%S} UTC" if moment else ""
        meaning = MEANINGS[status.state]
        say(f"{status.name}: {meaning}{when if status.state == 'applied' else ''}")


def _say_result(result: SchemaCheck) -> None:
    for status in result.wrong:
        say(f"-- {status.name}: {MEANINGS[status.state]}", style="bold")
    if result.wrong:
        say("")
    for comparison in _comparisons(result):
        for mark, line in comparison.report():
            say(line, style=COLOURS[mark])
    if not result.differences:
        say(
            "the SQL files, the migrations and the live database are equal:"
            f" {counted(result.objects, 'object')}"
        )
    if result.note:
        say(result.note)
    found = result.privileges
    if found and found.comparison:
        drift = found.comparison.differences
        say(f"the privileges of the three roles {DIFFER if drift else EQUAL}")
    elif found and found.note != NO_ROLES:
        say(f"grants are not compared: {found.note}")
    grants = "grants to other roles" if found and found.comparison else "grants"
    say(f"not compared: rows except plans, {grants}, {BEYOND}")


def _comparisons(result: SchemaCheck) -> Iterator[Comparison]:
    yield from result.comparisons
    if result.privileges and result.privileges.comparison:
        yield result.privileges.comparison


def _as_object(result: SchemaCheck) -> dict[str, Any]:
    """Return what `--json` prints; its keys are promised in docs/operations.md."""
    privileges = result.privileges
    return {
        "objects": result.objects,
        "differences": [
            {
                "title": difference.title,
                "left": comparison.left,
                "right": comparison.right,
                "left_text": difference.left,
                "right_text": difference.right,
            }
            for comparison in _comparisons(result)
            for difference in comparison.differences
        ],
        "migrations": [status._asdict() for status in result.wrong],
        "are_privileges_compared": bool(privileges and privileges.comparison),
        "note": result.note,
    }

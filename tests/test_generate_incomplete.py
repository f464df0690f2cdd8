"""What no draft covers is named, and the rest is complete."""

import json
import re
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest
from psycopg.conninfo import make_conninfo

from pyapp.devtools.checks.dumps import Objects
from pyapp.devtools.checks.schema_diff import read_objects
from pyapp.devtools.checks.scratch_database import scratch_database
from pyapp.devtools.generate.command import generate
from pyapp.devtools.migrations.files import read_migrations
from pyapp.errors import GenerateError
from tests import drafting
from tests.drafting import Change, add, combine, replace
from tests.support import execute, run_cli

# Fixtures; pytest finds them by their names in this module.
url, base, folder, schema = (
    drafting.url,
    drafting.base,
    drafting.folder,
    drafting.schema,
)


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        (
            replace("sig_hash", "signature_hash"),
            r"would lose app\.fingerprints\.sig_hash: if it is a new name,"
            r" --rename fingerprints\.sig_hash=signature_hash; else",
        ),
        (
            replace("fillfactor = 85", "fillfactor = 60"),
            r"write TABLE app\.usage_slots by hand$",
        ),
        (
            lambda text: replace("COALESCE(status IN", "COALESCE(state IN")(
                replace("active_status(status text)", "active_status(state text)")(text)
            ),
            r"cannot drop function .*column subscription_active of table app\.users"
            r".*; give the new function another name",
        ),
        (lambda schema: schema, "nothing to do"),
    ],
)
def test_incomplete_draft_is_reported_and_not_written(
    url: str,
    base: tuple[str, Objects],
    folder: Path,
    schema: Callable[[Change], Path],
    change: Change,
    complaint: str,
) -> None:
    known = set(folder.iterdir())
    with pytest.raises(GenerateError, match=complaint):
        generate(url, "try_it", schema=schema(change), folder=folder, base=base[0])
    assert set(folder.iterdir()) == known


def test_draft_of_the_other_objects_is_complete_by_itself(
    url: str, base: tuple[str, Objects], folder: Path, schema: Callable[[Change], Path]
) -> None:
    """It drops nothing: what is to be written by hand may replace it."""
    change = combine(
        replace("fillfactor = 85", "fillfactor = 60"),
        replace(
            "messages_user_id_idx ON app.messages (user_id);", "i ON app.users (id);"
        ),
        add("ALTER TABLE app.plans ADD COLUMN title text;"),
    )
    with pytest.raises(GenerateError) as caught:
        generate(url, "try_it", schema=schema(change), folder=folder, base=base[0])

    assert caught.value.left == [
        "TABLE app.usage_slots",
        "INDEX app.messages_user_id_idx",
    ]
    assert str(caught.value).endswith("; the printed draft is complete for the rest")
    draft = caught.value.draft
    assert "usage_slots" not in draft
    assert "messages_user_id_idx" not in draft
    with scratch_database(url, template=base[0]) as copy:
        for block in draft.split("-- NNNN_")[1:]:
            if not block.startswith(("try_it.rollback", "create_i.rollback")):
                execute(copy, block.partition(".sql\n")[2])
        found = set(read_objects(copy))
    assert "INDEX app.i" in found


def test_table_that_becomes_a_view_is_named_with_the_steps(
    url: str, base: tuple[str, Objects], folder: Path, schema: Callable[[Change], Path]
) -> None:
    def change(text: str) -> str:
        table = re.compile(
            r"CREATE TABLE app\.plan_prices .*?(?=^CREATE FUNCTION)", re.M | re.S
        )
        columns = "p.id AS stripe_price_id, p.id AS plan_id"
        view = f"CREATE VIEW app.plan_prices AS SELECT {columns} FROM app.plans AS p;\n"
        assert table.search(text)
        return table.sub(view, text)

    with pytest.raises(GenerateError) as caught:
        generate(url, "try_it", schema=schema(change), folder=folder, base=base[0])

    assert str(caught.value) == (
        "this would lose app.plan_prices: app.plan_prices becomes a view: store its"
        " rows elsewhere, rename the table, create the view, move what depends on the"
        " table, and drop the table; else add --allow-destructive to lose it"
    )


def test_key_that_foreign_keys_refer_to_is_refused(
    url: str, base: tuple[str, Objects], folder: Path, schema: Callable[[Change], Path]
) -> None:
    change = replace(
        "users_pkey PRIMARY KEY (id)", "users_pkey PRIMARY KEY (id) INCLUDE (email)"
    )
    complaint = (
        r"write CONSTRAINT app\.users users_pkey by hand \(cannot drop constraint .*:"
        r" constraint sessions_user_id_fkey on table app\.sessions,"
    )
    with pytest.raises(GenerateError, match=complaint):
        generate(url, "try_it", schema=schema(change), folder=folder, base=base[0])


def test_column_that_is_not_the_last_is_refused_with_the_place(
    url: str, base: tuple[str, Objects], folder: Path, schema: Callable[[Change], Path]
) -> None:
    change = replace(
        "    credits      numeric NOT NULL,\n",
        "    credits      numeric NOT NULL,\n    host text,\n",
    )
    with pytest.raises(GenerateError, match=r"in app\.referrals, after completed_at$"):
        generate(url, "try_it", schema=schema(change), folder=folder, base=base[0])


@pytest.fixture
def command(
    url: str, base: tuple[str, Objects], folder: Path, monkeypatch: pytest.MonkeyPatch
) -> Callable[[Path], None]:
    """Return a function that lets the command draft for a folder of SQL files."""
    monkeypatch.setenv("DATABASE_URL", url)

    def use(sql: Path) -> None:
        patched = partial(generate, schema=sql, folder=folder, base=base[0])
        monkeypatch.setattr("pyapp.cli.schema.draft_migration", patched)

    return use


def test_command_prints_the_names_as_json(
    command: Callable[[Path], None], schema: Callable[[Change], Path], folder: Path
) -> None:
    last = int(read_migrations(folder)[-1].name[:4])
    command(schema(replace("stripe_events_received_at_idx", "stripe_events_idx")))
    code, out, err = run_cli("db", "generate", "rename_it", "--json")
    assert (code, err) == (0, "")
    name = f"{last + 1:04}_rename_it"
    assert json.loads(out) == {"migrations": [name], "left": [], "draft": ""}


def test_command_prints_what_is_left_and_the_complete_rest(
    command: Callable[[Path], None], schema: Callable[[Change], Path]
) -> None:
    command(
        schema(
            combine(
                replace("fillfactor = 85", "fillfactor = 60"),
                replace("stripe_events_received_at_idx", "stripe_events_idx"),
            )
        )
    )
    code, out, err = run_cli("db", "generate", "try_it", "--json")
    printed = json.loads(out)
    assert (code, printed["migrations"]) == (1, [])
    assert printed["left"] == ["TABLE app.usage_slots"]
    assert err.startswith(
        "error: no complete draft, and nothing is written: write TABLE"
    )

    code, out, _ = run_cli("db", "generate", "try_it")
    assert code == 1
    assert out == printed["draft"]


def test_role_without_createdb_needs_no_server(
    url: str, folder: Path, schema: Callable[[Change], Path]
) -> None:
    execute(url, "CREATE ROLE drafter LOGIN PASSWORD 'x'")
    files = schema(replace("stripe_events_received_at_idx", "stripe_events_idx"))
    drafter = make_conninfo(url, user="drafter", password="x")
    try:
        (path,) = generate(drafter, "rename_it", schema=files, folder=folder)
    finally:
        execute(url, "DROP ROLE drafter")
    assert "RENAME TO stripe_events_idx;" in path.read_text()

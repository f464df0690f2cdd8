"""What the tests of `pyapp db generate` share: changed SQL files, and a database."""

import shutil
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import pytest

from pyapp._core.queries import migrations_dir, sql_dir
from pyapp.devtools.checks.dumps import Objects
from pyapp.devtools.checks.schema_diff import read_objects
from pyapp.devtools.checks.scratch_database import scratch_database
from pyapp.devtools.migrations.migrator import migrate
from tests.support import Server

SCHEMA = (sql_dir() / "schema.sql").read_text(encoding="utf-8")
Change = Callable[[str], str]

NOTES = """
CREATE TABLE app.notes (
    id      uuid NOT NULL DEFAULT gen_random_uuid(),
    user_id uuid NOT NULL,
    body    text,

    CONSTRAINT notes_pkey PRIMARY KEY (id),
    CONSTRAINT notes_user_id_fkey FOREIGN KEY (user_id)
        REFERENCES app.users (id) ON DELETE RESTRICT,
    CONSTRAINT notes_body_not_empty_check CHECK (body <> '')
);

COMMENT ON TABLE app.notes IS
    'What support wrote about a user.';

-- For notes_user_id_fkey.
CREATE INDEX notes_user_id_idx ON app.notes (user_id);
"""


def add(text: str) -> Change:
    return lambda schema: f"{schema}\n{text}"


def replace(old: str, new: str) -> Change:
    def change(schema: str) -> str:
        assert old in schema
        return schema.replace(old, new)

    return change


def combine(*changes: Change) -> Change:
    def change(schema: str) -> str:
        for each in changes:
            schema = each(schema)
        return schema

    return change


def write_sql(parent: Path, change: Change) -> Path:
    """Write a copy of sql/ with a changed schema.sql; return the folder."""
    copied = shutil.copytree(sql_dir() / "functions", parent / "sql/functions")
    path = copied.parent / "schema.sql"
    path.write_text(change(SCHEMA), encoding="utf-8")
    return copied.parent


def read_pair(path: Path) -> tuple[str, str]:
    """Return the text of a migration and of its rollback."""
    back = path.with_suffix(".rollback.sql")
    return path.read_text(encoding="ascii"), back.read_text(encoding="ascii")


@pytest.fixture(scope="module")
def url(server: Server) -> str:
    return server.url("postgres")


@pytest.fixture(scope="module")
def base(url: str) -> Iterator[tuple[str, Objects]]:
    """Return a database with the migrations as they are, and its objects."""
    with scratch_database(url) as database:
        migrate(database)
        yield database, read_objects(database)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Return a copy of the migrations."""
    return shutil.copytree(migrations_dir(), tmp_path / "migrations")


@pytest.fixture
def schema(tmp_path: Path) -> Callable[[Change], Path]:
    """Return a function that writes a copy of sql/ with a changed schema.sql."""
    return partial(write_sql, tmp_path)

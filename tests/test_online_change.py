"""The worked example of docs/changing-the-schema.md runs while programs write."""

import queue
import re
import shutil
import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psycopg
import pytest

from pyapp._core.queries import migrations_dir
from pyapp.devtools.checks.dumps import Objects, dump_objects, without_column_order
from pyapp.devtools.migrations.migrator import migrate, rollback

PAGE = Path(__file__).parent.parent / "docs" / "changing-the-schema.md"
BLOCK = re.compile(r"```sql\n-- NNNN_(?P<name>\S+?)\.sql\n(?P<text>.*?)```", re.DOTALL)
ENOUGH = 30


@dataclass
class Program:
    """Updates the image of one user after another, in the column that it knows."""

    url: str
    column: str
    users: list[str]
    written: "queue.Queue[None]" = field(default_factory=queue.Queue)
    last: dict[str, str] = field(default_factory=dict)
    failures: list[Exception] = field(default_factory=list)
    is_over: threading.Event = field(default_factory=threading.Event)

    def run(self) -> None:
        try:
            with psycopg.connect(self.url, autocommit=True) as conn:
                for n in range(1_000_000):
                    if self.is_over.is_set():
                        return
                    self._write(conn, self.users[n % len(self.users)], f"{n}.png")
        except psycopg.Error as exc:
            self.failures.append(exc)

    def _write(self, conn: psycopg.Connection[Any], user: str, value: str) -> None:
        statement = f"UPDATE app.users SET {self.column} = %s WHERE id = %s"
        conn.execute(statement.encode(), [value, user])
        self.last[user] = value
        self.written.put(None)

    def wait(self) -> None:
        """Wait until it has written some more."""
        for _ in range(ENOUGH):
            self.written.get(timeout=30)

    @contextmanager
    def running(self) -> Iterator[None]:
        thread = threading.Thread(target=self.run)
        thread.start()
        try:
            self.wait()
            yield
            while not self.written.empty():
                self.written.get()
            self.wait()
        finally:
            self.is_over.set()
            thread.join()
        assert self.failures == []


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Return the migrations, followed by those of the page."""
    folder = shutil.copytree(migrations_dir(), tmp_path / "migrations")
    blocks = BLOCK.findall(PAGE.read_text(encoding="utf-8"))
    names = [name for name, _ in blocks if not name.endswith(".rollback")]
    number = int(max(path.name for path in folder.glob("*.sql"))[:4])
    for name, text in blocks:
        position = number + 1 + names.index(name.removesuffix(".rollback"))
        (folder / f"{position:04}_{name}.sql").write_text(text, encoding="ascii")
    assert len(blocks) == 2 * len(names) == 8
    return folder


def test_example_runs_while_old_and_new_programs_write(
    empty_database: str, folder: Path
) -> None:
    url = empty_database
    migrate(url)
    with psycopg.connect(url, autocommit=True) as conn:
        users = [
            str(user)
            for (user,) in conn.execute(
                "INSERT INTO app.users (email, image_url)"
                " SELECT n || '@example.com', 'first.png'"
                " FROM generate_series(1, 2500) AS n RETURNING id"
            )
        ]
    old = Program(url, "image_url", users[::50])
    new = Program(url, "avatar_url", users[1::50])

    def apply_one() -> None:
        assert len(migrate(url, folder, count=1)) == 1
        dumps.append(dump_objects(url))

    dumps: list[Objects] = [dump_objects(url)]
    with ExitStack() as later:
        with old.running():
            apply_one()
            apply_one()
            later.enter_context(new.running())
        apply_one()
        apply_one()

    with psycopg.connect(url) as conn:
        rows = conn.execute("SELECT id::text, avatar_url FROM app.users").fetchall()
    expected = dict.fromkeys(users, "first.png") | old.last | new.last
    assert dict(rows) == expected

    for before in reversed(dumps[:-1]):
        rollback(url, folder)
        assert without_column_order(dump_objects(url)) == without_column_order(before)
    with psycopg.connect(url) as conn:
        rows = conn.execute("SELECT id::text, image_url FROM app.users").fetchall()
    assert dict(rows) == expected


def test_old_and_new_columns_agree_between_the_steps(
    empty_database: str, folder: Path
) -> None:
    migrate(empty_database)
    migrate(empty_database, folder, count=2)
    with psycopg.connect(empty_database) as conn:
        conn.execute("INSERT INTO app.users (email, image_url) VALUES ('a@x', 'o')")
        conn.execute("INSERT INTO app.users (email, avatar_url) VALUES ('b@x', 'n')")
        conn.execute("UPDATE app.users SET avatar_url = NULL WHERE email = 'a@x'")
        conn.execute("UPDATE app.users SET image_url = 'p' WHERE email = 'b@x'")
        rows = conn.execute(
            "SELECT image_url, avatar_url FROM app.users ORDER BY email"
        )
        assert rows.fetchall() == [(None, None), ("p", "p")]

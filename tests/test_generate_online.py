"""Drafted migrations keep each rule in force while programs try to break it."""

import threading
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import psycopg

from pyapp.devtools.checks.dumps import Objects
from pyapp.devtools.checks.schema_diff import load_schema, read_objects
from pyapp.devtools.checks.scratch_database import scratch_database
from pyapp.devtools.generate.command import generate
from pyapp.devtools.migrations.files import read_migrations
from pyapp.devtools.migrations.migrator import migrate, rollback
from tests import drafting
from tests.drafting import Change, combine, replace

# Fixtures; pytest finds them by their names in this module.
url, base, folder, schema = (
    drafting.url,
    drafting.base,
    drafting.folder,
    drafting.schema,
)

ENOUGH = 3
# Between two attempts of a program, so that they do not keep the server busy.
PAUSE = 0.01
ROWS = """
INSERT INTO app.users (id, email) VALUES
    ('00000000-0000-0000-0000-000000000001', 'a@example.com'),
    ('00000000-0000-0000-0000-000000000002', 'b@example.com'),
    ('00000000-0000-0000-0000-000000000003', 'c@example.com');
INSERT INTO app.referrals (referrer_id, referred_id, credits) VALUES (
    '00000000-0000-0000-0000-000000000001', '00000000-0000-0000-0000-000000000002', 5
);
"""
MESSAGE = """
INSERT INTO app.messages (
    subject_id, id, user_id, finished_at, input_tokens, cache_creation_input_tokens,
    cache_read_input_tokens, output_tokens, model, cost, credits
)
SELECT u.id, gen_random_uuid(), u.id, now(), 1, 0, 0, 1, 'm', 0, 1
FROM app.users AS u WHERE u.email = 'a@example.com'
"""
REFER = "INSERT INTO app.referrals (referrer_id, referred_id, credits) SELECT"
THIRD = f"{REFER} '00000000-0000-0000-0000-000000000003'"
SECOND = "'00000000-0000-0000-0000-000000000002'"

# Each change replaces an index or a rule under the same name.
CHANGES = [
    ("ON app.users (lower(email));", "ON app.users (lower(email)) INCLUDE (id);"),
    ("UNIQUE (referred_id)", "UNIQUE (referred_id) INCLUDE (status)"),
    (
        "PRIMARY KEY (subject_id, starts_at, ends_at, slot)",
        "PRIMARY KEY (subject_id, starts_at, ends_at, slot) INCLUDE (cost)",
    ),
    ("CHECK (credits BETWEEN 0 AND 1000000)", "CHECK (credits BETWEEN 0 AND 500000)"),
    (
        "sessions_user_id_fkey FOREIGN KEY (user_id)\n"
        "        REFERENCES app.users (id) ON DELETE CASCADE",
        "sessions_user_id_fkey FOREIGN KEY (user_id)\n"
        "        REFERENCES app.users (id) ON DELETE RESTRICT",
    ),
    (
        "messages_user_id_idx ON app.messages (user_id)",
        "messages_user_id_idx ON app.messages (user_id, id)",
    ),
    (
        "messages_append_only BEFORE UPDATE OR DELETE OR TRUNCATE",
        "messages_append_only BEFORE UPDATE OR DELETE",
    ),
]

# What breaks a rule, by the rule that refuses it at every moment.
BREAKS = {
    "users_lower_email_idx": "INSERT INTO app.users (email) VALUES ('A@example.com')",
    "referrals_referred_id_key": f"{THIRD}, {SECOND}, 5",
    "referrals_credits_is_amount_check": f"{THIRD}, {SECOND}, -1",
    "sessions_user_id_fkey": "INSERT INTO app.sessions (token_hash, user_id,"
    " expires_at) VALUES (sha256('x'), gen_random_uuid(), now() + interval '1 hour')",
    "messages_append_only": "DELETE FROM app.messages",
}
# What programs do all the time, and how many rows each writes.
WORKS = {
    "INSERT INTO app.users (email) VALUES ('A@example.com')"
    " ON CONFLICT (lower(email)) DO NOTHING": 0,
    f"{THIRD}, {SECOND}, 5 ON CONFLICT (referred_id) DO NOTHING": 0,
    MESSAGE: 1,
}


@dataclass
class Programs:
    """Run the statements again and again, each in a session of its own."""

    url: str
    runs: Counter[str] = field(default_factory=Counter)
    wrong: list[str] = field(default_factory=list)
    is_over: threading.Event = field(default_factory=threading.Event)
    has_run: threading.Condition = field(default_factory=threading.Condition)

    def _break(self, conn: psycopg.Connection, rule: str) -> None:
        try:
            conn.execute(BREAKS[rule].encode())
            self.wrong.append(f"{rule} allowed it")
        except psycopg.IntegrityError as exc:
            # A rollback builds the old index after the new one, which reports first.
            if (exc.diag.constraint_name or "").removesuffix("_new") != rule:
                self.wrong.append(f"{rule}: {exc}")

    def _work(self, conn: psycopg.Connection, statement: str) -> None:
        if (count := conn.execute(statement.encode()).rowcount) != WORKS[statement]:
            self.wrong.append(f"{count} rows: {statement}")

    def _run(self, key: str) -> None:
        call = self._break if key in BREAKS else self._work
        try:
            with psycopg.connect(self.url, autocommit=True) as conn:
                while not self.is_over.wait(PAUSE):
                    call(conn, key)
                    with self.has_run:
                        self.runs[key] += 1
                        self.has_run.notify()
        except psycopg.Error as exc:
            self.wrong.append(f"{key}: {exc}")

    def wait(self) -> None:
        """Wait until each has run some more; none may have been wrong."""
        keys = [*BREAKS, *WORKS]
        with self.has_run:
            goals = {key: self.runs[key] + ENOUGH for key in keys}
            self.has_run.wait_for(
                lambda: self.wrong or all(self.runs[k] >= goals[k] for k in keys),
                timeout=30,
            )
            assert not self.wrong, "\n".join(self.wrong)
            assert [key for key in keys if self.runs[key] < goals[key]] == []

    @contextmanager
    def running(self) -> Iterator[None]:
        threads = [
            threading.Thread(target=self._run, args=[key]) for key in [*BREAKS, *WORKS]
        ]
        with ExitStack() as stack:
            for thread in threads:
                thread.start()
                stack.callback(thread.join)
            stack.callback(self.is_over.set)
            self.wait()
            yield
            self.wait()


def valid_indexes(url: str) -> set[str]:
    """Return the columns of the valid indexes of messages."""
    with psycopg.connect(url) as conn:
        rows = conn.execute(
            "SELECT substring(pg_get_indexdef(i.indexrelid) FROM 'btree (.*)')"
            " FROM pg_index AS i"
            " WHERE i.indrelid = 'app.messages'::regclass AND i.indisvalid"
        )
        return {columns for (columns,) in rows}


def test_rules_hold_while_they_are_replaced(
    url: str,
    base: tuple[str, Objects],
    folder: Path,
    schema: Callable[[Change], Path],
) -> None:
    """Also between two migrations, where a run may be killed, and in the rollback."""
    database, before = base
    path = schema(combine(*(replace(old, new) for old, new in CHANGES)))
    written = generate(url, "replace_all", schema=path, folder=folder, base=database)
    names = [file.stem for file in written]
    with (
        scratch_database(url, template=database) as live,
        scratch_database(url) as wanted,
    ):
        with psycopg.connect(live) as conn:
            conn.execute(ROWS.encode())
        programs = Programs(live)
        with programs.running():
            for name in names:
                assert migrate(live, folder, count=1) == [name]
                programs.wait()
                assert valid_indexes(live) & {"(user_id)", "(user_id, id)"}
            load_schema(wanted, path)
            assert read_objects(live) == read_objects(wanted)
            for name in reversed(names):
                assert rollback(live, folder) == [name]
                programs.wait()
                assert valid_indexes(live) & {"(user_id)", "(user_id, id)"}
            assert read_objects(live) == before
            assert migrate(live, folder) == names
    assert read_migrations(folder)[-1].name == names[-1]

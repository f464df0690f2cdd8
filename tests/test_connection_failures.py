"""A failed connection is one line with the reason and the remedy."""

import re
from pathlib import Path

import psycopg
import pytest

from pyapp._core.connection_failures import unavailable
from pyapp._core.database_url import redact_url

REMOTE = "postgresql://me:secret@db.example.com:6000/shop"
LOCAL = "postgresql://me:secret@localhost:6000/shop"
AT = 'connection failed: connection to server at "10.0.0.5", port 6000 failed: '

# What psycopg reports, and words of the remedy.
FAILURES = {
    'FATAL:  password authentication failed for user "me"': "the password in DATABASE",
    'FATAL:  role "me" does not exist': "correct the user",
    "fe_sendauth: no password supplied": "put the password into DATABASE_URL",
    'FATAL:  database "shop" does not exist': "create the database",
    "FATAL:  no such database: shop": "add it to the pooler's list",
    'FATAL:  no pg_hba.conf entry for host "::1", user "me", database "shop",'
    " no encryption": "add sslmode=require",
    "FATAL:  SSL required": "add sslmode=require",
    'FATAL:  no pg_hba.conf entry for host "::1", user "me", database "shop",'
    " SSL encryption": "allow this address, user and database",
    "server does not support SSL, but SSL was required": "remove sslmode",
    'root certificate file "ca.pem" does not exist': ("sslrootcert=system"),
    "SSL error: certificate verify failed": "sslrootcert must be the authority",
    "SSL error: tlsv1 alert: certificate has expired": "renew the certificate",
    'server certificate for "a.example.com" does not match host name "b"': (
        "write the host of DATABASE_URL as the certificate names it"
    ),
    'private key file "/k" has group or world access': "chmod 600",
    "FATAL:  sorry, too many clients already": "is full: use smaller pools",
    "FATAL:  remaining connection slots are reserved for roles with the SUPERUSER"
    " attribute": "is full",
    'FATAL:  too many connections for role "me"': "is full",
    "FATAL:  no more connections allowed (max_client_conn)": "is full",
    "FATAL:  MaxClientsInSessionMode: max clients reached": "is full",
    "FATAL:  the database system is starting up": "run it again in a moment",
    "FATAL:  the database system is shutting down": "run it again in a moment",
    "FATAL:  the database system is not yet accepting connections": "in a moment",
    'FATAL:  database "shop" is not currently accepting connections': "let the",
    "server is not in hot standby mode": "target_session_attrs",
    "session is read-only": "target_session_attrs",
    'FATAL:  role "me" is not permitted to log in': "use a role with LOGIN",
    'FATAL:  permission denied for database "my-shop"': (
        'GRANT CONNECT ON DATABASE "my-shop" TO me'
    ),
    "FATAL:  unsupported startup parameter in options: search_path": (
        "ignore_startup_parameters"
    ),
    "received invalid response to SSL negotiation: H": "correct the host or the port",
    "Connection refused": "check the host, the port and the firewall",
    "timeout expired": "check the host, the port and the firewall",
}


@pytest.mark.parametrize("reason", FAILURES)
def test_failure_has_its_remedy(reason: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ENVIRONMENT", "production")
    for url in (REMOTE, LOCAL):
        error = unavailable(url, psycopg.OperationalError(f"{AT}{reason}\nmore"))

        said, _, remedy = str(error).rpartition("; ")
        assert said.endswith(reason.removeprefix("FATAL:  "))
        assert FAILURES[reason] in remedy
        assert redact_url(url) in said
        assert "secret" not in str(error)
        assert "pyapp db start" not in str(error)
        assert error.refused is reason.startswith("FATAL")


def test_local_command_is_named_in_the_local_environment_only(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    refused = psycopg.OperationalError(f"{AT}Connection refused")
    monkeypatch.setenv("ENVIRONMENT", "local")

    assert str(unavailable(LOCAL, refused)).endswith("start it with: pyapp db start")
    assert "pyapp db start" not in str(unavailable(REMOTE, refused))


def test_each_of_several_servers_has_its_reason() -> None:
    url = "postgresql://me:secret@a.example.com:1,b.example.com:2/shop"
    line = "- host: '{0}.example.com', port: '{1}', hostaddr: '10.0.0.1': {2}{3}"
    error = unavailable(
        url,
        psycopg.OperationalError(
            "\n".join(
                (
                    f"{AT}Connection refused",
                    "Multiple connection attempts failed. All failures were:",
                    line.format("a", 1, AT, 'FATAL:  role "me" does not exist'),
                    line.format("b", 2, AT, "Connection refused"),
                )
            )
        ),
    )

    assert str(error) == (
        "no database at postgresql://me@a.example.com:1,b.example.com:2/shop:"
        ' a.example.com:1 role "me" does not exist,'
        " b.example.com:2 Connection refused;"
        " correct the user or the password in DATABASE_URL"
    )
    assert not error.refused


def test_addresses_of_one_host_are_one_reason() -> None:
    lines = [
        f"- host: 'localhost', port: '6000', hostaddr: '{at}': {AT}Connection refused"
        for at in ("::1", "127.0.0.1")
    ]
    error = unavailable(LOCAL, psycopg.OperationalError("\n".join([AT, *lines])))

    assert error.reason == "Connection refused"


@pytest.mark.parametrize(
    ("given", "shown"),
    [
        ("me:secret@a,b/shop", "me@a,b/shop"),
        ("me:secret@a,b:1/shop?port=5", "me@a:5,b:5/shop"),
        ("me:secret@a:1,b:2/shop", "me@a:1,b:2/shop"),
        ("me:secret@[::1]:1/shop", "me@[::1]:1/shop"),
        ("me:secret@:5433/shop", "me@:5433/shop"),
        ("me:secret@/shop?host=/run", "me@/shop?host=/run"),
    ],
)
def test_shown_url_names_each_server(given: str, shown: str) -> None:
    assert redact_url(f"postgresql://{given}") == f"postgresql://{shown}"


def test_page_has_the_lines_of_two_failures(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ENVIRONMENT", "production")
    page = Path(__file__).parents[1] / "docs" / "connections.md"
    _, _, section = page.read_text("utf-8").partition("## A connection that fails")
    lines = re.findall("^error: (.+)$", section, re.MULTILINE)
    url = "postgresql://web:secret@db.example.com/shop"

    assert lines == [
        str(unavailable(url, psycopg.OperationalError(f"{AT}{reason}")))
        for reason in (
            "FATAL:  sorry, too many clients already",
            'root certificate file "ca.pem" does not exist',
        )
    ]

"""Explains in one line why a connection failed, with the remedy."""

import re

from pyapp._core.config import is_outside_local
from pyapp._core.database_url import (
    find_elsewhere,
    quote_name,
    reached_parameters,
    redact_url,
)
from pyapp.errors import DatabaseUnavailableError

# A line of psycopg for one of several hosts or addresses.
_ATTEMPT = re.compile(
    r"^- host: (?P<host>.+?), port: (?P<port>.+?), hostaddr: .*?: (?P<reason>.+)$",
    re.MULTILINE,
)
# Words of a server, a pooler or libpq, and the remedy; the first that matches counts.
_REMEDIES = {
    r"password authentication failed|no such user|role .* does not exist": (
        "correct the user or the password in DATABASE_URL"
    ),
    r"database .* does not exist": (
        "create the database, or correct its name in DATABASE_URL"
    ),
    r"no such database": (
        "a pooler answers, and does not know this database: add it to the pooler's list"
    ),
    r"no encryption|SSL (connection )?is required|SSL required|insecure": (
        "the server may accept only TLS: add sslmode=require to DATABASE_URL"
    ),
    r"no password supplied": "put the password into DATABASE_URL",
    r"no pg_hba.conf entry": (
        "let the server's administrator allow this address, user and database"
    ),
    r"does not support SSL": (
        "the server has no TLS: remove sslmode from DATABASE_URL if the network is"
        " trusted"
    ),
    r"root certificate file .* does not exist": (
        "add sslrootcert=FILE with the authority of the server's certificate to"
        " DATABASE_URL, or sslrootcert=system for a public one"
    ),
    r"certificate has expired": "let the server's administrator renew the certificate",
    r"certificate verify failed": (
        "sslrootcert must be the authority of the server's certificate, which must not"
        " have expired"
    ),
    r"does not match host name": (
        "write the host of DATABASE_URL as the certificate names it"
    ),
    r"private key file .* access": "chmod 600 the file of sslkey",
    r"too many (clients|connections)|connection slots|more connections|max ?client": (
        "the server or the pooler is full: use smaller pools or a pooler, or raise"
        " its limit"
    ),
    r"starting up|shutting down|recovery mode|not yet accepting connections": (
        "run it again in a moment"
    ),
    r"not currently accepting connections|Hot standby mode is disabled": (
        "let the server's administrator allow connections"
    ),
    r"standby mode|session is (not )?read-only": (
        "no server of DATABASE_URL is what its target_session_attrs asks for"
    ),
    r"not permitted to log in": "use a role with LOGIN in DATABASE_URL",
    r"unsupported startup parameter": (
        "the pooler refuses this parameter of DATABASE_URL: remove it, or add it to"
        " the pooler's ignore_startup_parameters"
    ),
    r"failed to resolve|could not translate": "correct the host in DATABASE_URL",
    r"invalid response to SSL": (
        "no PostgreSQL server answers there: correct the host or the port"
    ),
    r"invalid \S+ value": "correct it in DATABASE_URL",
}
# Where no server answers.
_UNREACHED = {
    r"No such file": (
        "no server has its socket there: correct the host, which is the socket's"
        " folder, or the port"
    ),
    r"refused|tim(ed out|eout)|No route|unreachable": (
        "check the host, the port and the firewall"
    ),
}
_NO_CONNECT = re.compile(r'permission denied for database "(.*)"$')


def unavailable(url: str, exc: Exception) -> DatabaseUnavailableError:
    """Return the error for a failed connection: URL, reason and remedy."""
    text = str(exc).strip() or repr(exc)
    reasons = _reasons(text) or {"": _reason(text.splitlines()[0])}
    refused = len(reasons) == 1 and "FATAL" in next(iter(reasons.values()))
    reason = ", ".join(
        f"{server}{words.removeprefix('FATAL:').strip()}"
        for server, words in reasons.items()
    )
    if refused:
        message = f"the database at {redact_url(url)} refuses: {reason}"
    else:
        message = f"no database at {redact_url(url)}: {reason}"
    remedy = _remedy(url, reason, refused)
    error = DatabaseUnavailableError(f"{message}; {remedy}" if remedy else message)
    error.refused, error.reason = refused, reason
    return error


def _reasons(text: str) -> dict[str, str]:
    """Return the first reason of each server, if the URL names several."""
    reasons: dict[str, str] = {}
    for found in _ATTEMPT.finditer(text):
        server = f"{found['host']}:{found['port']} ".replace("'", "")
        reasons.setdefault(server, _reason(found["reason"]))
    if len(reasons) == 1:  # several addresses of one server
        return {"": next(iter(reasons.values()))}
    return reasons


def _reason(line: str) -> str:
    return line.rpartition(" failed: ")[2]


def _remedy(url: str, reason: str, refused: bool) -> str:
    """Return what to do, or an empty text if only the reason is known."""
    if found := _NO_CONNECT.search(reason):
        user = quote_name(reached_parameters(url).get("user", ""))
        name = quote_name(found[1])
        return f"let its owner run: GRANT CONNECT ON DATABASE {name} TO {user}"
    for words, remedy in _REMEDIES.items():
        if re.search(words, reason, re.IGNORECASE):
            return remedy
    if find_elsewhere(url) is None and not is_outside_local():
        return "more by: pyapp doctor" if refused else "start it with: pyapp db start"
    unreached = (r for words, r in _UNREACHED.items() if re.search(words, reason))
    return next(unreached, "")

"""Helpers for the tests of `pyapp import usage`."""

import json
from pathlib import Path
from uuid import UUID

from psycopg import Connection

from pyapp.messages import Message, list_messages
from pyapp.users import find_user_by_email
from tests.metering import usage_differences
from tests.support import run_cli
from tests.usage_lines import CHAT, changed

ADA = "ada@example.com"


def write_log(file: Path, *lines: object) -> str:
    """Write lines, objects or text, to a log and return its name."""
    texts = (line if isinstance(line, str) else json.dumps(line) for line in lines)
    file.write_text("\n".join(texts) + "\n")
    return str(file)


def calls(count: int) -> list[object]:
    """Return *count* lines, one for each call."""
    return [changed(CHAT, id=f"chatcmpl-{n}") for n in range(count)]


def import_usage(
    *arguments: str, payer: tuple[str, str] = ("--user", ADA)
) -> list[str]:
    """Import, and return the summary's lines."""
    code, out, err = run_cli("import", "usage", *arguments, *payer)

    assert (code, err) == (0, "")
    return out.splitlines()


def ada_id(conn: Connection) -> UUID:
    """Return the id of the default payer."""
    user = find_user_by_email(conn, email=ADA)
    assert user is not None
    return user.id


def recorded(conn: Connection, subject_id: UUID | None = None) -> list[Message]:
    """Return the messages of Ada, or of another payer."""
    assert usage_differences(conn) == []
    return list_messages(conn, subject_id=subject_id or ada_id(conn), limit=1000)

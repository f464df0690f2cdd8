"""Payloads of past months, their tables and their archives, for three test files."""

import csv
import gzip
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from pathlib import Path
from uuid import UUID, uuid4

import psycopg
import pytest

from pyapp._core.connection import connect
from pyapp.errors import ArchiveError
from pyapp.messages import record_message
from pyapp.payloads import create_payload_partitions, retire_payloads
from tests import metering

NOW = datetime.now(UTC)
OLD = NOW - timedelta(days=100)
VERY_OLD = NOW - timedelta(days=9000)
# With all that CSV has to quote.
REQUEST = [{"role": "user", "content": 'a comma, a "quote"\nand a line\'s end'}]


def add_user(url: str) -> UUID:
    with connect(url) as conn:
        return metering.add_user(conn)


def write(conn: psycopg.Connection, user_id: UUID, moment: datetime) -> UUID:
    """Record a message of that time with a payload; return its id."""
    return record_message(
        conn,
        id=uuid4(),
        model="m",
        user_id=user_id,
        finished_at=moment,
        cost=Decimal("0.01"),
        request=REQUEST,
    ).id


def write_all(url: str, user_id: UUID, *moments: datetime) -> list[UUID]:
    """Record a message with a payload at each of *moments*; return their ids."""
    with connect(url) as conn:
        return [write(conn, user_id, moment) for moment in moments]


def partition_of(moment: datetime) -> str:
    return f"message_payloads_{moment:%Y%m}"


def find_payloads(url: str) -> dict[UUID, str]:
    """Return the partition that has the payload of each message."""
    with connect(url) as conn:
        return dict(
            conn.execute(
                "SELECT p.message_id, c.relname FROM app.message_payloads AS p"
                " INNER JOIN pg_class AS c ON c.oid = p.tableoid"
            ).fetchall()
        )


def read_archive(path: Path) -> Iterator[dict[str, str]]:
    csv.field_size_limit(2**31 - 1)
    with gzip.open(path, "rt", encoding="utf-8", newline="") as file:
        yield from csv.DictReader(file)


def archived_payers(folder: Path) -> set[UUID]:
    """Return the payers of all archived payloads."""
    return {
        UUID(row["subject_id"])
        for path in folder.iterdir()
        for row in read_archive(path)
    }


def archived_messages(folder: Path) -> dict[UUID, str]:
    """Return the archive that has the payload of each message."""
    found = {}
    for path in folder.iterdir():
        for row in read_archive(path):
            assert "quote" in row["request"]
            found[UUID(row["message_id"])] = path.name
    return found


def fail_to_archive(url: str, tmp_path: Path, keep_months: int = 1) -> None:
    """Detach the expired months, and fail to archive them."""
    blocked = tmp_path / "file"
    blocked.write_text("a file where the folder should be")
    create_payload_partitions(url, keep_months=keep_months)
    with pytest.raises(ArchiveError, match=r"left in app\.retired_payloads"):
        retire_payloads(url, keep_months=keep_months, archive_folder=blocked)

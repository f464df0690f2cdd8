"""Archives of retired payloads: the payloads of one payer can be removed."""

import fcntl
import gzip
import os
from decimal import Decimal
from pathlib import Path
from uuid import uuid4

import pytest

from pyapp._core.connection import connect
from pyapp.errors import ArchiveError
from pyapp.messages import record_message
from pyapp.payload_archives import erase_archived
from pyapp.payloads import create_payload_partitions, retire_payloads
from tests.payload_months import (
    OLD,
    VERY_OLD,
    add_user,
    archived_payers,
    read_archive,
    write_all,
)
from tests.support import run_cli, unfolded

HEADER = "subject_id,message_id,finished_at,request,response\n"
# A valid beginning and end, and no deflate stream between them.
DAMAGED = gzip.compress(os.urandom(200))[:12] + b"\xff" * 200


def test_archives_are_cleared_of_one_payer(database: str, tmp_path: Path):
    users = [add_user(database), add_user(database)]
    for user in users:
        write_all(database, user, OLD, VERY_OLD)
    write_all(database, users[0], OLD, OLD)
    with connect(database) as conn:
        record_message(
            conn,
            model="m",
            user_id=users[1],
            finished_at=OLD,
            cost=Decimal(1),
            request=['a "quote",\n' + "x" * 300_000],
        )
    create_payload_partitions(database)
    retire_payloads(database, keep_months=1, archive_folder=tmp_path)
    before = {path: list(read_archive(path)) for path in sorted(tmp_path.iterdir())}
    assert archived_payers(tmp_path) == set(users)
    erase = ("db", "erase-archived", str(tmp_path), "--payer", str(users[0]))

    code, out, err = run_cli(*erase)

    assert (code, err) == (0, "")
    assert f"message_payloads_{OLD:%Y%m}.csv.gz: payloads removed: 3\n" in out
    after = {path: list(read_archive(path)) for path in sorted(tmp_path.iterdir())}
    assert after == {
        path: [row for row in found if row["subject_id"] == str(users[1])]
        for path, found in before.items()
    }
    assert all(path.stat().st_mode & 0o077 == 0 for path in after)
    _, out, _ = run_cli(*erase)
    assert unfolded(out) == f"No archive in {tmp_path} has payloads of {users[0]}"


@pytest.mark.parametrize(
    "content",
    [
        b"words",
        gzip.compress(b"a,b\n1,2\n")[:-9],
        b"",
        gzip.compress(HEADER.encode() + b"\n"),
        DAMAGED,
    ],
    ids=["text", "cut", "empty", "blank line", "damaged"],
)
def test_invalid_archive_is_named_and_left_unchanged(tmp_path: Path, content: bytes):
    path = tmp_path / "message_payloads_202601.csv.gz"
    path.write_bytes(content)
    payer = str(uuid4())
    later = tmp_path / "message_payloads_202602.csv.gz"
    row = f"{payer},{uuid4()},2026-02-01 00:00:00+00,[],\n"
    later.write_bytes(gzip.compress((HEADER + row).encode()))

    code, out, err = run_cli("db", "erase-archived", str(tmp_path), "--payer", payer)

    assert (code, err) == (
        1,
        f"error: 1 of the archives in {tmp_path} could not be searched\n",
    )
    assert out.startswith(
        f"{later.name}: payloads removed: 1\n{path.name}: not changed: "
    )
    assert path.read_bytes() == content
    assert gzip.decompress(later.read_bytes()).decode() == HEADER
    assert len(list(tmp_path.iterdir())) == 2


def test_one_run_at_a_time_changes_archives(tmp_path: Path):
    """The unfinished file of a running run looks like that of a killed run."""
    handle = os.open(tmp_path, os.O_RDONLY)
    fcntl.flock(handle, fcntl.LOCK_EX)
    try:
        with pytest.raises(ArchiveError, match="another run uses the archives"):
            erase_archived(tmp_path, uuid4())
    finally:
        os.close(handle)

    assert erase_archived(tmp_path, uuid4()).removed == {}


def test_archive_folder_needs_months_to_keep(tmp_path: Path):
    code, _, err = run_cli("db", "maintain", "--archive", str(tmp_path))

    assert (code, "--archive needs --keep-months" in err) == (2, True)

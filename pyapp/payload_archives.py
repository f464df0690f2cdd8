"""Archives of retired payloads: gzipped CSV files, each complete or absent."""

import csv
import gzip
import itertools
import os
import tempfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from uuid import UUID

import psycopg

from pyapp._core.queries import TOOL_QUERIES
from pyapp.errors import ArchiveError

with suppress(ModuleNotFoundError):  # Windows has no fcntl
    import fcntl

# The names of archives begin so; an unfinished one has a dot before it.
PREFIX = "message_payloads_"
_COLUMNS = ["subject_id", "message_id", "finished_at", "request", "response"]


@dataclass(frozen=True, slots=True)
class Archive:
    """A copy of the retired payloads on disk, before it gets its name."""

    folder: Path
    name: str
    temporary: Path
    payloads: int

    @contextmanager
    def published(self) -> Iterator[Path]:
        """Give the file its name, and remove it if the block fails.

        An existing archive is kept, and the new one gets a number.

        Raises:
            ArchiveError: the folder cannot be written.
        """
        with _translated_errors(self.folder):
            path = _link(self.temporary, self.folder, self.name)
        try:
            with _translated_errors(self.folder):
                _sync_folder(self.folder)
            yield path
        except BaseException:
            path.unlink()
            raise


@contextmanager
def draft_archive(
    conn: psycopg.Connection[Any], folder: Path, name: str
) -> Iterator[Archive]:
    """Copy the retired payloads to a file in *folder* that the block can publish.

    Only its owner can read the file. At the end of the block the copy is removed, and a
    published archive stays.

    Raises:
        ArchiveError: the folder or the file cannot be written, or another run uses the
            folder; no file is left.
    """
    temporary: Path | None = None
    try:
        with _translated_errors(folder):
            folder.mkdir(parents=True, exist_ok=True)
        with _locked(folder):
            with _translated_errors(folder):
                handle, created = tempfile.mkstemp(dir=folder, prefix=f".{name}.")
                temporary = Path(created)
                with os.fdopen(handle, "wb") as file:
                    with gzip.GzipFile(f"{name}.csv", "wb", 6, file) as packed:
                        payloads = _copy(conn, packed)
                    file.flush()
                    os.fsync(file.fileno())
            yield Archive(folder, name, temporary, payloads)
    finally:
        if temporary is not None:
            temporary.unlink(missing_ok=True)


@dataclass(frozen=True, slots=True)
class Erasure:
    """By file: the number of payloads removed, or why it could not be changed."""

    removed: dict[str, int]
    failed: dict[str, str]


def erase_archived(folder: Path, subject_id: UUID) -> Erasure:
    """Remove a payer's payloads from the archives in *folder*.

    A file with payloads of the payer is replaced by one without them. A file that
    cannot be read or replaced is kept unchanged, and the others are changed.

    Raises:
        ArchiveError: another run uses the folder.
    """
    result = Erasure({}, {})
    with _locked(folder):
        for path in sorted(folder.glob(f"{PREFIX}*.csv.gz")):
            try:
                count = _rewrite(path, str(subject_id))
            except (OSError, EOFError, ValueError, csv.Error, zlib.error) as exc:
                result.failed[path.name] = str(exc)
            else:
                if count:
                    result.removed[path.name] = count
    return result


@contextmanager
def _locked(folder: Path) -> Iterator[None]:
    """Lock *folder* against other runs, and remove the copies of killed runs.

    Raises:
        ArchiveError: another run uses the folder, or it cannot be written.
    """
    handle = os.open(folder, os.O_RDONLY)
    try:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise ArchiveError(
                f"another run uses the archives in {folder}; wait for it"
            ) from None
        with _translated_errors(folder):
            for stale in folder.glob(f".{PREFIX}*"):
                stale.unlink(missing_ok=True)
        yield
    finally:
        os.close(handle)


def _rewrite(path: Path, subject_id: str) -> int:
    csv.field_size_limit(2**31 - 1)
    handle, created = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    temporary = Path(created)
    try:
        removed = 0
        with os.fdopen(handle, "wb") as file:
            with (
                gzip.open(path, "rt", encoding="utf-8", newline="") as source,
                gzip.open(file, "wt", 6, encoding="utf-8", newline="") as target,
            ):
                rows, kept = csv.reader(source), csv.writer(target, lineterminator="\n")
                header = next(rows, [])
                if header != _COLUMNS:
                    raise ValueError("not an archive of payloads")
                kept.writerow(header)
                for row in rows:
                    if len(row) != len(_COLUMNS):
                        raise ValueError(f"line {rows.line_num} is not a payload")
                    if row[0] == subject_id:
                        removed += 1
                    else:
                        kept.writerow(row)
            file.flush()
            os.fsync(file.fileno())
        if removed:
            temporary.replace(path)
            _sync_folder(path.parent)
        return removed
    finally:
        temporary.unlink(missing_ok=True)


@contextmanager
def _translated_errors(folder: Path) -> Iterator[None]:
    try:
        yield
    except OSError as exc:
        raise ArchiveError(f"cannot archive to {folder}: {exc.strerror}") from exc


def _copy(conn: psycopg.Connection[Any], file: gzip.GzipFile) -> int:
    with conn.cursor() as cursor:
        with cursor.copy(TOOL_QUERIES["copy_retired_payloads"].sql) as rows:
            for block in rows:
                file.write(block)
        return cursor.rowcount


def _link(temporary: Path, folder: Path, name: str) -> Path:
    """Link the finished file to the first free name; never overwrite."""
    for number in itertools.count(1):
        path = folder / (f"{name}.csv.gz" if number == 1 else f"{name}-{number}.csv.gz")
        try:
            os.link(temporary, path)
        except FileExistsError:
            continue
        return path
    raise AssertionError


def _sync_folder(folder: Path) -> None:
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)

"""Archives of retired payloads: gzipped CSV files, each whole or absent."""

import gzip
import itertools
import os
import tempfile
from pathlib import Path
from typing import Any

import psycopg

from pyapp.devtools.tool_queries import TOOL_QUERIES
from pyapp.errors import ArchiveError


def archive(conn: psycopg.Connection[Any], folder: Path, name: str) -> Path:
    """Write what was detached to *folder* as *name*.csv.gz; return the file.

    An archive that is already there stays, and the new one is numbered. Only the owner
    can read it: it holds what people said.

    Raises:
        ArchiveError: the folder or the file cannot be written; no file is left.
    """
    temporary: str | None = None
    try:
        folder.mkdir(parents=True, exist_ok=True)
        handle, temporary = tempfile.mkstemp(dir=folder, prefix=f".{name}.")
        with os.fdopen(handle, "wb") as file:
            with gzip.GzipFile(f"{name}.csv", "wb", 6, file) as packed:
                _copy(conn, packed)
            file.flush()
            os.fsync(file.fileno())
        path = _link(temporary, folder, name)
        _sync_folder(folder)
    except OSError as exc:
        raise ArchiveError(f"cannot archive to {folder}: {exc.strerror}") from exc
    finally:
        if temporary is not None:
            Path(temporary).unlink()
    return path


def _copy(conn: psycopg.Connection[Any], file: gzip.GzipFile) -> None:
    with (
        conn.cursor() as cursor,
        cursor.copy(TOOL_QUERIES["copy_retired_payloads"].sql) as rows,
    ):
        for block in rows:
            file.write(block)


def _link(temporary: str, folder: Path, name: str) -> Path:
    """Give the finished file its name, the first that is free; never overwrite."""
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

"""The files of migrations/: read by yoyo, checked against the rules of pyapp."""

import copy
import glob
import hashlib
import re
from dataclasses import dataclass, field, replace
from pathlib import Path, PurePath
from typing import Any

import yoyo

from pyapp._core.queries import migrations_dir
from pyapp.errors import MigrationError

_NAME = re.compile(r"\d{4}_[a-z0-9_]+")
_CREATE_SCHEMA = re.compile(r"^CREATE SCHEMA app;", re.MULTILINE)
_OUTSIDE = re.compile(
    r"^\s*--\s*transactional\s*:\s*false", re.IGNORECASE | re.MULTILINE
)
_INDEX_WORK = (
    re.compile(
        r"^(?P<verb>CREATE)\s+(?:UNIQUE\s+)?INDEX\s+CONCURRENTLY\s+(?P<name>\w+)"
        r"\s+ON\s+(?:ONLY\s+)?(?P<schema>\w+)\.",
        re.IGNORECASE | re.MULTILINE,
    ),
    re.compile(
        r"^(?P<verb>DROP)\s+INDEX\s+CONCURRENTLY\s+(?P<schema>\w+)\.(?P<name>\w+)",
        re.IGNORECASE | re.MULTILINE,
    ),
)


@dataclass(frozen=True, slots=True)
class IndexWork:
    """An index that a statement builds or drops outside a transaction."""

    is_build: bool
    schema: str
    name: str


@dataclass(frozen=True, slots=True)
class MigrationFile:
    """One migration and its rollback; `step` is what yoyo runs."""

    name: str
    path: Path
    text: str = field(repr=False)
    rollback_text: str = field(repr=False)
    step: Any = field(repr=False, compare=False)

    @property
    def checksum(self) -> str:
        """SHA-256 of its text."""
        return hashlib.sha256(self.text.encode()).hexdigest()

    @property
    def is_transactional(self) -> bool:
        """Whether it runs in one transaction together with its mark."""
        return not _OUTSIDE.search(self.text)

    @property
    def needs_roles(self) -> bool:
        """Whether its first comment says to run `pyapp db roles` after it."""
        return "pyapp db roles" in _first_comment(self.text)

    @property
    def loss(self) -> str:
        """The data that a rollback loses, from the first comment of its file."""
        return _first_comment(self.rollback_text)


def read_migrations(folder: Path | None = None) -> list[MigrationFile]:
    """Return the migrations of *folder*, else of pyapp, in order.

    Raises:
        MigrationError: there are none, or a file breaks a rule; the message names it.
    """
    folder = folder or migrations_dir()
    for hook in sorted(folder.glob("post-apply*")):
        # Plain yoyo runs it after each apply, but cannot mark it: after a killed run it
        # would be passed over.
        raise MigrationError(
            f"{hook} is not run by pyapp: move its statements to a numbered migration"
        )
    found = yoyo.read_migrations(source_of(folder))
    if not found:
        raise MigrationError(f"there are no migrations in {folder}")
    return [_read(step) for step in sorted(found, key=lambda step: str(step.id))]


def without_create_schema(file: MigrationFile) -> MigrationFile:
    """Return *file* for a database whose owner has created an empty schema app."""
    if not _CREATE_SCHEMA.search(file.text):
        return file
    step = copy.copy(file.step)
    step.load()
    step.steps = [
        part for part in step.steps if not _CREATE_SCHEMA.search(part.step._apply)
    ]
    return replace(file, step=step)


def source_of(folder: PurePath) -> str:
    """Return *folder* as the pattern that yoyo expects, with forward slashes."""
    return glob.escape(folder.as_posix())


def index_work(text: str) -> IndexWork | None:
    """Return the index that *text* builds or drops CONCURRENTLY, if any."""
    for pattern in _INDEX_WORK:
        if found := pattern.search(text):
            is_build = found["verb"].upper() == "CREATE"
            return IndexWork(is_build, found["schema"], found["name"])
    return None


def _first_comment(text: str) -> str:
    lines = []
    for line in text.splitlines():
        if not line.startswith("--"):
            break
        if not line.startswith("-- transactional:"):
            lines.append(line.removeprefix("--").strip())
    return " ".join(lines)


def _read(step: Any) -> MigrationFile:
    path = Path(step.path)
    if not _NAME.fullmatch(step.id) or path.suffix != ".sql":
        raise MigrationError(f"{path} is not named NNNN_verb_object.sql")
    rollback = path.with_suffix(".rollback.sql")
    if not rollback.is_file():
        # yoyo would remove the mark and leave the objects.
        raise MigrationError(f"{path} has no {rollback.name} next to it")
    text, rollback_text = _read_ascii(path), _read_ascii(rollback)
    file = MigrationFile(step.id, path, text, rollback_text, step)
    if not file.is_transactional:
        step.load()  # slow, so only where it is needed
        if sum(bool(part.step._apply) for part in step.steps) != 1:
            raise MigrationError(
                f"{path} runs outside a transaction: give each statement its own file"
            )
    return file


def _read_ascii(path: Path) -> str:
    text = path.read_text(encoding="utf-8", errors="replace")
    for number, line in enumerate(text.splitlines(), 1):
        if not line.isascii():
            # yoyo reads the file in the encoding of the locale.
            raise MigrationError(f"{path}:{number} is not ASCII")
    return text

"""Which migrations are applied, pending, renamed or out of order, and what to do."""

from collections.abc import Collection, Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import Literal, NamedTuple

from pyapp.devtools.migrations.files import MigrationFile
from pyapp.devtools.migrations.history import EARLIER_HISTORY, is_earlier
from pyapp.errors import MigrationError

State = Literal[
    "earlier", "edited", "unknown", "renamed", "out_of_order", "pending", "applied"
]
# What each state means and what to do, the most urgent first.
MEANINGS: dict[State, str] = {
    "earlier": "of an earlier history; run: pyapp db adopt",
    "edited": "its text has changed since it was applied; restore it, and write a new"
    " migration",
    "unknown": "applied without a file here; check out the version that has it",
    "renamed": "applied under an earlier name; run: pyapp db migrate",
    "out_of_order": "pending, and sorts before an applied one; run: pyapp db migrate",
    "pending": "pending; run: pyapp db migrate",
    "applied": "applied",
}


class MigrationStatus(NamedTuple):
    """One migration and its state; `applied_at` is in UTC, None if it is not applied.

    edited: applied with another text. unknown: applied, without a file here. renamed:
    applied with this text under `earlier_name`, which has no file any more.
    out_of_order: not applied, and a later one is. earlier: of the history before the
    squash.
    """

    name: str
    state: State
    applied_at: datetime | None = None
    earlier_name: str | None = None

    @property
    def is_applied(self) -> bool:
        """Whether the database has what the file of this name does."""
        return self.state in ("applied", "edited", "renamed")


def read_states(
    files: Sequence[MigrationFile],
    applied: Mapping[str, datetime],
    checksums: Mapping[str, str],
) -> list[MigrationStatus]:
    """Return the state of each of *files* and of each applied migration, by name.

    None is pending on a database of the earlier history, because none can be applied
    to it.
    """
    known = {file.name: file for file in files}
    has_earlier = is_earlier(applied)
    renamed = {} if has_earlier else find_renamed(files, applied, checksums)
    statuses = []
    for name, moment in applied.items():
        if has_earlier and name in EARLIER_HISTORY:
            statuses.append(MigrationStatus(name, "earlier", moment))
        elif name in renamed:
            statuses.append(MigrationStatus(renamed[name], "renamed", moment, name))
        else:
            state = _state(known.get(name), checksums.get(name))
            statuses.append(MigrationStatus(name, state, moment))
    if not has_earlier:
        names = [renamed.get(name, name) for name in applied]
        for name in known:
            if name not in names:
                is_late = any(name < other for other in names)
                statuses.append(
                    MigrationStatus(name, "out_of_order" if is_late else "pending")
                )
    return sorted(statuses, key=lambda status: status.name)


def find_renamed(
    files: Sequence[MigrationFile],
    applied: Collection[str],
    checksums: Mapping[str, str],
) -> dict[str, str]:
    """Return the new name of each applied migration whose file has been renamed.

    The text of the file is the one that was applied. A text that several migrations
    share proves nothing.
    """
    known = {file.name for file in files}
    missing = [name for name in applied if name not in known and name in checksums]
    renamed = {}
    for name in missing:
        same = [file.name for file in files if file.checksum == checksums[name]]
        twins = [other for other in missing if checksums[other] == checksums[name]]
        if len(same) == len(twins) == 1 and same[0] not in applied:
            renamed[name] = same[0]
    return renamed


def refuse_out_of_order(
    files: Sequence[MigrationFile], applied: Collection[str]
) -> None:
    """Refuse to apply a file that sorts before an applied migration.

    *applied* is in the order in which they were applied.

    Raises:
        MigrationError: there is one; the message names the ways out.
    """
    names = list(applied)
    last = max(names, default="")
    late = [file for file in files if file.name < last and file.name not in names]
    if not late:
        return
    first = late[0]
    more = f" and {len(late) - 1} more" if late[1:] else ""
    since = names[next(i for i, name in enumerate(names) if name > first.name) :]
    is_unknown = not {file.name for file in files}.issuperset(since)
    version = " in the version that has it" if is_unknown else ""
    ways = (
        "pyapp db migrate --out-of-order, or on your own database first pyapp db"
        f" rollback -n {len(since)}{version}"
    )
    if is_in_checkout(first.path):
        # The longest part comes last, because long messages are cut.
        command = renumber_command(first, max(last, files[-1].name))
        ways = f"if it is merged, {ways}; if not, renumber it: {command}"
    raise MigrationError(
        f"{first.name}{more} is pending and sorts before {last}, which is applied;"
        f" nothing was applied: {ways}"
    )


def renumber_command(file: MigrationFile, last: str) -> str:
    """Return the command that gives *file* the number after that of *last*."""
    folder = _shown(file.path.parent)
    new = f"{int(last[:4]) + 1:04}{file.name[4:]}"
    return " && ".join(
        f"git mv {folder / file.name}{suffix} {folder / new}{suffix}"
        for suffix in (".sql", ".rollback.sql")
    )


def is_in_checkout(path: Path) -> bool:
    """Tell whether *path* is in a git checkout, and not in an installed package."""
    if "site-packages" in path.parts:
        return False
    return any((parent / ".git").exists() for parent in path.absolute().parents)


def rollback_order(
    files: Sequence[MigrationFile],
    applied: Collection[str],
    checksums: Mapping[str, str],
    count: int | None,
) -> list[MigrationFile]:
    """Return the last *count* of *applied*, the last first; all for None.

    *applied* is in the order in which they were applied, so none of those that remain
    depends on one that is rolled back.

    Raises:
        MigrationError: one of them has no file here.
    """
    known = {file.name: file for file in files}
    renamed = find_renamed(files, applied, checksums)
    names = list(reversed(list(applied)))[:count]
    for name in names:
        if name in renamed:
            raise MigrationError(
                f"{name} is applied and its file is now {renamed[name]}; first run:"
                " pyapp db migrate"
            )
        if name not in known:
            raise MigrationError(
                f"{name} is applied and has no file here: check out the version that"
                " has it, and roll that back first"
            )
    return [known[name] for name in names]


def _state(file: MigrationFile | None, checksum: str | None) -> State:
    if file is None:
        return "unknown"
    return "applied" if checksum in (file.checksum, None) else "edited"


def _shown(folder: Path) -> Path:
    """Return *folder* from the current folder, if it is below it."""
    folder = folder.absolute()
    here = Path.cwd()
    return folder.relative_to(here) if folder.is_relative_to(here) else folder

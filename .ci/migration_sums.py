"""Compare migrations/ with SHA256SUMS: a listed file never changes.

Each migration has a number of its own, and a new one has the highest. `--add` lists new
files, and follows a listed file that was given a higher number. The line of a file is
never replaced, so a changed line in a commit shows that a merged migration has changed.
"""

import hashlib
import re
import sys
from collections.abc import Collection
from itertools import groupby
from pathlib import Path

FOLDER = Path("migrations")
SUMS = FOLDER / "SHA256SUMS"
LINE = re.compile(r"(?P<text>[0-9a-f]{64})  (?P<name>\S+)")
MARKERS = ("<<<<<<< ", "||||||| ", "=======", ">>>>>>> ")


def checksum(path: Path) -> str:
    """Return the SHA-256 of the text of *path*, equal on each system."""
    return hashlib.sha256(path.read_text(encoding="utf-8").encode()).hexdigest()


def read_sums() -> tuple[dict[str, str], list[str]]:
    """Return the checksum of each listed file, and the lines that are none.

    Two branches that add migrations conflict at the end of the list; the lines of both
    are kept. If they contradict each other, the second line of a file is returned.
    """
    lines = SUMS.read_text(encoding="utf-8").splitlines() if SUMS.exists() else []
    sums: dict[str, str] = {}
    others = []
    for line in lines:
        found = LINE.fullmatch(line)
        if found and sums.setdefault(found["name"], found["text"]) == found["text"]:
            continue
        others.append(line)
    return sums, others


def find_renumbered(listed: dict[str, str], found: dict[str, str]) -> dict[str, str]:
    """Return the new name of each listed file that has been given a higher number."""
    renumbered = {}
    for old, text in listed.items():
        names = [
            name
            for name in found.keys() - listed.keys()
            if found[name] == text and name[4:] == old[4:] and name > old
        ]
        if old not in found and len(names) == 1:
            renumbered[old] = names[0]
    return renumbered


def number_errors(listed: Collection[str], found: Collection[str]) -> list[str]:
    """Return what to do about new migrations that do not have the highest number."""
    migrations = sorted({name.split(".")[0] for name in found})
    old = {name.split(".")[0] for name in listed if name in found}
    last = max(old, default="")
    following = int(max(migrations, default="0000")[:4]) + 1
    errors = []
    for number, names in groupby(migrations, key=lambda name: name[:4]):
        group = list(names)
        new = [name for name in group if name not in old]
        if group[1:]:
            reason = f"{' and '.join(group)} have the number {number}"
            # If all are new or all are listed, git knows which of them is merged.
            movable = new if len(new) == 1 else group
        elif new and new[0] < last:
            reason = f"{new[0]} is new, and sorts before {last}"
            movable = new
        else:
            continue
        errors.append(f"{FOLDER}: {reason}; renumber the one that is not merged:")
        errors += [f"    {renumber_command(name, following)}" for name in movable]
    return errors


def renumber_command(name: str, number: int) -> str:
    """Return the command that gives the migration *name* this number."""
    moves = (
        f"git mv {FOLDER / name}{suffix} {FOLDER}/{number:04}{name[4:]}{suffix}"
        for suffix in (".sql", ".rollback.sql")
    )
    return " && ".join([*moves, "make freeze"])


def main() -> int:
    """Print which files have changed, are missing or not listed; 1 if any."""
    listed, others = read_sums()
    found = {path.name: checksum(path) for path in sorted(FOLDER.glob("*.sql"))}
    renumbered = find_renumbered(listed, found)
    errors = number_errors(listed, found)
    errors += [
        f"{SUMS}: {line!r} is not a checksum and a name, or contradicts another line"
        for line in others
        if not line.startswith(MARKERS)
    ]
    if others and "--add" not in sys.argv:
        errors.append(f"{SUMS} has lines of a merge: make freeze keeps those of both")
    if "--add" in sys.argv and not errors:
        add(listed, found, renumbered)
        return 0
    for line in errors:
        print(line)
    if "--add" in sys.argv:
        print(f"{SUMS}: nothing added")
        return 1
    new = [name for name in found if name not in listed]
    for name in new:
        print(f"{FOLDER / name} is not in {SUMS.name}; when it is final: make freeze")
    changed = [name for name in listed if found.get(name) != listed[name]]
    for name in changed:
        if name not in renumbered:
            print(
                f"{FOLDER / name} has changed since it was merged: restore it, and"
                " write a new migration (not merged yet? Remove its line from"
                f" {SUMS})"
            )
    return 1 if errors or new or changed else 0


def add(
    listed: dict[str, str], found: dict[str, str], renumbered: dict[str, str]
) -> None:
    """List the new files, and the renumbered ones under their new names."""
    new = [name for name in found if name not in listed]
    listed = {name: text for name, text in listed.items() if name not in renumbered}
    listed |= {name: found[name] for name in new}
    lines = (f"{listed[name]}  {name}\n" for name in sorted(listed))
    SUMS.write_text("".join(lines), encoding="utf-8", newline="\n")
    print(f"{SUMS}: {', '.join(new) or 'nothing'} added")
    for old, name in renumbered.items():
        print(f"{SUMS}: {old} is now {name}")


if __name__ == "__main__":
    sys.exit(main())

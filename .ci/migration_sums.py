"""Compare migrations/ with SHA256SUMS: a listed file never changes.

`--add` lists new files. A line is never replaced, so a changed line in a commit shows
that a merged migration has changed.
"""

import hashlib
import sys
from pathlib import Path

FOLDER = Path("migrations")
SUMS = FOLDER / "SHA256SUMS"


def checksum(path: Path) -> str:
    """Return the SHA-256 of the text of *path*, equal on each system."""
    return hashlib.sha256(path.read_text(encoding="utf-8").encode()).hexdigest()


def read_sums() -> dict[str, str]:
    """Return the checksum of each listed file."""
    lines = SUMS.read_text(encoding="utf-8").splitlines() if SUMS.exists() else []
    return {name: checksum for checksum, name in (line.split() for line in lines)}


def main() -> int:
    """Print which files have changed, are missing or not listed; 1 if any."""
    listed = read_sums()
    found = {path.name: checksum(path) for path in sorted(FOLDER.glob("*.sql"))}
    new = [name for name in found if name not in listed]
    if "--add" in sys.argv:
        listed |= {name: found[name] for name in new}
        lines = (f"{listed[name]}  {name}\n" for name in sorted(listed))
        SUMS.write_text("".join(lines), encoding="utf-8", newline="\n")
        print(f"{SUMS}: {', '.join(new) or 'nothing'} added")
        return 0
    for name in new:
        print(f"{FOLDER / name} is not in {SUMS.name}; when it is final: make freeze")
    changed = [name for name in listed if found.get(name) != listed[name]]
    for name in changed:
        print(
            f"{FOLDER / name} has changed since it was merged: restore it, and write a"
            f" new migration (not merged yet? Remove its line from {SUMS})"
        )
    return 1 if new or changed else 0


if __name__ == "__main__":
    sys.exit(main())

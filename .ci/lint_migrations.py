"""Run squawk over the migrations, with the rules for how yoyo runs each file."""

import subprocess
import sys
import tomllib
from pathlib import Path

SQUAWK = str(Path(sys.executable).with_name("squawk"))
# A rollback drops what its migration created, at a quiet time.
DROPPED = ("table", "column", "constraint", "function", "not-null", "schema", "view")
ROLLBACK = [f"ban-drop-{kind}" for kind in DROPPED] + [
    "adding-foreign-key-constraint",
    "adding-serial-primary-key-field",
    "constraint-missing-not-valid",
    "disallowed-unique-constraint",
    "renaming-object",
    "require-concurrent-index-creation",
    "require-concurrent-index-deletion",
]
# A file outside a transaction has one statement, so it cannot SET lock_timeout.
OUTSIDE = ["require-lock-timeout"]


def squawk(paths: list[Path], *options: str) -> int:
    """Lint *paths*; print the output of squawk only if it fails."""
    if not paths:
        return 0
    run = subprocess.run(
        [SQUAWK, *options, *map(str, paths)], capture_output=True, text=True
    )
    if run.returncode:
        print(run.stdout, run.stderr, sep="", end="")
    return run.returncode


def main() -> int:
    """Lint every file of migrations/; 1 if any fails."""
    config = tomllib.loads(Path(".squawk.toml").read_text(encoding="utf-8"))
    excluded = config["excluded_rules"]
    groups: dict[tuple[bool, bool], list[Path]] = {}
    for path in sorted(Path("migrations").glob("*.sql")):
        text = path.read_text(encoding="utf-8")
        key = ("-- transactional: false" in text, path.name.endswith(".rollback.sql"))
        groups.setdefault(key, []).append(path)
    failed = 0
    for (outside, rollback), paths in groups.items():
        extra = (OUTSIDE if outside else []) + (ROLLBACK if rollback else [])
        # The option replaces the configured list instead of adding to it.
        options = [f"--exclude={','.join([*excluded, *extra])}"]
        if outside:
            options.append("--no-assume-in-transaction")
        failed |= squawk(paths, *options)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())

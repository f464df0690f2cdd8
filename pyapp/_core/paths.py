"""Where the SQL lies: beside the package in a checkout, inside it in a wheel."""

from pathlib import Path

_PACKAGE = Path(__file__).resolve().parents[1]


def sql_dir() -> Path:
    """Return the folder of schema.sql and queries/."""
    return _folder("_sql", "sql")


def migrations_dir() -> Path:
    """Return the folder of the yoyo migrations."""
    return _folder("_migrations", "migrations")


def _folder(packaged: str, checkout: str) -> Path:
    inside = _PACKAGE / packaged
    return inside if inside.is_dir() else _PACKAGE.parent / checkout

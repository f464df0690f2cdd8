"""Where the SQL lies: beside the package in a checkout, inside it in a wheel."""

from pathlib import Path

_PACKAGE = Path(__file__).resolve().parents[1]


def sql_dir() -> Path:
    """Return the folder of schema.sql, functions/ and queries/."""
    return _folder("_sql", "sql")


def schema_files(folder: Path | None = None) -> list[Path]:
    """Return the files that build the schema, in order: schema.sql, then functions."""
    folder = folder or sql_dir()
    return [folder / "schema.sql", *sorted((folder / "functions").glob("*.sql"))]


def schema_text(folder: Path | None = None) -> str:
    """Return the SQL of all `schema_files`."""
    return "\n".join(path.read_text(encoding="utf-8") for path in schema_files(folder))


def migrations_dir() -> Path:
    """Return the folder of the yoyo migrations."""
    return _folder("_migrations", "migrations")


def _folder(packaged: str, checkout: str) -> Path:
    inside = _PACKAGE / packaged
    return inside if inside.is_dir() else _PACKAGE.parent / checkout

"""What schema.sql says to its reader and the catalog does not keep."""

import re
from dataclasses import dataclass

_INDEX = re.compile(
    r"(?P<comment>(?:^--.*\n)*)^CREATE (?:UNIQUE )?INDEX (?P<name>\w+)", re.MULTILINE
)
_TABLE = re.compile(r"^CREATE (?:OR REPLACE )?(?:TABLE|VIEW) app\.(\w+)", re.MULTILINE)
_SERVED = re.compile(r"For (\w+_\w+(?:(?:, | and |, and )\w+_\w+)*)")


@dataclass(frozen=True, slots=True)
class IndexNote:
    """Why an index is there: the queries and constraints it serves, and the comment.

    `says_more` tells whether the comment does more than name them.
    """

    serves: tuple[str, ...]
    comment: str
    says_more: bool = True


def read_index_notes(schema: str) -> dict[str, IndexNote]:
    """Return the note above each CREATE INDEX: `-- For <query or constraint> ...`."""
    notes = {}
    for match in _INDEX.finditer(schema):
        lines = match["comment"].splitlines()
        comment = " ".join(line.removeprefix("--").strip() for line in lines)
        served = _SERVED.match(comment)
        names = re.findall(r"\w+_\w+", served[1]) if served else []
        says_more = served is None or comment[served.end() :] != "."
        notes[match["name"]] = IndexNote(tuple(names), comment, says_more)
    return notes


def read_table_order(schema: str) -> list[str]:
    """Return the names of tables and views as the reader meets them."""
    return _TABLE.findall(schema)

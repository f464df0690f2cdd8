"""The statements of schema.sql and the migrations as people wrote them.

A drafted migration takes its text from here, with the comments beside it, so that
schema.sql and the migration read the same.
"""

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field

_TOKEN = re.compile(
    r"""
    (?P<comment> --[^\n]* | /\*.*?\*/ )
  | (?P<string>  '(?:[^']|'')*' | "(?:[^"]|"")*"
               | (?P<tag>\$(?:[A-Za-z_]\w*)?\$).*?(?P=tag) )
  | (?P<open>    [(\[] )
  | (?P<close>   [)\]] )
  | (?P<comma>   , )
  | (?P<end>     ; )
    """,
    re.VERBOSE | re.DOTALL,
)
_CREATED = re.compile(
    r"CREATE (?:OR REPLACE )?(?:UNIQUE )?(?P<kind>TABLE|INDEX|FUNCTION|TRIGGER|VIEW)"
    r"(?: CONCURRENTLY)? (?:app\.)?(?P<name>\w+)"
)
_ON_TABLE = re.compile(r"\bON (?:ONLY )?app\.(?P<table>\w+)")
_ALTERED = re.compile(r"ALTER TABLE (?:ONLY )?app\.(?P<table>\w+)\s+")
_ADDED = re.compile(r"ADD (?:COLUMN )?(?P<item>.+)", re.DOTALL)
# What follows a semicolon on its line belongs to it, not to the next statement.
_REST = re.compile(r"(?P<comment> *--[^\n]*)?[ \t]*(?:\n|$)")
_NOT_VALID = re.compile(r"\s+NOT VALID$")


@dataclass(frozen=True, slots=True)
class Source:
    """A statement without its semicolon, and the comments right above and beside it."""

    text: str
    comment: str = ""
    trailing: str = ""

    def render(self) -> str:
        """Return it as a file holds it."""
        return f"{self.comment}{self.text};{self.trailing}"


@dataclass(slots=True)
class Sources:
    """The newest text of each object, and all statements about each table in order."""

    objects: dict[tuple[str, str], Source] = field(default_factory=dict)
    comments: dict[str, Source] = field(default_factory=dict)
    columns: dict[tuple[str, str], str] = field(default_factory=dict)
    constraints: dict[tuple[str, str], str] = field(default_factory=dict)
    tables: dict[str, list[Source]] = field(default_factory=dict)


def read_sources(texts: Iterable[str]) -> Sources:
    """Return what *texts* say of each object; a later text replaces an earlier one."""
    sources = Sources()
    for text in texts:
        for source in split_statements(text):
            _file(sources, source)
    return sources


def split_statements(text: str) -> Iterator[Source]:
    """Yield the statements of *text*, each with the comment that touches it."""
    start = 0
    for token in _TOKEN.finditer(text):
        if token.lastgroup != "end":
            continue
        rest = _REST.match(text, token.end())
        trailing = rest["comment"] or "" if rest else ""
        yield _with_comment(text[start : token.start()], trailing)
        start = rest.end() if rest else token.end()


def comment_key(statement: str) -> str:
    """Return what a COMMENT statement is on, the same however it is spelled."""
    target = re.split(r"\sIS\s", statement, maxsplit=1)[0].partition("(")[0]
    return " ".join(target.replace('"', "").split())


def split_items(text: str) -> list[str]:
    """Return the parts of *text* between its outermost commas."""
    items, depth, start = [], 0, 0
    for token in _TOKEN.finditer(text):
        if token.lastgroup == "open":
            depth += 1
        elif token.lastgroup == "close":
            depth -= 1
        elif token.lastgroup == "comma" and depth == 0:
            items.append(text[start : token.start()].strip())
            start = token.end()
    return [*items, text[start:].strip()]


def _with_comment(chunk: str, trailing: str) -> Source:
    lines = chunk.strip().splitlines()
    first = next(
        (n for n, line in enumerate(lines) if line and not line.startswith("--")), 0
    )
    above = first
    while above and lines[above - 1].startswith("--"):
        above -= 1
    if above and lines[above - 1]:
        above = first
    comment = "".join(f"{line}\n" for line in lines[above:first])
    return Source("\n".join(lines[first:]).strip(), comment, trailing)


def _file(sources: Sources, source: Source) -> None:
    text = source.text
    if text.startswith("COMMENT ON"):
        key = comment_key(text)
        sources.comments[key] = source
        _file_by_table(sources, _commented_table(sources, key), source)
    elif altered := _ALTERED.match(text):
        _read_items(sources, altered["table"], text[altered.end() :])
        _file_by_table(sources, altered["table"], source)
    elif created := _CREATED.match(text):
        kind, name = created["kind"].lower(), created["name"]
        table = name if kind == "table" else ""
        if kind in ("index", "trigger"):
            found = _ON_TABLE.search(text)
            table = found["table"] if found else ""
        if kind == "trigger":
            name = f"{table}.{name}"
        sources.objects[kind, name] = source
        if kind == "table":
            sources.tables[name] = []
            if "PARTITION OF" not in text:
                _read_items(sources, name, _body(text))
        if kind in ("table", "index"):
            _file_by_table(sources, table, source)


def _file_by_table(sources: Sources, table: str, source: Source) -> None:
    if table in sources.tables:
        sources.tables[table].append(source)


def _commented_table(sources: Sources, key: str) -> str:
    """Return the table that a COMMENT is about, if it is about one."""
    _, _, kind, *names = key.split()
    name = names[-1].removeprefix("app.")
    if kind == "INDEX" and ("index", name) in sources.objects:
        found = _ON_TABLE.search(sources.objects["index", name].text)
        return found["table"] if found else ""
    return name.partition(".")[0] if kind in ("TABLE", "COLUMN", "CONSTRAINT") else ""


def _body(create_table: str) -> str:
    """Return what stands between the outermost parentheses."""
    depth, start = 0, create_table.index("(")
    for token in _TOKEN.finditer(create_table):
        depth += {"open": 1, "close": -1}.get(token.lastgroup or "", 0)
        if token.lastgroup == "close" and depth == 0:
            return create_table[start + 1 : token.start()]
    return ""


def _read_items(sources: Sources, table: str, text: str) -> None:
    for item in split_items(text):
        added = _ADDED.match(item)
        definition = _dedent(added["item"] if added else item)
        words = definition.split(maxsplit=2)
        if words[:1] == ["CONSTRAINT"]:
            sources.constraints[table, words[1]] = _NOT_VALID.sub("", definition)
        elif len(words) > 1 and words[0].islower():
            name, rest = definition.split(maxsplit=1)
            sources.columns[table, name] = f"{name} {rest}"


def _dedent(text: str) -> str:
    """Move what follows the first line to the left, its own shape kept."""
    first, *others = text.splitlines()
    depth = min((len(o) - len(o.lstrip()) for o in others if o.strip()), default=0)
    return "\n".join([first, *(other[depth:] for other in others)])

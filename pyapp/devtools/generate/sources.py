"""The statements of the SQL files and migrations, by the objects they define.

A drafted migration takes its text from here, comments included, so that it reads like
the SQL files. PostgreSQL's own parser (pglast) splits and classifies the statements.
"""

import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from pyapp.errors import GenerateError, MissingExtraError

# A comment that follows a semicolon on its line belongs to that statement.
_TRAILING = re.compile(r";(?P<comment> *--[^\n]*)?")


@dataclass(frozen=True, slots=True)
class Statement:
    """A statement without its semicolon, and the comments above and after it."""

    text: str
    comment: str = ""
    trailing: str = ""

    def render(self) -> str:
        """Return the statement as it stands in its file."""
        return f"{self.comment}{self.text};{self.trailing}"


Key = tuple[str, ...]


@dataclass(slots=True)
class Sources:
    """The newest text of each object.

    `tables` has all statements about a table in order. `routines` has those about a
    function or view by its name: its definition, comments and privileges.
    """

    objects: dict[Key, Statement] = field(default_factory=dict)
    columns: dict[Key, str] = field(default_factory=dict)
    constraints: dict[Key, str] = field(default_factory=dict)
    tables: dict[str, list[Statement]] = field(default_factory=dict)
    routines: dict[str, dict[Key, Statement]] = field(default_factory=dict)

    def completed_by(self, other: "Sources") -> "Sources":
        """Return these objects, followed by those that only *other* has."""
        return Sources(
            self.objects | other.objects | self.objects,
            self.columns | other.columns | self.columns,
            self.constraints | other.constraints | self.constraints,
            self.tables | other.tables | self.tables,
            self.routines | other.routines | self.routines,
        )


def read_sources(texts: Mapping[str, str]) -> Sources:
    """Return the objects that *texts* define; a later text replaces an earlier one.

    The keys of *texts* are the names of the files, for messages.
    """
    sources = Sources()
    for name, text in texts.items():
        for raw, statement in split_statements(text, name):
            _add(sources, raw, statement)
    return sources


def split_statements(text: str, name: str) -> Iterator[tuple[Any, Statement]]:
    """Yield the parsed form and the text of each statement of *text*."""
    end = 0
    for raw in parse(text, name):
        start = raw.stmt_location
        stop = start + raw.stmt_len if raw.stmt_len else len(text)
        trailing = _TRAILING.match(text, stop)
        after = trailing["comment"] if trailing else None
        comment = _comment_above(text[end:start])
        yield raw, Statement(text[start:stop].rstrip(), comment, after or "")
        end = trailing.end() if trailing else stop


def parse(text: str, name: str) -> tuple[Any, ...]:
    """Return the parsed statements of *text*, which is in the file *name*.

    Raises:
        MissingExtraError: the `generate` extra is not installed.
        GenerateError: *text* is not valid SQL.
    """
    try:
        from pglast import parse_sql
        from pglast.parser import ParseError
    except ModuleNotFoundError as exc:
        raise MissingExtraError("generate") from exc
    try:
        statements: tuple[Any, ...] = parse_sql(text)
    except ParseError as exc:
        message, index = exc.args
        line = text.count("\n", 0, index) + 1
        raise GenerateError(f"{name}:{line} cannot be read: {message}") from exc
    return statements


def comment_key(node: Any) -> Key:
    """Return the object of a COMMENT statement, the same for each way to write it."""
    if hasattr(node.object, "objname"):
        return ("FUNCTION", node.object.objname[-1].sval, *_types(node.object.objargs))
    kind = node.objtype.name.removeprefix("OBJECT_")
    if isinstance(node.object, tuple):  # the schema's name comes first
        return (kind, *(name.sval for name in node.object[1:]))
    return kind, node.object.sval


def _comment_above(text: str) -> str:
    """Return the comment lines at the end of *text*, up to the first empty line."""
    lines = text.rstrip(" ").splitlines()
    first = len(lines)
    while first and lines[first - 1].startswith("--"):
        first -= 1
    return "".join(f"{line}\n" for line in lines[first:])


def _add(sources: Sources, raw: Any, statement: Statement) -> None:
    """File *statement* under the object that it defines."""
    node, start = raw.stmt, raw.stmt_location
    match type(node).__name__:
        case "CreateStmt":
            table = node.relation.relname
            sources.tables[table] = [statement]
            _add_parts(sources, table, node.tableElts or (), statement.text, start)
        case "AlterTableStmt":
            table = node.relation.relname
            sources.tables.setdefault(table, []).append(statement)
            parts = [command.def_ for command in node.cmds if command.def_]
            _add_parts(sources, table, parts, statement.text, start)
        case "IndexStmt":
            sources.objects["INDEX", node.idxname] = statement
            sources.tables.setdefault(node.relation.relname, []).append(statement)
        case "CreateTrigStmt":
            table = node.relation.relname
            sources.objects["TRIGGER", table, node.trigname] = statement
        case "CreateFunctionStmt" | "ViewStmt":
            name, types = _signature(node)
            group = sources.routines.setdefault(name, {})
            for key in [key for key in group if key[1:] == types]:
                del group[key]
            group["CREATE", *types] = statement
        case "CommentStmt":
            _add_comment(sources, comment_key(node), statement)
        case "GrantStmt":
            for target in node.objects:
                names = getattr(target, "objname", ())
                name = names[-1].sval if names else getattr(target, "relname", "")
                if name in sources.routines:
                    sources.routines[name]["GRANT", statement.text] = statement
        case "DropStmt":
            for target in node.objects:
                names = getattr(target, "objname", target)
                name = getattr(names[-1], "sval", "")
                if node.removeType.name == "OBJECT_INDEX":
                    _move_index(sources, name, None)
                else:
                    sources.routines.pop(name, None)
        case "RenameStmt":
            _rename(sources, node, statement)


def _add_comment(sources: Sources, key: Key, statement: Statement) -> None:
    kind, name = key[:2]
    sources.objects["COMMENT", *key] = statement
    if kind == "INDEX" and ("INDEX", name) in sources.objects:
        index = sources.objects["INDEX", name]
        for statements in sources.tables.values():
            if index in statements:
                statements.append(statement)
    elif kind in ("TABLE", "COLUMN", "TABCONSTRAINT") and name in sources.tables:
        sources.tables[name].append(statement)
    elif name in sources.routines:
        group = sources.routines[name]
        group.pop(("COMMENT", *key), None)
        group["COMMENT", *key] = statement


def _rename(sources: Sources, node: Any, statement: Statement) -> None:
    """File an index, a column or a constraint under its new name."""
    kind, new = node.renameType.name, node.newname
    if kind == "OBJECT_INDEX":
        _move_index(sources, node.relation.relname, new)
    elif kind in ("OBJECT_COLUMN", "OBJECT_TABCONSTRAINT"):
        table, old = node.relation.relname, node.subname
        sources.tables.setdefault(table, []).append(statement)
        parts = sources.columns if kind == "OBJECT_COLUMN" else sources.constraints
        text = parts.pop((table, old), None)
        parts.pop((table, new), None)
        if text is not None:
            parts[table, new] = _with_name(text, old, new)


def _move_index(sources: Sources, old: str, new: str | None) -> None:
    """Give the index another name, or remove it if *new* is None."""
    index = sources.objects.pop(("INDEX", old), None)
    comment = sources.objects.pop(("COMMENT", "INDEX", old), None)
    if index is None:
        return
    moved = []
    if new is not None:
        moved = [replace(index, text=_with_name(index.text, old, new))]
        sources.objects["INDEX", new] = moved[0]
    for statements in sources.tables.values():
        if index in statements:
            n = statements.index(index)
            statements[n : n + 1] = moved
            statements[:] = [s for s in statements if s != comment]


def _with_name(text: str, old: str, new: str) -> str:
    return re.sub(rf"\b{old}\b", new, text, count=1)


def _add_parts(
    sources: Sources, table: str, parts: Iterable[Any], text: str, start: int
) -> None:
    """File the columns and constraints of a CREATE or ALTER TABLE."""
    for part in parts:
        kind = type(part).__name__
        if kind == "ColumnDef":
            name, rest = _part_at(text, part.location - start).split(maxsplit=1)
            sources.columns[table, name] = f"{name} {rest}"
        elif kind == "Constraint" and part.conname:
            constraint = _part_at(text, part.location - start)
            sources.constraints[table, part.conname] = constraint
            if part.indexname:  # what it consists of is in the dump
                del sources.constraints[table, part.conname]


def _part_at(text: str, start: int) -> str:
    """Return the column or constraint that begins at *start*, its lines dedented."""
    from pglast.parser import scan

    depth, end = 0, len(text)
    for token in scan(text[start:]):
        sign = text[start + token.start]
        depth += {"(": 1, ")": -1}.get(sign, 0)
        if depth < 0 or (depth == 0 and sign == ","):
            end = start + token.start
            break
    first, *others = text[start:end].rstrip().splitlines()
    indent = min((len(o) - len(o.lstrip()) for o in others if o.strip()), default=0)
    return "\n".join([first, *(other[indent:] for other in others)])


def _signature(node: Any) -> tuple[str, Key]:
    """Return the name and the input types of a function, or the name of a view."""
    if hasattr(node, "view"):
        return node.view.relname, ()
    inputs = [p.argType for p in node.parameters or () if p.mode.value in "divb"]
    return node.funcname[-1].sval, _types(inputs)


def _types(types: Iterable[Any] | None) -> Key:
    return tuple(
        type_.names[-1].sval + "[]" * len(type_.arrayBounds or ())
        for type_ in types or ()
    )

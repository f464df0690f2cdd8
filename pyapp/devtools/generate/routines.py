"""The steps for changed functions and views, with the text of their files."""

import re
from collections.abc import Collection, Iterator, Mapping
from dataclasses import replace

from pyapp.devtools.checks.dumps import Objects
from pyapp.devtools.generate.steps import (
    LOST_GRANTS,
    Side,
    Step,
    drop,
    is_wide,
    remove_comment,
)

_ROUTINE = re.compile(r"(?P<kind>FUNCTION|PROCEDURE|VIEW) app\.(?P<name>\w+)")
_COMMENT = re.compile(r"COMMENT app\.(?P<kind>\w+) (?P<name>\w+)")
_NAMED = re.compile(
    r"(?:FUNCTION|PROCEDURE|VIEW|COLUMN|REVOKE) (?:app\.)?(?P<name>\w+)"
)
_NAME = re.compile(r"\bapp\.(\w+)")
_QUOTED_BODY = re.compile(r"^    AS [$']", re.MULTILINE)
_REVOKED = re.compile(r"REVOKE (?P<function>app\.(?P<name>\w+)\(.*)")
_HEADER = re.compile(r"CREATE FUNCTION (.*?)\n? *LANGUAGE ", re.DOTALL)


def draft_routines(
    old: Side, new: Side, *, is_recreating_views: bool = False
) -> list[Step]:
    """Return the steps that lead from the functions and views of *old* to *new*.

    CREATE OR REPLACE cannot change a function's result or the names of its arguments,
    nor remove a view's columns: those are dropped first, after the functions and views
    that depend on them.
    """
    before, after = old.objects, new.objects
    dropped = _dropped(before, after, is_recreating_views=is_recreating_views)
    drops = [
        Step(drop(title), note=LOST_GRANTS if title in after else "")
        for title in dropped
    ]
    changed: dict[str, bool] = {}
    for title in after:
        if before.get(title) == after[title] and title not in dropped:
            continue
        if found := _ROUTINE.match(title):
            changed[found["name"]] = True
        elif name := commented_routine(title, after):
            changed.setdefault(name, False)
    defined = [
        step
        for name in new.sources.routines
        if name in changed
        for step in _define(new, name, changed[name])
    ]
    return [
        *drops,
        *defined,
        *_remove_comments(before, after, dropped),
        *_change_privileges(before, after, changed),
    ]


def changed_routines(before: Objects, after: Objects) -> set[str]:
    """Return the names of the functions and views that are not on both sides equal."""
    return {
        found["name"]
        for title in before | after
        if before.get(title) != after.get(title) and (found := _ROUTINE.match(title))
    }


def with_routines(side: Side, other: Side) -> Side:
    """Return *side* with the functions that only *other* has, by their names."""
    names = {found["name"] for t in side.objects if (found := _ROUTINE.match(t))}
    added = {
        title: text
        for title, text in other.objects.items()
        if is_of_routine(title, other.objects)
        and (found := _NAMED.search(title))
        and found["name"] not in names
    }
    objects = {**side.objects, **added}
    sources = side.sources.completed_by(other.sources)
    return Side(objects, sources, side.dumped)


def is_of_routine(title: str, *sides: Objects) -> bool:
    """Tell whether the object *title* is in the migration of functions and views."""
    return title.startswith(("FUNCTION ", "PROCEDURE ", "REVOKE ", "VIEW ")) or any(
        commented_routine(title, objects) for objects in sides
    )


def _dropped(
    before: Objects, after: Objects, *, is_recreating_views: bool
) -> list[str]:
    """Return the functions and views to drop; a dump lists them before their users."""
    dropped: dict[str, str] = {}
    for title in before:
        found = _ROUTINE.match(title)
        if found and _is_dropped(before[title], after.get(title), is_recreating_views):
            dropped[title] = found["name"]
    while users := {
        title: found["name"]
        for title in before
        if title not in dropped
        and (found := _ROUTINE.match(title))
        and _depends_on(before[title], set(dropped.values()) - {found["name"]})
    }:
        dropped |= users
    return [title for title in reversed(before) if title in dropped]


def _is_dropped(before: str, after: str | None, is_recreating_views: bool) -> bool:
    if before == after:
        return False
    if after is not None and after.startswith("CREATE VIEW"):
        return is_recreating_views
    return after is None or _header(before) != _header(after)


def _depends_on(definition: str, names: Collection[str]) -> bool:
    """Tell whether PostgreSQL keeps the objects *names* while *definition* exists.

    The text of a body in quotes is only read when it runs.
    """
    parsed = _QUOTED_BODY.split(definition, maxsplit=1)[0]
    return not set(_NAME.findall(parsed)).isdisjoint(names)


def _remove_comments(
    before: Objects, after: Objects, dropped: Collection[str]
) -> Iterator[Step]:
    """Yield what removes the comments that only the functions before have."""
    gone = {found["name"] for title in dropped if (found := _ROUTINE.match(title))}
    kept = {found["name"] for title in after if (found := _ROUTINE.match(title))} - gone
    for title in before:
        if title not in after and commented_routine(title, before) in kept:
            yield Step(remove_comment(before[title]))


def _change_privileges(
    before: Objects, after: Objects, changed: Mapping[str, bool]
) -> Iterator[Step]:
    """Yield what gives PUBLIC the privilege to execute functions, or removes it.

    The definition of a function in *changed* is followed by its own REVOKE.
    """
    for title in before | after:
        found = _REVOKED.match(title)
        if found is None or (title in before) == (title in after):
            continue
        if title in after and not changed.get(found["name"]):
            yield Step(_on_lines(after[title]))
        elif title in before and f"FUNCTION {found['function']}" in after:
            grant = before[title].replace("REVOKE", "GRANT").replace(" FROM ", " TO ")
            yield Step(_on_lines(grant))


def _on_lines(text: str) -> str:
    """Return the statement with the arguments on their own line if it is wide."""
    return (
        text.replace("(", "(\n    ", 1).replace(")", "\n)") if is_wide(text) else text
    )


def commented_routine(title: str, objects: Objects) -> str | None:
    """Return the function or view that the comment *title* is on, by its name."""
    found = _COMMENT.match(title)
    if found is None:
        return None
    is_routine = found["kind"] in ("FUNCTION", "PROCEDURE", "VIEW")
    is_column = found["kind"] == "COLUMN" and f"VIEW app.{found['name']}" in objects
    return found["name"] if is_routine or is_column else None


def _define(side: Side, name: str, is_changed: bool) -> Iterator[Step]:
    """Yield the definition, comments and privileges of a function or view.

    Only its comments unless *is_changed*.
    """
    for key, statement in side.sources.routines[name].items():
        if is_changed or key[0] == "COMMENT":
            yield Step(replace(statement, text=_or_replace(statement.text)).render())


def _header(create_function: str) -> str:
    """Return what CREATE OR REPLACE cannot change: name, arguments and result."""
    found = _HEADER.match(create_function)
    return found[1] if found else create_function


def _or_replace(text: str) -> str:
    """Return CREATE OR REPLACE, with the arguments on their own line if need be."""
    text = re.sub(r"^CREATE (FUNCTION|PROCEDURE|VIEW)", r"CREATE OR REPLACE \1", text)
    header, line_end, rest = text.partition("\n")
    if is_wide(header) and header.endswith(")") and " RETURNS " not in header:
        header = header.replace("(", "(\n    ", 1).removesuffix(")") + "\n)"
    return header + line_end + rest

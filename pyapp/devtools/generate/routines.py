"""The steps for changed functions and views, with the text of their files."""

import re
from collections.abc import Iterator
from dataclasses import replace

from pyapp.devtools.checks.dumps import Objects
from pyapp.devtools.generate.steps import Side, Step, drop

_ROUTINE = re.compile(r"(?P<kind>FUNCTION|PROCEDURE|VIEW) app\.(?P<name>\w+)")
_COMMENT = re.compile(r"COMMENT app\.(?P<kind>\w+) (?P<name>\w+)")
_HEADER = re.compile(r"CREATE FUNCTION (.*?)\n? *LANGUAGE ", re.DOTALL)


def draft_routines(
    old: Side, new: Side, *, is_recreating_views: bool = False
) -> list[Step]:
    """Return the steps that lead from the functions and views of *old* to *new*.

    CREATE OR REPLACE cannot change a function's result or the names of its arguments,
    nor remove a view's columns: those are dropped first.
    """
    before, after = old.objects, new.objects
    drops = []
    for title in reversed(before):
        found = _ROUTINE.match(title)
        if not found or before[title] == after.get(title):
            continue
        note = ""
        if title in after:
            if found["kind"] == "VIEW":
                is_kept = not is_recreating_views
            else:
                is_kept = _header(before[title]) == _header(after[title])
            if is_kept:
                continue
            note = "Its grants are lost: run pyapp db roles afterwards."
        drops.append(Step(drop(title), note=note))
    changed: dict[str, bool] = {}
    for title in after:
        if before.get(title) == after[title]:
            continue
        if found := _ROUTINE.match(title):
            changed[found["name"]] = True
        elif name := commented_routine(title, after):
            changed.setdefault(name, False)
    drops.sort(key=lambda step: not step.sql.startswith("DROP VIEW"))
    return drops + [
        step
        for name in new.sources.routines
        if name in changed
        for step in _define(new, name, changed[name])
    ]


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
    return re.sub(r"^CREATE (FUNCTION|PROCEDURE|VIEW)", r"CREATE OR REPLACE \1", text)

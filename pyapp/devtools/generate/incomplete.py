"""What to report where no draft is complete: which objects it lacks, and why."""

from collections.abc import Collection
from dataclasses import replace

from pyapp.devtools.checks.schema_diff import find_differences
from pyapp.devtools.generate.drafts import Context, draft_variants
from pyapp.devtools.generate.migration_files import Draft, NewMigration, assemble
from pyapp.devtools.generate.proof import Result, enumerated, prove
from pyapp.devtools.generate.routines import is_of_routine
from pyapp.devtools.generate.structure import order_hint
from pyapp.errors import GenerateError

_ROUTINES = "functions and views"


def explain(context: Context, name: str, why: str, failed: Result) -> GenerateError:
    """Return the error that names what the best draft, which *failed*, lacks.

    The error's draft has the migrations of all other objects. They are proved without
    the rest, so no statement in them belongs to an incomplete change. They remove no
    object, because one of those to write by hand may replace it.
    """
    old, new = context.old.objects, context.new.objects
    left = [difference.title for difference in find_differences(old, new)]
    groups = _groups(context)
    done: list[str] = []
    reasons = [] if groups else [failed.reason]
    migrations: list[NewMigration] = []
    for group in groups:
        tried, result = _try(context, name, why, [*done, group])
        if result.reason:
            reasons.append(result.reason)
        else:
            done, migrations, left = [*done, group], tried, result.left
    causes = [reason for reason in dict.fromkeys(reasons) if "leaves " not in reason]
    because = f" ({'; '.join(causes)})" if causes else ""
    advice = "the printed draft is complete for the rest" if migrations else ""
    if "cannot drop function" in because:
        advice = "give the new function another name, and change what calls it"
    hints = [context.hint(), order_hint(context.old, context.new), advice]
    objects = [title for title in left if not title.startswith("COMMENT ")] or left
    text = "; ".join(
        [
            f"no complete draft, and nothing is written: write {enumerated(objects)} by"
            f" hand{because}",
            *(hint for hint in hints if hint),
        ]
    )
    draft = "\n".join(
        f"-- NNNN_{m.name}.sql\n{m.up}\n-- NNNN_{m.name}.rollback.sql\n{m.down}"
        for m in migrations
    )
    return GenerateError(text, draft, left)


def _groups(context: Context) -> list[str]:
    """Return the titles of the objects that a draft adds or changes, in its order."""
    draft = next(draft_variants(context))
    titles = dict.fromkeys(change.title for change in draft.changes)
    new = context.new.objects
    kept = [t for t in titles if t in new or t.startswith("COMMENT ")]
    return [*kept, *([_ROUTINES] if draft.routines else [])]


def _try(
    context: Context, name: str, why: str, groups: Collection[str]
) -> tuple[list[NewMigration], Result]:
    """Return the first proved draft of *groups* alone, else the first that failed."""
    failures: dict[str, Result] = {}
    first: list[NewMigration] = []
    old, new = context.old.objects, context.new.objects
    known = [
        d.title
        for d in find_differences(old, new)
        if d.title not in groups
        and not (_ROUTINES in groups and is_of_routine(d.title, old, new))
    ]
    for draft in draft_variants(context):
        migrations = assemble(name, why, _only(draft, groups))
        key = repr(migrations)
        if key not in failures:
            result = prove(context, migrations, known)
            if not result.reason:
                return migrations, result
            first = first or migrations
            failures[key] = result
    return first, next(iter(failures.values()))


def _only(draft: Draft, groups: Collection[str]) -> Draft:
    changes = [change for change in draft.changes if change.title in groups]
    routines = draft.routines if _ROUTINES in groups else {}
    return replace(draft, changes=changes, routines=routines)

"""The drafts of a change, the best first: only a proof tells which one is complete."""

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from pyapp.devtools.checks.dumps import Objects
from pyapp.devtools.generate.migration_files import Draft, Place, Routines
from pyapp.devtools.generate.routines import (
    changed_routines,
    draft_routines,
    with_routines,
)
from pyapp.devtools.generate.steps import Rename, Side
from pyapp.devtools.generate.stored_results import StoredResult, renew_steps
from pyapp.devtools.generate.structure import StructureDrafter, kind_hint, rename_hint


@dataclass(frozen=True, slots=True)
class Context:
    """What drafts are made from, and the server on which they are proved."""

    server: str
    can_set_expression: bool
    base: str
    before: Objects
    old: Side
    new: Side
    folder: Path
    renames: Sequence[Rename]
    old_results: Sequence[StoredResult]
    new_results: Sequence[StoredResult]

    def hint(self) -> str:
        """Return advice if a dropped object may have another name or kind."""
        return rename_hint(self.old, self.new) or kind_hint(self.old, self.new)


def draft_variants(context: Context) -> Iterator[Draft]:
    """Yield the drafts: with the text of the files first, online first, tables first.

    The last resort adds constraints at once, for what needs them in that transaction.
    """
    bare_old, bare_new = (
        replace(side, sources=side.dumped) for side in (context.old, context.new)
    )
    sides = ((context.old, context.new), (bare_old, bare_new))
    for (old, new), is_online in itertools.product(sides, (True, False)):
        drafter = StructureDrafter(old, new, is_online, context.can_set_expression)
        changes = [*(r.change() for r in context.renames), *drafter.draft()]
        yield from (
            Draft(changes, routines) for routines in _routines(context, old, new)
        )


def _routines(
    context: Context, old: Side, new: Side
) -> Iterator[dict[Place, Routines]]:
    """Yield the ways to change functions and views: the usual ones first."""
    if old.objects == new.objects or not any(_change(old, new)):
        yield {}
        return
    # Whether the migration, and whether its rollback, recreates views.
    for ups, downs in itertools.product((False, True), repeat=2):
        steps = _change(old, new, ups, downs)
        for place in ("last", "first", "middle"):
            yield {place: _renewed(context, steps, place)}
    # What changed tables call is created before, and what they called dropped after.
    both = with_routines(new, old)
    created, dropped = _change(old, both), _change(both, new)
    if any(created) and any(dropped):
        yield {"first": _renewed(context, created, "first"), "last": dropped}


def _change(old: Side, new: Side, ups: bool = False, downs: bool = False) -> Routines:
    return (
        draft_routines(old, new, is_recreating_views=ups),
        draft_routines(new, old, is_recreating_views=downs),
    )


def _renewed(context: Context, routines: Routines, place: Place) -> Routines:
    """Return *routines* followed by what renews the results of the changed functions.

    The tables are those of the moment: the old ones if functions come first.
    """
    is_first = place == "first"
    side = context.old if is_first else context.new
    results = context.old_results if is_first else context.new_results
    changed = changed_routines(context.old.objects, context.new.objects)
    steps = renew_steps(results, changed, side.sources)
    return routines[0] + steps, routines[1] + steps

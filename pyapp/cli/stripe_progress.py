"""How far a run through Stripe's lists is, on a terminal."""

import contextlib
from collections.abc import Callable, Iterator

from pyapp.cli.console import stderr
from pyapp.stripe_sync import Progress


@contextlib.contextmanager
def show_progress() -> Iterator[Callable[[Progress], None] | None]:
    """Give what shows how far a run is, on a terminal only."""
    if not stderr.is_terminal:
        yield None
        return
    from rich import progress as bars

    columns = (
        bars.TextColumn("{task.description}"),
        bars.BarColumn(bar_width=30),
        bars.MofNCompleteColumn(),
        bars.TextColumn("{task.fields[rate]}"),
        bars.TimeRemainingColumn(),
    )
    with bars.Progress(*columns, console=stderr, transient=True) as bar:
        tasks: dict[str, bars.TaskID] = {}

        def show(how_far: Progress) -> None:
            if how_far.object_type not in tasks:
                tasks[how_far.object_type] = bar.add_task(how_far.object_type, rate="")
            task = tasks[how_far.object_type]
            speed = bar.tasks[task].speed
            rate = f"{speed:,.0f}/s" if speed else ""
            bar.update(task, completed=how_far.seen, total=how_far.expected, rate=rate)

        yield show

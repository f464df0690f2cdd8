"""The fake's clock, and the calendar of billing periods."""

import calendar
import time
from datetime import UTC, datetime

DAY = 86_400
# Since this version, the items have the period, not the subscription.
ITEM_PERIODS_SINCE = "2025-03-31"


class Clock:
    """A clock in whole seconds that stands still, or runs if *running*.

    While it stands, all changes have the same `created`.
    """

    def __init__(self, start: int | None = None, *, running: bool = False) -> None:
        wall = int(time.time())
        self._time = wall if start is None else start
        self._offset = self._time - wall
        self._running = running

    @property
    def now(self) -> int:
        if self._running:
            self._time = max(self._time, int(time.time()) + self._offset)
        return self._time

    def move_to(self, moment: int) -> None:
        """Move forward to *moment*; a past moment changes nothing."""
        ahead = max(0, moment - self.now)
        self._offset += ahead
        self._time += ahead


def add_months(moment: int, months: int) -> int:
    """Return *moment* plus whole months in UTC; 31 January plus 1 is 28 February."""
    then = datetime.fromtimestamp(moment, UTC)
    years, month = divmod(then.month - 1 + months, 12)
    year, month = then.year + years, month + 1
    day = min(then.day, calendar.monthrange(year, month)[1])
    return int(then.replace(year=year, month=month, day=day).timestamp())


def next_boundary(anchor: int, interval: str, count: int, after: int) -> int:
    """Return the first boundary after *after*, in whole intervals from *anchor*."""
    if interval in ("day", "week"):
        step = count * (DAY if interval == "day" else 7 * DAY)
        return anchor + ((after - anchor) // step + 1) * step
    step = count * (12 if interval == "year" else 1)
    # A month has at most 31 days, so this starts at or before the boundary.
    steps = (after - anchor) // (step * 31 * DAY) - 1
    while (boundary := add_months(anchor, steps * step)) <= after:
        steps += 1
    return boundary

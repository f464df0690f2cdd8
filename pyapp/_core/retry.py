"""The one loop that retries: requests to Stripe, and work that waits for locks."""

import time
from collections.abc import Callable
from typing import Any, TypeVar

T = TypeVar("T")


def retry(
    work: Callable[[int], T],
    *,
    attempts: int,
    pause: Callable[[Any, int], float | None],
    on: type[Exception] | tuple[type[Exception], ...],
    sleep: Callable[[float], None] = time.sleep,
) -> T:
    """Return `work(attempt)`, called again after each of the errors *on*, from 0.

    `pause(error, attempt)` returns the seconds to wait before the next attempt, or None
    to give up. The error of the last attempt propagates.
    """
    attempt = 0
    while True:
        try:
            return work(attempt)
        except on as exc:
            attempt += 1
            seconds = pause(exc, attempt - 1) if attempt < attempts else None
            if seconds is None:
                raise
            sleep(seconds)

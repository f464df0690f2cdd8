"""Signals that stop a server.

A short module, because two servers need it without each other's packages.
"""

import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager


@contextmanager
def stopped_by(stop: Callable[[], None]) -> Iterator[None]:
    """Call *stop* at SIGTERM and SIGINT during the block; then restore the handlers.

    It works in the main thread only, as all handlers of signals.
    """
    previous = {
        number: signal.signal(number, lambda *_: stop())
        for number in (signal.SIGTERM, signal.SIGINT)
    }
    try:
        yield
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)

"""Lines on stderr while a command waits for Stripe.

The client logs its waits. With PYAPP_LOG they are in the log; otherwise the commands
print them, because a silent command looks as if it hung.
"""

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from pyapp.cli.console import warn
from pyapp.cli.logs import is_logging
from pyapp.stripe_sync.client import REQUEST_TIMEOUT, SILENT, log


class _Waits(logging.Handler):
    def emit(self, record: logging.LogRecord) -> None:
        fields: dict[str, Any] = vars(record)
        if record.msg == SILENT:
            warn(
                f"{fields['host']} has not answered for {fields['seconds']:g} seconds;"
                f" the request ends after {REQUEST_TIMEOUT:g}"
            )
        else:
            warn(
                f"{record.msg} ({fields['host']}): attempt {fields['attempt']} of"
                f" {fields['attempts']} in {fields['wait_seconds']:g} seconds;"
                f" {fields['error']}"
            )


@contextmanager
def show_waits() -> Iterator[None]:
    """Print the waits for Stripe to stderr, unless they are logged there."""
    if is_logging():
        yield
        return
    handler = _Waits(logging.WARNING)
    log.addHandler(handler)
    try:
        yield
    finally:
        log.removeHandler(handler)

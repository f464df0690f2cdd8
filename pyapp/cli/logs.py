"""Logs of the commands on stderr: one record a line, as text or as JSON.

The extra fields of a record of `pyapp`, such as `migration` or `seconds`, follow its
message by name.
"""

import json
import logging
from collections.abc import Iterator
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from pyapp._core.config import LogFormat, load_log_format
from pyapp.errors import ConfigError

# The attributes of every record; all others are extra fields.
_STANDARD = frozenset(vars(logging.makeLogRecord({}))) | {"asctime", "message"}
_PACKAGE = "pyapp"


def printable(text: str) -> str:
    """Return *text* with control characters replaced, so that a terminal is safe."""
    return "".join(c if c.isprintable() else "\N{REPLACEMENT CHARACTER}" for c in text)


class _TextFormatter(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        fields = (f"{name}={value}" for name, value in _fields(record))
        parts = (_time_of(record), record.levelname, record.getMessage(), *fields)
        return printable(" ".join(parts))


class _JsonFormatter(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        whole = {
            "at": _time_of(record),
            "level": record.levelname,
            "logger": record.name,
            "message": record.getMessage(),
            **dict(_fields(record)),
        }
        return json.dumps(whole, default=str)


def start_logging(default: LogFormat | None = None, *, is_json: bool = False) -> None:
    """Log in the format of PYAPP_LOG, else in *default*, else not at all.

    *is_json* selects JSON in any case.
    """
    chosen = default
    # A command that needs the configuration reports the error.
    with suppress(ConfigError):
        chosen = "json" if is_json else load_log_format() or default
    if chosen is None:
        # Otherwise psycopg's warnings would go to stderr.
        logging.getLogger("psycopg").addHandler(logging.NullHandler())
        return
    handler = logging.StreamHandler()
    handler.setFormatter(_JsonFormatter() if chosen == "json" else _TextFormatter())
    logging.basicConfig(level=logging.WARNING, handlers=[handler], force=True)
    for name in (_PACKAGE, "uvicorn"):
        logging.getLogger(name).setLevel(logging.INFO)


def is_logging() -> bool:
    """Return True if stderr contains records."""
    ours = _JsonFormatter | _TextFormatter
    return any(isinstance(h.formatter, ours) for h in logging.root.handlers)


def is_logging_json() -> bool:
    """Return True if stderr contains records in JSON only."""
    return any(isinstance(h.formatter, _JsonFormatter) for h in logging.root.handlers)


def _time_of(record: logging.LogRecord) -> str:
    return datetime.fromtimestamp(record.created, UTC).isoformat("T", "milliseconds")


def _fields(record: logging.LogRecord) -> Iterator[tuple[str, Any]]:
    if record.name.partition(".")[0] == _PACKAGE:
        yield from ((k, v) for k, v in vars(record).items() if k not in _STANDARD)
    if record.exc_info and record.exc_info[0]:
        # Its message can quote a row; its class and place cannot.
        kind, _, trace = record.exc_info
        yield "exception", kind.__name__
        while trace and trace.tb_next:
            trace = trace.tb_next
        if trace:
            code = trace.tb_frame.f_code
            yield "place", f"{Path(code.co_filename).name}:{trace.tb_lineno}"

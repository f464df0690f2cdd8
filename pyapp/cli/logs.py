"""What the commands log, on stderr: as text or as JSON, one record a line.

The records are those of the loggers under `pyapp`; what they carry beside their text,
such as `migration` or `seconds`, follows it by name.
"""

import json
import logging
from collections.abc import Iterator
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from pyapp._core.config import LogFormat, load_log_format
from pyapp.cli.text import printable
from pyapp.errors import ConfigError

# What every record has; all else was given by who logs.
_USUAL = frozenset(vars(logging.makeLogRecord({}))) | {"asctime", "message"}
_PACKAGE = "pyapp"


class _TextFormatter(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        fields = (f"{name}={value}" for name, value in _fields(record))
        parts = (_moment(record), record.levelname, record.getMessage(), *fields)
        return printable(" ".join(parts))


class _JsonFormatter(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        whole = {
            "at": _moment(record),
            "level": record.levelname,
            "logger": record.name,
            "message": record.getMessage(),
            **dict(_fields(record)),
        }
        return json.dumps(whole, default=str)


def start_logging(otherwise: LogFormat | None = None) -> None:
    """Log in the format of PYAPP_LOG, else in *otherwise*, else not at all."""
    chosen = otherwise
    # Whoever needs the configuration says what is wrong with it.
    with suppress(ConfigError):
        chosen = load_log_format() or otherwise
    if chosen is None:
        # What it goes on after it would print, beside the command's own line.
        logging.getLogger("psycopg").addHandler(logging.NullHandler())
        return
    handler = logging.StreamHandler()
    handler.setFormatter(_JsonFormatter() if chosen == "json" else _TextFormatter())
    logging.basicConfig(level=logging.WARNING, handlers=[handler], force=True)
    for name in (_PACKAGE, "uvicorn"):
        logging.getLogger(name).setLevel(logging.INFO)


def is_logging_json() -> bool:
    """Say whether stderr is for records in JSON, and for nothing else."""
    return any(isinstance(h.formatter, _JsonFormatter) for h in logging.root.handlers)


def _moment(record: logging.LogRecord) -> str:
    return datetime.fromtimestamp(record.created, UTC).isoformat("T", "milliseconds")


def _fields(record: logging.LogRecord) -> Iterator[tuple[str, Any]]:
    if record.name.partition(".")[0] == _PACKAGE:
        yield from ((k, v) for k, v in vars(record).items() if k not in _USUAL)
    if record.exc_info and record.exc_info[0]:
        # Its text may quote a row; its kind and its place do not.
        kind, _, trace = record.exc_info
        yield "exception", kind.__name__
        while trace and trace.tb_next:
            trace = trace.tb_next
        if trace:
            code = trace.tb_frame.f_code
            yield "place", f"{Path(code.co_filename).name}:{trace.tb_lineno}"

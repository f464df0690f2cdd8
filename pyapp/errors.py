"""Every error that pyapp raises for a caller to act on."""


class PyappError(Exception):
    """Base of all of them; the message is one line that says what to do."""


class ConfigError(PyappError):
    """The configuration is missing or wrong; mend the variable that it names."""


class DatabaseUnavailableError(PyappError):
    """No database answers at the URL; start it, or mend the URL."""


class LocalServerError(PyappError):
    """The local server cannot do what was asked; the message says what to do."""


class MissingExtraError(PyappError):
    """An optional part is not installed; install the extra that it names."""

    def __init__(self, extra: str) -> None:
        super().__init__(f"an optional part is missing: pip install 'pyapp[{extra}]'")
        self.extra = extra


class UnknownModelError(PyappError):
    """No published price for this model; give the cost, or mend the model's name."""


class InvalidUsageError(PyappError):
    """A count, cost or time that no call can have; mend what the message names."""

"""The configuration: stack.env, overridden by .env.local, then by the environment."""

import functools
import os
from dataclasses import dataclass, field
from decimal import Decimal, InvalidOperation
from pathlib import Path
from typing import Literal, cast, get_args

from dotenv import dotenv_values

from pyapp._core.database_url import read_url
from pyapp._core.validation import MAX_AMOUNT, MAX_REFERRAL_CREDITS, check_amount, shown
from pyapp.errors import ConfigError, InvalidValueError

LogFormat = Literal["text", "json"]

DEFAULT_MARGIN = Decimal("0.2")
DEFAULT_REFERRAL_BONUS = Decimal(500)


@dataclass(frozen=True)
class Settings:
    """The configured values; secrets are not in the repr."""

    root: Path
    database_url: str = field(repr=False)
    environment: str | None = None
    public_environment: str | None = None
    stripe_api_key: str | None = field(default=None, repr=False)
    stripe_webhook_secrets: tuple[str, ...] = field(default=(), repr=False)
    stripe_api_base: str | None = None
    margin: Decimal = DEFAULT_MARGIN
    referral_bonus: Decimal = DEFAULT_REFERRAL_BONUS
    log_format: LogFormat | None = None


def load_settings(root: Path | None = None) -> Settings:
    """Return the settings of the project folder *root*, by default `find_root()`.

    Raises:
        ConfigError: a variable is missing or invalid; the message names it.
    """
    root = root or find_root()
    values = read_values(root)
    secrets = values.get("STRIPE_WEBHOOK_SECRET", "").split(",")
    return Settings(
        root=root,
        database_url=_database_url(root, values),
        environment=values.get("ENVIRONMENT"),
        public_environment=values.get("NEXT_PUBLIC_ENVIRONMENT"),
        stripe_api_key=values.get("STRIPE_SECRET_KEY"),
        stripe_webhook_secrets=tuple(s.strip() for s in secrets if s.strip()),
        stripe_api_base=values.get("STRIPE_API_BASE"),
        margin=_margin(values),
        referral_bonus=_referral_bonus(values),
        log_format=_log_format(values),
    )


def load_log_format(root: Path | None = None) -> LogFormat | None:
    """Return the format of the log, or None if it is not set; needs no DATABASE_URL.

    Raises:
        ConfigError: PYAPP_LOG is invalid, or a file cannot be read.
    """
    return _log_format(read_values(root or find_root()))


def is_outside_local() -> bool:
    """Tell whether ENVIRONMENT is set to another value than local."""
    try:
        return read_values(find_root()).get("ENVIRONMENT", "local") != "local"
    except ConfigError:
        return False


def is_live_key(key: str) -> bool:
    """Tell whether *key* is a live-mode key of Stripe."""
    return key.startswith(("sk_live_", "rk_live_"))


@functools.cache
def configured_margin() -> Decimal:
    """Return PYAPP_MARGIN; it is read once and cached for the life of the process.

    Raises:
        ConfigError: it is not an amount, or a file cannot be read.
    """
    return _margin(read_values(find_root()))


@functools.cache
def configured_referral_bonus() -> Decimal:
    """Return PYAPP_REFERRAL_BONUS; it is read once and cached as configured_margin.

    Raises:
        ConfigError: it is not an amount, or a file cannot be read.
    """
    return _referral_bonus(read_values(find_root()))


def find_root(start: Path | None = None) -> Path:
    """Return the nearest folder from *start* upwards with a stack.env, else *start*."""
    start = (start or Path.cwd()).resolve()
    for folder in (start, *start.parents):
        if (folder / "stack.env").is_file():
            return folder
    return start


def read_values(root: Path) -> dict[str, str]:
    """Return all variables of *root* and the environment that are not empty."""
    values: dict[str, str | None] = {}
    for name in ("stack.env", ".env.local"):
        path = root / name
        try:
            values |= dotenv_values(path, interpolate=False, encoding="utf-8-sig")
        except (OSError, UnicodeDecodeError) as exc:
            reason = exc.strerror if isinstance(exc, OSError) else "it is not UTF-8"
            raise ConfigError(f"cannot read {path}: {reason}") from exc
    values |= os.environ
    return {name: value.strip() for name, value in values.items() if value}


def _database_url(root: Path, values: dict[str, str]) -> str:
    url = values.get("DATABASE_URL")
    if not url:
        example = ".env.local.example"
        copied = f"cp {example} .env.local"
        written = "set it, or write it into .env.local"
        remedy = copied if (root / example).is_file() else written
        raise ConfigError(f"DATABASE_URL is not set (looked in {root}); {remedy}")
    read_url(url)
    return url


def _margin(values: dict[str, str]) -> Decimal:
    return _amount(values, "PYAPP_MARGIN", DEFAULT_MARGIN)


def _referral_bonus(values: dict[str, str]) -> Decimal:
    return _amount(
        values, "PYAPP_REFERRAL_BONUS", DEFAULT_REFERRAL_BONUS, MAX_REFERRAL_CREDITS
    )


def _amount(
    values: dict[str, str], name: str, default: Decimal, most: Decimal = MAX_AMOUNT
) -> Decimal:
    text = values.get(name)
    if text is None:
        return default
    try:
        return check_amount(name, Decimal(text), most)
    except (InvalidOperation, InvalidValueError):
        raise ConfigError(
            f"{name} is {shown(text)}; it must be a number from 0 to {most:f}"
        ) from None


def _log_format(values: dict[str, str]) -> LogFormat | None:
    text = values.get("PYAPP_LOG")
    if text not in (None, *get_args(LogFormat)):
        raise ConfigError(f"PYAPP_LOG is {shown(text)}; it must be text or json")
    return cast("LogFormat | None", text)

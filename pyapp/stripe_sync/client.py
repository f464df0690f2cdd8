"""StripeApi Stripe: objects and lists as plain dictionaries, each with its moment.

A moment is in Stripe's own time, which the `Date` header tells: our clock may be off.
The header is in whole seconds and is written when the answer leaves, so the moment at
which the request began is no earlier than the header less the time that it took. Being
too early is safe: it makes an answer look older than it is, never newer.
"""

import copy
import random
import re
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from email.utils import parsedate_to_datetime
from typing import Any, Protocol, TypeVar, cast

import stripe

from pyapp._core.config import Settings
from pyapp.errors import ConfigError, StripeRequestError

T = TypeVar("T")

# Waits of 1, 2, 4, ... seconds at most, unless Stripe says how long.
_ATTEMPTS = 8
# A request with a deadline is sent so often, with so many seconds between.
_HASTY_ATTEMPTS = 4
_HASTY_WAIT = 0.25
_LONGEST_WAIT = 60.0
# What Stripe says of a live object to a test key: such a one is not missing.
_OTHER_MODE = "similar object exists"
_CURSORS = ("starting_after", "ending_before")
_SECRET = re.compile(r"\b(?:sk|rk|pk|whsec)_\S+")
sleep: Callable[[float], None] = time.sleep


class StripeApi(Protocol):
    """What asks Stripe: a StripeClient, or one with a deadline."""

    def raw_request(self, method_: str, url_: str, **params: Any) -> Any:
        """Return Stripe's response."""


@dataclass(frozen=True, slots=True)
class StripeResponse:
    """What Stripe said, and since when at least it has been true."""

    data: Mapping[str, Any]
    as_of: datetime


def make_client(settings: Settings) -> stripe.StripeClient:
    """Return a client for the configured key, which it never shows.

    Raises:
        ConfigError: no key, or a live key in a local environment.
    """
    key = settings.stripe_api_key
    if not key:
        raise ConfigError("STRIPE_SECRET_KEY is not set; put it into .env.local")
    if settings.environment == "local" and is_live(key):
        raise ConfigError(
            "STRIPE_SECRET_KEY is a live key and ENVIRONMENT is local; use a test key"
        )
    base = settings.stripe_api_base
    return stripe.StripeClient(
        key,
        base_addresses={"api": base} if base else {},
        max_network_retries=3,
    )


def is_live(key: str) -> bool:
    """Say whether *key* opens a live account."""
    return key.startswith(("sk_live_", "rk_live_"))


def find_livemode(settings: Settings) -> bool | None:
    """Return whether live events are ours, or test ones; None if nothing tells it.

    The key's mode decides. Without a key, only test events belong to a local
    environment.
    """
    if settings.stripe_api_key:
        return is_live(settings.stripe_api_key)
    return False if settings.environment == "local" else None


@dataclass(frozen=True, slots=True)
class HastyClient:
    """Asks as *client* does, and gives up when no seconds are *left*."""

    client: StripeApi
    left: Callable[[], float]

    def raw_request(self, method_: str, url_: str, **params: Any) -> Any:
        """Return Stripe's response.

        Raises:
            stripe.StripeError: it refuses, or has not answered in time.
        """
        for attempt in range(_HASTY_ATTEMPTS):
            if not (left := self.left()):
                break
            client = _with_timeout(self.client, left)
            try:
                return client.raw_request(
                    method_, url_, **params, max_network_retries=0
                )
            except stripe.StripeError as exc:
                is_last = attempt + 1 == _HASTY_ATTEMPTS
                if is_last or not _is_worth_a_retry(exc) or self.left() < _HASTY_WAIT:
                    raise
                sleep(_HASTY_WAIT)
        late = "Stripe did not answer in time"
        raise stripe.APIConnectionError(late)  # type: ignore[no-untyped-call]


def _with_timeout(client: StripeApi, seconds: float) -> StripeApi:
    """Return a copy of *client* that waits so long at most, with the same connections.

    Stripe's library takes a timeout only for a client as a whole, of 80 seconds.
    """
    requestor = getattr(client, "_requestor", None)
    if requestor is None:
        return client
    http = requestor._get_http_client()
    if not hasattr(http, "_timeout"):
        return client
    # Sessions are shared: they belong to the thread.
    http, requestor = copy.copy(http), copy.copy(requestor)
    hasty: Any = copy.copy(client)
    http._timeout, requestor._client, hasty._requestor = seconds, http, requestor
    return cast("StripeApi", hasty)


def _is_worth_a_retry(exc: stripe.StripeError) -> bool:
    if isinstance(exc, stripe.RateLimitError):
        return False
    return is_transient(exc) or exc.http_status == 409


def fetch(client: StripeApi, object_type: str, object_id: str) -> StripeResponse | None:
    """Return the object of `/v1/<object_type>` as it is now, None if Stripe has none.

    Raises:
        stripe.StripeError: it refuses, or is out of reach.
    """
    try:
        return _get(client, f"/v1/{object_type}/{object_id}")
    except stripe.InvalidRequestError as exc:
        is_missing = exc.code == "resource_missing" or exc.http_status == 404
        if is_missing and _OTHER_MODE not in str(exc):
            return None
        raise


def list_page(
    client: StripeApi, object_type: str, **parameters: Any
) -> StripeResponse | None:
    """Return one page of `/v1/<object_type>`, waiting as long as Stripe asks us to.

    None if the object that it would go on from is there no more.

    Raises:
        StripeRequestError: it refuses, or is out of reach for minutes.
    """

    def ask() -> StripeResponse | None:
        try:
            return _get(client, f"/v1/{object_type}", **parameters)
        except stripe.InvalidRequestError as exc:
            if exc.code == "resource_missing" and exc.param in _CURSORS:
                return None
            raise

    return with_retries(ask)


def with_retries(ask: Callable[[], T]) -> T:
    """Return what *ask* returns, trying again while Stripe is busy or out of reach.

    Raises:
        StripeRequestError: it refuses, or it is still so after eight attempts.
    """
    for attempt in range(_ATTEMPTS):
        try:
            return ask()
        except stripe.StripeError as exc:
            if attempt + 1 == _ATTEMPTS or not is_transient(exc):
                raise StripeRequestError(describe(exc)) from None
            sleep(_wait(exc, attempt))
    raise AssertionError("unreachable")


def is_of_all(error: StripeRequestError, client: StripeApi) -> bool:
    """Say whether Stripe would give the same answer about any object.

    It is away, or it does not accept the key.
    """
    cause = error.__context__
    if not isinstance(cause, stripe.StripeError):
        return True
    if isinstance(cause, stripe.AuthenticationError | stripe.PermissionError):
        return True
    if not is_transient(cause):
        return _OTHER_MODE in str(cause)
    try:
        _get(client, "/v1/events", limit=1)
    except stripe.StripeError as exc:
        return is_transient(exc)
    return False


def describe(exc: Exception) -> str:
    """Return an error in one line without keys, secrets or rows."""
    lines = str(exc).strip().splitlines() or [""]
    # Of what fails on the way, Stripe's library tells the cause after all else.
    line = lines[-1 if isinstance(exc, stripe.APIConnectionError) else 0]
    text = f"{type(exc).__name__}: {line}" if line else type(exc).__name__
    return _SECRET.sub("(key)", text)[:500]


def _get(client: StripeApi, path: str, **parameters: Any) -> StripeResponse:
    # The plain dictionaries: building the client's own objects takes five times longer.
    began = time.monotonic()
    response = client.raw_request("get", path, **parameters)
    took = time.monotonic() - began
    return StripeResponse(
        response.data, _moment(response.headers) - timedelta(seconds=took)
    )


def _moment(headers: Mapping[str, str]) -> datetime:
    try:
        return parsedate_to_datetime(headers["Date"]).astimezone(UTC)
    except (KeyError, ValueError):
        return datetime.now(UTC)


def is_transient(exc: stripe.StripeError) -> bool:
    """Say whether Stripe is busy or out of reach, and may answer later."""
    if isinstance(exc, stripe.RateLimitError | stripe.APIConnectionError):
        return True
    return exc.http_status is not None and exc.http_status >= 500


def _wait(exc: stripe.StripeError, attempt: int) -> float:
    headers = exc.headers or {}
    try:
        told = float(headers.get("Retry-After") or headers.get("retry-after") or "")
    except ValueError:
        # Full jitter would start again at once as often as not; half of it spreads too.
        told = min(2.0**attempt, _LONGEST_WAIT) * random.uniform(0.5, 1.0)
    return min(max(told, 0.0), _LONGEST_WAIT)

"""Fetch objects and lists from Stripe's API, each with the time at which it was true.

The time is Stripe's own, from the `Date` header, because the local clock may be wrong.
Stripe writes the header, in whole seconds, when the response leaves. The header minus
the duration of the request is therefore not later than the start of the request. Too
early is safe: the response then looks older than it is, never newer.
"""

import copy
import logging
import random
import re
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from email.utils import parsedate_to_datetime
from typing import Any, Protocol, TypeVar, cast
from urllib.parse import quote, urlsplit

import stripe

from pyapp._core.config import Settings, is_live_key
from pyapp._core.retry import retry
from pyapp.errors import ConfigError, StripeRequestError
from pyapp.stripe_sync.objects import has_more_items

T = TypeVar("T")

# The messages of this logger are in NO_ANSWER, SILENT and BUSY.
log = logging.getLogger("pyapp.stripe.requests")
NO_ANSWER = "Stripe does not answer"
SILENT = "Stripe has not answered yet"
BUSY = "Stripe limits the rate of requests"

# Seconds that a request waits for an answer.
REQUEST_TIMEOUT = 30.0
# Retries wait at most 1, 2, 4, ... seconds, unless Stripe sends Retry-After.
_ATTEMPTS = 8
_LONGEST_WAIT = 60.0
# Seconds after which there is no further attempt, if Stripe does not answer.
_LONGEST_OUTAGE = 180.0
# A wait is reported if it ends later than this after the first attempt, and a request
# that is not answered in this time.
_SILENCE = 3.0
# Attempts of a request with a deadline, and the seconds between them.
_DEADLINE_ATTEMPTS = 4
_DEADLINE_WAIT = 0.25
# Stripe's error for a live object and a test key: the object is not missing.
_OTHER_MODE = "similar object exists"
# Requests for a subscription that changes while its items are listed.
_MOST_FETCHES = 5
_CURSORS = ("starting_after", "ending_before")
_SECRET = re.compile(r"\b(?:sk|rk|pk|whsec)_\S+")
sleep: Callable[[float], None] = time.sleep


class StripeApi(Protocol):
    """The part of stripe.StripeClient that is used here."""

    def raw_request(self, method_: str, url_: str, **params: Any) -> Any:
        """Return Stripe's response."""


@dataclass(frozen=True, slots=True)
class StripeResponse:
    """The JSON of a response, and a time in Stripe's clock at which it was true."""

    data: dict[str, Any]
    as_of: datetime


def make_client(settings: Settings) -> stripe.StripeClient:
    """Return a client for the configured key.

    Raises:
        ConfigError: no key, or a live key in a local environment.
    """
    key = settings.stripe_api_key
    if not key:
        raise ConfigError(
            "STRIPE_SECRET_KEY is not set; set it, or write it into .env.local"
        )
    if settings.environment == "local" and is_live_key(key):
        raise ConfigError(
            "STRIPE_SECRET_KEY is a live key and ENVIRONMENT is local; use a test key"
        )
    base = settings.stripe_api_base
    return stripe.StripeClient(
        key,
        base_addresses={"api": base} if base else {},
        # Used by callers of other services; requests of this module do not use it.
        max_network_retries=3,
        http_client=stripe.RequestsClient(timeout=REQUEST_TIMEOUT),
    )


def find_livemode(settings: Settings) -> bool | None:
    """Return the mode whose events are processed: True live, False test, None both.

    It is the mode of the configured key. Without a key, a local environment processes
    test events only, and other environments process both.
    """
    if settings.stripe_api_key:
        return is_live_key(settings.stripe_api_key)
    return False if settings.environment == "local" else None


@dataclass(frozen=True, slots=True)
class DeadlineClient:
    """Sends requests by *client* until `left()`, the seconds that remain, is 0."""

    client: StripeApi
    left: Callable[[], float]

    def raw_request(self, method_: str, url_: str, **params: Any) -> Any:
        """Return Stripe's response.

        Raises:
            stripe.StripeError: Stripe refused, or did not answer in time.
        """

        def request(attempt: int) -> Any:
            if not (left := self.left()):
                late = "Stripe did not answer in time"
                raise stripe.APIConnectionError(late)  # type: ignore[no-untyped-call]
            client = _with_timeout(self.client, left)
            return client.raw_request(method_, url_, **params)

        def pause(exc: stripe.StripeError, attempt: int) -> float | None:
            is_late = self.left() < _DEADLINE_WAIT
            return None if is_late or not _is_retryable(exc) else _DEADLINE_WAIT

        return retry(
            request,
            attempts=_DEADLINE_ATTEMPTS,
            pause=pause,
            on=stripe.StripeError,
            sleep=sleep,
        )


def _with_timeout(client: StripeApi, seconds: float) -> StripeApi:
    """Return a copy of *client* with this timeout and the same HTTP connections.

    Stripe's library has a timeout for each client only, not for each request.
    """
    requestor = getattr(client, "_requestor", None)
    if requestor is None:
        return client
    http = requestor._get_http_client()
    if not hasattr(http, "_timeout"):
        return client
    # The copies share the sessions, which are local to the thread.
    http, requestor = copy.copy(http), copy.copy(requestor)
    limited: Any = copy.copy(client)
    http._timeout, requestor._client, limited._requestor = seconds, http, requestor
    return cast("StripeApi", limited)


def _is_retryable(exc: stripe.StripeError) -> bool:
    if isinstance(exc, stripe.RateLimitError):
        return False
    return is_transient(exc)


def fetch(client: StripeApi, object_type: str, object_id: str) -> StripeResponse | None:
    """Return the current object `/v1/<object_type>/<object_id>`, None if not found.

    Raises:
        stripe.StripeError: Stripe refused, or is unavailable.
        ValueError: the id cannot be part of a path.
    """
    # An integration may choose ids with any characters.
    segment = quote(object_id, safe="")
    if segment.strip(".") == "":
        raise ValueError(f"the id {object_id!r} cannot be requested")
    try:
        path = f"/v1/{object_type}/{segment}"
        response = _get(client, path)
        if has_more_items(response.data):
            response = _fetch_items(client, path, object_id, response)
        return response
    except stripe.InvalidRequestError as exc:
        is_missing = exc.code == "resource_missing" or exc.http_status == 404
        if is_missing and _OTHER_MODE not in str(exc):
            return None
        raise


def _fetch_items(
    client: StripeApi, path: str, subscription: str, response: StripeResponse
) -> StripeResponse:
    """Return the subscription with all its items, as it was before the last request."""
    for _ in range(_MOST_FETCHES):
        items = _list_items(client, subscription)
        # Subscription and items are of one state if nothing changed in between.
        before, response = response, _get(client, path)
        if response.data == before.data or not has_more_items(response.data):
            break
    if has_more_items(response.data):
        before.data["items"] = {"object": "list", "data": items}
        return before
    return response


def _list_items(client: StripeApi, subscription: str) -> list[Any]:
    items: dict[str, Any] = {}
    after: dict[str, Any] = {}
    while True:
        page = _get(
            client,
            "/v1/subscription_items",
            subscription=subscription,
            limit=100,
            **after,
        ).data
        listed = {item["id"]: item for item in page["data"]}
        if not page["has_more"]:
            return [*(items | listed).values()]
        if not listed.keys() - items.keys():
            raise ValueError("Stripe lists the same items again")
        items |= listed
        after = {"starting_after": page["data"][-1]["id"]}


def list_page(
    client: StripeApi, object_type: str, **parameters: Any
) -> StripeResponse | None:
    """Return one page of `/v1/<object_type>`, retrying as `with_retries` does.

    None means that the object of the cursor parameter does not exist any more.

    Raises:
        StripeRequestError: Stripe refused, or was unavailable for minutes.
    """

    def get_page() -> StripeResponse | None:
        try:
            return _get(client, f"/v1/{object_type}", **parameters)
        except stripe.InvalidRequestError as exc:
            if exc.code == "resource_missing" and exc.param in _CURSORS:
                return None
            raise

    return with_retries(get_page, client)


def with_retries(request: Callable[[], T], client: StripeApi | None) -> T:
    """Call *request* and return its result; retry transient errors of *client*.

    Waits that last more than some seconds are logged.

    Raises:
        StripeRequestError: Stripe refused, or all eight attempts failed, or Stripe did
            not answer for three minutes.
    """
    began = time.monotonic()
    attempts = 1

    def pause(exc: stripe.StripeError, attempt: int) -> float | None:
        nonlocal attempts
        seconds = _pause(exc, attempt)
        if seconds is None:
            return None
        elapsed = time.monotonic() - began
        is_busy = isinstance(exc, stripe.RateLimitError)
        if not is_busy and elapsed + seconds > _LONGEST_OUTAGE:
            return None
        attempts = attempt + 2
        # The waits before this one were at least as long together.
        if elapsed + seconds > _SILENCE or attempts > 3:
            log.warning(
                BUSY if is_busy else NO_ANSWER,
                extra={
                    "host": find_host(client),
                    "attempt": attempts,
                    "attempts": _ATTEMPTS,
                    "wait_seconds": round(seconds, 1),
                    "error": error_summary(exc),
                },
            )
        return seconds

    try:
        return retry(
            lambda _: request(),
            attempts=_ATTEMPTS,
            pause=pause,
            on=stripe.StripeError,
            sleep=sleep,
        )
    except stripe.StripeError as exc:
        reason = error_summary(exc)
        if attempts > 1 and is_transient(exc):
            reason = f"{find_host(client)} failed {attempts} times: {reason}"
        raise StripeRequestError(reason) from None


def find_host(client: StripeApi | None) -> str:
    """Return the host and port of Stripe's API that *client* calls."""
    requestor = getattr(client, "_requestor", None)
    bases = getattr(requestor, "base_addresses", None) or {}
    return urlsplit(bases.get("api") or stripe.DEFAULT_API_BASE).netloc


def affects_all_objects(error: StripeRequestError, client: StripeApi) -> bool:
    """Return True if a request for any other object would fail in the same way.

    That is so if Stripe is unavailable or rejects the key.
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


def error_summary(exc: Exception) -> str:
    """Return one line about an error, without keys, secrets or values of rows."""
    lines = str(exc).strip().splitlines() or [""]
    line = lines[0]
    if isinstance(exc, stripe.APIConnectionError):
        # The message is long, and its last line quotes the whole URL.
        line = _find_cause(exc) or lines[-1]
    text = f"{type(exc).__name__}: {line}" if line else type(exc).__name__
    return _SECRET.sub("(key)", text)[:500]


def _find_cause(exc: BaseException) -> str | None:
    """Return the reason of the operating system, such as "Connection refused"."""
    cause: BaseException | None = exc
    reason = None
    while cause is not None:
        if isinstance(cause, OSError):
            reason = cause.strerror or str(cause).partition("\n")[0]
        cause = cause.__cause__ or cause.__context__
    return reason


def _get(client: StripeApi, path: str, **parameters: Any) -> StripeResponse:
    # raw_request returns dictionaries; Stripe's classes take five times longer.
    began = time.monotonic()
    with _report_silence(client):
        # Retries of Stripe's library are not reported, so with_retries does them.
        response = client.raw_request("get", path, **parameters, max_network_retries=0)
    seconds = time.monotonic() - began
    as_of = _response_time(response.headers) - timedelta(seconds=seconds)
    return StripeResponse(response.data, as_of)


@contextmanager
def _report_silence(client: StripeApi) -> Iterator[None]:
    """Log a request that is not answered within some seconds, while it goes on."""
    if isinstance(client, DeadlineClient):
        yield
        return

    def report() -> None:
        host = find_host(client)
        log.warning(SILENT, extra={"host": host, "seconds": _SILENCE})

    timer = threading.Timer(_SILENCE, report)
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()


def _response_time(headers: Mapping[str, str]) -> datetime:
    try:
        return parsedate_to_datetime(headers["Date"]).astimezone(UTC)
    except (KeyError, ValueError):
        return datetime.now(UTC)


def is_transient(exc: stripe.StripeError) -> bool:
    """Return True for rate limits, connection errors, conflicts and 5xx."""
    if isinstance(exc, stripe.RateLimitError | stripe.APIConnectionError):
        return True
    status = exc.http_status
    return status is not None and (status == 409 or status >= 500)


def _pause(exc: stripe.StripeError, attempt: int) -> float | None:
    if not is_transient(exc):
        return None
    headers = exc.headers or {}
    try:
        seconds = float(headers.get("Retry-After") or headers.get("retry-after") or "")
    except ValueError:
        # Half jitter: full jitter would often retry at once.
        seconds = min(2.0**attempt, _LONGEST_WAIT) * random.uniform(0.5, 1.0)
    return min(max(seconds, 0.0), _LONGEST_WAIT)

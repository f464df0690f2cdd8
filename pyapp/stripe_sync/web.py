"""The webhook endpoint as an ASGI application, to serve or to mount.

A delivery that waits for a lock does so without a connection and without a thread. It
retries at intervals, and at most half of the pool is open to such deliveries.
"""

import logging
import selectors
import threading
import time
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any, Literal, TypeVar
from uuid import UUID

import anyio
import psycopg
import stripe
from anyio.to_thread import run_sync
from psycopg import Connection
from psycopg_pool import ConnectionPool, PoolTimeout
from starlette.applications import Starlette
from starlette.background import BackgroundTask
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from pyapp.errors import InvalidPayloadError, InvalidSignatureError
from pyapp.stripe_sync.apply import (
    apply_directly,
    apply_with_fetch,
    needs_fetch,
    record_failure,
    with_deadline,
)
from pyapp.stripe_sync.objects import Event
from pyapp.stripe_sync.outcomes import Effect, Outcome, Result, make_outcome
from pyapp.stripe_sync.transactions import (
    DELIVERY_TIMEOUT,
    FAILURE_RESERVE,
    LOCK_ERRORS,
    Deadline,
)
from pyapp.stripe_sync.usage_cuts import cut_moved_usage, log_uncut
from pyapp.stripe_sync.webhooks import MAX_BODY, read_delivery

log = logging.getLogger("pyapp.stripe")

T = TypeVar("T")
# The result of an event, `busy` if it failed because of a lock; without an event
# `refused` (4xx), `unavailable` (503) or `error` (500).
DeliveryResult = Result | Literal["busy", "refused", "unavailable", "error"]
_REFUSED: dict[int, DeliveryResult] = {500: "error", 503: "unavailable"}
Pool = ConnectionPool[Connection[Any]]

# Seconds within which a body has to arrive.
BODY_TIMEOUT = 5.0
# Seconds that a delivery waits for a lock with a connection, then without one.
_LOCK_WAIT = 0.02
_RETRY_WAIT = 0.1
# Seconds for a lock after a fetch, which a retry would repeat.
_LOCK_WAIT_AFTER_FETCH = 0.5
# Seconds after DELIVERY_TIMEOUT at which the response is sent although a thread runs.
_EXTRA_TIME = 0.5
# Concurrent deliveries if the pool has no limit.
_DEFAULT_SIZE = 40
# Bytes above which a signature is verified in a thread, so that others do not wait.
_SMALL = 1 << 16
# Seconds that the database has to answer the health check.
_HEALTH_TIMEOUT = 2
# Seconds for which a result of the health check is reused.
_HEALTH_INTERVAL = 1.0


def create_app(
    pool: Pool,
    secrets: Sequence[str] | str,
    client: stripe.StripeClient | None = None,
    max_body: int = MAX_BODY,
    livemode: bool | None = None,
    on_outcome: Callable[[Outcome], None] | None = None,
    on_delivery: Callable[[DeliveryResult, float], None] | None = None,
) -> Starlette:
    """Return an application with POST /stripe/webhook, GET /healthz and GET /livez.

    It responds with 200 only after the commit, with 400 if the signature or the event
    is invalid, with 408 if the body does not arrive within five seconds, with 413 if it
    has more than *max_body* bytes, and with 500 if the event could not be applied. It
    responds with 503 if the database is unavailable or a lock was not free within five
    seconds. Stripe repeats deliveries after 500 and 503. *livemode* is as in
    `handle_webhook`. The caller opens and closes *pool*. Deliveries that wait for a
    lock or for Stripe's API use at most half of its connections.

    *on_outcome* is called in a thread after the response to a delivery, with what its
    event did. An exception that it raises is logged. *on_delivery* is called in the
    event loop before each response, with the result and the seconds that it took.
    """
    # A NullConnectionPool may have no limit.
    workers = Workers(pool.max_size or _DEFAULT_SIZE)
    health, health_threads = HealthCheck(pool), anyio.CapacityLimiter(2)

    async def webhook(request: Request) -> Response:
        began = time.monotonic()
        answer = await receive(request)
        if on_delivery is not None:
            on_delivery(answer.result, time.monotonic() - began)
        return answer

    async def receive(request: Request) -> _Answer:
        try:
            with anyio.fail_after(BODY_TIMEOUT):
                payload = await _read_body(request, max_body)
        except ClientDisconnect:
            return _refuse(400, "cut off")
        except TimeoutError:
            return _refuse(408, "too slow")
        if payload is None:
            return _refuse(413, "too large")
        signature = request.headers.get("stripe-signature")

        def read() -> Event:
            return read_delivery(payload, signature, secrets, livemode)

        try:
            event = read() if len(payload) < _SMALL else await run_sync(read)
        except InvalidSignatureError:
            return _refuse(400, "bad signature")
        except InvalidPayloadError as exc:
            # The text quotes nothing but ids and types.
            return _refuse(400, str(exc))
        except Exception as exc:
            # Only the class is logged: the text may contain private data.
            return _refuse(500, "error", kind=type(exc).__name__)
        fields = {"event_id": event.id, "event_type": event.type}
        try:
            with anyio.fail_after(DELIVERY_TIMEOUT + _EXTRA_TIME):
                outcome = await _Delivery(pool, workers, client, event).process()
        except (psycopg.OperationalError, TimeoutError) as exc:
            kind = type(exc).__name__
            return _refuse(503, "database unavailable", kind=kind, **fields)
        except Exception as exc:
            return _refuse(500, "error", kind=type(exc).__name__, **fields)
        answer = _respond(outcome)
        if on_outcome is not None:
            answer.background = BackgroundTask(_report, on_outcome, outcome)
        return answer

    async def healthz(_request: Request) -> Response:
        is_healthy = health.recent
        if is_healthy is None:
            # The default threads may all be in use by the parent application.
            is_healthy = await run_sync(health.check, limiter=health_threads)
        if not is_healthy:
            return _refuse(503, "database unavailable")
        return JSONResponse({"status": "ok"})

    async def livez(_request: Request) -> Response:
        return JSONResponse({"status": "ok"})

    return Starlette(
        routes=[
            Route("/stripe/webhook", webhook, methods=["POST"]),
            Route("/healthz", healthz, methods=["GET"]),
            Route("/livez", livez, methods=["GET"]),
        ]
    )


class _Answer(JSONResponse):
    result: DeliveryResult


class _Delivery:
    """One event that is being processed, and its deadline."""

    def __init__(
        self,
        pool: Pool,
        workers: "Workers",
        client: stripe.StripeClient | None,
        event: Event,
    ) -> None:
        self._pool, self._workers, self._event = pool, workers, event
        self._deadline = Deadline.after(DELIVERY_TIMEOUT)
        self._until = self._deadline.before(FAILURE_RESERVE)
        self._client = with_deadline(client, self._until)
        self._error: Exception = psycopg.errors.LockNotAvailable(
            "other deliveries for the same customer used up the time"
        )

    async def process(self) -> Outcome:
        """Apply the event and return its outcome; if that fails, record the failure.

        Raises:
            psycopg.OperationalError: the database is unavailable; nothing changed.
            TimeoutError: no connection was free; nothing changed.
        """
        try:
            async with self._workers.turn(self._event.lock_key, self._until):
                effect = await self._retry_until_applied()
        except TimeoutError:
            effect = None
        if effect is not None:
            if effect.moved_user_ids:
                await self._cut(effect.moved_user_ids)
            return make_outcome(self._event, effect)
        return await self._run(self._record_failure, self._deadline, is_slow=False)

    async def _retry_until_applied(self) -> Effect | None:
        """Return the effect, or None after a failure, which is in `_error`."""
        is_slow = False
        while self._until.left():
            try:
                return await self._apply(is_slow=is_slow)
            except LOCK_ERRORS as exc:
                self._error = exc
            except (PoolTimeout, TimeoutError):
                return None
            except psycopg.OperationalError:
                raise
            except Exception as exc:
                self._error = exc
                return None
            is_slow = True
            await anyio.sleep(min(_RETRY_WAIT, self._until.left()))
        return None

    async def _apply(self, *, is_slow: bool) -> Effect:
        if not needs_fetch(self._event):
            effect = await self._run(self._apply_directly, self._until, is_slow=is_slow)
            if effect.result != "ambiguous":
                return effect
        return await self._run(self._apply_with_fetch, self._until, is_slow=True)

    async def _cut(self, user_ids: Sequence[UUID]) -> None:
        """Cut the sums of users whose period moved; the event is applied anyway."""

        def cut(conn: Connection[Any]) -> None:
            cut_moved_usage(conn, user_ids, self._until)

        try:
            await self._run(cut, self._until, is_slow=True)
        except (psycopg.OperationalError, TimeoutError) as exc:
            log_uncut(user_ids, exc)

    async def _run(
        self, work: Callable[[Connection[Any]], T], deadline: Deadline, *, is_slow: bool
    ) -> T:
        return await self._workers.run(
            lambda: _call_with_connection(self._pool, work, deadline),
            deadline,
            is_slow=is_slow,
        )

    def _apply_directly(self, conn: Connection[Any]) -> Effect:
        return apply_directly(conn, self._event, self._client, _LOCK_WAIT)

    def _apply_with_fetch(self, conn: Connection[Any]) -> Effect:
        return apply_with_fetch(
            conn, self._event, self._client, self._until, _LOCK_WAIT_AFTER_FETCH
        )

    def _record_failure(self, conn: Connection[Any]) -> Outcome:
        return record_failure(conn, self._event, self._error, self._deadline)


def _call_with_connection(
    pool: Pool, work: Callable[[Connection[Any]], T], deadline: Deadline
) -> T:
    """Call *work* with a connection; repeat it once if the connection is lost.

    After a restart of the server, all connections of the pool are dead; `pool.check`
    replaces them.
    """
    with pool.connection(timeout=deadline.left()) as conn:
        try:
            return work(conn)
        except psycopg.OperationalError:
            if not conn.closed:
                raise
    pool.check()
    with pool.connection(timeout=deadline.left()) as conn:
        return work(conn)


class Workers:
    """Threads for *size* connections; slow work gets at most half of them."""

    def __init__(self, size: int) -> None:
        self._all = anyio.CapacityLimiter(size)
        self._slow = anyio.CapacityLimiter(max(size // 2, 1))
        self._threads = anyio.CapacityLimiter(2 * size)
        self._turns: dict[str, _Turn] = {}

    async def run(
        self, work: Callable[[], T], deadline: Deadline, *, is_slow: bool
    ) -> T:
        """Return the result of *work* in a thread; cancellation abandons the thread.

        Raises:
            TimeoutError: no thread was free before *deadline*.
        """
        async with AsyncExitStack() as stack:
            with anyio.fail_after(deadline.left()):
                if is_slow:
                    await stack.enter_async_context(self._slow)
                await stack.enter_async_context(self._all)
            return await run_sync(work, limiter=self._threads, abandon_on_cancel=True)

    @asynccontextmanager
    async def turn(self, lock_key: str, deadline: Deadline) -> AsyncIterator[None]:
        """Admit one delivery at a time for *lock_key* in this process.

        In the database, each of them would wait with a connection.

        Raises:
            TimeoutError: another delivery still had the turn at *deadline*.
        """
        turn = self._turns.setdefault(lock_key, _Turn())
        turn.users += 1
        try:
            with anyio.fail_after(deadline.left()):
                await turn.lock.acquire()
            try:
                yield
            finally:
                turn.lock.release()
        finally:
            turn.users -= 1
            if not turn.users:
                del self._turns[lock_key]


class _Turn:
    def __init__(self) -> None:
        self.lock = anyio.Lock()
        self.users = 0


class HealthCheck:
    """Checks the database of *pool* on a separate connection."""

    def __init__(self, pool: Pool) -> None:
        self._pool = pool
        self._lock = threading.Lock()
        self._checked_at = -_HEALTH_INTERVAL
        self._is_healthy = False

    @property
    def recent(self) -> bool | None:
        """Return the result of the last second; None if there is none."""
        is_recent = time.monotonic() - self._checked_at < _HEALTH_INTERVAL
        return self._is_healthy if is_recent else None

    def check(self) -> bool:
        """Return True if the database answers; one thread at a time connects."""
        if not self._lock.acquire(timeout=_HEALTH_TIMEOUT):
            return False
        try:
            if (recent := self.recent) is not None:
                return recent
            try:
                self._connect()
            except psycopg.Error:
                self._is_healthy = False
            else:
                self._is_healthy = True
            self._checked_at = time.monotonic()
            return self._is_healthy
        finally:
            self._lock.release()

    def _connect(self) -> None:
        pool = self._pool
        if pool.closed:
            raise psycopg.OperationalError("the pool is closed")
        conninfo = pool.conninfo() if callable(pool.conninfo) else pool.conninfo
        options = pool.kwargs() if callable(pool.kwargs) else pool.kwargs
        options = {**(options or {}), "connect_timeout": _HEALTH_TIMEOUT}
        with pool.connection_class.connect(conninfo or "", **options) as conn:
            _ping(conn)


def _ping(conn: Connection[Any]) -> None:
    """Send an empty statement: a pooler may accept connections without a server."""
    until = time.monotonic() + _HEALTH_TIMEOUT
    conn.pgconn.send_query(b"")
    with selectors.DefaultSelector() as selector:
        selector.register(conn.fileno(), selectors.EVENT_READ)
        while conn.pgconn.is_busy():
            if not selector.select(until - time.monotonic()):
                conn.close()
                raise psycopg.OperationalError("the database does not answer")
            conn.pgconn.consume_input()
    while result := conn.pgconn.get_result():
        if result.status == psycopg.pq.ExecStatus.FATAL_ERROR:
            raise psycopg.OperationalError(result.get_error_message())


async def _read_body(request: Request, max_body: int) -> bytes | None:
    """Return the body, or None as soon as it exceeds *max_body* bytes."""
    announced = request.headers.get("content-length", "")
    if announced.isdecimal() and int(announced) > max_body:
        return None
    body = bytearray()
    async for chunk in request.stream():
        body += chunk
        if len(body) > max_body:
            return None
    return bytes(body)


def _report(on_outcome: Callable[[Outcome], None], outcome: Outcome) -> None:
    """Call the application; its error must not look like one of the delivery."""
    try:
        on_outcome(outcome)
    except Exception as exc:
        # Only the class is logged: the text may contain private data.
        fields = {"event_id": outcome.event_id, "event_type": outcome.type}
        log.error(
            "stripe outcome not handled", extra={**fields, "kind": type(exc).__name__}
        )


def _respond(outcome: Outcome) -> _Answer:
    is_failed = outcome.result == "failed"
    fields: dict[str, Any] = {
        "event_id": outcome.event_id,
        "event_type": outcome.type,
        "result": outcome.result,
    }
    if is_failed:
        # The text after the class may quote a row.
        kind = (outcome.error or "").partition(":")[0]
        fields |= {"kind": kind, "attempts": outcome.attempts}
    if outcome.note:
        fields["note"] = outcome.note
    if outcome.user_ids:
        fields["user_ids"] = [str(user_id) for user_id in outcome.user_ids]
    if outcome.conflicting_user_id:
        fields["conflicting_user_id"] = str(outcome.conflicting_user_id)
    level = logging.ERROR if is_failed else logging.INFO
    log.log(level, "stripe event %s", outcome.result, extra=fields)
    status = (503 if outcome.is_busy else 500) if is_failed else 200
    body: dict[str, str] = {"result": outcome.result}
    if outcome.note:
        body["note"] = outcome.note
    answer = _Answer(body, status_code=status)
    answer.result = "busy" if status == 503 else outcome.result
    return answer


def _refuse(status: int, reason: str, **fields: str) -> _Answer:
    log.warning(
        "stripe request refused: %s", reason, extra={"status": status, **fields}
    )
    # The rest of the body is not read.
    headers = {"Connection": "close"} if status in {408, 413} else None
    answer = _Answer({"error": reason}, status_code=status, headers=headers)
    answer.result = _REFUSED.get(status, "refused")
    return answer

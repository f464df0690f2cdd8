"""The endpoint that Stripe delivers to, as an application to serve or to mount."""

import logging
from collections.abc import Callable, Sequence
from typing import Any, Literal, TypeVar

import anyio
import psycopg
import stripe
from anyio.to_thread import run_sync
from psycopg import Connection
from psycopg_pool import ConnectionPool, PoolTimeout
from starlette.applications import Starlette
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from pyapp.errors import InvalidPayloadError, InvalidSignatureError
from pyapp.stripe_sync.deadline import BUSY, PATIENCE, RESERVE, Deadline
from pyapp.stripe_sync.envelope import Event
from pyapp.stripe_sync.health import Health
from pyapp.stripe_sync.inbox import (
    Outcome,
    Taken,
    hurried,
    keep_failed,
    needs_asking,
    take_at_once,
    take_by_asking,
)
from pyapp.stripe_sync.lanes import Lanes
from pyapp.stripe_sync.webhooks import MAX_BODY, read_delivery

log = logging.getLogger("pyapp.stripe")

T = TypeVar("T")
Pool = ConnectionPool[Connection[Any]]

# Seconds in which a body has to arrive.
BODY_PATIENCE = 5.0
# Seconds that a delivery waits for a lock with a connection, and without one.
_WITH_CONNECTION = 0.02
_WITHOUT_CONNECTION = 0.1
# The same once Stripe has been asked, which would have to be done again.
_WHILE_ASKING = 0.5
# Seconds after PATIENCE at which an answer is given although a thread is still at work.
_GRACE = 0.5
# Deliveries at a time where the pool sets no limit.
_UNLIMITED = 40
# Bytes that are verified at once; for more, other requests would have to wait.
_SMALL = 1 << 16


def create_app(
    pool: Pool,
    secrets: Sequence[str] | str,
    client: stripe.StripeClient | None = None,
    max_body: int = MAX_BODY,
    livemode: bool | None = None,
) -> Starlette:
    """Return an application with POST /stripe/webhook and GET /healthz.

    It says 200 only after the commit, 400 if the signature or the event is not valid,
    408 to a body that does not arrive in five seconds, 413 to more than *max_body*
    bytes, and 500 if the event could not be applied. It says 503 while the database is
    away, and if a lock was not free within five seconds. Stripe repeats the last two.
    *livemode* is as in handle_webhook. The *pool* stays the caller's: deliveries that
    wait, for a lock or for Stripe's API, use half of its connections at most.
    """
    # A pool without connections of its own may have no limit.
    lanes = Lanes(pool.max_size or _UNLIMITED)
    health, asking = Health(pool), anyio.CapacityLimiter(2)

    async def webhook(request: Request) -> Response:
        try:
            with anyio.fail_after(BODY_PATIENCE):
                payload = await _read(request, max_body)
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
        except InvalidPayloadError:
            return _refuse(400, "no event")
        except Exception as exc:
            # Its text may hold anything; its kind does not.
            return _refuse(500, "error", kind=type(exc).__name__)
        told = {"event_id": event.id, "event_type": event.type}
        try:
            with anyio.fail_after(PATIENCE + _GRACE):
                outcome = await _Delivery(pool, lanes, client, event).take()
        except (psycopg.OperationalError, TimeoutError) as exc:
            kind = type(exc).__name__
            return _refuse(503, "database unavailable", kind=kind, **told)
        except Exception as exc:
            return _refuse(500, "error", kind=type(exc).__name__, **told)
        return _answer(outcome)

    async def healthz(_request: Request) -> Response:
        is_well = health.known
        if is_well is None:
            # The threads of the application that this is mounted in may all be in use.
            is_well = await run_sync(health.ask, limiter=asking)
        if not is_well:
            return _refuse(503, "database unavailable")
        return JSONResponse({"status": "ok"})

    return Starlette(
        routes=[
            Route("/stripe/webhook", webhook, methods=["POST"]),
            Route("/healthz", healthz, methods=["GET"]),
        ]
    )


class _Delivery:
    """One event on its way into the inbox, and the time that it has for it."""

    def __init__(
        self, pool: Pool, lanes: Lanes, client: stripe.StripeClient | None, event: Event
    ) -> None:
        self._pool, self._lanes, self._event = pool, lanes, event
        self._deadline = Deadline.after(PATIENCE)
        self._until = self._deadline.before(RESERVE)
        self._client = hurried(client, self._until)
        self._error: Exception = psycopg.errors.LockNotAvailable(
            "other deliveries were under way until the time was over"
        )

    async def take(self) -> Outcome:
        """Apply the event and return what became of it; at the end, keep it as failed.

        Raises:
            psycopg.OperationalError: the database is away; nothing is changed.
            TimeoutError: no connection was free; nothing is changed.
        """
        try:
            async with self._lanes.turn(self._event.lock_key, self._until):
                taken = await self._try_until_free()
        except TimeoutError:
            taken = None
        if taken is not None:
            return Outcome(self._event.id, self._event.type, taken)
        return await self._run(self._keep, self._deadline, is_slow=False)

    async def _try_until_free(self) -> Taken | None:
        """Return what became of the event; None if it has failed, by `_error`."""
        is_slow = False
        while self._until.left():
            try:
                return await self._try(is_slow=is_slow)
            except BUSY as exc:
                self._error = exc
            except (PoolTimeout, TimeoutError):
                return None
            except psycopg.OperationalError:
                raise
            except Exception as exc:
                self._error = exc
                return None
            is_slow = True
            await anyio.sleep(min(_WITHOUT_CONNECTION, self._until.left()))
        return None

    async def _try(self, *, is_slow: bool) -> Taken:
        if not needs_asking(self._event):
            taken = await self._run(self._take_at_once, self._until, is_slow=is_slow)
            if taken != "ambiguous":
                return taken
        return await self._run(self._take_by_asking, self._until, is_slow=True)

    async def _run(
        self, work: Callable[[Connection[Any]], T], deadline: Deadline, *, is_slow: bool
    ) -> T:
        return await self._lanes.run(
            lambda: _use(self._pool, work, deadline), deadline, is_slow=is_slow
        )

    def _take_at_once(self, conn: Connection[Any]) -> Taken | Literal["ambiguous"]:
        return take_at_once(conn, self._event, self._client, _WITH_CONNECTION)

    def _take_by_asking(self, conn: Connection[Any]) -> Taken:
        return take_by_asking(
            conn, self._event, self._client, self._until, _WHILE_ASKING
        )

    def _keep(self, conn: Connection[Any]) -> Outcome:
        return keep_failed(conn, self._event, self._error, self._deadline)


def _use(pool: Pool, work: Callable[[Connection[Any]], T], deadline: Deadline) -> T:
    """Return what *work*, which may be done twice, does with a connection.

    After a restart of the server all those in the pool are dead, and this one may die
    under the work, too: another one is tried once, with the others looked through.
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


async def _read(request: Request, max_body: int) -> bytes | None:
    """Return the body, None as soon as it is known to be larger than *max_body*."""
    announced = request.headers.get("content-length", "")
    if announced.isdecimal() and int(announced) > max_body:
        return None
    body = bytearray()
    async for chunk in request.stream():
        body += chunk
        if len(body) > max_body:
            return None
    return bytes(body)


def _answer(outcome: Outcome) -> Response:
    is_failed = outcome.result == "failed"
    fields: dict[str, Any] = {
        "event_id": outcome.event_id,
        "event_type": outcome.type,
        "result": outcome.result,
    }
    if is_failed:
        # The rest of the error may quote a row.
        kind = (outcome.error or "").partition(":")[0]
        fields |= {"kind": kind, "attempts": outcome.attempts}
    level = logging.ERROR if is_failed else logging.INFO
    log.log(level, "stripe event %s", outcome.result, extra=fields)
    status = (503 if outcome.is_busy else 500) if is_failed else 200
    return JSONResponse({"result": outcome.result}, status_code=status)


def _refuse(status: int, reason: str, **fields: str) -> Response:
    log.warning(
        "stripe request refused: %s", reason, extra={"status": status, **fields}
    )
    # What is left of the body is not read.
    headers = {"Connection": "close"} if status in {408, 413} else None
    return JSONResponse({"error": reason}, status_code=status, headers=headers)

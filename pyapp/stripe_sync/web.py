"""The endpoint that Stripe delivers to, as an application to serve or to mount."""

import logging
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import psycopg
import stripe
from psycopg import Connection
from psycopg_pool import ConnectionPool
from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from pyapp.errors import InvalidPayloadError, InvalidSignatureError
from pyapp.stripe_sync.inbox import Outcome
from pyapp.stripe_sync.webhooks import MAX_BODY, handle_webhook

log = logging.getLogger("pyapp.stripe")

T = TypeVar("T")
Pool = ConnectionPool[Connection[Any]]

# Seconds to wait for a connection; Stripe gives up on a delivery after about ten.
_PATIENCE = 5.0


def create_app(
    pool: Pool,
    secrets: Sequence[str] | str,
    client: stripe.StripeClient | None = None,
    max_body: int = MAX_BODY,
    livemode: bool | None = None,
) -> Starlette:
    """Return an application with POST /stripe/webhook and GET /healthz.

    It says 200 only after the commit, 400 to what nobody signed or is no event, 413 to
    more than *max_body* bytes, 500 if the event could not be applied, and 503 while the
    database is away; Stripe repeats the last two. *livemode* is as in handle_webhook.
    The *pool* stays the caller's.
    """

    def take(payload: bytes, signature: str | None) -> Outcome:
        return _use(
            pool,
            lambda conn: handle_webhook(
                conn, payload, signature, secrets, client, livemode=livemode
            ),
        )

    def ask() -> None:
        _use(pool, lambda conn: conn.execute(""))

    async def webhook(request: Request) -> Response:
        try:
            payload = await _read(request, max_body)
        except ClientDisconnect:
            return _refuse(400, "cut off")
        if payload is None:
            return _refuse(413, "too large")
        signature = request.headers.get("stripe-signature")
        try:
            outcome = await run_in_threadpool(take, payload, signature)
        except InvalidSignatureError:
            return _refuse(400, "bad signature")
        except InvalidPayloadError:
            return _refuse(400, "no event")
        except psycopg.OperationalError:
            return _refuse(503, "database unavailable")
        except Exception as exc:
            # Its text may hold anything; its kind does not.
            return _refuse(500, "error", kind=type(exc).__name__)
        return _answer(outcome)

    async def healthz(_request: Request) -> Response:
        try:
            await run_in_threadpool(ask)
        except psycopg.OperationalError:
            return _refuse(503, "database unavailable")
        return JSONResponse({"status": "ok"})

    return Starlette(
        routes=[
            Route("/stripe/webhook", webhook, methods=["POST"]),
            Route("/healthz", healthz, methods=["GET"]),
        ]
    )


def _use(pool: Pool, work: Callable[[Connection[Any]], T]) -> T:
    """Return what *work*, which may be done twice, does with a connection.

    After a restart of the server all those in the pool are dead, and this one may die
    under the work, too: another one is tried once, with the others looked through.
    """
    with pool.connection(timeout=_PATIENCE) as conn:
        try:
            return work(conn)
        except psycopg.OperationalError:
            if not conn.closed:
                raise
    pool.check()
    with pool.connection(timeout=_PATIENCE) as conn:
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
    fields = {
        "event_id": outcome.event_id,
        "event_type": outcome.type,
        "result": outcome.result,
    }
    level = logging.ERROR if is_failed else logging.INFO
    log.log(level, "stripe event %s", outcome.result, extra=fields)
    status = 500 if is_failed else 200
    return JSONResponse({"result": outcome.result}, status_code=status)


def _refuse(status: int, reason: str, **fields: str) -> Response:
    log.warning(
        "stripe request refused: %s", reason, extra={"status": status, **fields}
    )
    return JSONResponse({"error": reason}, status_code=status)

"""Serves the endpoint by uvicorn, with what that lacks: limits of time and of number.

A connection has HEAD_PATIENCE seconds for the head of each request; the application
limits the body. There are never so many connections that no file descriptor is left:
one too many closes the one that has been without a whole request for longest.
"""

import asyncio
import logging
import os
import socket
import time
from typing import Any, ClassVar

import h11
import uvicorn
from starlette.applications import Starlette
from uvicorn.protocols.http.h11_impl import H11Protocol

log = logging.getLogger("pyapp.stripe")

# Seconds in which the head of a request has to arrive.
HEAD_PATIENCE = 5.0
# Seconds that requests under way have to finish when the server is told to stop.
GRACE = 20
# Connections at a time; each may hold a body of 1 MiB.
_MOST = 1000
# Connections that asyncio accepts at a time, and those that the kernel keeps for it.
_AT_ONCE = 64
_WAITING = 2048
# File descriptors for the database, Stripe's API and the logs.
_RESERVED = 64
# Seconds between two records that say that connections are closed.
_QUIET = 10.0


def serve(app: Starlette, host: str, port: int) -> None:
    """Serve *app* until SIGTERM or SIGINT, and then what is under way."""
    most, at_once = limits()
    config = uvicorn.Config(
        app,
        host=host,
        port=port,
        http=make_protocol(most),
        ws="none",
        # asyncio accepts so many before it counts them.
        backlog=at_once,
        log_config=None,
        access_log=False,
        server_header=False,
        timeout_graceful_shutdown=GRACE,
    )
    _Server(config).run()


def limits() -> tuple[int, int]:
    """Return how many connections there may be, and how many are accepted at once."""
    left = _files() - _RESERVED
    at_once = max(min(left // 8, _AT_ONCE), 1)
    # Those accepted are in three states before they are counted.
    return max(min(left - 4 * at_once, _MOST), 8), at_once


def _files() -> int:
    try:
        import resource
    except ModuleNotFoundError:  # Windows
        return 512
    files, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return 1 << 16 if files == resource.RLIM_INFINITY else files


class _Server(uvicorn.Server):
    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        # Others wait in the kernel until they are accepted.
        for server in self.servers:
            for listening in server.sockets:
                with socket.socket(fileno=os.dup(listening.fileno())) as same:
                    same.listen(_WAITING)


def make_protocol(most: int) -> type[asyncio.Protocol]:
    """Return the protocol of a server that has at most *most* connections."""
    return type("Protocol", (_Protocol,), {"most": most, "waiting": {}})


class _Protocol(H11Protocol):
    most: ClassVar[int]
    # Those whose request has not arrived as a whole, the longest first.
    waiting: ClassVar[dict["_Protocol", None]]
    told_at: ClassVar[float] = -_QUIET
    head_timer: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self._look()
        if len(self.connections) > self.most:
            self._make_room()

    def connection_lost(self, exc: Exception | None) -> None:
        self._stop_timer()
        self.waiting.pop(self, None)
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        self._look()

    def on_response_complete(self) -> None:
        super().on_response_complete()
        # How long it may stay idle is uvicorn's.
        self.waiting[self] = None

    def _look(self) -> None:
        """Start or stop what runs until the head, and the whole request, are there."""
        state = self.conn.their_state
        if state is not h11.IDLE:
            self._stop_timer()
        elif self.head_timer is None and not self.transport.is_closing():
            self.head_timer = self.loop.call_later(HEAD_PATIENCE, self.transport.abort)
        if state is h11.IDLE or state is h11.SEND_BODY:
            self.waiting.setdefault(self)
        else:
            self.waiting.pop(self, None)

    def _stop_timer(self) -> None:
        if self.head_timer is not None:
            self.head_timer.cancel()
            self.head_timer = None

    def _make_room(self) -> None:
        """Close the connection that has been without a whole request for longest."""
        oldest = next(iter(self.waiting), self)
        self.waiting.pop(oldest, None)
        oldest.transport.abort()
        kind, now = type(self), time.monotonic()
        if now - kind.told_at > _QUIET:
            kind.told_at = now
            fields: dict[str, Any] = {"most": self.most}
            log.warning("connections closed: there are too many", extra=fields)

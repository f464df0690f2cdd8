"""Serve the webhook endpoint with uvicorn, with limits that uvicorn does not have.

The head of each request has to arrive within HEAD_TIMEOUT; the application limits the
body. The number of connections is limited so that file descriptors do not run out. One
connection too many closes the one that has waited longest for a complete request.
"""

import asyncio
import logging
import os
import socket
import time
from dataclasses import dataclass, field
from typing import Any, ClassVar

import h11
import uvicorn
from starlette.applications import Starlette
from uvicorn.protocols.http.h11_impl import H11Protocol

from pyapp._core.signals import stopped_by

log = logging.getLogger("pyapp.stripe")

# Seconds within which the head of a request has to arrive.
HEAD_TIMEOUT = 5.0
# Seconds that running requests have to finish at shutdown.
SHUTDOWN_TIMEOUT = 20
# Open connections; each may hold a body of 1 MiB.
_MAX_CONNECTIONS = 1000
# Connections that asyncio accepts in one turn, and the kernel's queue of others.
_MAX_ACCEPTS = 64
_KERNEL_BACKLOG = 2048
# File descriptors for the database, Stripe's API and the logs.
_RESERVED_FILES = 64
# Seconds between two log records about closed connections.
_LOG_INTERVAL = 10.0


@dataclass
class ConnectionCounts:
    """The limit of connections, those open now, and those closed because of it."""

    maximum: int = 0
    closed: int = 0
    connections: set[Any] = field(default_factory=set)


def serve(
    app: Starlette, host: str, port: int, counts: ConnectionCounts | None = None
) -> None:
    """Serve *app* until SIGTERM or SIGINT, then finish the running requests.

    *counts* is kept up to date.
    """
    max_connections, max_accepts = connection_limits()
    counts = counts or ConnectionCounts()
    counts.maximum = max_connections
    config = uvicorn.Config(
        app,
        host=host,
        port=port,
        http=make_protocol(counts),
        ws="none",
        # asyncio accepts this many before the protocol counts them.
        backlog=max_accepts,
        log_config=None,
        access_log=False,
        server_header=False,
        timeout_graceful_shutdown=SHUTDOWN_TIMEOUT,
    )
    server = _Server(config)
    counts.connections = server.server_state.connections

    def stop() -> None:
        # Until uvicorn handles signals; afterwards it raises them again, to no effect.
        server.should_exit = True

    with stopped_by(stop):
        server.run()


def connection_limits() -> tuple[int, int]:
    """Return the limits of open connections and of accepts in one turn."""
    left = _max_files() - _RESERVED_FILES
    max_accepts = max(min(left // 8, _MAX_ACCEPTS), 1)
    # An accepted connection passes three states before it is counted.
    return max(min(left - 4 * max_accepts, _MAX_CONNECTIONS), 8), max_accepts


def _max_files() -> int:
    try:
        import resource
    except ModuleNotFoundError:  # Windows
        return 512
    files, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return 1 << 16 if files == resource.RLIM_INFINITY else files


class _Server(uvicorn.Server):
    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        # uvicorn uses `backlog` for the kernel's queue too; make that one longer.
        for server in self.servers:
            for listening in server.sockets:
                with socket.socket(fileno=os.dup(listening.fileno())) as duplicate:
                    duplicate.listen(_KERNEL_BACKLOG)


def make_protocol(counts: ConnectionCounts) -> type[asyncio.Protocol]:
    """Return the protocol of a server with at most `counts.maximum` connections."""
    values = {"counts": counts, "waiting": {}}
    return type("Protocol", (_Protocol,), values)


class _Protocol(H11Protocol):
    counts: ClassVar[ConnectionCounts]
    # Connections without a complete request, the longest waiting first.
    waiting: ClassVar[dict["_Protocol", None]]
    logged_at: ClassVar[float] = -_LOG_INTERVAL
    head_timer: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self._update_state()
        if len(self.connections) > self.counts.maximum:
            self._close_oldest()

    def connection_lost(self, exc: Exception | None) -> None:
        self._stop_timer()
        self.waiting.pop(self, None)
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        self._update_state()

    def on_response_complete(self) -> None:
        super().on_response_complete()
        # uvicorn limits the idle time.
        self.waiting[self] = None

    def _update_state(self) -> None:
        """Run the timer until the head has arrived; note incomplete requests."""
        state = self.conn.their_state
        if state is not h11.IDLE:
            self._stop_timer()
        elif self.head_timer is None and not self.transport.is_closing():
            self.head_timer = self.loop.call_later(HEAD_TIMEOUT, self.transport.abort)
        if state is h11.IDLE or state is h11.SEND_BODY:
            self.waiting.setdefault(self)
        else:
            self.waiting.pop(self, None)

    def _stop_timer(self) -> None:
        if self.head_timer is not None:
            self.head_timer.cancel()
            self.head_timer = None

    def _close_oldest(self) -> None:
        """Close the connection that has waited longest for a complete request."""
        oldest = next(iter(self.waiting), self)
        self.waiting.pop(oldest, None)
        oldest.transport.abort()
        self.counts.closed += 1
        kind, now = type(self), time.monotonic()
        if now - kind.logged_at > _LOG_INTERVAL:
            kind.logged_at = now
            fields: dict[str, Any] = {"max_connections": self.counts.maximum}
            log.warning("connections closed: there are too many", extra=fields)

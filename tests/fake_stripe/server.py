"""The HTTP server: one thread per kept-alive connection, with faults."""

import contextlib
import socket
import sys
import time
import traceback
from email.utils import formatdate
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from .api import Reply
from .control import control
from .errors import ApiError
from .faults import Fault
from .shapes import to_json

if TYPE_CHECKING:
    from .fake import FakeStripe

_LARGEST_BODY = 1 << 20


class Server(ThreadingHTTPServer):
    daemon_threads = True
    block_on_close = False
    request_queue_size = 128

    def __init__(self, fake: "FakeStripe", host: str, port: int) -> None:
        super().__init__((host, port), Handler)
        self.fake = fake
        self.connections: set[socket.socket] = set()

    def handle_error(self, request: object, client_address: object) -> None:
        """Log nothing if a client disconnects: tests have timeouts."""
        if not isinstance(sys.exception(), OSError):
            traceback.print_exc()

    def close_connections(self) -> None:
        """Close kept-alive connections, as a stopped server does."""
        for connection in list(self.connections):
            with contextlib.suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)


class Handler(BaseHTTPRequestHandler):
    server: Server
    protocol_version = "HTTP/1.1"
    # One packet for header and body, without delay, avoids a 40 ms wait for an ACK.
    wbufsize = -1
    disable_nagle_algorithm = True

    def setup(self) -> None:
        super().setup()
        self.server.connections.add(self.connection)

    def finish(self) -> None:
        self.server.connections.discard(self.connection)
        super().finish()

    def log_message(self, format: str, *args: object) -> None:
        """Log nothing: requests contain keys."""

    def version_string(self) -> str:
        return "nginx"

    def date(self) -> str:
        return formatdate(self.server.fake.clock.now, usegmt=True)

    def do_GET(self) -> None:
        self._serve()

    def do_POST(self) -> None:
        self._serve()

    def do_DELETE(self) -> None:
        self._serve()

    def _serve(self) -> None:
        length = int(self.headers.get("Content-Length") or 0)
        if length > _LARGEST_BODY:
            self.close_connection = True
            self._send(Reply(413, to_json(ApiError(413, "Too large").body())))
            return
        body = self.rfile.read(length).decode()
        url = urlsplit(self.path)
        fake = self.server.fake
        if url.path.startswith("/_fake/"):
            self._send(control(fake, self.command, url.path, url.query, body))
            return
        fault = fake.faults.pick(self.command, url.path)
        if fault and fault.kind == "cut" and fault.when == "before":
            self._cut()
            return
        if fault and fault.kind in ("rate_limit", "error"):
            self._send(_refusal(fault))
            return
        answer = fake.api.handle(
            self.command, url.path, url.query, body, self.headers.get
        )
        if fault and fault.kind == "slow":
            time.sleep(fault.seconds)
        if fault and fault.kind == "cut":
            if fault.when == "body":
                self._send(answer, share=0.5)
            self._cut()
            return
        self._send(answer)

    def _send(self, answer: Reply, *, share: float = 1.0) -> None:
        body = answer.body.encode()
        self.server.fake.statuses[answer.status] += 1
        self.send_response_only(answer.status)
        self.send_header("Server", self.version_string())
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        for name, value in {"Date": self.date(), **answer.headers}.items():
            self.send_header(name, value)
        if self.close_connection:
            self.send_header("Connection", "close")
        self.end_headers()
        self.wfile.write(body[: int(len(body) * share)])
        self.wfile.flush()

    def _cut(self) -> None:
        self.close_connection = True
        self.connection.shutdown(socket.SHUT_RDWR)


def _refusal(fault: Fault) -> Reply:
    if fault.kind == "rate_limit":
        error = ApiError(429, "Request rate limit exceeded.", code="rate_limit")
    else:
        error = ApiError(fault.status, "An unknown error occurred", kind="api_error")
    answer = Reply(error.status, to_json(error.body()))
    if fault.retry_after is not None:
        answer.headers["Retry-After"] = f"{fault.retry_after:g}"
    if fault.should_retry is not None:
        answer.headers["Stripe-Should-Retry"] = str(fault.should_retry).lower()
    answer.headers["Request-Id"] = "req_fault"
    return answer

"""Run `pyapp stripe serve` as a process, and deliver to it by sockets."""

import asyncio
import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

from tests.fake_stripe import TEST_KEY, TEST_SECRET, sign
from tests.temp_server import free_port

PATH = "/stripe/webhook"
_START = """
import resource, sys
files = int(sys.argv.pop(1))
if files:
    resource.setrlimit(resource.RLIMIT_NOFILE, (files, files))
from pyapp.cli import main
main()
"""


@dataclass(frozen=True, slots=True)
class Reply:
    """The status of a response, 0 for none, and the seconds it took."""

    status: int
    seconds: float


@dataclass(slots=True)
class Served:
    """A running server: its port and its log lines so far."""

    port: int
    process: "subprocess.Popen[str]"
    log: list[str] = field(default_factory=list)

    async def post(self, body: bytes) -> Reply:
        """Deliver *body*, signed, on a new connection."""
        head = (
            f"POST {PATH} HTTP/1.1\r\nHost: x\r\nContent-Length: {len(body)}\r\n"
            f"Stripe-Signature: {sign(body, [TEST_SECRET])}\r\n"
            "Connection: close\r\n\r\n"
        )
        return await self.request(head.encode() + body)

    async def get(self, path: str) -> Reply:
        head = f"GET {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n"
        return await self.request(head.encode())

    async def request(self, data: bytes, limit: float = 30) -> Reply:
        """Send *data* and wait for the status line."""
        began = time.monotonic()
        try:
            async with asyncio.timeout(limit):
                reader, writer = await asyncio.open_connection("127.0.0.1", self.port)
                try:
                    writer.write(data)
                    line = await reader.readline()
                finally:
                    writer.close()
        except (OSError, TimeoutError):
            line = b""
        status = int(line.split()[1]) if line else 0
        return Reply(status, time.monotonic() - began)


@contextmanager
def serving(
    url: str, *arguments: str, files: int = 0, api: str = ""
) -> Iterator[Served]:
    """Serve the database at *url*; *files* is the limit of file descriptors."""
    port = free_port()
    environment = os.environ | {
        "DATABASE_URL": url,
        "STRIPE_WEBHOOK_SECRET": TEST_SECRET,
        "STRIPE_SECRET_KEY": TEST_KEY if api else "",
        "STRIPE_API_BASE": api,
    }
    command = ["stripe", "serve", "--port", str(port), *arguments]
    process = subprocess.Popen(
        [sys.executable, "-c", _START, str(files), *command],
        env=environment,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stderr is not None
    served = Served(port, process)
    try:
        for line in iter(process.stderr.readline, ""):
            served.log.append(line)
            if "running on" in line:
                break
        else:
            raise AssertionError(served.log)
        # A full pipe would block the server.
        threading.Thread(
            target=lambda: served.log.extend(process.stderr or ()), daemon=True
        ).start()
        yield served
    finally:
        process.kill()
        process.wait()

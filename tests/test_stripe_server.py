"""Slow and half-open connections do not delay complete requests."""

import asyncio
import socket
import time
from collections.abc import Iterator
from contextlib import ExitStack, closing, contextmanager, suppress

import pytest

from tests.fake_stripe import TEST_SECRET, sign
from tests.serving import PATH, Served, serving
from tests.stripe_world import StripeWorld, make_customer, make_event

FILES = 128
HEAD = f"POST {PATH} HTTP/1.1\r\nHost: x\r\n".encode()
PARTS = {
    "nothing": b"",
    "half a head": HEAD,
    "half a body": HEAD + b"Content-Length: 1000\r\n\r\n{",
}


@pytest.fixture(scope="module")
def served(module_database: str) -> Iterator[Served]:
    with serving(module_database, files=FILES) as running:
        yield running


@contextmanager
def opened(served: Served, number: int, part: bytes) -> Iterator[list[socket.socket]]:
    """Hold *number* connections that have sent *part* of a request."""
    with ExitStack() as stack:
        lines = []
        for _ in range(number):
            line = socket.create_connection(("127.0.0.1", served.port), timeout=20)
            lines.append(stack.enter_context(closing(line)))
            line.sendall(part)
        yield lines


def rest_of(line: socket.socket) -> tuple[bytes, float]:
    """Return the data until the server closes the connection, and the seconds."""
    began, data = time.monotonic(), b""
    try:
        while part := line.recv(1000):
            data += part
    except ConnectionResetError:
        pass
    return data, time.monotonic() - began


@pytest.mark.parametrize("part", ["nothing", "half a head"])
def test_head_has_to_arrive_within_five_seconds(served: Served, part: str):
    with opened(served, 1, PARTS[part]) as (line,):
        data, seconds = rest_of(line)
    assert data == b""
    assert 3 < seconds < 8


def test_further_bytes_do_not_extend_the_time(served: Served):
    with opened(served, 1, HEAD) as (line,):
        began = time.monotonic()
        with suppress(ConnectionError):
            while time.monotonic() < began + 10:
                line.sendall(b"X: y\r\n")
                time.sleep(0.2)
        assert time.monotonic() - began < 8


def test_second_request_of_a_connection_has_a_limit_too(served: Served):
    with opened(served, 1, b"GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n") as (line,):
        data = b""
        while not data.endswith(b"}"):
            data += line.recv(1000)
        assert data.startswith(b"HTTP/1.1 200 ")
        line.sendall(HEAD)
        data, seconds = rest_of(line)
    assert data == b""
    assert 3 < seconds < 8


def test_slow_body_gets_408(served: Served):
    with opened(served, 1, PARTS["half a body"]) as (line,):
        data, seconds = rest_of(line)
    assert data.startswith(b"HTTP/1.1 408 ")
    assert 3 < seconds < 8


@pytest.mark.parametrize("part", PARTS)
def test_half_open_connections_do_not_block_others(
    world: StripeWorld, served: Served, part: str
):
    """There are more of them than file descriptors."""
    body = make_event("moon.landed", make_customer("cus_1"))
    with opened(served, 300, PARTS[part]):
        began = time.monotonic()
        while asyncio.run(served.post(body)).status != 200:
            assert time.monotonic() < began + 10
        replies = [asyncio.run(served.post(body)) for _ in range(20)]
        replies.append(asyncio.run(served.get("/healthz")))
    assert {a.status for a in replies} == {200}
    assert max(a.seconds for a in replies) < 1
    assert not [line for line in served.log if "out of system resource" in line]


def test_signed_body_that_is_not_an_event_gets_400(served: Served):
    body = b"{}"
    signature = sign(body, [TEST_SECRET]).encode()
    head = HEAD + b"Content-Length: 2\r\nStripe-Signature: " + signature
    with opened(served, 1, head + b"\r\nConnection: close\r\n\r\n" + body) as (line,):
        assert rest_of(line)[0].startswith(b"HTTP/1.1 400 ")

"""Addresses on which commands listen, and the server of Prometheus' metrics."""

import re
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

import typer

from pyapp.cli.arguments import ArgumentError
from pyapp.errors import MissingExtraError

if TYPE_CHECKING:
    from prometheus_client import CollectorRegistry

_ADDRESS = re.compile(r"(?:(?:\[([^][]+)\]|([^][:]+)):)?(\d{1,5})", re.ASCII)
_LOCAL = "127.0.0.1"


def parse_address(option: str, text: str) -> tuple[str, int]:
    """Return host and port of *text*, the value of *option*: [HOST:]PORT."""
    found = _ADDRESS.fullmatch(text)
    if found is None or int(found[3]) > 65535:
        raise typer.BadParameter(
            f"{option}: {text!r} is not an address: write 9464, or 0.0.0.0:9464"
        )
    return found[1] or found[2] or _LOCAL, int(found[3])


def check_address(host: str, port: int) -> None:
    """Raise ArgumentError if the address cannot be bound.

    An empty host is refused, because it would mean all addresses.
    """
    if not host.strip():
        raise ArgumentError("the host is empty: name an address, or 0.0.0.0 for all")
    try:
        (family, *_), *_ = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
        socket.create_server((host, port), family=family).close()
    except OSError as exc:
        # create_server adds the address in parentheses.
        reason = (exc.strerror or str(exc)).partition(" (")[0]
    except UnicodeError:
        reason = "invalid host name"
    else:
        return
    raise ArgumentError(f"cannot listen on {host} port {port}: {reason}")


def require_prometheus() -> None:
    """Raise MissingExtraError if prometheus-client is not installed."""
    try:
        import prometheus_client  # noqa: F401
    except ModuleNotFoundError as exc:
        raise MissingExtraError("cli") from exc


@contextmanager
def metrics_served(
    registry: "CollectorRegistry", host: str, port: int
) -> Iterator[None]:
    """Serve *registry* at /metrics of that address in a thread."""
    from prometheus_client import start_http_server

    check_address(host, port)
    server, thread = start_http_server(port, host, registry)
    try:
        yield
    finally:
        server.shutdown()
        server.server_close()
        thread.join()

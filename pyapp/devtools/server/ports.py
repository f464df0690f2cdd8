"""TCP ports of this machine."""

import errno
import socket

from pyapp.errors import LocalServerError


def free_port() -> int:
    """Return a TCP port that nobody on this machine uses now."""
    with socket.create_server(("127.0.0.1", 0)) as probe:
        return int(probe.getsockname()[1])


def port_is_free(port: int) -> bool:
    """Say whether a server could listen on *port* of every loopback address.

    PostgreSQL itself is content with one of them, and clients may meet the other.
    """
    try:
        for family, address in (
            (socket.AF_INET, "127.0.0.1"),
            (socket.AF_INET6, "::1"),
        ):
            _bind(family, address, port)
    except OSError as exc:
        if exc.errno == errno.EADDRINUSE:
            return False
        raise LocalServerError(
            f"port {port} cannot be used ({exc.strerror}):"
            " choose another in DATABASE_URL"
        ) from exc
    return True


def _bind(family: socket.AddressFamily, address: str, port: int) -> None:
    try:
        with socket.socket(family, socket.SOCK_STREAM) as probe:
            # As PostgreSQL does: connections just closed do not hold the port.
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind((address, port))
    except OSError as exc:
        no_ipv6 = exc.errno in (errno.EADDRNOTAVAIL, errno.EAFNOSUPPORT)
        if not (family is socket.AF_INET6 and no_ipv6):
            raise

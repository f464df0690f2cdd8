"""A TCP proxy that cuts its connections, at once or right after certain words."""

import contextlib
import socket
import struct
import threading
from types import TracebackType


class Proxy:
    """Listens on `port` and hands everything to *target* on this machine."""

    def __init__(self, target: int) -> None:
        self._target = target
        self._listener = socket.create_server(("127.0.0.1", 0))
        self._open: list[socket.socket] = []
        self._words: bytes | None = None
        self.port = int(self._listener.getsockname()[1])

    def __enter__(self) -> "Proxy":
        threading.Thread(target=self._accept, daemon=True).start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        # Closing alone wakes nobody who accepts.
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        self.cut()

    def cut(self) -> None:
        """Reset all connections; later ones are served."""
        while self._open:
            end = self._open.pop()
            with contextlib.suppress(OSError):
                # Not closed in order, but gone.
                linger = struct.pack("ii", 1, 0)
                end.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
                end.shutdown(socket.SHUT_RDWR)
            end.close()

    def cut_after(self, words: bytes) -> None:
        """Hand on the next message with *words*, and no answer to it."""
        self._words = words

    def _accept(self) -> None:
        while True:
            try:
                client, _ = self._listener.accept()
                server = socket.create_connection(("127.0.0.1", self._target))
            except OSError:
                return
            self._open += [client, server]
            for ends in ((client, server), (server, client)):
                threading.Thread(target=self._pump, args=ends, daemon=True).start()

    def _pump(self, source: socket.socket, sink: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while data := source.recv(65536):
                is_last = self._words is not None and self._words in data
                if is_last:
                    self._words = None
                    # The server is to have it before the line is dead.
                    self._drain(source, sink, data)
                    return
                sink.sendall(data)
            sink.shutdown(socket.SHUT_WR)

    def _drain(self, client: socket.socket, server: socket.socket, data: bytes) -> None:
        """Send *data*, wait for the server's answer, and throw it away."""
        client.shutdown(socket.SHUT_RDWR)
        server.sendall(data)

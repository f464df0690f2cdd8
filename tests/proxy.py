"""A TCP proxy that cuts connections, at once or after a certain message."""

import contextlib
import socket
import struct
import threading
from types import TracebackType


class Proxy:
    """Listens on `port` and forwards to the port *target* of this machine."""

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
        # Closing alone does not end a waiting accept().
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        self.cut()

    def cut(self) -> None:
        """Reset all connections; later connections work."""
        while self._open:
            end = self._open.pop()
            with contextlib.suppress(OSError):
                # A reset instead of an orderly close.
                linger = struct.pack("ii", 1, 0)
                end.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
                end.shutdown(socket.SHUT_RDWR)
            end.close()

    def cut_after(self, words: bytes) -> None:
        """Forward the next message that contains *words*, but not its answer."""
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
                    # The server receives it before the connection is cut.
                    self._drain(source, sink, data)
                    return
                sink.sendall(data)
            sink.shutdown(socket.SHUT_WR)

    def _drain(self, client: socket.socket, server: socket.socket, data: bytes) -> None:
        """Close the client's side, then send *data*; the answer is not forwarded."""
        client.shutdown(socket.SHUT_RDWR)
        server.sendall(data)

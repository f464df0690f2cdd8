"""Who may use a connection: few of those that wait, and one for each customer.

A delivery that waits for a lock does so without a connection and without a thread. It
tries again from time to time, and only a part of the pool is open to those that do.
"""

from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from typing import TypeVar

import anyio
from anyio.to_thread import run_sync

from pyapp.stripe_sync.deadline import Deadline

T = TypeVar("T")


class Lanes:
    """Threads for *size* connections, half of them for work that takes its time."""

    def __init__(self, size: int) -> None:
        self._all = anyio.CapacityLimiter(size)
        self._slow = anyio.CapacityLimiter(max(size // 2, 1))
        self._threads = anyio.CapacityLimiter(2 * size)
        self._turns: dict[str, _Turn] = {}

    async def run(
        self, work: Callable[[], T], deadline: Deadline, *, is_slow: bool
    ) -> T:
        """Return what *work* does in a thread; when cancelled, it is left to itself.

        Raises:
            TimeoutError: at *deadline* none was free.
        """
        async with AsyncExitStack() as stack:
            with anyio.fail_after(deadline.left()):
                if is_slow:
                    await stack.enter_async_context(self._slow)
                await stack.enter_async_context(self._all)
            return await run_sync(work, limiter=self._threads, abandon_on_cancel=True)

    @asynccontextmanager
    async def turn(self, key: str, deadline: Deadline) -> AsyncIterator[None]:
        """Wait until no other delivery in this process works on *key*.

        They would wait for each other in the database, each with a connection.

        Raises:
            TimeoutError: at *deadline* another one still did.
        """
        turn = self._turns.setdefault(key, _Turn())
        turn.wanted += 1
        try:
            with anyio.fail_after(deadline.left()):
                await turn.lock.acquire()
            try:
                yield
            finally:
                turn.lock.release()
        finally:
            turn.wanted -= 1
            if not turn.wanted:
                del self._turns[key]


class _Turn:
    def __init__(self) -> None:
        self.lock = anyio.Lock()
        self.wanted = 0

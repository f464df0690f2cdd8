"""Faults of the API, set by a test."""

import random
import threading
from collections import Counter
from dataclasses import dataclass
from typing import Any, Literal

Kind = Literal["rate_limit", "error", "cut", "slow"]


@dataclass(slots=True)
class Fault:
    """A fault of matching requests.

    rate_limit  429, with `Retry-After` and `Stripe-Should-Retry` if they are set
    error       `status`, by default 500
    cut         the connection closes `before` or `after` the request has an effect, or
                in the middle of the reply's `body`
    slow        the reply is `seconds` late
    """

    kind: Kind
    method: str | None = None
    path: str = "/v1/"
    times: int | None = 1  # None: until cleared
    skip: int = 0  # matching requests that are skipped first
    share: float = 1.0
    status: int = 500
    retry_after: float | None = None
    should_retry: bool | None = None
    seconds: float = 0.0
    when: Literal["before", "after", "body"] = "before"


class Faults:
    def __init__(self, seed: int) -> None:
        self.met: Counter[str] = Counter()
        self._faults: list[Fault] = []
        self._random = random.Random(f"{seed}:faults")
        self._lock = threading.Lock()

    def add(self, kind: Kind, **options: Any) -> Fault:
        """Add a fault with the fields of `Fault`, by default for one request."""
        fault = Fault(kind, **options)
        with self._lock:
            self._faults.append(fault)
        return fault

    def clear(self) -> None:
        with self._lock:
            self._faults.clear()

    def pick(self, method: str, path: str) -> Fault | None:
        """Return the fault of this request: the first that matches and is left."""
        with self._lock:
            for fault in self._faults:
                if fault.method not in (None, method) or fault.times == 0:
                    continue
                if not path.startswith(fault.path):
                    continue
                if fault.skip:
                    fault.skip -= 1
                    continue
                if fault.share < 1 and self._random.random() >= fault.share:
                    continue
                if fault.times is not None:
                    fault.times -= 1
                self.met[fault.kind] += 1
                return fault
            return None

"""Faults of the API itself, which requests meet when a test has set them."""

import random
import threading
from collections import Counter
from dataclasses import dataclass
from typing import Any, Literal

Kind = Literal["rate_limit", "error", "cut", "slow"]


@dataclass(slots=True)
class Fault:
    """What happens to matching requests.

    rate_limit  429, with `Retry-After` and `Stripe-Should-Retry` when they are set
    error       `status`, 500 unless told
    cut         the connection closes: `before` the request takes effect, `after` it
                has, or half-way through the `body` of the answer
    slow        the answer comes `seconds` late
    """

    kind: Kind
    method: str | None = None
    path: str = "/v1/"
    times: int | None = 1  # None: until cleared
    skip: int = 0  # matching requests that pass first
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
        """Set a fault with the fields of `Fault`; the next one request meets it."""
        fault = Fault(kind, **options)
        with self._lock:
            self._faults.append(fault)
        return fault

    def clear(self) -> None:
        with self._lock:
            self._faults.clear()

    def pick(self, method: str, path: str) -> Fault | None:
        """The fault this request meets: the first that matches and is not used up."""
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

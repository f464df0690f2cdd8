"""The formats of usage logs, each a small reader in a module of its own.

There are two kinds of format, and a kind of lines that have no usage.

1. A **body** is a response as a provider returns it, an object that contains its usage.
   It is looked for at each path of `PATHS`, so that it can be in any common envelope.
   A module provides it as a `Body` for `BODIES`: `has_usage(response)` is a cheap test
   for the usage of this format, and the first body that says yes reads the line.
   `read(chain)` returns the response, or None if nothing is billed; `describe` and
   `identify` of `responses` take from the envelope what the format does not state.
   `is_known(response)` is true for an object of this format without usage; a format
   whose objects always have usage leaves it out. `keys` are those of which a
   response with usage has one, if that is not `usage`.
2. A **format** reads whole lines: sessions, streams, logs of gateways. A module
   provides a subclass of `Format` for `FORMATS`. An instance gets the objects of one
   file in their order and may keep state. `read` returns None for an object of another
   format, else its responses, often none. Formats get an object before the bodies do:
   each one whose `may_read` says that an object with this type and these keys can be
   of the format.
3. **Lines without usage** of known formats: a predicate for `KNOWN`.

A response may be returned repeatedly while its counts grow: the reader counts the
largest. Usage that is not valid raises BadUsageError; its reason contains the figures.
An object of no known format that has usage is reported as unknown, and a file without
an object of a known format too. Every format has rows in tests/data/usage_cases.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple

from pyapp.usage_import.fields import Object, UnknownUsageError
from pyapp.usage_import.formats import (
    anthropic,
    bedrock,
    claude_code,
    codex,
    cohere,
    gemini,
    gemini_cli,
    litellm,
    local_servers,
    mistral_ocr,
    openai,
    openrouter,
    streams,
    tracing,
    unbilled,
)
from pyapp.usage_import.formats.kinds import Body, Format, Unfinished
from pyapp.usage_import.responses import Chain, ModelResponse
from pyapp.usage_import.unknown import find_usage

# In the order in which they are asked.
FORMATS: tuple[type[Format], ...] = (
    claude_code.Run,
    streams.Messages,
    streams.Chunks,
    streams.Realtime,
    codex.Rollout,
    gemini.Chunks,
    gemini_cli.Session,
    litellm.Rows,
    openrouter.Generations,
    bedrock.Records,
    bedrock.Events,
    bedrock.Results,
    local_servers.Responses,
    tracing.Rows,
)
BODIES: tuple[Body, ...] = (
    gemini.BODY,
    gemini.INTERACTION,
    anthropic.BODY,
    openai.BODY,
    bedrock.CONVERSE,
    cohere.BODY,
    mistral_ocr.BODY,
)
KNOWN: tuple[Callable[[Object], bool], ...] = (
    claude_code.is_session_line,
    unbilled.is_failure,
    unbilled.is_count,
)

# Paths from a line to the response in it.
PATHS: tuple[tuple[str, ...], ...] = (
    (),
    ("message",),
    ("response",),
    ("response", "body"),
    ("result", "message"),
    ("result",),
    ("data", "message", "message"),
    ("data",),
    ("body",),
    ("full_response",),
)


# A response of BODIES with usage has one of these keys.
_USAGE_KEYS = frozenset(key for body in BODIES for key in body.keys)
# Of a file; objects of the same type and keys share one.
_MAX_PLANS = 1_000


class Reader:
    """Reads the objects of one file in their order."""

    def __init__(self) -> None:
        self._formats = [format() for format in FORMATS]
        self._plans: dict[tuple[Any, ...], _Plan] = {}

    def read(self, line: Object, number: int) -> Sequence[ModelResponse] | None:
        """Return the responses of *line*, or None if it is of no known format.

        Raises: BadUsageError.
        """
        kind = line.get("type")
        shape = (kind if isinstance(kind, str) else None, *line)
        plan = self._plans.get(shape)
        if plan is None:
            plan = self._add_plan(shape)
        for read in plan.reads:
            responses = read(line, number)
            if responses is not None:
                return responses
        return _read_body(line, plan)

    def finish(self) -> Iterable[ModelResponse | Unfinished]:
        """Return what is left at the end of the file."""
        for format in self._formats:
            yield from format.finish()

    def _add_plan(self, shape: tuple[Any, ...]) -> _Plan:
        kind, *keys = shape
        plan = _Plan(
            [f.read for f in self._formats if f.may_read(kind, keys)],
            [path for path in PATHS if not path or path[0] in keys],
            not _USAGE_KEYS.isdisjoint(keys),
        )
        if len(self._plans) == _MAX_PLANS:
            self._plans.clear()
        self._plans[shape] = plan
        return plan


class _Plan(NamedTuple):
    """What can be in the objects that have the same type and keys."""

    reads: list[Callable[[Object, int], Sequence[ModelResponse] | None]]
    paths: list[tuple[str, ...]]
    has_usage: bool  # at their own keys


def _read_body(line: Object, plan: _Plan) -> Sequence[ModelResponse] | None:
    for path in plan.paths if plan.has_usage else plan.paths[1:]:
        chain = _follow(line, path)
        if chain is not None and not _USAGE_KEYS.isdisjoint(chain[-1]):
            for body in BODIES:
                if body.has_usage(chain[-1]):
                    found = body.read(chain)
                    return () if found is None else (found,)
    if any(is_known(line) for is_known in KNOWN):
        return ()
    for path in plan.paths:
        chain = _follow(line, path)
        if chain is not None and any(body.is_known(chain[-1]) for body in BODIES):
            usage = find_usage(chain[-1])
            if usage is not None:
                raise UnknownUsageError(f"usage in an unknown form: {usage}")
            return ()
    return None


def _follow(line: Object, path: tuple[str, ...]) -> Chain | None:
    """Return the objects on *path*, or None if it does not exist."""
    chain = [line]
    for key in path:
        part = chain[-1].get(key)
        if not isinstance(part, dict):
            return None
        chain.append(part)
    return chain

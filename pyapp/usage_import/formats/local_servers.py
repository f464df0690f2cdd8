"""Responses of servers that the operator runs, in their own forms.

Their models have no published price: set an own price for their provider, which may be
0. A stream has its counts in the last chunk.

Sources: Ollama's API documentation; the documentation of the server of llama.cpp.
"""

from __future__ import annotations

from typing import NamedTuple

from pyapp.usage_import.fields import Object, count, text
from pyapp.usage_import.formats.kinds import Body, Lines
from pyapp.usage_import.responses import (
    Chain,
    ModelResponse,
    Pass,
    describe,
    make_content_id,
)


class _Server(NamedTuple):
    """How a server's response is known, and its keys of the input and the output."""

    provider: str
    known_by: tuple[str, ...]
    input: str
    output: str


_SERVERS = (
    _Server("ollama", ("model", "created_at"), "prompt_eval_count", "eval_count"),
    _Server("llama.cpp", ("tokens_evaluated",), "tokens_evaluated", "tokens_predicted"),
)


def _find_server(response: Object) -> _Server | None:
    for server in _SERVERS:
        if all(key in response for key in server.known_by) and (
            "done" in response or server.output in response or server.input in response
        ):
            return server
    return None


def _has_usage(response: Object) -> bool:
    return _find_server(response) is not None


def _read(chain: Chain) -> ModelResponse | None:
    response = chain[-1]
    server = _find_server(response)
    if server is None:
        return None
    prompt, output = count(response, server.input), count(response, server.output)
    if prompt + output == 0:
        return None
    return describe(
        chain,
        make_content_id(server.provider, chain),
        [Pass(prompt, 0, 0, output)],
        model=text(response.get("model")),
        provider=server.provider,
        is_numbered=True,
    )


class Responses(Lines):
    """Responses and chunks of streams."""

    KEYS = frozenset(("done", *(key for s in _SERVERS for key in (s.input, s.output))))
    PLACES = ("response", "body")
    BODY = Body(has_usage=_has_usage, read=_read)

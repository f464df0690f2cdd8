"""Responses of OpenAI's chat completions and responses, and of servers like it."""

from __future__ import annotations

from pyapp.usage_import.fields import (
    BadUsageError,
    Object,
    cost,
    count,
    inner,
    number,
)
from pyapp.usage_import.formats.kinds import Body
from pyapp.usage_import.responses import (
    Chain,
    ModelResponse,
    Pass,
    describe,
    find_latency,
    identify,
)

_KEYS = {
    "prompt_tokens",
    "completion_tokens",
    "input_tokens",
    "output_tokens",
    "total_tokens",
}
_OBJECTS = ("chat.completion", "chat.completion.chunk", "response", "text_completion")


def _has_usage(response: Object) -> bool:
    usage = response.get("usage")
    if not usage:
        return False
    if not isinstance(usage, dict):
        return response.get("object") in _OBJECTS
    return not _KEYS.isdisjoint(usage)


def _is_known(response: Object) -> bool:
    return response.get("object") in _OBJECTS


def _read(chain: Chain) -> ModelResponse:
    response = chain[-1]
    usage = response["usage"]
    if not isinstance(usage, dict):
        raise BadUsageError("usage is not an object")
    created = number(response.get("created", response.get("created_at")))
    second = None if created is None else int(created)
    stated = usage.get("cost")  # a number, if it is the whole cost
    return describe(
        chain,
        identify(chain, "openai", second),
        [_pass(usage)],
        cost=cost("cost", stated) if isinstance(stated, int | float) else None,
        latency_ms=find_latency(response),
    )


def _pass(usage: Object) -> Pass:
    """Return OpenAI's counts; its input includes cached tokens."""
    chat = "prompt_tokens" in usage or "completion_tokens" in usage
    if not chat and "input_tokens" not in usage and "output_tokens" not in usage:
        raise BadUsageError("usage without token counts")
    into, out = ("prompt", "completion") if chat else ("input", "output")
    read_from = inner(usage, f"{into}_tokens_details")
    written_to = inner(usage, f"{out}_tokens_details")
    prompt = count(usage, f"{into}_tokens", required=True)
    output = count(usage, f"{out}_tokens", required=not chat)
    reasoning = count(written_to, "reasoning_tokens")
    if reasoning and usage.get("total_tokens") == prompt + output + reasoning:
        output += reasoning  # some providers do not include it in the output
    read = count(read_from, "cached_tokens")
    written = count(read_from, "cache_write_tokens")
    if read + written > prompt:
        raise BadUsageError(
            f"cached tokens ({read + written}) exceed {into} tokens ({prompt})"
        )
    fresh = prompt - read - written
    heard, spoken = (count(part, "audio_tokens") for part in (read_from, written_to))
    if heard > prompt or spoken > output:
        raise BadUsageError("audio tokens exceed the tokens that include them")
    audio = None
    if heard or spoken:
        audio = {"input_audio_tokens": heard, "output_audio_tokens": spoken}
        audio["cache_audio_read_tokens"] = max(0, heard - fresh)
    return Pass(fresh, written, read, output, 0, audio)


BODY = Body(has_usage=_has_usage, read=_read, is_known=_is_known)

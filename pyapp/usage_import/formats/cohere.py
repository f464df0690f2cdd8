"""Responses of Cohere's APIs: chat, embed, rerank and classify.

`billed_units` are what is billed, next to all tokens of the call, which include the
prompt of Cohere's own. A response does not name its model; an envelope may. A search
unit of rerank and an image of embed have prices of their own.

Source: Cohere's API reference (Chat, Embed, Rerank).
"""

from __future__ import annotations

from pyapp.usage_import.fields import Object, count, inner, text
from pyapp.usage_import.formats.kinds import Body
from pyapp.usage_import.responses import (
    Chain,
    ModelResponse,
    Pass,
    describe,
    make_content_id,
    make_id,
)

_UNITS = {"image_tokens": "input_image_tokens"}
_TOKENS = ("input_tokens", "output_tokens")


def _find_billed(response: Object) -> Object | None:
    for key in ("usage", "meta"):
        part = response.get(key)
        if isinstance(part, dict) and isinstance(part.get("billed_units"), dict):
            return inner(part, "billed_units")
    return None


def _has_usage(response: Object) -> bool:
    return _find_billed(response) is not None


def _whole(used: object) -> object:
    """Return a count; the library for Python writes it with a fraction of zero."""
    return int(used) if isinstance(used, float) and used.is_integer() else used


def _read(chain: Chain) -> ModelResponse:
    response = chain[-1]
    billed = {k: _whole(used) for k, used in (_find_billed(response) or {}).items()}
    images = count(billed, "image_tokens")
    units = {
        _UNITS.get(key, key): count(billed, key)
        for key, used in billed.items()
        if key not in _TOKENS and used
    }
    name = text(response.get("id")) or text(response.get("generation_id"))
    return describe(
        chain,
        make_content_id("cohere", chain) if name is None else make_id("cohere", name),
        [
            Pass(
                count(billed, _TOKENS[0]) + images,
                0,
                0,
                count(billed, _TOKENS[1]),
                units=units or None,
            )
        ],
        provider="cohere",
        is_numbered=name is None,
    )


BODY = Body(_has_usage, _read, keys=("usage", "meta"))

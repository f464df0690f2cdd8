"""What APIs return without a bill: errors, and the results of counting tokens.

Sources: the API references of Anthropic, OpenAI and Google: batches, errors, and the
counting of tokens.
"""

from __future__ import annotations

from pyapp.usage_import.fields import Object

# Keys of the results of counting tokens, each with a key that it always has.
_COUNTED = {
    "input_tokens": {"context_management", "input_tokens", "object"},
    "totalTokens": {
        "cacheTokensDetails",
        "cachedContentTokenCount",
        "promptTokensDetails",
        "totalBillableCharacters",
        "totalTokens",
    },
}
_FAILED = ("errored", "canceled", "expired")


def is_failure(line: Object) -> bool:
    """Tell whether *line* is an error of an API, or a result of a batch that failed."""
    error = line.get("error")
    if "custom_id" not in line:
        return isinstance(error, dict) and (
            line.get("type") == "error" or "message" in error or "code" in error
        )
    result, response = line.get("result"), line.get("response")
    if isinstance(result, dict):
        return result.get("type") in _FAILED
    if isinstance(response, dict):
        body = response.get("body")
        return isinstance(body, dict) and isinstance(body.get("error"), dict)
    return isinstance(error, dict)


def is_count(line: Object) -> bool:
    """Tell whether *line* is the result of counting the tokens of a request."""
    return any(key in line and line.keys() <= keys for key, keys in _COUNTED.items())

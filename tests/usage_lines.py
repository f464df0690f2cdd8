"""Lines of real usage logs, and helpers to read them."""

import copy
import json

from pyapp.messages import NewMessage
from pyapp.usage_import.collection import LineCounts
from pyapp.usage_import.files import find_logs
from pyapp.usage_import.reader import (
    BrokenLine,
    ReadMessage,
    UnknownUsage,
    read_usage_logs,
)

SESSION = {
    "parentUuid": None,
    "isSidechain": False,
    "userType": "external",
    "sessionId": "4c1f0f6e-0000-4000-8000-000000000001",
    "version": "2.1.0",
    "type": "assistant",
    "uuid": "11111111-0000-4000-8000-000000000001",
    "timestamp": "2026-05-04T10:11:12.345Z",
    "requestId": "req_01",
    "message": {
        "id": "msg_01",
        "type": "message",
        "role": "assistant",
        "model": "claude-sonnet-4-5-20250929",
        "content": [{"type": "text", "text": "Done."}],
        "stop_reason": None,
        "usage": {
            "input_tokens": 4,
            "cache_creation_input_tokens": 300,
            "cache_read_input_tokens": 20_000,
            "cache_creation": {
                "ephemeral_5m_input_tokens": 100,
                "ephemeral_1h_input_tokens": 200,
            },
            "output_tokens": 1,
            "service_tier": "standard",
        },
    },
}
ANTHROPIC = SESSION["message"]
CHAT = {
    "id": "chatcmpl-B1",
    "object": "chat.completion",
    "created": 1_777_888_999,
    "model": "gpt-4o-mini-2024-07-18",
    "choices": [],
    "usage": {
        "prompt_tokens": 1_000,
        "completion_tokens": 50,
        "total_tokens": 1_050,
        "prompt_tokens_details": {"cached_tokens": 896, "audio_tokens": 0},
        "completion_tokens_details": {"reasoning_tokens": 20, "audio_tokens": 0},
    },
    "service_tier": "default",
}
RESPONSE = {
    "id": "resp_01",
    "object": "response",
    "created_at": 1_777_888_000,
    "completed_at": 1_777_888_003,
    "status": "completed",
    "model": "gpt-5-mini-2025-08-07",
    "output": [],
    "usage": {
        "input_tokens": 500,
        "input_tokens_details": {"cached_tokens": 128},
        "output_tokens": 70,
        "output_tokens_details": {"reasoning_tokens": 64},
        "total_tokens": 570,
    },
}


def changed(line, **paths):
    """Return a deep copy of *line* with values set at paths such as message__id."""
    line = copy.deepcopy(line)
    for path, value in paths.items():
        *parents, last = path.split("__")
        part = line
        for key in parents:
            part = part[key]
        if value is ...:
            del part[last]
        else:
            part[last] = value
    return line


def cost_of(**usage):
    """Return a chat completion with more keys in its usage."""
    return changed(CHAT, **{f"usage__{key}": value for key, value in usage.items()})


def read(tmp_path, *lines, **options):
    """Write *lines* (objects, text or bytes) to a file; return messages and counts."""
    file = tmp_path / "usage.jsonl"
    file.write_bytes(b"\n".join(map(as_bytes, lines)) + b"\n")
    counts = LineCounts()
    return read_files(file, counts=counts, **options), counts


def read_files(*paths, **options):
    """Return the messages and what is reported of other lines."""
    return [
        result.message if isinstance(result, ReadMessage) else result
        for result in read_usage_logs(find_logs(paths), **options)
    ]


def as_bytes(line):
    if isinstance(line, bytes):
        return line
    text = line if isinstance(line, str) else json.dumps(line)
    return text.encode("utf-8", "surrogatepass")


def only(tmp_path, *lines, **options):
    """Return the only message of *lines*."""
    (message,), _ = read(tmp_path, *lines, **options)
    assert isinstance(message, NewMessage), message
    return message


def reason(tmp_path, line):
    """Return the reason why the only line is broken."""
    (broken, *unknown), counts = read(tmp_path, line)
    assert all(isinstance(each, UnknownUsage) for each in unknown)
    assert isinstance(broken, BrokenLine), broken
    assert (broken.line, counts.broken) == (1, 1)
    return broken.reason


def tokens(message):
    return (
        message.input_tokens,
        message.cache_creation_input_tokens,
        message.cache_read_input_tokens,
        message.output_tokens,
    )


def price(message):
    """Return the cost that the log states, else the published price."""
    return message.cost if message.published is None else message.published.cost

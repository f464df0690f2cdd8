"""Mistral's OCR, which bills pages, and annotated pages at another price.

Source: Mistral's API reference (OCR) and its page on annotations.
"""

from __future__ import annotations

from pyapp.usage_import.fields import BadUsageError, Object, count
from pyapp.usage_import.formats.kinds import Body
from pyapp.usage_import.responses import (
    Chain,
    ModelResponse,
    Pass,
    describe,
    make_content_id,
)

_PAGES = "pages_processed"
_ANNOTATED = "pages_processed_annotation"


def _has_usage(response: Object) -> bool:
    used = response.get("usage_info")
    return isinstance(used, dict) and _PAGES in used


def _read(chain: Chain) -> ModelResponse:
    used = chain[-1]["usage_info"]
    pages, annotated = count(used, _PAGES), count(used, _ANNOTATED)
    if annotated > pages:
        raise BadUsageError(f"{_ANNOTATED} ({annotated}) exceed {_PAGES} ({pages})")
    units = {
        "input_document_pages": pages,
        "input_annotated_document_pages": annotated,
    }
    return describe(
        chain,
        make_content_id("mistral-ocr", chain),
        [Pass(units={unit: n for unit, n in units.items() if n} or None)],
        provider="mistral",
        is_numbered=True,
    )


BODY = Body(_has_usage, _read, keys=("usage_info",))

"""Errors with Stripe's texts: a status and a JSON body."""

from typing import Any


class ApiError(Exception):
    """A reply other than 2xx."""

    def __init__(
        self,
        status: int,
        message: str,
        *,
        kind: str = "invalid_request_error",
        code: str | None = None,
        param: str | None = None,
    ) -> None:
        super().__init__(message)
        self.status = status
        self._error = {"type": kind, "message": message, "code": code, "param": param}

    def body(self) -> dict[str, Any]:
        return {"error": {k: v for k, v in self._error.items() if v is not None}}


def missing(
    object_type: str, object_id: str, param: str = "id", note: str = ""
) -> ApiError:
    """Return the error for an unknown id: 404 in the URL, 400 in a parameter."""
    return ApiError(
        404 if param == "id" else 400,
        f"No such {object_type}: '{object_id}'{note}",
        code="resource_missing",
        param=param,
    )


def invalid(param: str, message: str) -> ApiError:
    return ApiError(400, message, param=param)


def declined() -> ApiError:
    return ApiError(
        402, "Your card was declined.", kind="card_error", code="card_declined"
    )

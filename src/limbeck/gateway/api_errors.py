"""What a request is refused with, in OpenAI's shape: its clients raise an error of the right class from it."""

from __future__ import annotations

from typing import Any

TYPES = {401: "authentication_error", 404: "not_found_error", 500: "server_error"}
RECOVERABLE = frozenset({"context_length_exceeded"})  # an agent shortens its history and goes on


class ApiError(Exception):
    """`code` is a short word that clients can compare with, and the one under which the error is counted."""

    def __init__(self, status: int, code: str, message: str, param: str | None = None) -> None:
        super().__init__(message)
        self.status, self.code, self.message, self.param = status, code, message, param

    def body(self) -> dict[str, Any]:
        kind = TYPES.get(self.status, "invalid_request_error")
        return {"error": {"message": self.message, "type": kind, "param": self.param, "code": self.code}}


def invalid(message: str, param: str | None = None) -> ApiError:
    """A request that OpenAI would refuse too."""
    return ApiError(400, "invalid_request", message, param)


def unsupported(message: str, param: str | None = None) -> ApiError:
    """A request that a sampled student cannot fulfil."""
    return ApiError(400, "unsupported", message, param)

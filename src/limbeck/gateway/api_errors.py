"""What a request is refused with, in OpenAI's shape: its clients raise an error of the right class from it."""

from __future__ import annotations

from typing import Any

TYPES = {401: "authentication_error", 404: "not_found_error", 500: "server_error"}


class ApiError(Exception):
    """`code` is a short word that clients can compare with, and the one under which the error is counted.

    `limit`: the agent reached one (of length, turns or its own patience), and may go on within it; other errors are the
    end of its rollout.
    """

    def __init__(self, status: int, code: str, message: str, param: str | None = None, limit: bool = False) -> None:
        super().__init__(message)
        self.status, self.code, self.message, self.param, self.limit = status, code, message, param, limit

    def body(self) -> dict[str, Any]:
        kind = TYPES.get(self.status, "invalid_request_error")
        return {"error": {"message": self.message, "type": kind, "param": self.param, "code": self.code}}


def invalid(message: str, param: str | None = None) -> ApiError:
    """A request that OpenAI would refuse too."""
    return ApiError(400, "invalid_request", message, param)


def unsupported(message: str, param: str | None = None) -> ApiError:
    """A request that a sampled student cannot fulfil."""
    return ApiError(400, "unsupported", message, param)

"""What the gateway says when it does not answer a request: OpenAI's error shape, plus Retry-After.

OpenAI's clients decide by status and headers: they retry 408, 409, 429 and 5xx after `Retry-After` seconds, and raise
everything else at once. `shared.openai_protocol.ApiError` is the shape; a Refusal adds the statuses that only a service
in front of engines has, and the kind that metrics and log count it under.
"""

import math
from typing import Any

from shared.openai_protocol import ApiError

Headers = list[tuple[bytes, bytes]]

TYPES = {
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    429: "rate_limit_error",
    500: "server_error",
    502: "server_error",
    503: "server_error",
    504: "server_error",
}


class Refusal(ApiError):  # noqa: N818  it is an answer, not a failure of the program
    """A request that is not answered. code: for programs, and the `kind` of gateway_errors_total.

    retry_after: seconds until it makes sense to try again; sent rounded up, at least 1.
    """

    def __init__(self, status: int, code: str, message: str, *, retry_after: float | None = None) -> None:
        super().__init__(message, status=status, code=code)
        self.kind = code
        self.retry_after = None if retry_after is None else max(1, math.ceil(retry_after))

    def body(self) -> dict[str, Any]:
        """The JSON body."""
        kind = TYPES.get(self.status, "invalid_request_error")
        return {"error": {"message": str(self), "type": kind, "param": self.param, "code": self.code}}

    def headers(self) -> Headers:
        """The header that tells clients when to come back, and on 401 how to identify themselves."""
        if self.status == 401:
            return [(b"www-authenticate", b"Bearer")]
        return [] if self.retry_after is None else [(b"retry-after", b"%d" % self.retry_after)]


def invalid(message: str, code: str = "invalid_request", status: int = 400) -> Refusal:
    """The client's own mistake."""
    return Refusal(status, code, message)

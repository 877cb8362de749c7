"""The cloud's refusals: each is one exception that carries the problem document it is answered with.

Codes are stable, because clients act on them; texts may change. A refusal names what was wrong, which limit it hit
and when to come back. It never repeats bytes of the request, so that an error page cannot carry another's text.
"""

from __future__ import annotations

import msgspec

from metricsd.errors import MetricsdError
from metricsd.protocol import Problem

MEDIA_TYPE = "application/problem+json"
RETRY_AFTER_S = 1.0
_TITLES = {
    400: "Bad request",
    401: "Not authenticated",
    403: "Not allowed",
    404: "Not found",
    405: "Method not allowed",
    408: "Request timed out",
    409: "Conflict with the stream",
    410: "History changed",
    413: "Request too large",
    415: "Encoding not supported",
    429: "Too many requests",
    431: "Request head too large",
    500: "Internal error",
    503: "Busy",
}


class Refused(MetricsdError):
    """The cloud refused a request; its problem document says why."""

    def __init__(self, problem: Problem) -> None:
        super().__init__(f"{problem.status} {problem.code}: {problem.detail or problem.title}")
        self.problem = problem


def refuse(
    status: int,
    code: str,
    detail: str = "",
    *,
    limit: str | None = None,
    retry_after_s: float | None = None,
    last_seq: int | None = None,
) -> Refused:
    """Return the exception to raise for one problem."""
    title = _TITLES.get(status, "Error")
    return Refused(
        Problem(
            status=status,
            title=title,
            code=code,
            detail=detail,
            limit=limit,
            retry_after_s=retry_after_s,
            last_seq=last_seq,
        )
    )


def busy(detail: str, limit: str | None = None) -> Refused:
    """Return the refusal for what passes by itself, such as a bound that is reached now: come back in a moment."""
    return refuse(503, "busy", detail, limit=limit, retry_after_s=RETRY_AFTER_S)


def too_large(limit: str, bound: int) -> Refused:
    """Return the refusal for a request above the limit of that name."""
    return refuse(413, "too_large", f"more than {bound}", limit=limit)


def headers_of(problem: Problem) -> dict[str, str]:
    """Return what a problem says in headers: when to come back, how to authenticate."""
    headers: dict[str, str] = {}
    if problem.retry_after_s is not None:
        headers["retry-after"] = str(max(1, round(problem.retry_after_s)))
    if problem.status == 401:
        headers["www-authenticate"] = "Bearer"
    return headers


def body_of(problem: Problem) -> bytes:
    """Return the problem document as JSON."""
    return msgspec.json.encode(problem)

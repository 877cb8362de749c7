"""What the cloud's answer, or its silence, means: one of the wire's structs, or one of our errors. Pure.

Whatever is not our protocol (a captive portal's page, a proxy's error) counts as an unreachable cloud. What a server
says is shown without anything that could steer a terminal, and cut.
"""

from __future__ import annotations

import socket
import ssl
from collections.abc import Iterator
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from http import HTTPStatus
from typing import NamedTuple, TypeVar

import httpx
import msgspec

from metricsd.errors import (
    AuthError,
    CloudBusy,
    CloudError,
    CloudRefused,
    CloudUnreachable,
    CursorExpired,
    Fault,
    HistoryChanged,
    StreamForked,
)
from metricsd.protocol import Problem

T = TypeVar("T")

_CAUSES_MAX = 16
WAITING = "the events wait here and are sent when it is back"
"""How a sentence about a cloud that is away ends."""


class Answer(NamedTuple):
    """An HTTP answer, read whole."""

    status: int
    headers: httpx.Headers
    body: bytes


def is_json(answer: Answer) -> bool:
    """Return whether an answer says that it is JSON, as every one of our protocol does."""
    kind = str(answer.headers.get("content-type", "")).partition(";")[0].strip().lower()
    return kind == "application/json" or kind.endswith("+json")


def decoded(url: str, answer: Answer, kind: type[T]) -> T:
    """Return an answer as the struct that it must be; raise CloudUnreachable for anything else."""
    if not is_json(answer):
        raise not_ours(url, answer)
    try:
        return msgspec.json.decode(answer.body, type=kind)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise CloudUnreachable(
            f"{url} answered with something else than metricsd's protocol ({error})", Fault.NOT_OURS
        ) from error


def not_ours(url: str, answer: Answer) -> CloudError:
    """Return the error of an answer that no metricsd cloud gives."""
    kind = printable(answer.headers.get("content-type", "no content type").partition(";")[0])[:80]
    return CloudUnreachable(
        f"{url} answered {answer.status} with {kind}, which is not a metricsd cloud: "
        "check the address, and whether this network wants you to log in first",
        Fault.NOT_OURS,
    )


def refusal(url: str, answer: Answer) -> CloudError:
    """Return the error that an answer other than 200 stands for."""
    problem = _problem(answer)
    status = answer.status
    if HTTPStatus.MULTIPLE_CHOICES <= status < HTTPStatus.BAD_REQUEST:
        return CloudUnreachable(
            f"{url} answered with a redirect ({status}), which is not followed: "
            "log in with the final address, or sign in to this network first",
            Fault.NOT_OURS,
        )
    if status == HTTPStatus.TOO_MANY_REQUESTS or (
        # A proxy whose server is gone says 503 too, but neither in our words nor with a time.
        status == HTTPStatus.SERVICE_UNAVAILABLE and (problem or "retry-after" in answer.headers)
    ):
        said = _said(problem) if problem else HTTPStatus(status).phrase
        return CloudBusy(f"{url} asks to slow down: {said}", _retry_after_s(answer, problem))
    if status == HTTPStatus.PROXY_AUTHENTICATION_REQUIRED:
        return CloudUnreachable(f"{url}: the proxy wants a login (407): put it into HTTPS_PROXY", Fault.NOT_OURS)
    if status >= HTTPStatus.INTERNAL_SERVER_ERROR:
        return CloudUnreachable(f"{url} failed with {status}: {WAITING}", Fault.SERVER)
    if problem is None:
        return not_ours(url, answer)
    said = _said(problem)
    if status == HTTPStatus.FORBIDDEN and problem.code == "tenant_suspended":
        return AuthError(
            f"{url} lets nobody of this tenant in ({said}); what is here is kept: `metricsd sync --now` then"
        )
    if status in (HTTPStatus.UNAUTHORIZED, HTTPStatus.FORBIDDEN):
        return AuthError(f"{url} does not accept this login ({said}): run `metricsd login {url}` with a new code")
    if status == HTTPStatus.CONFLICT and problem.code == "stream_fork":
        return StreamForked(f"{url}: {said}")
    if status == HTTPStatus.GONE and problem.code == "cursor_expired":
        return CursorExpired(f"{url}: {said}")
    if status == HTTPStatus.GONE:
        return HistoryChanged(f"{url}: {said}")
    return CloudRefused(f"{url} refused the request: {said}", status, problem.code)


def _said(problem: Problem) -> str:
    return printable(f"{problem.code}: {problem.detail or problem.title}")[:300]


def printable(text: str) -> str:
    """Return the text without what could steer the terminal that shows it."""
    return "".join(c if c.isprintable() else " " for c in text)


def _problem(answer: Answer) -> Problem | None:
    if not is_json(answer):
        return None
    try:
        return msgspec.json.decode(answer.body, type=Problem)
    except (msgspec.DecodeError, UnicodeDecodeError):
        return None


def _retry_after_s(answer: Answer, problem: Problem | None) -> float | None:
    """Return the pause that the server asks for: seconds or an HTTP date (RFC 9110, 10.2.3), else the problem's own.

    A date is compared with the answer's own Date, because this machine's clock may be wrong.
    """
    header = answer.headers.get("retry-after", "").strip()
    if header.isdecimal() and len(header) < 10:
        return float(header)
    if header:
        try:
            until = parsedate_to_datetime(header)
            dated = answer.headers.get("date")
            start = parsedate_to_datetime(dated) if dated else datetime.now(UTC)
            return max((until - start).total_seconds(), 0.0)
        except (ValueError, TypeError):
            return None
    return problem.retry_after_s if problem else None


def unreachable(url: str, error: BaseException) -> CloudUnreachable:
    """Return our error for a request that got no whole answer: the innermost cause that we know."""
    known = [cause for link in _chain(error) if (cause := _cause(link))]
    fault, sentence = known[-1] if known else (Fault.OTHER, (str(error) or type(error).__name__)[:200])
    return CloudUnreachable(f"{url} cannot be reached: {sentence}: {WAITING}", fault)


def _chain(error: BaseException) -> Iterator[BaseException]:
    waiting: list[BaseException] = [error]
    for _ in range(_CAUSES_MAX):
        if not waiting:
            return
        link = waiting.pop(0)
        yield link
        if isinstance(link, BaseExceptionGroup):
            waiting.extend(link.exceptions)
        inner = link.__cause__ or link.__context__
        if inner is not None:
            waiting.append(inner)


def _cause(error: BaseException) -> tuple[Fault, str] | None:
    match error:
        case ssl.SSLCertVerificationError():
            said = f"its TLS certificate is not trusted ({error.verify_message}); sync.ca_file adds an authority"
            return Fault.TLS, said
        case ssl.SSLError():
            return Fault.TLS, f"the TLS handshake failed ({error.reason or error})"
        case socket.gaierror():
            return Fault.NAME, "its name cannot be resolved (no network, or a wrong host name)"
        case ConnectionRefusedError():
            return Fault.REFUSED, "the connection was refused (nothing listens there)"
        case ConnectionResetError() | BrokenPipeError():
            return Fault.RESET, "the connection was reset"
        case httpx.ProxyError():
            return Fault.REFUSED, f"the proxy failed ({error})"
        case httpx.ConnectTimeout():
            return Fault.TIMEOUT, "no connection within sync.connect_timeout_s"
        case httpx.TimeoutException():
            return Fault.TIMEOUT, "no answer in time"
        case httpx.DecodingError():
            return Fault.NOT_OURS, "its answer is damaged"
        case httpx.RemoteProtocolError():
            return Fault.RESET, "the connection was closed in the middle of an answer"
        case _:
            return None

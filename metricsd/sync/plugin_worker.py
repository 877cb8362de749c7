"""The process in which a conflict plug-in runs. Started by plugins.py as a plain script; imports nothing of metricsd.

It limits itself before it sees the plug-in, gives it copies of the data, stops it after its time and says over a
pipe of its own what came of it. It must never pass on what the plug-in prints, nor any text of an exception, which
could hold what people wrote.
"""

from __future__ import annotations

import json
import os
import resource
import signal
import sys
import types
from collections.abc import Callable
from typing import Any

FRAME_BYTES_MAX = 16 * 1024 * 1024
ANSWER_BYTES_MAX = 1024 * 1024
LOAD_LIMIT_S = 2.0
FILE_NAME = "<plug-in>"


class TimeIsUp(BaseException):
    """Raised inside the plug-in; no `except Exception` there can hold it."""


def main() -> None:
    """Load the plug-in from the first frame, then answer one frame after the other until the pipe ends."""
    source, sink = os.dup(0), os.dup(1)
    nothing = os.open(os.devnull, os.O_RDWR)
    for standard in (0, 1, 2):
        os.dup2(nothing, standard)
    signal.signal(signal.SIGALRM, _stop)
    start = json.loads(_read(source))
    _limit(int(start["memory_bytes"]))
    plugin: list[Callable[..., Any]] = []
    _write(sink, _guarded(lambda: plugin.append(_load(start["code"])), LOAD_LIMIT_S))
    while plugin:
        base, local, remote, context = json.loads(_read(source))
        _write(sink, _guarded(lambda: plugin[0](base, local, remote, context), start["limit_s"]))  # noqa: B023


def _stop(_signal: int, _frame: object) -> None:
    raise TimeIsUp


def _limit(memory_bytes: int) -> None:
    limits = {"RLIMIT_AS": memory_bytes, "RLIMIT_CORE": 0, "RLIMIT_FSIZE": 0, "RLIMIT_NPROC": 0}
    for name, most in limits.items():
        kind = getattr(resource, name, None)
        if kind is not None:
            try:
                resource.setrlimit(kind, (most, most))
            except (ValueError, OSError):
                # macOS has the names but refuses some of them; the time limit holds everywhere.
                continue


def _load(code: str) -> Callable[..., Any]:
    module = types.ModuleType("plugin")
    exec(compile(code, FILE_NAME, "exec"), module.__dict__)  # noqa: S102 - pinned by its hash, which is the point
    found: Callable[..., Any] = module.__dict__["resolve"]
    return found


def _guarded(work: Callable[[], Any], limit_s: float) -> bytes:
    """Return what the work came to, as JSON: {"fields"} or {"problem"}."""
    try:
        signal.setitimer(signal.ITIMER_REAL, limit_s)
        try:
            found = work()
        finally:
            signal.setitimer(signal.ITIMER_REAL, 0)
        answer = json.dumps({"fields": found}, allow_nan=False).encode()
    except TimeIsUp:
        return _problem(f"took longer than {limit_s * 1000:g} ms", harm=True)
    except MemoryError:
        return _problem("used too much memory", harm=True)
    except BaseException as error:
        return _problem(f"raised {type(error).__name__[:60]}{_where(error)}")
    return answer if len(answer) <= ANSWER_BYTES_MAX else _problem("answered with too much")


def _where(error: BaseException) -> str:
    """Return the plug-in's line on which it happened; never a text of the error."""
    trace, line = error.__traceback__, 0
    while trace is not None:
        if trace.tb_frame.f_code.co_filename == FILE_NAME:
            line = trace.tb_lineno
        trace = trace.tb_next
    if isinstance(error, SyntaxError) and error.filename == FILE_NAME:
        line = error.lineno or 0
    return f" in line {line}" if line else ""


def _problem(text: str, *, harm: bool = False) -> bytes:
    return json.dumps({"problem": text, "harm": harm}).encode()


def _read(source: int) -> bytes:
    size = int.from_bytes(_exactly(source, 4), "big")
    if size > FRAME_BYTES_MAX:
        sys.exit(1)
    return _exactly(source, size)


def _exactly(source: int, size: int) -> bytes:
    found = b""
    while len(found) < size:
        part = os.read(source, size - len(found))
        if not part:
            sys.exit(0)
        found += part
    return found


def _write(sink: int, answer: bytes) -> None:
    rest = len(answer).to_bytes(4, "big") + answer
    while rest:
        rest = rest[os.write(sink, rest) :]


if __name__ == "__main__":
    main()

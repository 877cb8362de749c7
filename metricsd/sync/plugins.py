"""Runs conflict plug-ins: each in a process of its own that is started once and asked again and again.

A plug-in can only answer. It has 50 ms and little memory, sees no environment and no open file of ours, and its
answer counts only if every field is one that a record can have. Whatever else it does ends its process, and the
caller gets the reason instead of fields. This contains accidents, not attacks: who pins a plug-in has read it.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import select
import signal
import subprocess
import sys
import threading
import time
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import msgspec

from metricsd import fields
from metricsd.conflict import Conflict, Version
from metricsd.errors import PolicyError
from metricsd.policy import Plugin, read_plugin
from metricsd.protocol import FieldValue

LIMIT_S = 0.05
"""For one answer, measured in the plug-in's process."""
GRACE_S = 0.25
"""How much later the process is killed if it did not keep the limit itself: a busy machine is no fault of a plug-in."""
START_S = 10.0
"""For starting Python and loading the plug-in, once."""
MEMORY_BYTES_MAX = 128 * 1024 * 1024
PROCESSES_MAX = 4
BREAKS_MAX = 3
REST_S = 60.0
"""How long a plug-in is left alone that ran out of time, memory or its process BREAKS_MAX times in a row."""
_ANSWER_BYTES_MAX = 1024 * 1024 + 1024
_WORKER = Path(__file__).with_name("plugin_worker.py")
_KEPT_ENVIRONMENT = ("LD_LIBRARY_PATH",)
"""Where some installations of Python find themselves; nothing else is handed on."""


class Answer(NamedTuple):
    """What a plug-in answered: its fields, or None and why there are none."""

    fields: Mapping[str, FieldValue] | None
    problem: str = ""


class _Reply(msgspec.Struct):
    """What plugin_worker.py says. `harm`: it would cost as much the next time."""

    fields: object = None
    problem: str = ""
    harm: bool = False


class PluginBroken(Exception):
    """The process must end; the text says why."""


_encode = msgspec.json.Encoder().encode
_decode_reply = msgspec.json.Decoder(_Reply).decode


class Pool:
    """The processes of the plug-ins in use. Safe to share between threads, which wait for each other."""

    def __init__(self, *, limit_s: float = LIMIT_S, memory_bytes: int = MEMORY_BYTES_MAX) -> None:
        self._limit_s = limit_s
        self._memory_bytes = memory_bytes
        self._lock = threading.Lock()
        self._processes: OrderedDict[Plugin, PluginProcess] = OrderedDict()
        self._breaks: dict[Plugin, tuple[int, float]] = {}

    async def propose(self, plugin: Plugin, subject: Conflict, names: Sequence[str]) -> Answer:
        """Return the plug-in's answer for the fields `names`; never raises for what a plug-in does."""
        return await asyncio.to_thread(self.ask, plugin, subject, names)

    def ask(self, plugin: Plugin, subject: Conflict, names: Sequence[str]) -> Answer:
        """Return the plug-in's answer, waiting for it."""
        with self._lock:
            breaks, since = self._breaks.get(plugin, (0, 0.0))
            if breaks >= BREAKS_MAX and time.monotonic() - since < REST_S:
                return Answer(None, f"left alone for {REST_S:g} s after it failed {breaks} times in a row")
            try:
                reply = self._process(plugin).ask(_question(subject, names), self._limit_s + GRACE_S)
                if reply.harm:
                    raise PluginBroken(reply.problem)
            except PolicyError as error:
                return Answer(None, str(error))
            except (PluginBroken, OSError, msgspec.MsgspecError) as error:
                self._end(plugin)
                self._breaks[plugin] = (breaks + 1, time.monotonic())
                return Answer(None, str(error))
            self._breaks.pop(plugin, None)
        return check(subject.type, names, reply)

    def close(self) -> None:
        """End all processes. The pool can be used again."""
        with self._lock:
            for plugin in list(self._processes):
                self._end(plugin)

    def _process(self, plugin: Plugin) -> PluginProcess:
        found = self._processes.get(plugin)
        if found is None:
            code = read_plugin(plugin)
            while len(self._processes) >= PROCESSES_MAX:
                self._end(next(iter(self._processes)))
            found = self._processes[plugin] = PluginProcess()
            found.start(code, self._limit_s, self._memory_bytes)
        self._processes.move_to_end(plugin)
        return found

    def _end(self, plugin: Plugin) -> None:
        process = self._processes.pop(plugin, None)
        if process is not None:
            process.end()


def check(entity: str, names: Sequence[str], reply: _Reply) -> Answer:
    """Return the answer in a reply, if every field asked for has a value that a record can have. Pure."""
    if reply.problem:
        return Answer(None, reply.problem)
    if not isinstance(reply.fields, dict):
        return Answer(None, "did not return a dictionary of fields")
    found: dict[str, FieldValue] = {}
    for name in names:
        if name in reply.fields:
            wrong = fields.problem(entity, name, reply.fields[name])
            if wrong is not None:
                return Answer(None, f"returned a wrong {name}: {wrong}")
            found[name] = reply.fields[name]
    return Answer(found)


def _question(subject: Conflict, names: Sequence[str]) -> bytes:
    base = subject.base or Version()
    stamps = {"base": base.stamps, "local": subject.local.stamps, "remote": subject.remote.stamps}
    context = {"type": subject.type, "id": subject.id, "fields": list(names), "stamps": stamps}
    return _encode([base.fields, subject.local.fields, subject.remote.fields, context])


class PluginProcess:
    """One plug-in's process, spoken to in frames of four bytes of length and JSON."""

    def __init__(self) -> None:
        kept = {name: os.environ[name] for name in _KEPT_ENVIRONMENT if name in os.environ}
        self._popen = subprocess.Popen(
            [sys.executable, "-I", "-S", "-B", "-X", "utf8", str(_WORKER)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            cwd="/",
            env=kept,
            close_fds=True,
            start_new_session=True,
            bufsize=0,
        )
        if self._popen.stdin is None or self._popen.stdout is None:
            raise PluginBroken("has no pipes")
        self._to, self._from = self._popen.stdin.fileno(), self._popen.stdout.fileno()
        for pipe in (self._to, self._from):
            os.set_blocking(pipe, False)

    def start(self, code: bytes, limit_s: float, memory_bytes: int) -> None:
        """Load the plug-in; raise PluginBroken if that fails."""
        head = {"code": code.decode("utf-8", "replace"), "limit_s": limit_s, "memory_bytes": memory_bytes}
        reply = self.ask(_encode(head), START_S)
        if reply.problem:
            raise PluginBroken(f"cannot be loaded: {reply.problem}")

    def ask(self, question: bytes, limit_s: float) -> _Reply:
        """Return the reply to a question; raise PluginBroken if there is none in time."""
        deadline = time.monotonic() + limit_s
        rest = memoryview(len(question).to_bytes(4, "big") + question)
        while rest:
            self._wait(self._to, select.POLLOUT, deadline)
            try:
                rest = rest[os.write(self._to, rest) :]
            except BrokenPipeError as error:
                raise PluginBroken("ended its process") from error
        size = int.from_bytes(self._read(4, deadline), "big")
        if size > _ANSWER_BYTES_MAX:
            raise PluginBroken("answered with too much")
        return _decode_reply(self._read(size, deadline))

    def end(self) -> None:
        """Kill the process and whatever it started, and close the pipes."""
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(self._popen.pid, signal.SIGKILL)
        self._popen.kill()
        self._popen.wait()
        for pipe in (self._popen.stdin, self._popen.stdout):
            if pipe is not None:
                pipe.close()

    def _read(self, size: int, deadline: float) -> bytes:
        found = bytearray()
        while len(found) < size:
            self._wait(self._from, select.POLLIN, deadline)
            part = os.read(self._from, size - len(found))
            if not part:
                raise PluginBroken("ended its process")
            found += part
        return bytes(found)

    def _wait(self, pipe: int, event: int, deadline: float) -> None:
        poll = select.poll()
        poll.register(pipe, event)
        left = deadline - time.monotonic()
        if left <= 0 or not poll.poll(left * 1000):
            raise PluginBroken("did not answer in time")

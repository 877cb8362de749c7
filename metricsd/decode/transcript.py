"""Claude Code's own transcripts (`~/.claude/projects/**/*.jsonl`) to events: tokens, models, calls, prompts, turns.

The format is internal to Claude Code and changes between its versions, so what is not understood is passed over, and
what is taken is taken by an allow-list: text, input and output of tools leave only their sizes. One request is written as
several lines that repeat its usage, and a resumed session repeats lines of another file: ids are made of the ids in the
lines alone, so each counts once. A call is told in two lines; between them its name and size are remembered, no content.
"""

from __future__ import annotations

from collections import OrderedDict

import msgspec
from msgspec import Raw, Struct
from msgspec.structs import replace

from metricsd.clock import Clock
from metricsd.decode.claude_code import APP as APP
from metricsd.decode.claude_code import decode_claude_code
from metricsd.decode.names import clean_text, model_name, opaque_id, repeated_id, whole_number
from metricsd.decode.older_hooks import project_of, time_us
from metricsd.decode.payload import Payload, read_part
from metricsd.decode.repository import Repositories
from metricsd.errors import LineRejected
from metricsd.ids import EventId, line_fact, line_id
from metricsd.model import Event, Kind

FORM = "transcript"
"""Part of the ids, so that a fact of another format is never taken for one of these."""
NAME = "Transcript"
"""Name of every event that was read from a transcript: hooks may have told of the same fact under another."""
PENDING_MAX = 4096
"""Calls whose result is waited for; beyond, the oldest are given up."""
CWDS_CACHED_MAX = 1024
_SYNTHETIC = "<synthetic>"
_TOKENS = (
    ("input_tokens", "input_tokens"),
    ("output_tokens", "output_tokens"),
    ("cache_creation_input_tokens", "cache_creation_tokens"),
    ("cache_read_input_tokens", "cache_read_tokens"),
)
_TRIGGERS = frozenset(("auto", "manual"))
_NOTHING = Raw(b"")


class _Line(Struct, gc=False):
    type: str | None = None
    subtype: str | None = None
    uuid: str | None = None
    timestamp: Raw = _NOTHING
    sessionId: str | None = None  # noqa: N815 - the tool's own spelling, here and below
    cwd: str | None = None
    gitBranch: str | None = None  # noqa: N815
    requestId: str | None = None  # noqa: N815
    isSidechain: bool | None = None  # noqa: N815
    isMeta: bool | None = None  # noqa: N815
    isApiErrorMessage: bool | None = None  # noqa: N815
    durationMs: int | float | None = None  # noqa: N815
    message: Raw = _NOTHING
    toolUseResult: Raw = _NOTHING  # noqa: N815
    compactMetadata: Raw = _NOTHING  # noqa: N815


class _Message(Struct, gc=False):
    id: str | None = None
    model: str | None = None
    content: Raw = _NOTHING
    usage: Raw = _NOTHING


class _Block(Struct, gc=False):
    type: str | None = None
    id: str | None = None
    name: str | None = None
    input: Raw = _NOTHING
    tool_use_id: str | None = None
    is_error: bool | None = None
    text: Raw = _NOTHING
    content: Raw = _NOTHING


class _Compact(Struct):
    trigger: str | None = None


class _Call(Struct, array_like=True, gc=False):
    """What is remembered of a call until its result comes."""

    at: int
    tool: str | None
    subject: str | None
    agent: str | None
    input_bytes: int | None


class _State(Struct, array_like=True):
    session: str
    message: str
    pending: list[tuple[str, _Call]]


_decode = msgspec.json.Decoder(_Line).decode
_decode_message = msgspec.json.Decoder(_Message).decode
_blocks = msgspec.json.Decoder(list[_Block]).decode
_text = msgspec.json.Decoder(str).decode
_any = msgspec.json.Decoder().decode
_compact = msgspec.json.Decoder(_Compact).decode
_usage = msgspec.json.Decoder(dict[str, Raw]).decode
_number = msgspec.json.Decoder(int | float).decode
_pack = msgspec.msgpack.Encoder().encode
_unpack = msgspec.msgpack.Decoder(_State).decode

Fact = tuple[EventId, Event]


class Transcript:
    """Reads the lines of one transcript, in order."""

    def __init__(self, clock: Clock, state: bytes = b"") -> None:
        """`state` is what `pack` returned behind the lines that were read already."""
        self._repositories = Repositories(clock)
        self._projects: dict[str, str | None] = {}
        known = _unpack(state) if state else _State("", "", [])
        self._session = known.session
        self._message = known.message
        self._pending: OrderedDict[str, _Call] = OrderedDict(known.pending)

    def pack(self) -> bytes:
        """Return what the lines behind need of those before; no content is among it."""
        return _pack(_State(self._session, self._message, list(self._pending.items())))

    def read(self, data: bytes) -> list[Fact]:
        """Return the events that a line tells of, most of them none; raise LineRejected for what is no such line."""
        if 0 in data:
            raise LineRejected("nul", f"a NUL byte at {data.index(0)}: the file was truncated or copied while written")
        try:
            line = _decode(data)
        except msgspec.ValidationError as error:
            raise LineRejected("bad_fields", str(error)) from None
        except msgspec.DecodeError as error:
            raise LineRejected("bad_json", str(error)) from None
        except UnicodeDecodeError as error:
            raise LineRejected("bad_utf8", error.reason) from None
        except RecursionError:
            raise LineRejected("too_deep", "arrays or objects nested too deep") from None
        if not line.sessionId or not len(line.timestamp):
            return []
        at = time_us("timestamp", read_part(_any, line.timestamp))
        found = self._begin(line, at)
        match line.type:
            case "assistant":
                found += self._assistant(line, at)
            case "user":
                found += self._user(line, at)
            case "system":
                found += self._system(line, at)
            case _:
                return found
        return found

    def _begin(self, line: _Line, at: int) -> list[Fact]:
        """Return the start of the file's session, with its first line; an agent's own file is of another's session."""
        if self._session:
            return []
        self._session = line.sessionId or ""
        if line.isSidechain:
            return []
        return [(_id("session", self._session), self._event(line, at, Kind.SESSION_STARTED))]

    def _assistant(self, line: _Line, at: int) -> list[Fact]:
        message = read_part(_decode_message, line.message)
        if message is None:
            raise LineRejected("bad_fields", "`message` is not what an answer has")
        for block in _blocks_of(message):
            if block.type == "tool_use" and block.id and block.name:
                self._remember(block, line, at)
        key = f"{message.id}:{line.requestId}"
        usage = read_part(_usage, message.usage)
        if not usage or key == self._message or message.model == _SYNTHETIC or line.isApiErrorMessage:
            return []
        self._message = key
        extra: dict[str, int | str] = {}
        for theirs, ours in _TOKENS:
            number = whole_number(read_part(_number, usage.get(theirs, _NOTHING)))
            if number is not None:
                extra[ours] = number
        event = replace(self._event(line, at, Kind.TOKENS_USED), model=model_name(message.model), extra=extra or None)
        return [(_id("usage", key if message.id else line.uuid or key), event)]

    def _remember(self, block: _Block, line: _Line, at: int) -> None:
        payload = Payload(tool_name=block.name, tool_input=block.input)
        told = decode_claude_code(payload, "PostToolUse", at, self._repositories)
        self._pending[block.id or ""] = _Call(at, told.tool, told.subject, told.agent, told.input_bytes)
        if len(self._pending) > PENDING_MAX:
            self._pending.popitem(last=False)

    def _user(self, line: _Line, at: int) -> list[Fact]:
        message = read_part(_decode_message, line.message)
        if message is None:
            raise LineRejected("bad_fields", "`message` is not what a person or a tool said")
        blocks = _blocks_of(message)
        results = [block for block in blocks if block.type == "tool_result" and block.tool_use_id]
        if results:
            return [fact for block in results if (fact := self._result(line, block, at)) is not None]
        size = _prompt_bytes(message, blocks)
        if size is None or line.isMeta or line.isSidechain or not line.uuid:
            return []
        return [(_id("prompt", line.uuid), replace(self._event(line, at, Kind.PROMPT_SUBMITTED), input_bytes=size))]

    def _result(self, line: _Line, block: _Block, at: int) -> Fact | None:
        """Return the call that a result ends; None where the call itself is in no line before."""
        call = self._pending.pop(block.tool_use_id or "", None)
        if call is None:
            return None
        name = "PostToolUseFailure" if block.is_error else "PostToolUse"
        error = block.content if block.is_error else _NOTHING
        payload = Payload(tool_name=call.tool, tool_response=line.toolUseResult, error=error)
        told = decode_claude_code(payload, name, at, self._repositories)
        event = replace(
            told,
            name=NAME,
            session=repeated_id(line.sessionId),
            call=opaque_id(block.tool_use_id),
            project=self._project(line),
            branch=_branch(line),
            subject=call.subject,
            agent=told.agent or call.agent,
            input_bytes=call.input_bytes,
        )
        return _id("call", block.tool_use_id or ""), event

    def _system(self, line: _Line, at: int) -> list[Fact]:
        if line.uuid is None:
            return []
        if line.subtype == "turn_duration":
            duration = whole_number(line.durationMs)
            return [(_id("turn", line.uuid), replace(self._event(line, at, Kind.TURN_ENDED), duration_ms=duration))]
        if line.subtype == "compact_boundary":
            compact = read_part(_compact, line.compactMetadata)
            trigger = compact.trigger if compact is not None and compact.trigger in _TRIGGERS else None
            return [(_id("compact", line.uuid), replace(self._event(line, at, Kind.CONTEXT_COMPACTED), reason=trigger))]
        return []

    def _event(self, line: _Line, at: int, kind: Kind) -> Event:
        return Event(
            at=at, kind=kind.value, name=NAME, app=APP, session=repeated_id(line.sessionId), project=self._project(line),
            branch=_branch(line),
        )  # fmt: skip

    def _project(self, line: _Line) -> str | None:
        """Return the project's name: the repository's while it is there, else the folder's."""
        cwd = line.cwd
        if not cwd:
            return None
        if cwd not in self._projects:
            if len(self._projects) >= CWDS_CACHED_MAX:
                self._projects.clear()
            self._projects[cwd] = self._repositories.find(cwd).project or project_of(cwd)
        return self._projects[cwd]


def _blocks_of(message: _Message) -> list[_Block]:
    return read_part(_blocks, message.content) or []


def _prompt_bytes(message: _Message, blocks: list[_Block]) -> int | None:
    """Return the size in UTF-8 of what somebody wrote; None where there is no text."""
    texts = [message.content] if not blocks else [block.text for block in blocks if block.type == "text"]
    found = [text for raw in texts if (text := read_part(_text, raw)) is not None]
    return sum(len(text.encode("utf-8", "surrogatepass")) for text in found) if found else None


def _branch(line: _Line) -> str | None:
    return clean_text(line.gitBranch or "") or None


def _id(what: str, own_id: str) -> EventId:
    # No time takes part: lines that a resumed session repeats may carry another one.
    return line_id(line_fact(FORM, "", f"{what}:{own_id}", None, "", None, None, None), 0, 0)

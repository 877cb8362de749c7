"""Transcripts of Claude Code, read a second time: tokens, calls, prompts, turns, compactions.

The format is internal to that tool; what is taken here is what docs/migration.md says is taken. Sizes of input and
output are of the bytes as they stand and names of projects depend on what lies on this disk, so neither is a column of
these rows (rows.py).
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

from metricsd.migration.digest import Row
from metricsd.migration.rows import SESSION_STARTED, TOOL_USED, flat
from metricsd.migration.second import words
from metricsd.migration.second.lines import call_identity, read_json
from metricsd.migration.second.shapes import Bad
from metricsd.migration.second.times import parse_us

APP, NAME, FORM = "claude-code", "Transcript", "transcript"
PENDING_MAX = 4096
_COMMANDS = ("Bash", "PowerShell", "Shell")
_FILES = ("Read", "Edit", "Write", "MultiEdit", "NotebookEdit", "NotebookRead")
_EDITS = ("Edit", "Write", "MultiEdit")
_AGENTS = ("Agent", "Task")
_TEXTS = ("type", "subtype", "uuid", "sessionId", "cwd", "gitBranch", "requestId")
_FLAGS = ("isSidechain", "isMeta", "isApiErrorMessage")
_TOKENS = {
    "input_tokens": "input_tokens",
    "output_tokens": "output_tokens",
    "cache_creation_input_tokens": "cache_creation_tokens",
    "cache_read_input_tokens": "cache_read_tokens",
}
_exit = re.compile(r"Exit code ([0-9]{1,10})(?![0-9])").match


class Fact(NamedTuple):
    """One event of a transcript. `session` is its session as events have it."""

    identity: int
    row: Row
    at: int
    tool: str | None
    session: str


class _Call(NamedTuple):
    tool: str
    subject: str | None
    agent: str | None


class Transcript:
    """Reads the lines of one transcript, in order."""

    def __init__(self) -> None:
        self._begun = False
        self._message = ""
        self._pending: dict[str, _Call] = {}

    def read(self, data: bytes) -> list[Fact] | Bad:
        """Return the events that a line tells of; Bad for what is no such line."""
        line = read_json(data)
        if not isinstance(line, dict):
            return line if isinstance(line, Bad) else Bad("no_object")
        if not _has_types(line, _TEXTS, _FLAGS) or not _is_number_or_none(line.get("durationMs")):
            return Bad("wrong_types")
        if not line.get("sessionId") or "timestamp" not in line:
            return []
        at = parse_us(line["timestamp"])
        if at is None:
            return Bad("bad_time")
        found: list[Fact] = []
        if not self._begun:
            self._begun = True
            if not line.get("isSidechain"):
                found.append(_fact(line, at, SESSION_STARTED, "session", line["sessionId"]))
        told = self._told(line, at)
        return told if isinstance(told, Bad) else found + list(told)

    def _told(self, line: Mapping[str, Any], at: int) -> Bad | list[Fact]:
        kind = line.get("type")
        if kind == "system":
            return list(_system(line, at))
        if kind not in ("assistant", "user"):
            return []
        message = line.get("message")
        if not isinstance(message, dict) or not _has_types(message, ("id", "model"), ()):
            return Bad("no_message")
        blocks = _blocks(message.get("content"))
        return list((self._assistant if kind == "assistant" else self._user)(line, message, blocks, at))

    def _assistant(
        self, line: Mapping[str, Any], message: Mapping[str, Any], blocks: list[dict[str, Any]], at: int
    ) -> Iterator[Fact]:
        for block in blocks:
            if block.get("type") == "tool_use" and block.get("id") and block.get("name"):
                self._pending[block["id"]] = _asked(block)
                if len(self._pending) > PENDING_MAX:
                    del self._pending[next(iter(self._pending))]
        usage, key = message.get("usage"), f"{message.get('id')}:{line.get('requestId')}"
        if not isinstance(usage, dict) or not usage or key == self._message:
            return
        if message.get("model") == "<synthetic>" or line.get("isApiErrorMessage"):
            return
        self._message = key
        tokens = {ours: words.number(usage[theirs]) for theirs, ours in _TOKENS.items() if theirs in usage}
        extra = {name: count for name, count in tokens.items() if count is not None}
        own = key if message.get("id") else line.get("uuid") or key
        yield _fact(line, at, "tokens_used", "usage", own, model=words.model(message.get("model")), extra=flat(extra))

    def _user(
        self, line: Mapping[str, Any], message: Mapping[str, Any], blocks: list[dict[str, Any]], at: int
    ) -> Iterator[Fact]:
        results = [block for block in blocks if block.get("type") == "tool_result" and block.get("tool_use_id")]
        for block in results:
            call = self._pending.pop(block["tool_use_id"], None)
            if call is not None:
                yield _result(line, block, call, at)
        if results or line.get("isMeta") or line.get("isSidechain") or not line.get("uuid"):
            return
        texts = (
            [block.get("text") for block in blocks if block.get("type") == "text"]
            if blocks
            else [message.get("content")]
        )
        if any(isinstance(text, str) for text in texts):
            yield _fact(line, at, "prompt_submitted", "prompt", line["uuid"])


def _asked(block: Mapping[str, Any]) -> _Call:
    """Return what a call says of itself."""
    tool, given = words.tool_name(block["name"]), block.get("input")
    subject = agent = None
    if isinstance(given, dict):
        if tool in _COMMANDS and isinstance(given.get("command"), str):
            subject = words.program_of(given["command"])
        elif tool in _FILES and _has_types(given, ("file_path", "notebook_path"), ()):
            path = given.get("file_path") or given.get("notebook_path")
            subject = words.subject_of({"file_path": path})
        elif tool in _AGENTS and isinstance(given.get("subagent_type"), str) and given["subagent_type"]:
            agent = words.tool_name(given["subagent_type"])
    return _Call(tool, subject, agent)


def _result(line: Mapping[str, Any], block: Mapping[str, Any], call: _Call, at: int) -> Fact:
    """Return the call that a result ends."""
    outcome = "failed" if block.get("is_error") else "ok"
    answer = line.get("toolUseResult")
    extra: dict[str, Any] = {}
    model = added = removed = None
    if isinstance(answer, dict):
        if call.tool in _COMMANDS and outcome == "ok" and answer.get("interrupted") is True:
            outcome = "interrupted"
        elif call.tool in _EDITS:
            added, removed = _changed(answer)
        elif call.tool in _AGENTS:
            model, extra = _agent(answer)
    if outcome == "failed" and isinstance(block.get("content"), str):
        code = _exit(block["content"])
        if code is not None:
            extra["exit_code"] = int(code[1])
    own = block["tool_use_id"]
    return _fact(
        line, at, TOOL_USED, "call", own, tool=call.tool, outcome=outcome, call=words.session_id(own), model=model,
        agent=call.agent, subject=call.subject, lines_added=added, lines_removed=removed, extra=flat(extra),
    )  # fmt: skip


def _agent(answer: Mapping[str, Any]) -> tuple[str | None, dict[str, Any]]:
    extra: dict[str, Any] = {}
    agent_id, model = answer.get("agentId"), answer.get("resolvedModel")
    if isinstance(agent_id, str) and agent_id:
        extra["agent_id"] = words.session_id(agent_id)
    for theirs, ours in (("totalTokens", "total_tokens"), ("totalToolUseCount", "tool_use_count")):
        count = words.number(answer.get(theirs))
        if count is not None:
            extra[ours] = count
    return words.model(model) if isinstance(model, str) else None, extra


def _changed(answer: Mapping[str, Any]) -> tuple[int | None, int | None]:
    """Return lines added and removed by an edit."""
    if answer.get("type") == "create":
        content = answer.get("content")
        if not isinstance(content, str):
            return None, None
        return len(content.split("\n")) - (content.endswith("\n") or content == ""), 0
    hunks = answer.get("structuredPatch")
    if not isinstance(hunks, list) or not all(
        isinstance(one, dict) and isinstance(one.get("lines", []), list) for one in hunks
    ):
        return None, None
    signs = [text[:1] for one in hunks for text in one.get("lines", []) if isinstance(text, str)]
    return signs.count("+"), signs.count("-")


def _system(line: Mapping[str, Any], at: int) -> Iterator[Fact]:
    if line.get("uuid") is None:
        return
    if line.get("subtype") == "turn_duration":
        yield _fact(line, at, "turn_ended", "turn", line["uuid"], duration_ms=words.number(line.get("durationMs")))
    elif line.get("subtype") == "compact_boundary":
        more = line.get("compactMetadata")
        trigger = more.get("trigger") if isinstance(more, dict) else None
        reason = trigger if trigger in ("auto", "manual") else None
        yield _fact(line, at, "context_compacted", "compact", line["uuid"], reason=reason)


def _fact(
    line: Mapping[str, Any], at: int, kind: str, what: str, own: str, *, tool: str | None = None,
    outcome: str | None = None, duration_ms: int | None = None, call: str | None = None, model: str | None = None,
    agent: str | None = None, subject: str | None = None, reason: str | None = None, lines_added: int | None = None,
    lines_removed: int | None = None, extra: Row | None = None,
) -> Fact:  # fmt: skip
    session = words.session_id(line["sessionId"])
    branch = words.clean(line["gitBranch"]) if line.get("gitBranch") else None
    row = (
        kind, APP, NAME, at, session, tool, outcome, duration_ms, call, None, branch, model, agent, subject, reason, None,
        None, lines_added, lines_removed, extra,
    )  # fmt: skip
    return Fact(call_identity(f"{FORM}\x1f\x1fid\x1f{what}:{own}", 0), row, at, tool, session)


def _blocks(content: object) -> list[dict[str, Any]]:
    """Return the parts of a message; none where one of them is not what a part is."""
    if not isinstance(content, list):
        return []
    for block in content:
        if not isinstance(block, dict) or not _has_types(block, ("type", "id", "name", "tool_use_id"), ("is_error",)):
            return []
    return content


def _has_types(values: Mapping[str, Any], texts: tuple[str, ...], flags: tuple[str, ...]) -> bool:
    return all(values.get(name) is None or isinstance(values[name], str) for name in texts) and all(
        values.get(name) is None or isinstance(values[name], bool) for name in flags
    )


def _is_number_or_none(value: object) -> bool:
    return value is None or (isinstance(value, int | float) and not isinstance(value, bool))

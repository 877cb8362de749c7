"""Claude Code's hook payloads to events: which event is what, and which words a field may hold.

Source: the hooks reference of Claude Code (31 events, as of version 2.1.240). An event that is not in the table is
kept by its name. Every category comes from a closed list of documented words, else it is `other`; what a tool was
given and what it answered leave only their size, a listed word and counts of lines.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import NamedTuple

import msgspec
from msgspec import Raw, Struct

from metricsd.decode.names import OTHER, model_name, opaque_id, plain_name, repeated_id, whole_number
from metricsd.decode.payload import Payload, read_part
from metricsd.decode.repository import NOWHERE, Repositories
from metricsd.decode.subjects import command_subject, file_subject
from metricsd.model import Event, Kind, Outcome

APP = "claude-code"


class EventRule(NamedTuple):
    """What an event is: its kind, and for tool calls the outcome unless the payload says `interrupted`.

    `category` names the field that becomes `reason`, `words` maps its documented values to ours.
    """

    kind: str
    category: str | None = None
    words: Mapping[str, str] = {}
    outcome: str | None = None


# Plain text instead of members: SQLite binds it ten times faster and readers keep kinds of later versions as text.
_OK, _FAILED, _INTERRUPTED = Outcome.OK.value, Outcome.FAILED.value, Outcome.INTERRUPTED.value


def _words(text: str) -> dict[str, str]:
    return {word: word for word in text.split()}


_COMPACT = _words("manual auto")
_ERRORS = _words(
    "rate_limit overloaded authentication_failed oauth_org_not_allowed billing_error invalid_request model_not_found"
    " server_error max_output_tokens unknown"
)
_NOTICES = _words(
    "permission_prompt idle_prompt auth_success elicitation_dialog elicitation_complete elicitation_response"
    " agent_completed agent_needs_input"
)
# The two sentences that are documented; any other is text, and text is not kept.
_DENIALS = {"Blocked by classifier": "blocked", "Classifier unavailable": "unavailable"}

EVENTS: dict[str, EventRule] = {
    "SessionStart": EventRule(Kind.SESSION_STARTED.value, "source", _words("startup resume clear compact fork")),
    "SessionEnd": EventRule(
        Kind.SESSION_ENDED.value,
        "reason",
        _words("clear resume logout prompt_input_exit other bypass_permissions_disabled"),
    ),
    "Setup": EventRule(Kind.NOTED.value, "trigger", _words("init maintenance")),
    "UserPromptSubmit": EventRule(Kind.PROMPT_SUBMITTED.value),
    "UserPromptExpansion": EventRule(Kind.NOTED.value, "expansion_type", _words("slash_command mcp_prompt")),
    "PreToolUse": EventRule(Kind.TOOL_STARTED.value),
    "PermissionRequest": EventRule(Kind.PERMISSION_ASKED.value),
    "PermissionDenied": EventRule(Kind.TOOL_DENIED.value, "reason", _DENIALS, Outcome.DENIED.value),
    "PostToolUse": EventRule(Kind.TOOL_USED.value, outcome=_OK),
    "PostToolUseFailure": EventRule(Kind.TOOL_USED.value, outcome=_FAILED),
    "PostToolBatch": EventRule(Kind.NOTED.value),
    "Notification": EventRule(Kind.USER_NOTIFIED.value, "notification_type", _NOTICES),
    "MessageDisplay": EventRule(Kind.NOTED.value),
    "SubagentStart": EventRule(Kind.SUBAGENT_STARTED.value),
    "SubagentStop": EventRule(Kind.SUBAGENT_ENDED.value),
    "TaskCreated": EventRule(Kind.NOTED.value),
    "TaskCompleted": EventRule(Kind.NOTED.value),
    "Stop": EventRule(Kind.TURN_ENDED.value),
    "StopFailure": EventRule(Kind.TURN_FAILED.value, "error", _ERRORS),
    "TeammateIdle": EventRule(Kind.NOTED.value),
    "InstructionsLoaded": EventRule(
        Kind.NOTED.value, "load_reason", _words("session_start nested_traversal path_glob_match include compact")
    ),
    "ConfigChange": EventRule(
        Kind.NOTED.value, "source", _words("user_settings project_settings local_settings policy_settings skills")
    ),
    "CwdChanged": EventRule(Kind.NOTED.value),
    "DirectoryAdded": EventRule(Kind.NOTED.value, "source", _words("slash_command")),
    "FileChanged": EventRule(Kind.NOTED.value, "event", _words("change add unlink")),
    "WorktreeCreate": EventRule(Kind.NOTED.value),
    "WorktreeRemove": EventRule(Kind.NOTED.value),
    # A compaction fires both; only the one that every version knows counts as the compaction.
    "PreCompact": EventRule(Kind.CONTEXT_COMPACTED.value, "trigger", _COMPACT),
    "PostCompact": EventRule(Kind.NOTED.value, "trigger", _COMPACT),
    "Elicitation": EventRule(Kind.NOTED.value, "mode", _words("form url")),
    "ElicitationResult": EventRule(Kind.NOTED.value, "action", _words("accept decline cancel")),
}
UNKNOWN = EventRule(Kind.UNKNOWN.value)

_MODES = _words("plan acceptEdits auto dontAsk bypassPermissions delegate")
_MODE_DEFAULT = "default"
_EFFORTS = _words("low medium high xhigh max")

_COMMAND_TOOLS = frozenset(("Bash", "PowerShell", "Shell"))
_FILE_TOOLS = frozenset(("Read", "Edit", "Write", "MultiEdit", "NotebookEdit", "NotebookRead"))
_EDIT_TOOLS = frozenset(("Edit", "Write", "MultiEdit"))
_AGENT_TOOLS = frozenset(("Agent", "Task"))

_exit_code = re.compile(rb'"Exit code ([0-9]{1,10})(?![0-9])').match


class _Level(Struct):
    level: str | None = None


class _CommandInput(Struct, gc=False):
    command: str | None = None


class _FileInput(Struct, gc=False):
    file_path: str | None = None
    notebook_path: str | None = None


class _AgentInput(Struct, gc=False):
    subagent_type: str | None = None


class _CommandResponse(Struct, gc=False):
    interrupted: bool = False


class _EditResponse(Struct, gc=False):
    type: Raw = Raw(b"")
    content: Raw = Raw(b"")
    structuredPatch: Raw = Raw(b"")  # noqa: N815  the tool's own spelling


class _Hunk(Struct, gc=False):
    lines: list[Raw] = []


class _AgentResponse(Struct, gc=False):
    agentId: Raw = Raw(b"")  # noqa: N815
    resolvedModel: Raw = Raw(b"")  # noqa: N815
    totalTokens: Raw = Raw(b"")  # noqa: N815
    totalToolUseCount: Raw = Raw(b"")  # noqa: N815


_text = msgspec.json.Decoder(str).decode
_number = msgspec.json.Decoder(int | float).decode
_level = msgspec.json.Decoder(_Level).decode
_command_input = msgspec.json.Decoder(_CommandInput).decode
_file_input = msgspec.json.Decoder(_FileInput).decode
_agent_input = msgspec.json.Decoder(_AgentInput).decode
_command_response = msgspec.json.Decoder(_CommandResponse).decode
_edit_response = msgspec.json.Decoder(_EditResponse).decode
_agent_response = msgspec.json.Decoder(_AgentResponse).decode
_hunks = msgspec.json.Decoder(list[_Hunk]).decode


class _Facts(Struct, gc=False):
    """What one payload's tool input and response told, while they are read."""

    outcome: str | None = None
    subject: str | None = None
    agent: str | None = None
    model: str | None = None
    input_bytes: int | None = None
    output_bytes: int | None = None
    lines_added: int | None = None
    lines_removed: int | None = None
    extra: dict[str, int | str] = {}


def decode_claude_code(payload: Payload, event: str, at_us: int, repositories: Repositories) -> Event:
    """Return the event in a payload of Claude Code; an unknown name is kept with kind `unknown`."""
    return decode_event(payload, APP, event, EVENTS.get(event, UNKNOWN), at_us, repositories)


def decode_event(
    payload: Payload, app: str, event: str, rule: EventRule, at_us: int, repositories: Repositories
) -> Event:
    """Return the event that `rule` says this payload is. `app` and `event` are clean names, `at_us` its time."""
    place = repositories.find(payload.cwd) if payload.cwd else NOWHERE
    tool = plain_name(payload.tool_name)
    facts = _Facts(outcome=rule.outcome)
    if tool is not None:
        _read_tool(facts, tool, payload)
    elif len(payload.prompt):
        facts.input_bytes = _text_bytes(payload.prompt)
    _read_extra(facts.extra, payload)
    # By position, in the order of the struct: with names this call would cost more than reading the payload.
    return Event(
        at_us,
        rule.kind,
        event,
        app,
        repeated_id(payload.session_id or payload.conversation_id),
        tool,
        facts.outcome,
        whole_number(payload.duration_ms),
        opaque_id(payload.tool_use_id),
        place.project,
        place.branch,
        facts.model or model_name(payload.model),
        plain_name(payload.agent_type) or facts.agent,
        facts.subject,
        _reason(rule, payload) if rule.category is not None else None,
        facts.input_bytes,
        facts.output_bytes,
        facts.lines_added,
        facts.lines_removed,
        facts.extra or None,
    )


def _read_tool(facts: _Facts, tool: str, payload: Payload) -> None:
    given, answer = payload.tool_input, payload.tool_response
    if len(given):
        facts.input_bytes = len(given)
        _read_input(facts, tool, given)
    if len(answer):
        facts.output_bytes = len(answer)
        _read_response(facts, tool, answer)
    if facts.outcome == _FAILED:
        if payload.is_interrupt:
            facts.outcome = _INTERRUPTED
        found = _exit_code(payload.error)
        if found is not None:
            facts.extra["exit_code"] = int(found[1])


def _read_input(facts: _Facts, tool: str, given: Raw) -> None:
    if tool in _COMMAND_TOOLS:
        command = read_part(_command_input, given)
        if command is not None and command.command is not None:
            facts.subject = command_subject(command.command)
    elif tool in _FILE_TOOLS:
        file = read_part(_file_input, given)
        path = (file.file_path or file.notebook_path) if file is not None else None
        if path:
            facts.subject = file_subject(path)
    elif tool in _AGENT_TOOLS:
        agent = read_part(_agent_input, given)
        facts.agent = plain_name(agent.subagent_type) if agent is not None else None


def _read_response(facts: _Facts, tool: str, answer: Raw) -> None:
    if tool in _COMMAND_TOOLS:
        command = read_part(_command_response, answer)
        if command is not None and command.interrupted and facts.outcome == _OK:
            facts.outcome = _INTERRUPTED
    elif tool in _EDIT_TOOLS:
        edit = read_part(_edit_response, answer)
        if edit is not None:
            facts.lines_added, facts.lines_removed = _changed_lines(edit)
    elif tool in _AGENT_TOOLS:
        agent = read_part(_agent_response, answer)
        if agent is not None:
            _read_agent(facts, agent)


def _read_agent(facts: _Facts, agent: _AgentResponse) -> None:
    facts.model = model_name(read_part(_text, agent.resolvedModel))
    agent_id = opaque_id(read_part(_text, agent.agentId))
    if agent_id is not None:
        facts.extra["agent_id"] = agent_id
    for name, raw in (("total_tokens", agent.totalTokens), ("tool_use_count", agent.totalToolUseCount)):
        number = whole_number(read_part(_number, raw))
        if number is not None:
            facts.extra[name] = number


def _changed_lines(edit: _EditResponse) -> tuple[int | None, int | None]:
    """Return lines added and removed; a created file has an empty patch, so its lines are counted instead."""
    if bytes(edit.type) == b'"create"':
        content = read_part(_text, edit.content)
        return (None, None) if content is None else (_line_count(content), 0)
    hunks = read_part(_hunks, edit.structuredPatch)
    if hunks is None:
        return None, None
    # The sign is the first byte behind the quote; the text itself is never decoded.
    signs = [bytes(line)[1:2] for hunk in hunks for line in hunk.lines]
    return signs.count(b"+"), signs.count(b"-")


def _line_count(text: str) -> int:
    return text.count("\n") + (not text.endswith("\n") and text != "")


def _text_bytes(raw: Raw) -> int | None:
    """Return the length in UTF-8 of a JSON text, None for anything else."""
    text = read_part(_text, raw)
    return None if text is None else len(text.encode("utf-8", "surrogatepass"))


def _read_extra(extra: dict[str, int | str], payload: Payload) -> None:
    if payload.agent_id and (agent_id := opaque_id(payload.agent_id)) is not None:
        extra["agent_id"] = agent_id
    mode = payload.permission_mode
    # The default mode is not kept: it would be a third of all bytes of the store.
    if mode is not None and mode != _MODE_DEFAULT:
        extra["permission_mode"] = _MODES.get(mode, OTHER)
    if len(payload.effort):
        effort = read_part(_level, payload.effort)
        if effort is not None and effort.level is not None:
            extra["effort"] = _EFFORTS.get(effort.level, OTHER)


def _reason(rule: EventRule, payload: Payload) -> str | None:
    value = getattr(payload, rule.category or "")
    if isinstance(value, Raw):
        value = read_part(_text, value)
    return rule.words.get(value, OTHER) if value else None

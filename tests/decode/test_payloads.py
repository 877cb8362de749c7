"""Every representative payload becomes exactly the event that its line of the fixture says."""

from __future__ import annotations

from pathlib import Path

import msgspec
import pytest

from metricsd.decode import decode_line, parse_line
from metricsd.decode.claude_code import EVENTS
from metricsd.decode.repository import Repositories
from metricsd.model import Event, Kind
from tests.decode.support import AT_US, Case, cases, decode, line_bytes
from tests.decode.test_repository import make_repository
from tests.fakes import FakeClock
from tests.secrets import Json

# The hooks reference of Claude Code 2.1.240.
DOCUMENTED = set(
    """
    SessionStart SessionEnd Setup UserPromptSubmit UserPromptExpansion PreToolUse PermissionRequest PermissionDenied
    PostToolUse PostToolUseFailure PostToolBatch Notification MessageDisplay SubagentStart SubagentStop TaskCreated
    TaskCompleted Stop StopFailure TeammateIdle InstructionsLoaded ConfigChange CwdChanged DirectoryAdded FileChanged
    WorktreeCreate WorktreeRemove PreCompact PostCompact Elicitation ElicitationResult
    """.split()  # noqa: SIM905
)


def _id(case: Case) -> str:
    return case.name.replace(" ", "-")


@pytest.mark.parametrize("case", cases(), ids=_id)
def test_payload_becomes_the_expected_event(case: Case) -> None:
    """Fields that the fixture does not name are None: nothing more is kept than what it says."""
    assert decode(case.payload, case.event, case.app) == Event(**{"at": AT_US, **case.expected})  # type: ignore[arg-type]


def test_all_documented_events_are_known_and_in_the_fixture() -> None:
    """31 events; a new one in the table needs a payload, a documented one that is missing is a regression."""
    assert set(EVENTS) == DOCUMENTED
    assert len(DOCUMENTED) == 31
    assert {case.event for case in cases()} >= DOCUMENTED


def test_unknown_event_is_kept_by_name() -> None:
    """An event of a later version is counted under its own name, with what it shares with others."""
    event = decode({"session_id": "s-1", "tool_name": "Bash"}, "QuantumLeap")
    assert (event.kind, event.name, event.session, event.tool) == (Kind.UNKNOWN, "QuantumLeap", "s-1", "Bash")


def test_control_characters_leave_event_and_app_names() -> None:
    """A name from the wrapper is text of somebody: nothing in it may move a terminal's cursor."""
    event = decode({}, "Stop\x1b[2J\u202e", "my\x07app\u2028")
    assert (event.name, event.app) == ("Stop[2J", "myapp")


def test_an_app_has_no_slash() -> None:
    """A session is known as `app/id`."""
    assert decode({}, "Stop", "team/tool").app == "team-tool"


def test_name_of_nothing_but_control_characters_is_other() -> None:
    """Names are never empty in the store."""
    assert decode({}, "\x01\x02", "\x03").name == "other"


@pytest.mark.parametrize("mark", [{"cursor_version": "3.2"}, {"conversation_id": "c-1"}])
def test_cursor_is_told_apart_by_its_payload(mark: dict[str, str]) -> None:
    """Cursor runs the hooks of Claude Code's settings; its sessions must not count as Claude Code's."""
    assert decode({"session_id": "s", **mark}, "Stop").app == "cursor"


def test_project_and_branch_come_from_the_working_folder(tmp_path: Path) -> None:
    """`cwd`, and Cursor's first workspace folder where there is none."""
    make_repository(tmp_path / "shop", "ref: refs/heads/totals\n")
    by_cwd: dict[str, Json] = {"cwd": str(tmp_path / "shop")}
    by_root: dict[str, Json] = {"workspace_roots": [str(tmp_path / "shop")], "cursor_version": "3"}
    for payload in (by_cwd, by_root):
        event = decode(payload, "Stop")
        assert (event.project, event.branch) == ("shop", "totals")
    assert decode({"cursor_version": "3", "workspace_roots": []}, "Stop").project is None


@pytest.mark.parametrize(
    ("event", "outcome"), [("PreToolUse", None), ("PostToolUse", "interrupted"), ("PostToolUseFailure", "failed")]
)
def test_only_a_call_that_ended_well_becomes_interrupted_by_its_response(event: str, outcome: str | None) -> None:
    """A failure says `is_interrupt` itself, and a call that only starts has no outcome."""
    payload: dict[str, Json] = {"tool_name": "Bash", "tool_response": {"interrupted": True}}
    assert decode(payload, event).outcome == outcome


def test_broken_field_costs_that_field_alone() -> None:
    """A wrong type, a number that does not fit and half a surrogate pair leave the rest of the event whole."""
    event = decode(
        {
            "session_id": 7,
            "cwd": ["/"],
            "tool_name": "Edit",
            "tool_use_id": "toolu_1",
            "duration_ms": "fast",
            "model": {"name": "x"},
            "is_interrupt": "no",
            "effort": 3,
            "permission_mode": "plan",
            "tool_input": {"file_path": 5},
            "tool_response": {"structuredPatch": [{"lines": ["+ \ud83d", "-a"]}]},
        }
    )
    assert event == Event(
        at=AT_US,
        kind="tool_used",
        name="PostToolUse",
        app="claude-code",
        tool="Edit",
        outcome="ok",
        call="toolu_1",
        input_bytes=16,
        output_bytes=52,
        lines_added=1,
        lines_removed=1,
        extra={"permission_mode": "plan"},
    )


@pytest.mark.parametrize(
    ("written", "kept"),
    [
        ("0", 0),
        ("1.5", 2),
        ("9223372036854775807", 2**63 - 1),
        ("9223372036854775808", None),
        ("-1", None),
        ("1e400", None),
        ("1e30", None),
        ("true", None),
        ('"12"', None),
        ("null", None),
    ],
)
def test_number_is_kept_only_if_it_fits(written: str, kept: int | None) -> None:
    """Numbers are integers from 0 to 2^63 - 1, floats rounded; booleans are not numbers."""
    data = line_bytes({"duration_ms": 0}).replace(b'"duration_ms": 0', f'"duration_ms": {written}'.encode())
    assert decode_line(parse_line(data), AT_US, Repositories(FakeClock())).duration_ms == kept


@pytest.mark.parametrize("text", ["two words", "a/b", "jane@shop.example", "x" * 201, "zwölf"])
def test_id_that_is_not_opaque_is_hashed(text: str) -> None:
    """Equal ids stay equal, so a session with a strange id is still one session; the text itself is gone."""
    event = decode({"session_id": text, "tool_use_id": text, "agent_id": text})
    assert event.session == event.call
    assert event.session is not None
    assert event.session.startswith("hash-")
    assert text not in msgspec.json.encode(event).decode()
    assert decode({"session_id": text + "."}).session != event.session


@pytest.mark.parametrize(
    ("name", "kept"),
    [("Bash", "Bash"), ("mcp__a-b__c.d:e", "mcp__a-b__c.d:e"), ("rm -rf /", "other"), ("x" * 300, "other"), ("", None)],
)
def test_tool_name_is_an_identifier_or_other(name: str, kept: str | None) -> None:
    """A tool's name is kept, a sentence in its place is not."""
    assert decode({"tool_name": name}).tool == kept


@pytest.mark.parametrize(
    ("name", "kept"),
    [
        ("claude-opus-5[1m]", "claude-opus-5[1m]"),
        ("openai/gpt-5.2", "openai/gpt-5.2"),
        ("claude-opus-4@20250514", "claude-opus-4@20250514"),
        ("arn:aws:bedrock:eu-west-1:123456789012:inference-profile/x", "other"),
        ("<synthetic>", "other"),
    ],
)
def test_model_name_looks_like_a_model(name: str, kept: str) -> None:
    """Providers, dates and windows belong to a model's name; account numbers and sentences do not."""
    assert decode({"model": name}, "SessionStart").model == kept

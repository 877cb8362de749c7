"""The shape that the tool demands of hooks: what ships fits it, and what does not is named with its place."""

from __future__ import annotations

from typing import Any

import pytest

from metricsd.hooks.fragment import load_fragment
from metricsd.hooks.handler_schema import PROBLEMS_MAX, handler_problems, hooks_problems

COMMAND = {"type": "command", "command": "x"}


@pytest.mark.parametrize(
    "handler",
    [
        COMMAND,
        {**COMMAND, "args": [], "async": True, "asyncRewake": False, "shell": "bash", "timeout": 0.5, "future": [1]},
        {"type": "http", "url": "http://x", "headers": {"A": "$B"}, "allowedEnvVars": ["B"]},
        {"type": "mcp_tool", "server": "s", "tool": "t", "input": {}},
        {"type": "prompt", "prompt": "p", "model": "m", "if": "Bash(git *)"},
        {"type": "agent", "prompt": "p", "statusMessage": "m", "once": True},
    ],
)
def test_well_formed_handlers_pass(handler: dict[str, Any]) -> None:
    """Every type of the reference, with its fields and with ones that newer versions may have."""
    assert handler_problems(handler) == []


def test_what_ships_is_well_formed() -> None:
    """Our own entry of every event."""
    for handler in load_fragment("/a/capture", "/spool").values():
        assert handler_problems(handler) == []


@pytest.mark.parametrize(
    ("handler", "says"),
    [
        ("x", "must be an object"),
        ({}, "`type` must be one of command, http, mcp_tool, prompt, agent"),
        ({"type": ["command"]}, "`type` must be one of"),
        ({"type": "script", "command": "x"}, "`type` must be one of"),
        ({"type": "command"}, "`command` is missing"),
        ({"type": "command", "command": ""}, "`command` must be a text"),
        ({**COMMAND, "args": "a b"}, "`args` must be a list of texts"),
        ({**COMMAND, "args": [1]}, "`args` must be a list of texts"),
        ({**COMMAND, "async": "true"}, "`async` must be true or false"),
        ({**COMMAND, "timeout": "5"}, "`timeout` must be a number of seconds above 0"),
        ({**COMMAND, "timeout": True}, "`timeout` must be a number"),
        ({**COMMAND, "timeout": 0}, "`timeout` must be a number"),
        ({**COMMAND, "shell": "fish"}, "`shell` must be bash or powershell"),
        ({"type": "http"}, "`url` is missing"),
        ({"type": "http", "url": "u", "headers": {"a": 1}}, "`headers` must be an object of texts"),
        ({"type": "mcp_tool", "server": "s"}, "`tool` is missing"),
        ({"type": "prompt", "prompt": 1}, "`prompt` must be a text"),
    ],
)
def test_malformed_handlers_are_named(handler: Any, says: str) -> None:
    """One sentence each, with the field and what it must be."""
    (problem,) = handler_problems(handler)
    assert says in problem


def test_problems_carry_their_place() -> None:
    """Event and numbers as in the file; groups and events of another shape too."""
    settings = {
        "hooks": {
            "Stop": [{"hooks": [COMMAND, {"type": "command"}]}, {"matcher": 1, "hooks": []}, "x", {"hooks": {}}, {}],
            "PreToolUse": {},
        }
    }
    assert hooks_problems(settings) == [
        "hooks.Stop[0].hooks[1]: `command` is missing",
        "hooks.Stop[1]: `matcher` must be a text",
        "hooks.Stop[2]: must be an object",
        "hooks.Stop[3]: `hooks` must be a list",
        "hooks.Stop[4]: `hooks` must be a list",
        "hooks.PreToolUse: must be a list",
    ]
    assert hooks_problems({"hooks": []}) == ["`hooks` must be an object of event names"]
    assert hooks_problems({"model": "x"}) == []
    assert len(hooks_problems({"hooks": {"Stop": ["x"] * 1000}})) == PROBLEMS_MAX

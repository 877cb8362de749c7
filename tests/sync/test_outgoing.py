"""What leaves the machine: an allow-list, with names hashed unless the user shares them."""

from __future__ import annotations

from hypothesis import given

from metricsd.config import Sync
from metricsd.ids import EventId
from metricsd.model import Event
from metricsd.protocol import WireEvent
from metricsd.store import counters, events
from metricsd.store.connection import Store
from metricsd.sync.outgoing import BUILT_IN_TOOLS, Outgoing
from tests.samples import any_events, make_item

KEY, OTHER_KEY = b"k" * 32, b"o" * 32
ID = EventId(b"\x01" * 16)
NAMED = Event(
    at=1, kind="tool_used", name="PostToolUse", app="claude-code", session="s-1", tool="mcp__crm__find_customer", outcome="ok",
    call="toolu_1", project="acme-merger", branch="fix/acme", model="claude-opus-4", agent="acme-reviewer", subject="git",
    reason="startup", duration_ms=3, extra={"total_tokens": 5, "agent_id": "a1"},
)  # fmt: skip


def sent(event: Event, settings: Sync | None = None, key: bytes = KEY) -> WireEvent:
    return Outgoing(key, settings or Sync()).event(ID, 7, event)


def test_level_metrics_sends_no_name_that_somebody_made_up() -> None:
    """Project, branch, agent and foreign tools go as keyed hashes; numbers, times, ids and the model go as they are."""
    wire = sent(NAMED)
    assert wire.project is not None and wire.project.startswith("h:")
    assert wire.branch is not None and wire.branch.startswith("h:")
    assert wire.tool is not None and wire.tool.startswith("custom:")
    assert wire.agent is not None and wire.agent.startswith("custom:")
    kept = (
        wire.seq,
        wire.at,
        wire.session,
        wire.call,
        wire.model,
        wire.subject,
        wire.reason,
        wire.duration_ms,
        wire.extra,
    )
    assert kept == (7, 1, "s-1", "toolu_1", "claude-opus-4", "git", "startup", 3, NAMED.extra)
    assert "acme" not in repr(wire) and "crm" not in repr(wire)


def test_a_hash_is_the_same_on_all_laptops_of_a_tenant_and_nowhere_else() -> None:
    """It is keyed by the tenant, and a branch called like a project has another one."""
    assert sent(NAMED).project == sent(NAMED).project != sent(NAMED, key=OTHER_KEY).project
    twin = Event(at=1, kind="noted", name="X", app="a", project="same", branch="same")
    assert sent(twin).project != sent(twin).branch


def test_level_names_sends_them() -> None:
    """The user chose to."""
    wire = sent(NAMED, Sync(level="names"))
    assert (wire.project, wire.branch, wire.tool, wire.agent) == (
        "acme-merger",
        "fix/acme",
        NAMED.tool,
        "acme-reviewer",
    )


def test_a_shared_project_is_sent_by_name_with_its_branch() -> None:
    """Listing one project shares that project alone."""
    wire = sent(NAMED, Sync(share_projects=("acme-merger",)))
    assert (wire.project, wire.branch) == ("acme-merger", "fix/acme")
    assert wire.tool is not None and wire.tool.startswith("custom:")
    assert sent(NAMED, Sync(share_projects=("another",))).project == sent(NAMED).project


def test_built_in_tools_keep_their_names() -> None:
    """Their names say nothing about anybody."""
    for name in ("Bash", "Read", "apply_patch", "run_shell_command"):
        assert name in BUILT_IN_TOOLS and Outgoing(KEY, Sync()).tool(name) == name


def test_what_does_not_look_like_its_field_is_hashed_or_left_out() -> None:
    """A sentence in the place of an id, a category or a word never leaves."""
    text = "please keep this secret"
    wire = sent(Event(
        at=1, kind="noted", name=text, app=text, session=text, call=text, outcome=text, reason=text, subject=text,
        model=text, batch=text, extra={text: 1, "note": text, "tokens": 4},
    ))  # fmt: skip
    assert "secret" not in repr(wire)
    assert wire.extra == {"tokens": 4}
    assert wire.session == sent(Event(at=2, kind="noted", name="x", app="a", session=text)).session


@given(any_events())
def test_any_event_goes_without_a_blank_or_its_project(event: Event) -> None:
    """Whatever a decoder let through: no text with a blank leaves, and no project or branch name."""
    wire = sent(event)
    for name in ("kind", "name", "app", "session", "tool", "call", "project", "branch", "agent", "subject", "reason"):
        value = getattr(wire, name)
        assert value is None or " " not in value
    assert wire.project is None or wire.project.startswith("h:")
    assert wire.branch is None or wire.branch.startswith("h:")


def test_counters_go_whole_and_without_names(store: Store) -> None:
    """Zeros go too: the cloud merges by field, and a count can go down when an event moves to another device."""
    with store.transaction():
        items = [make_item(0, project="acme-merger", branch="fix/acme", session="s-1")]
        events.insert(store, items, device=events.own_device(store))
    (row,) = counters.pending(store, 10)
    change = Outgoing(KEY, Sync()).counters(row._replace(device_id="d" * 32, rev="1-x"))
    assert change is not None
    assert (change.id, change.base_rev) == (f"{'d' * 32}/claude-code/s-1", "1-x")
    assert set(change.fields) == set(counters.FIELDS)
    assert (change.fields["events"], change.fields["prompts"]) == (1, 0)
    assert "acme" not in repr(change)


def test_counters_whose_id_does_not_fit_the_wire_are_not_sent(store: Store) -> None:
    """The caller quarantines them instead."""
    with store.transaction():
        events.insert(store, [make_item(0, session="s" * 200)], device=events.own_device(store))
    (row,) = counters.pending(store, 10)
    assert Outgoing(KEY, Sync()).counters(row._replace(device_id="d" * 400)) is None

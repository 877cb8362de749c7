"""What leaves this machine: the one place that turns stored facts into their wire form.

An allow-list: a field that is not named here is never sent, and a value that does not look like what its field may
hold is hashed or left out. Names become keyed hashes unless the level is `names` or the project is listed in
`sync.share_projects`; the key is the tenant's, so one project has one hash on all laptops of a team and means
nothing to anyone else. `metricsd privacy show` prints what this module returns.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from hashlib import blake2b

from metricsd.config import Sync
from metricsd.ids import EventId
from metricsd.import_batch import base_of
from metricsd.model import Event
from metricsd.protocol import COUNTERS, RECORD_ID_BYTES_MAX, RecordChange, WireEvent
from metricsd.store.counters import FIELDS, CounterRow
from metricsd.store.records import Pending

LEVEL_NAMES = "names"
HASH_BYTES = 12
NAMES_CACHED_MAX = 10_000
EXTRA_KEYS_MAX = 16

BUILT_IN_TOOLS = frozenset(
    """
    Agent AskUserQuestion Bash BashOutput CronCreate CronDelete CronList Edit EnterPlanMode EnterWorktree ExitPlanMode
    ExitWorktree Glob Grep KillBash KillShell LS LSP ListMcpResourcesTool MultiEdit NotebookEdit NotebookRead
    PowerShell Read ReadMcpResourceTool SendMessage Shell Skill SlashCommand StructuredOutput Task TaskCreate TaskGet
    TaskList TaskOutput TaskStop TaskUpdate TeamCreate TeamDelete TodoRead TodoWrite ToolSearch WebFetch WebSearch
    Write apply_patch local_shell shell update_plan view_image web_search exec_command write_stdin
    read_file read_many_files write_file replace run_shell_command list_directory glob grep search_file_content
    google_web_search web_fetch save_memory write_todos codebase_search edit_file delete_file run_terminal_cmd
    file_search grep_search list_dir bash edit write read patch todowrite todoread webfetch task
    """.split()  # noqa: SIM905
)
"""Tools that ship with an AI tool: their names say nothing about anybody."""
_OTHER = "other"

_is_word = re.compile(r"[A-Za-z0-9_.:-]{1,64}").fullmatch
_is_opaque = re.compile(r"[A-Za-z0-9._:@-]{1,200}").fullmatch
_is_model = re.compile(r"[A-Za-z0-9._:@/\[\]-]{1,200}").fullmatch
_is_subject = re.compile(r"\.?[A-Za-z0-9_+.-]{1,40}").fullmatch
_is_key = re.compile(r"[a-z][a-z0-9_]{0,39}").fullmatch


class Outgoing:
    """Makes wire forms by one tenant's key and one set of settings."""

    def __init__(self, tenant_key: bytes, settings: Sync) -> None:
        self._key = tenant_key
        self._names = settings.level == LEVEL_NAMES
        self._shared = frozenset(settings.share_projects)
        self._hashes: dict[tuple[str, str], str] = {}

    def event(self, event_id: EventId, seq: int, e: Event) -> WireEvent:
        """Return the wire form of an event at `seq`."""
        return WireEvent(
            id=event_id.hex(),
            seq=seq,
            at=e.at,
            kind=self._word(e.kind),
            name=self._word(e.name),
            app=self._word(e.app),
            session=self.opaque(e.session),
            tool=self.tool(e.tool),
            outcome=_word_or_none(e.outcome),
            duration_ms=e.duration_ms,
            call=self.opaque(e.call),
            project=self.project(e.project),
            branch=self.branch(e.branch, e.project),
            model=self.model(e.model),
            agent=self._custom("agent", e.agent),
            subject=e.subject if e.subject is None or _is_subject(e.subject) else _OTHER,
            reason=_word_or_none(e.reason),
            input_bytes=e.input_bytes,
            output_bytes=e.output_bytes,
            lines_added=e.lines_added,
            lines_removed=e.lines_removed,
            extra=self._extra(e.extra),
            batch=None if e.batch is None else self.opaque(base_of(e.batch)),
        )

    def counters(self, row: CounterRow) -> RecordChange | None:
        """Return the change that carries an own row of session counters; None when its id does not fit the wire."""
        # All fields go, also zeros: the cloud merges by field, and numbers go down when an event moves away.
        fields = dict(zip(FIELDS, row.values, strict=True))
        fields["branch"] = self.branch(fields["branch"], fields["project"])
        fields["project"] = self.project(fields["project"])
        fields["model"] = self.model(fields["model"])
        fields["end_reason"] = _word_or_none(fields["end_reason"])
        record_id = f"{row.device_id}/{self.session_id(row.app, row.session_id)}"
        if len(record_id.encode()) > RECORD_ID_BYTES_MAX:
            return None
        return RecordChange(type=COUNTERS, id=record_id, base_rev=row.rev, fields=fields)

    def record(self, item: Pending) -> RecordChange:
        """Return the change of a record. Its fields are hand-made or in wire form already, so they go as they are."""
        return RecordChange(
            type=item.type,
            id=item.id,
            base_rev=item.rev,
            fields=item.changed,
            stamps=item.stamps,
            deleted=item.deleted,
            stamp=item.stamp,
        )

    def session_id(self, app: str, session: str) -> str:
        """Return the id of a session's record; a session seen on several devices has one id."""
        return f"{self._word(app)}/{self.opaque(session)}"

    def tool(self, name: str | None) -> str | None:
        """Return a tool's name if it ships with an AI tool, else its hash."""
        return name if name in BUILT_IN_TOOLS or name == _OTHER else self._custom("tool", name)

    def project(self, name: str | None) -> str | None:
        """Return a project's hash, or its name if the user shares it."""
        if name is None or self._names or name in self._shared:
            return name
        return f"h:{self._hash('project', name)}"

    def branch(self, name: str | None, project: str | None) -> str | None:
        """Return a branch's hash, or its name if the user shares its project."""
        if name is None or self._names or (project is not None and project in self._shared):
            return name
        return f"h:{self._hash('branch', name)}"

    def model(self, name: str | None) -> str | None:
        """Return a model's name; what does not look like one is hashed."""
        if name is None or _is_model(name):
            return name
        return f"custom:{self._hash('model', name)}"

    def opaque(self, text: str | None) -> str | None:
        """Return a tool's own id; what does not look like an id is hashed, equal ids staying equal."""
        if text is None or _is_opaque(text):
            return text
        return f"h:{self._hash('id', text)}"

    def _custom(self, what: str, name: str | None) -> str | None:
        if name is None or self._names:
            return name
        return f"custom:{self._hash(what, name)}"

    def _word(self, text: str) -> str:
        return text if _is_word(text) else f"custom:{self._hash('word', text)}"

    def _extra(self, extra: Mapping[str, int | str] | None) -> dict[str, int | str] | None:
        """Return further numbers and categories: whole numbers, and texts without blanks."""
        if not extra:
            return None
        kept = {
            key: value
            for key, value in list(extra.items())[:EXTRA_KEYS_MAX]
            if _is_key(key) and (isinstance(value, int) or _is_opaque(value))
        }
        return kept or None

    def _hash(self, what: str, text: str) -> str:
        key = (what, text)
        known = self._hashes.get(key)
        if known is None:
            if len(self._hashes) >= NAMES_CACHED_MAX:
                self._hashes.clear()
            known = _keyed(self._key, what, text)
            self._hashes[key] = known
        return known


def _keyed(key: bytes, what: str, text: str) -> str:
    # `what` keeps a project and a branch of the same name apart: equal hashes would link them.
    data = f"{what}\0{text}".encode("utf-8", "surrogatepass")
    return blake2b(data, digest_size=HASH_BYTES, key=key).hexdigest()


def _word_or_none(text: str | None) -> str | None:
    if text is None:
        return None
    return text if _is_word(text) else _OTHER

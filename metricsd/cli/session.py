"""`session`: what sessions were, and what people write about them.

Looking never changes anything. An edit is one durable transaction on the store, whether or not the daemon runs, and
a running daemon is told, so that the change can leave at once. Counters follow from events and cannot be edited.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

import click

from metricsd import control, identity
from metricsd.cli.spans import parse_span
from metricsd.cli.status_text import counted
from metricsd.config import Paths, find_paths, load_config
from metricsd.errors import EXIT_OK, AuthError, MetricsdError, UsageError

if TYPE_CHECKING:
    from metricsd.protocol import FieldValue
    from metricsd.store.connection import Store
    from metricsd.store.sessions import Session

NOTICE_TIMEOUT_S = 1.0
"""How long the daemon may take to hear of an edit; it finds the edit at its next look anyway."""
CANDIDATES_SHOWN_MAX = 5
KEY_BYTES = 32
_US_PER_S = 1_000_000
_ID_CHARS = 20
_TEXT_CHARS = 40
_HEADER = "  ".join(
    (
        "started (UTC)".ljust(16),
        "id".ljust(_ID_CHARS),
        "project".ljust(_ID_CHARS),
        "calls".rjust(6),
        "failed",
        "state".ljust(10),
        "about",
    )
)

Section = dict[str, Any]


@click.group()
def session() -> None:
    """Look at sessions, and describe, tag or delete them."""


@session.command("list")
@click.option("--since", metavar="SPAN", help="Only those active within this time, for example 7d or 12h.")
@click.option("--all", "with_deleted", is_flag=True, help="Deleted ones too.")
@click.option("--json", "as_json", is_flag=True, help="Print a JSON array; fields are only added.")
def list_sessions(since: str | None, with_deleted: bool, as_json: bool) -> int:
    """List sessions, the newest first."""
    from metricsd.store import sessions

    within = parse_span(since, "--since") if since else None
    with _home() as home:
        found = sessions.read_all(home.store, home.address) if home.store is not None else []
        if within is not None:
            horizon = int((datetime.now(UTC) - within).timestamp() * _US_PER_S) if within.days < 36500 else 0
            found = [one for one in found if (one.last_at or one.ended_at or one.started_at or 0) >= horizon]
        found = [one for one in found if with_deleted or not one.deleted]
        documents = [home.document(one) for one in found]
    if as_json:
        click.echo(json.dumps(documents, indent=1))
        return EXIT_OK
    if documents:
        click.echo(_HEADER)
    for document in documents:
        click.echo(_line(document))
    click.echo(counted(len(documents), "session"), err=True)
    return EXIT_OK


@session.command()
@click.argument("session_id", metavar="ID")
@click.option("--json", "as_json", is_flag=True, help="Print JSON; fields are only added.")
def show(session_id: str, as_json: bool) -> int:
    """Print one session. ID is its id or the beginning of it."""
    with _home() as home:
        document = home.document(_get(home, session_id))
    _print(document, as_json)
    return EXIT_OK


@session.command()
@click.argument("session_id", metavar="ID")
@click.option("--set", "settings", metavar="FIELD=VALUE", multiple=True, help="Set a field; an empty value clears it.")
@click.option("--add-tag", "added", metavar="TAG", multiple=True, help="Add a tag.")
@click.option("--remove-tag", "removed", metavar="TAG", multiple=True, help="Take a tag away.")
@click.option("--delete", is_flag=True, help="Delete it on all devices; an edit brings it back.")
@click.option("--json", "as_json", is_flag=True, help="Print the session as JSON; fields are only added.")
def edit(
    session_id: str, settings: Sequence[str], added: Sequence[str], removed: Sequence[str], delete: bool, as_json: bool
) -> int:
    """Describe, tag or delete a session. ID is its id or the beginning of it."""
    changes = _changes(settings)
    if delete and (changes or added or removed):
        raise UsageError("--delete goes alone: a deleted session keeps its fields")
    if not (delete or changes or added or removed):
        raise UsageError("nothing to change: give --set, --add-tag, --remove-tag or --delete")
    with _home() as home:
        document = _edit(home, session_id, changes, (added, removed), delete)
    notify(find_paths())
    _print(document, as_json)
    return EXIT_OK


def notify(paths: Paths) -> None:
    """Tell a running daemon of a hand edit, so that it can leave at once; without one there is nobody to tell."""
    try:
        control.call(paths.state_dir, "edited", timeout_s=NOTICE_TIMEOUT_S)
    except MetricsdError:
        # The edit is durable; a daemon that is away, busy or older syncs it at its next round.
        return


class Home:
    """What the commands need of a home: its store if there is one, the user, and the tenant's hashes."""

    def __init__(self, paths: Paths, store: Store | None) -> None:
        from metricsd.sync.outgoing import Outgoing

        credentials = identity.find_credentials(paths)
        config = load_config(paths)
        self.store = store
        self.user = credentials.user if credentials else None
        self._outgoing = Outgoing(credentials.tenant_key, config.sync) if credentials else None
        self._hidden = Outgoing(credentials.tenant_key, _hashing(config.sync)) if credentials else None
        self._labels: dict[str, str] | None = None

    def check_address(self, one: Session) -> None:
        """Raise AuthError for an edit whose record would need the tenant's key for its id, before there is one."""
        from metricsd.sync.outgoing import Outgoing

        if self._outgoing is None:
            anyone = Outgoing(bytes(KEY_BYTES), load_config(find_paths()).sync)
            if anyone.session_id(one.app, one.session_id) != one.record_id:
                raise AuthError(
                    f"the id of session {one.session_id[:80]!r} travels as a hash, whose key comes with the login: "
                    "run `metricsd login URL` first"
                )

    @property
    def address(self) -> Callable[[str, str], str]:
        """Return what makes a session's record id: in wire form once there is a login."""
        return self._outgoing.session_id if self._outgoing is not None else _plain_address

    def document(self, one: Session) -> Section:
        """Return the JSON form of a session."""
        record = one.record
        return {
            "id": one.session_id,
            "app": one.app,
            "project": self._label(one.project),
            "branch": self._label(one.branch),
            "model": one.model,
            "user": self.user,
            "device": one.device,
            "started_at": _when(one.started_at),
            "last_at": _when(one.last_at),
            "ended_at": _when(one.ended_at),
            "end_reason": one.end_reason,
            "description": one.field("description"),
            "tags": one.field("tags") or [],
            "session_type": one.field("session_type"),
            "score": one.field("score"),
            **one.numbers,
            "rev": record.rev if record else None,
            "dirty": record is not None and record.dirty > 0,
            "deleted": one.deleted,
        }

    def _label(self, name: str | None) -> str | None:
        """Return the local name behind another device's hash, or the hash when this machine does not know it."""
        from metricsd.store import sessions

        if name is None or self._hidden is None or not name.startswith(sessions.HASHED) or self.store is None:
            return name
        if self._labels is None:
            self._labels = {}
            for plain in sessions.names(self.store):
                for hashed in (self._hidden.project(plain), self._hidden.branch(plain, None)):
                    self._labels[str(hashed)] = plain
        return self._labels.get(name, name)


def _hashing(settings: Any) -> Any:
    """Return settings under which every name is hashed: another device may share less than this one."""
    return settings._replace(level="metrics", share_projects=())


def _plain_address(app: str, session_id: str) -> str:
    return f"{app}/{session_id}"


@contextmanager
def _home() -> Iterator[Home]:
    from metricsd.store.connection import Store

    paths = find_paths()
    store = Store.open(paths.store, backups=paths.backups) if paths.store.exists() else None
    try:
        yield Home(paths, store)
    finally:
        if store is not None:
            store.close()


def _get(home: Home, text: str) -> Session:
    """Return the one session that `text` names; raise UsageError when there is none, or more than one."""
    from metricsd.store import sessions

    found = sessions.find(home.store, text, home.address) if home.store is not None and text else []
    if not found:
        raise UsageError(f"there is no session {text!r}: `metricsd session list` shows them")
    if len(found) > 1:
        some = ", ".join(f"{one.app}/{one.session_id}" for one in found[:CANDIDATES_SHOWN_MAX])
        more = ", ..." if len(found) > CANDIDATES_SHOWN_MAX else ""
        raise UsageError(f"{text!r} names {len(found)} sessions ({some}{more}): write more of the id")
    return found[0]


def _changes(settings: Sequence[str]) -> dict[str, FieldValue]:
    from metricsd import fields

    changes: dict[str, FieldValue] = {}
    by_hand = [name for name, field in fields.ENTITIES["session"].items() if field.by_hand]
    for setting in settings:
        name, equals, value = setting.partition("=")
        if not equals:
            raise UsageError(f"--set {setting!r}: write field=value")
        if name not in by_hand:
            raise UsageError(f"--set {name}: only {', '.join(by_hand)} are set by hand; the rest follows from events")
        changes[name] = fields.parse_value("session", name, value)
    return changes


def _edit(
    home: Home, text: str, changes: dict[str, FieldValue], tags: tuple[Sequence[str], Sequence[str]], delete: bool
) -> Section:
    """Make the edit in one durable transaction, and return the session after it."""
    from metricsd.errors import LineRejected
    from metricsd.store import records, sessions

    store = home.store
    one = _get(home, text)
    home.check_address(one)
    if store is None:
        raise AssertionError("a session was found, so there is a store")
    with store.transaction(full=True):
        # Read again inside the transaction: another program may have edited meanwhile.
        current = records.get(store, sessions.TYPE, one.record_id)
        before = current.version.fields if current is not None else {}
        if any(tags):
            changes = {**changes, "tags": _tags(changes.get("tags", before.get("tags")), *tags)}
        try:
            records.edit(store, sessions.TYPE, one.record_id, changes, delete=delete)
        except LineRejected as error:
            raise UsageError(f"session {one.session_id!r} cannot be edited: {error.detail or error.reason}") from error
    return home.document(_get(home, f"{one.app}/{one.session_id}"))


def _tags(before: FieldValue, added: Sequence[str], removed: Sequence[str]) -> FieldValue:
    from metricsd import fields

    kept = [tag for tag in before if tag not in removed] if isinstance(before, list) else []
    tags = list(dict.fromkeys([*kept, *(tag.strip() for tag in added)]))
    wrong = fields.problem("session", "tags", tags)
    if wrong is not None:
        raise UsageError(f"tags: {wrong}")
    return tags or None


def _line(document: Section) -> str:
    about = document["description"] or ", ".join(document["tags"]) or ""
    state = (
        "deleted" if document["deleted"] else document["end_reason"] or ("ended" if document["ended_at"] else "open")
    )
    return "  ".join(
        (
            (document["started_at"] or "-")[:16].replace("T", " ").ljust(16),
            _fit(document["id"], _ID_CHARS),
            _fit(document["project"] or "-", _ID_CHARS),
            f"{document['tool_calls']:>6}",
            f"{document['tool_failures']:>6}",
            _fit(state, 10),
            _shown(about)[:_TEXT_CHARS],
        )
    ).rstrip()


def _fit(text: str, width: int) -> str:
    text = _shown(text)
    return text.ljust(width) if len(text) <= width else text[: width - 1] + "…"


def _shown(text: str) -> str:
    """Return the text without what could steer the terminal, or what it cannot show."""
    plain = "".join(char if char.isprintable() else " " for char in text)
    encoding = sys.stdout.encoding or "utf-8"
    return plain.encode(encoding, "replace").decode(encoding)


def _print(document: Section, as_json: bool) -> None:
    if as_json:
        click.echo(json.dumps(document, indent=1))
        return
    for name, value in document.items():
        if value not in (None, [], 0, False):
            text = ", ".join(value) if isinstance(value, list) else value
            click.echo(f"{name:15} {_shown(str(text))}")


def _when(micros: int | None) -> str | None:
    """Return microseconds UTC as RFC 3339."""
    if not micros:
        return None
    return datetime.fromtimestamp(micros / _US_PER_S, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")

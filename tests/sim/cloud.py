"""The cloud as one step function: a request and the time in, a reply out; its whole state is a few plain values.

It keeps what `metricsd/cloud` keeps in SQL: a counter of changes with a nonce for each transaction, streams whose
settled positions are bound to ids, records under compare-and-set. What a push does to a record is the product's
`merged` and `is_replay`.
"""

from __future__ import annotations

from random import Random
from typing import Any, NamedTuple

from metricsd.cloud.comparing import STAMP_AHEAD_MS_MAX
from metricsd.cloud.wiretext import parse_revision, revision_text
from metricsd.conflict import Version
from metricsd.hlc import Stamp
from metricsd.protocol import HelloReply, RecordChange, RecordState
from tests.sim.ghosts import UNSEEN, Ghosts, Mark, Violation
from tests.sim.parts import Address, Parts

US_PER_MS = 1000
PAGE = 4
"""Items of one page: small, so that short histories have many."""


class Refused(NamedTuple):
    """A reply that ends the round or makes it start over: auth, gap, stream_fork or history_changed."""

    code: str


class Page(NamedTuple):
    """A page of the feed: (device, event id) or (record, its mark), in change order."""

    items: list[Any]
    cursor: str
    more: bool


class Cloud:
    """One tenant with one user."""

    def __init__(self, parts: Parts, ghosts: Ghosts, rng: Random) -> None:
        self.parts = parts
        self.ghosts = ghosts
        self.rng = rng
        self.now_ms = 0
        self.issued = 0
        """Device ids ever given out: ids are random in the product, so none comes twice after a restore either."""
        self.devices: set[str] = set()
        self.log: list[Any] = []
        """By change number - 1: an event id, or the address of a record."""
        self.nonces: list[int] = []
        self.events: dict[str, str] = {}
        """Event id -> the device whose it is."""
        self.bound: dict[str, list[str]] = {}
        """Device -> its stream's event ids, by seq - 1."""
        self.records: dict[Address, RecordState] = {}
        self.changes: dict[Address, int] = {}
        self.marks: dict[Address, Mark] = {}

    def backup(self) -> tuple[Any, ...]:
        """Return a copy of everything on disk."""
        bound = {device: list(ids) for device, ids in self.bound.items()}
        return (
            set(self.devices), list(self.log), list(self.nonces), dict(self.events), bound,
            dict(self.records), dict(self.changes), dict(self.marks),
        )  # fmt: skip

    def restore(self, copy: tuple[Any, ...]) -> None:
        """Put a copy in the place of what is there."""
        (self.devices, self.log, self.nonces, self.events, self.bound,
         self.records, self.changes, self.marks) = copy  # fmt: skip

    def crash(self) -> None:
        """Start again from the disk: nothing that was answered is missing there."""

    def ask(self, request: tuple[Any, ...]) -> Any:
        """Answer a request: (call, device, ...)."""
        call, device = request[0], request[1]
        if call == "login":
            return self.enrol()
        if device not in self.devices:
            return Refused("auth")
        match call:
            case "hello":
                return self.hello(*request[1:])
            case "events":
                return self.push_events(*request[1:])
            case "changes":
                return self.page(*request[1:])
            case "records":
                return self.push_records(*request[1:])
            case "fork":
                return self.enrol()
            case _:
                raise AssertionError(call)

    def enrol(self) -> str:
        """Make a device."""
        self.issued += 1
        device = f"d{self.issued:02d}"
        self.devices.add(device)
        return device

    def hello(self, device: str, acked_seq: int, acked_id: str, cursor: str) -> HelloReply:
        """Say what is held of a stream."""
        ids = self.bound.get(device, [])
        return HelloReply(
            server_time=self.now_ms * US_PER_MS,
            epoch=1,
            last_seq=len(ids),
            last_id=ids[-1] if ids else "",
            id_at_acked=ids[acked_seq - 1] if 0 < acked_seq <= len(ids) else None,
            cursor_ok=cursor == "" or self.position(cursor) is not None,
        )

    def push_events(self, device: str, base_seq: int, ids: tuple[str, ...]) -> Any:
        """Store a batch that begins behind `base_seq`; return ([device whose each is], acked_through)."""
        stream = self.bound.setdefault(device, [])
        if base_seq > len(stream):
            return Refused("gap")
        if any(stream[seq] != one for seq, one in enumerate(ids[: len(stream) - base_seq], base_seq)):
            return Refused("stream_fork")
        nonce = self.nonce()
        owners = []
        for seq, one in enumerate(ids, base_seq):
            if one not in self.events:
                self.events[one] = device
                self.add(one, nonce)
            owners.append(self.events[one])
            if seq >= len(stream):
                stream.append(one)
        return owners, len(stream)

    def push_records(self, device: str, items: tuple[tuple[RecordChange, Mark], ...]) -> list[Any]:
        """Compare and set each; results are ("applied", rev), ("conflict", state, mark) or ("restamp", limit in ms)."""
        nonce = self.nonce()
        limit_ms = self.now_ms + STAMP_AHEAD_MS_MAX
        highest = Stamp(limit_ms, 0, "").text()
        results: list[Any] = []
        for change, mark in items:
            if any(stamp > highest for stamp in [*change.stamps.values(), change.stamp or ""]):
                results.append(("restamp", limit_ms))
            else:
                results.append(self.set(device, change, mark, nonce))
        return results

    def set(self, device: str, change: RecordChange, mark: Mark, nonce: int) -> Any:
        """Compare and set one record."""
        address = (change.type, change.id)
        current = self.records.get(address)
        content = self.parts.merged(current, change)
        if current is not None:
            if self.parts.is_replay(current, change, content, device):
                return "applied", current.rev
            if self.differs(change.base_rev, current.rev):
                return "conflict", current, self.marks[address]
        elif change.base_rev is not None and self.position(change.base_rev) is None:
            return "conflict", None, UNSEEN
        old = self.marks.get(address, UNSEEN)
        self.ghosts.overwritten(f"cloud {address}", old, mark)
        if current is not None:
            self.ghosts.changed("cloud", address, version_of(current), Version(**content._asdict()), old, mark)
        rev = self.add(address, nonce)
        self.records[address] = RecordState(
            type=change.type, id=change.id, rev=rev, device=device,
            fields=content.fields, stamps=content.stamps, deleted=content.deleted, stamp=content.stamp,
        )  # fmt: skip
        self.changes[address] = len(self.log)
        self.marks[address] = mark
        return "applied", rev

    def differs(self, base_rev: str | None, rev: str) -> bool:
        """Return whether a change was made on another version than the current one."""
        return base_rev != rev

    def page(self, device: str, cursor: str) -> Any:
        """Return the next page of the other devices' changes."""
        after = self.position(cursor) if cursor else 0
        if after is None:
            return Refused("history_changed")
        items: list[Any] = []
        head = self.head()
        number = after
        while number < head and len(items) < PAGE:
            entry = self.log[number]
            number += 1
            if isinstance(entry, str):
                owner = self.events[entry]
                if owner != device:
                    items.append((owner, entry))
            elif self.changes[entry] == number:
                items.append((self.records[entry], self.marks[entry]))
        return Page(items, revision_text(number, self.nonces[number - 1]) if number else "", number < head)

    def head(self) -> int:
        """Return the highest number whose change is visible."""
        return len(self.log)

    def position(self, text: str) -> int | None:
        """Return the number in a cursor or revision; None when it is not of this history."""
        found = parse_revision(text)
        if found is None or found[0] > len(self.log) or self.nonces[found[0] - 1] != found[1]:
            return None
        return found[0]

    def nonce(self) -> int:
        """Return the nonce of a transaction."""
        return self.rng.getrandbits(60)

    def add(self, entry: Any, nonce: int) -> str:
        """Give a change its number; return it as a revision."""
        self.log.append(entry)
        self.nonces.append(nonce)
        return revision_text(len(self.log), nonce)

    def check(self) -> None:
        """Check what must hold at rest."""
        limit = Stamp(self.now_ms + STAMP_AHEAD_MS_MAX, 0xFFFF, "~").text()
        for address, record in self.records.items():
            if any(stamp > limit for stamp in [*record.stamps.values(), record.stamp or ""]):
                raise Violation(f"cloud {address}: a stamp from a wrong year got in")
        ids = [entry for entry in self.log if isinstance(entry, str)]
        if len(ids) != len(set(ids)):
            raise Violation("cloud: an event is there twice")


def version_of(state: RecordState) -> Version:
    """Return what a state says."""
    return Version(fields=state.fields, stamps=state.stamps, deleted=state.deleted, stamp=state.stamp)

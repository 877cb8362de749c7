"""What the stages of a migration hand to each other. Frozen structs, no behaviour beyond adding up.

    discover ─> survey ─> parse ─> transform ─> validate ─> load ─> compare ─> report
    Manifest    sessions   Row      Planned      Finding     Counts   Confidence  Summary
                           Rejected

`runner` alone knows the stages; none of them imports another, and what one needs of the next stands here.

- **discover** names the files and how each is read. **survey** reads every file once: its size and hash are the source
  from then on (what is appended later belongs to the next run), and what is said of sessions is merged, in a database
  of the run's folder, so that memory stays flat.
- **parse** turns a stretch of the source into `Row`s and `Rejected`s, with the `Position` behind it: a pure function of
  the bytes and of the position before. One stretch is one *part*: a bounded number of rows, the unit of everything that
  follows.
- **transform** makes of each `Row` a `Planned`: what the store keeps (events with their ids, values beside them), with a
  `Note` for each clamp, truncation, mapping, guess and merge.
- **validate** (a `Validation`) looks at the planned rows of a part and returns `Finding`s. The runner rejects the rows
  whose place a HARD one names; `finish` returns the findings of the whole set. Its running figures ride in the part's
  checkpoint as bytes (`snapshot`, `restore`), so a resumed run knows what an undisturbed one would.
- **load** (a `Sink`) stores a part: rows, checkpoint and digest in one transaction, and says what became of them.
  Each part's events carry the import batch `<run>.<part>` (`batch_name`), and each part has an `import_batch` record.
- **compare** reads source and target by itself. Of the first reader it takes the manifest alone: files, kinds, sizes.
- **report** gets the run's `Result` and the ledger (`ledger.py`: rejects, findings and notes in the order of the source,
  without content), and fills the `Summary`, which is the last line of `run --json`.

A row's content is in `Row.data` and `Row.raw` alone, and both end with their part: nothing behind load, and no file of
the run's folder, holds any.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from enum import StrEnum
from typing import Any, Protocol

from msgspec import Struct

from metricsd.decode.older_hooks import Found
from metricsd.store.events import Identified
from metricsd.store.ingest import Beside


class Subject(StrEnum):
    """What a row counts as: the names of the counts."""

    SESSION = "sessions"
    TOOL_EVENT = "tool_events"
    OTHER_EVENT = "other_events"
    """Events of transcripts and exports that are neither: prompts, tokens, turns."""


class FileKind(StrEnum):
    """How a file is read."""

    OLDER_LINES = "older_lines"
    """`*.jsonl` of the older hooks: tool calls, and the history of sessions."""
    OLDER_DOCUMENT = "older_document"
    """`*.json`: a session or tool metric of the older hooks or of the older API, or an array of them."""
    TRANSCRIPT = "transcript"
    """A session of Claude Code as it keeps it itself."""
    EXPORT = "export"
    """What `metricsd export` wrote."""
    IGNORED = "ignored"
    """Not a source of data; `SourceFile.why` says what it is."""


class NoteKind(StrEnum):
    """What was done to a value on its way."""

    CLAMP = "clamp"
    TRUNCATION = "truncation"
    MAPPING = "mapping"
    GUESS = "guess"
    MERGE = "merge"
    """Several entries of the source became one; `Note.others` names them."""


class Severity(StrEnum):
    """What a finding means for its row."""

    HARD = "hard"
    """The row is rejected, or the run fails where the finding is about the whole set."""
    SOFT = "soft"
    """Kept and reported."""
    INFO = "info"


class Place(Struct, frozen=True, gc=False):
    """Where something stands in the source: the file's name below the source, a line from 1 and its byte offset.

    In a packed file, lines and offsets are those of its content. A document is line 1; an array's items are numbered.
    """

    file: str
    line: int
    offset: int


class SourceFile(Struct, frozen=True):
    """One file of the source. `name` is its path below the source's root, `path` where it lies.

    size    bytes of content that belong to this run (unpacked for gzip); what was appended later does not
    packed  the file is gzip
    stamp   device, inode, size, and times in nanoseconds: what changes whenever the file does
    digest  BLAKE2b-128 of the `size` bytes, hexadecimal; empty before the survey
    """

    name: str
    path: str
    kind: FileKind
    packed: bool = False
    why: str = ""
    size: int = 0
    stamp: tuple[int, ...] = ()
    digest: str = ""
    lines: int = 0


class Manifest(Struct, frozen=True):
    """The source of a run: `files` may be gone through any number of times, in the order in which they are read.

    A source can have a hundred thousand files, so what is behind `files` reads them from the run's folder.
    """

    root: str
    files: Collection[SourceFile]


class Position(Struct, frozen=True):
    """How far the source was read: everything before it is loaded, nothing behind it is.

    stage        the list that is being read: merged sessions first, then other entries of documents, then lines
    index        number of the file, or of the last session or entry
    occurrences  what the form of the file's lines must know of the lines before
    digest       BLAKE2b-128 of the file's bytes before the offset, hexadecimal
    """

    stage: str = ""
    index: int = 0
    line: int = 0
    offset: int = 0
    occurrences: bytes = b""
    digest: str = ""


class Row(Struct, frozen=True, gc=False):
    """One fact that was read. `raw` is the JSON object as it stands, `found` what the decoder made of it.

    A merged session has no bytes and no object of its own, `found` is what all its files say together. `found` is None
    for an entry that is none by itself: an agent's announcement without its call, a record that an export derives.

    others  the other places that told of the same fact (a session's files, an agent's announcement before its call)
    """

    place: Place
    subject: Subject
    data: bytes
    raw: Mapping[str, Any]
    found: Found | Identified | Beside | None
    occurrence: int = 0
    others: tuple[Place, ...] = ()


class Rejected(Struct, frozen=True, gc=False):
    """An entry of the source that cannot be taken: `reason` is a code of reasons.py, or `rule_<id>` of a rule.

    `entries` counts it with the others that told of the same fact.
    """

    place: Place
    subject: Subject
    reason: str
    detail: str
    data: bytes | None
    size: int
    entries: int = 1


class Note(Struct, frozen=True, gc=False):
    """One thing that was done to a value. `code` is stable, such as `score_scale` or `session_by_time`."""

    kind: NoteKind
    code: str
    field: str
    place: Place
    others: tuple[Place, ...] = ()


class Finding(Struct, frozen=True, gc=False):
    """What a rule found. `value_class` says what kind of value it was (`null`, `negative`, `text 5-10`), never which.

    place is None for a finding about the whole set.
    """

    rule: str
    severity: Severity
    place: Place | None
    field: str
    value_class: str


class Planned(Struct, frozen=True, gc=False):
    """What the store will keep of a row: events with their ids, and values beside them.

    user    the mapped id of the person, None where the source names none
    """

    row: Row
    items: tuple[Identified, ...]
    beside: tuple[Beside, ...] = ()
    notes: tuple[Note, ...] = ()
    user: str | None = None


class Part(Struct, frozen=True):
    """One unit of a run: what is stored together, with how far the source was read behind it. `number` counts from 1."""

    run: str
    number: int
    planned: Sequence[Planned]
    rejected: Sequence[Rejected]
    after: Position
    rules: bytes = b""
    """`Validation.snapshot` behind this part."""
    findings: Sequence[Finding] = ()
    """What the rules found about the planned rows."""


class Tally(Struct, frozen=True):
    """What became of entries of the source. `source` is what was read, so the others must add up to it.

    loaded    new in the target
    merged    told of a fact that another entry of the source told of too
    rejected  in quarantine
    skipped   known to the target already, or taken in by hooks
    """

    source: int = 0
    loaded: int = 0
    merged: int = 0
    rejected: int = 0
    skipped: int = 0

    @property
    def reconciles(self) -> bool:
        """Whether every entry has exactly one fate."""
        return self.source == self.loaded + self.merged + self.rejected + self.skipped

    def __add__(self, other: Tally) -> Tally:
        return Tally(
            self.source + other.source,
            self.loaded + other.loaded,
            self.merged + other.merged,
            self.rejected + other.rejected,
            self.skipped + other.skipped,
        )


class Counts(Struct, frozen=True):
    """The tallies of a part or of a run."""

    sessions: Tally = Tally()
    tool_events: Tally = Tally()
    other_events: Tally = Tally()

    @property
    def total(self) -> Tally:
        """All of them together."""
        return self.sessions + self.tool_events + self.other_events

    @property
    def reconciles(self) -> bool:
        """Whether every entry of every kind has exactly one fate."""
        return self.sessions.reconciles and self.tool_events.reconciles and self.other_events.reconciles

    def __add__(self, other: Counts) -> Counts:
        return Counts(
            self.sessions + other.sessions,
            self.tool_events + other.tool_events,
            self.other_events + other.other_events,
        )


class StageFigures(Struct, frozen=True):
    """What one stage did: entries (or bytes, for the survey) and how long it took. Stages of one part follow each other."""

    name: str
    items: int
    seconds: float
    peak_rss_mb: float


class Confidence(Struct, frozen=True):
    """Four numbers and a verdict (`pass` or `fail`); notes on each in docs/migration.md. Shares are 0 to 1."""

    reconciled: bool
    coverage: float
    accuracy_lb: float
    sensitivity_lb: float
    score: float
    verdict: str


class Result(Struct, frozen=True):
    """A run, as the report sees it. Times are microseconds UTC; `targets` are of `store` and `cloud`."""

    migration_id: str
    source: str
    targets: tuple[str, ...]
    started_us: int
    ended_us: int
    ok: bool
    dry_run: bool
    manifest: Manifest
    counts: Counts
    notes: Mapping[str, int]
    """Notes counted by `<kind>.<code>`."""
    rejects: Mapping[str, int]
    """Rejected entries counted by reason."""
    stages: tuple[StageFigures, ...]
    parts: int
    digest: str
    """Of all that was loaded: order-free, equal for a run that was cut off and one that was not."""
    report_dir: str


class Summary(Struct, frozen=True):
    """The last line of `run --json`; fields are only added."""

    migration_id: str
    ok: bool
    sessions: Tally
    tool_events: Tally
    quarantined: int
    quality_score: float
    confidence: Confidence
    duration_s: float
    records_per_s: float
    peak_rss_mb: float
    report_dir: str
    other_events: Tally = Tally()
    dry_run: bool = False
    state: str = "done"
    reason: str = ""
    digest: str = ""


class Validation(Protocol):
    """The rules, as the runner uses them."""

    def check(self, part: Sequence[Planned]) -> Sequence[Finding]:
        """Return what the rules say of these rows; rows with a HARD finding will be rejected."""
        ...

    def finish(self, counts: Counts) -> Sequence[Finding]:
        """Return what the rules say of the whole set, after its last part."""
        ...

    def snapshot(self) -> bytes:
        """Return the running figures, at most 64 KiB."""
        ...

    def restore(self, kept: bytes) -> None:
        """Go on from a snapshot."""
        ...


class Stored(Struct, frozen=True):
    """What became of a part. `refused` are rows that only the target could refuse, beside the part's own rejected ones.

    digest  of what was added, as text
    """

    counts: Counts
    refused: tuple[Rejected, ...] = ()
    digest: str = ""


class Progress(Struct, frozen=True):
    """How far a target is: the last part it holds, and what was noted with it. `ledger` is the ledger's size then."""

    part: int = 0
    after: Position = Position()
    rules: bytes = b""
    ledger: int = 0
    counts: Counts = Counts()


class Sink(Protocol):
    """A target, as the runner uses it. What raises stored nothing of the part."""

    def progress(self) -> Progress:
        """Return how far this run is in the target."""
        ...

    def take(self, part: Part, ledger: Callable[[Sequence[Rejected]], int]) -> Stored:
        """Store a part with its progress, and say what became of its rows. A second time changes nothing.

        `ledger` is told what the target refused before anything is committed, and returns the ledger's size.
        """
        ...

    def digest(self) -> str:
        """Return the digest of all that the run added to the target."""
        ...

    def close(self) -> None:
        """Let go of the target."""
        ...


def batch_name(run: str, part: int) -> str:
    """Return the import batch of a part's events: the id of its `import_batch` record. Parts count from 1."""
    return f"{run}.{part}"

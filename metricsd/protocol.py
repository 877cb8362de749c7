"""The wire between daemon and cloud: `/sync/v1`, JSON bodies, zstd or gzip, Bearer tokens.

Both ends import these structs and nothing else of each other. Fields are only ever added, with defaults; unknown
fields are ignored, so either end may be newer. Times are microseconds since 1970 UTC, ids hex text, revisions and
cursors opaque texts `<number>-<nonce>`.
"""

from __future__ import annotations

from typing import Literal

from msgspec import Struct

PROTOCOL_VERSION = 1
PREFIX = "/sync/v1"
RECORD_ID_BYTES_MAX = 512
COUNTERS = "session_counters"
"""Record type of derived counters: id `<device>/<app>/<session>`; only that device may write it, so it never conflicts."""

Scalar = str | int | float | bool | None
FieldValue = Scalar | list[str]


class Problem(Struct, omit_defaults=True, kw_only=True):
    """Every error body (RFC 9457, application/problem+json). `code` is stable; `limit` names a limit that was hit.

    `last_seq` comes with the codes `gap` and `stream_fork`: where the cloud stands in this stream.
    """

    status: int
    title: str
    code: str
    type: str = "about:blank"
    detail: str = ""
    limit: str | None = None
    retry_after_s: float | None = None
    last_seq: int | None = None


class EnrolRequest(Struct, kw_only=True, omit_defaults=True):
    """`POST /devices`. Bearer: an enrolment token; or the device's own token with `parent` = its id, after a fork."""

    name: str
    parent: str | None = None


class EnrolReply(Struct, kw_only=True):
    """`tenant_key` (64 hex characters) keys the hashes of names, so that one project has one hash on all laptops."""

    device_id: str
    device_token: str
    tenant_key: str
    tenant: str
    user: str


class Capabilities(Struct, kw_only=True, omit_defaults=True):
    """`GET /capabilities`. The client adapts to the limits. `heartbeat_s`: the longest silence of an open stream of news."""

    protocol: int
    version: str
    server_time: int
    items_max: int
    body_bytes_max: int
    inflated_bytes_max: int
    item_bytes_max: int
    page_max: int
    features: list[str] = []
    policy_hash: str | None = None
    heartbeat_s: float = 15.0


class HelloRequest(Struct, kw_only=True, omit_defaults=True):
    """`POST /hello`, start of each tick. `acked_id` is the event id at `acked_seq` ("" at 0).

    `cursor` is the newest place in the cloud's history that the device knows: its cursor, or a later revision.
    """

    device_id: str
    epoch: int
    acked_seq: int
    acked_id: str = ""
    cursor: str = ""


class HelloReply(Struct, kw_only=True, omit_defaults=True):
    """What the cloud holds of this device's stream.

    last_seq        the highest seq up to which everything is settled; `last_id` the event id there
    id_at_acked     the id it holds at the device's `acked_seq`; None when it holds none
    cursor_ok       False: the device's cursor is from a history that this cloud does not have
    policy_hash     SHA-256 of the tenant's conflict policy; None when it has none
    """

    server_time: int
    epoch: int
    last_seq: int
    last_id: str = ""
    id_at_acked: str | None = None
    cursor_ok: bool = True
    policy_hash: str | None = None


class WireEvent(Struct, kw_only=True, omit_defaults=True):
    """An event as it travels. Names may be keyed hashes (`custom:...`, `h:...`); see DESIGN, privacy at decode."""

    id: str
    at: int
    kind: str
    name: str
    app: str
    seq: int = 0
    session: str | None = None
    tool: str | None = None
    outcome: str | None = None
    duration_ms: int | None = None
    call: str | None = None
    project: str | None = None
    branch: str | None = None
    model: str | None = None
    agent: str | None = None
    subject: str | None = None
    reason: str | None = None
    input_bytes: int | None = None
    output_bytes: int | None = None
    lines_added: int | None = None
    lines_removed: int | None = None
    extra: dict[str, int | str] | None = None
    batch: str | None = None


class PushEvents(Struct, kw_only=True):
    """`POST /events`. Items are in seq order and cover (base_seq, last seq] whole: a seq that is not there never will be."""

    device_id: str
    epoch: int
    base_seq: int
    events: list[WireEvent]


class EventResult(Struct, omit_defaults=True, kw_only=True):
    """Outcome of one event. A duplicate names the `device` whose event it is, if that is another one."""

    status: Literal["stored", "duplicate", "rejected"]
    device: str | None = None
    reason: str | None = None


class PushEventsReply(Struct, kw_only=True):
    """Results in the order of the request; `acked_through` is the highest seq with nothing unsettled before it."""

    results: list[EventResult]
    acked_through: int
    server_time: int


class RecordState(Struct, kw_only=True, omit_defaults=True):
    """A record as the cloud holds it. `stamps` has an HLC text for each field; a deleted record has its own `stamp`."""

    type: str
    id: str
    rev: str
    device: str
    fields: dict[str, FieldValue] = {}
    stamps: dict[str, str] = {}
    deleted: bool = False
    stamp: str | None = None


class RecordChange(Struct, kw_only=True, omit_defaults=True):
    """One change of a record: changed fields only, or a tombstone. `base_rev` None creates."""

    type: str
    id: str
    base_rev: str | None = None
    fields: dict[str, FieldValue] = {}
    stamps: dict[str, str] = {}
    deleted: bool = False
    stamp: str | None = None


class PushRecords(Struct, kw_only=True):
    """`POST /records`."""

    device_id: str
    changes: list[RecordChange]


class RecordResult(Struct, kw_only=True, omit_defaults=True):
    """applied: `rev`. conflict: `current`, the cloud's version. restamp: `stamp`, the highest allowed. rejected: `reason`."""

    status: Literal["applied", "conflict", "restamp", "rejected"]
    rev: str | None = None
    current: RecordState | None = None
    stamp: str | None = None
    reason: str | None = None


class PushRecordsReply(Struct, kw_only=True):
    """Results in the order of the request."""

    results: list[RecordResult]
    server_time: int


class Change(Struct, kw_only=True, omit_defaults=True):
    """One item of the feed: an event of another device of this user (`device`), or a record, be it the asking device's."""

    device: str
    event: WireEvent | None = None
    record: RecordState | None = None


class ChangesReply(Struct, kw_only=True):
    """`GET /changes?cursor=&limit=&only=records&own=1`: `cursor` continues after the last item; `more`: ask at once.

    A device is shown what others wrote; with `own=1` what it wrote itself as well.
    """

    items: list[Change]
    cursor: str
    more: bool
    server_time: int


class PolicyReply(Struct, kw_only=True):
    """`GET /policy`: the tenant's conflict policy as TOML. Its ETag is `"<version>-<sha256>"`; 404 `no_policy` without one."""

    version: int
    sha256: str
    text: str


class IdRange(Struct, kw_only=True):
    """Event ids from `first` to `last`, both included, as 32 hex characters. Ids begin with their time."""

    first: str
    last: str


class HaveRequest(Struct, kw_only=True, omit_defaults=True):
    """`POST /have`, before a bulk upload: which events of this user are here already?

    Whole ranges are compared by count and digest; where they differ, narrower ranges or single `ids` tell more.
    """

    device_id: str
    ids: list[str] = []
    ranges: list[IdRange] = []


class RangeDigest(Struct, kw_only=True, omit_defaults=True):
    """What a range holds: how many events, and BLAKE2b (16 bytes, hex) over their ids in ascending order, 16 bytes each.

    `through` None: the whole range. Else the server stopped there (its id included): go on behind it.
    """

    count: int
    digest: str
    through: str | None = None


class HaveReply(Struct, kw_only=True):
    """`missing`: those of `ids` that are not here, in the order asked. `ranges`: one digest per range asked.

    Ranges that the server did not come to are not answered: there are fewer digests than ranges then.
    """

    missing: list[str]
    ranges: list[RangeDigest]


class EraseReply(Struct, kw_only=True):
    """`DELETE /devices/{id}/data`: what this call removed. Nothing is left to remove after the first."""

    device_id: str
    events: int
    records: int


class Opened(Struct, kw_only=True):
    """First event (`open`) of `GET /changes/stream`: everything up to `change` is to be pulled now."""

    change: int
    heartbeat_s: float


class Announced(Struct, kw_only=True, omit_defaults=True):
    """Event `change` of the stream: another device of this user wrote something, `change` is its newest number.

    `spread_ms` grows with the number of devices that are told at once: each waits a random part of it.
    """

    change: int
    spread_ms: int = 0


class Ended(Struct, kw_only=True):
    """Last event (`end`) of the stream: `replaced` (a newer stream of this device), `revoked` or `drain`."""

    reason: str

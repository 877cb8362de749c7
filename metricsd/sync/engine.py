"""One bounded round of sync: compare, send, fetch. The daemon runs it on its schedule, `sync --now` on demand.

`tick()` never raises for what the network or the cloud does: it reports it, and keeps when to try again in the store.
Decisions come from `plan`; no write transaction is open while the network is asked; every step can be cut off at any
point and run again without losing or doubling anything.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import Callable
from functools import partial
from hashlib import blake2b
from random import Random
from typing import TypeVar

import msgspec

from metricsd import identity
from metricsd.client import CloudClient, Tally
from metricsd.clock import US_PER_MS, US_PER_S, Clock
from metricsd.config import Paths, Sync
from metricsd.errors import (
    CloudBusy,
    CloudError,
    CloudRefused,
    CloudUnreachable,
    CursorExpired,
    HistoryChanged,
    MetricsdError,
    StoreError,
    StreamForked,
)
from metricsd.health import Outcome, outcome_of
from metricsd.identity import Credentials
from metricsd.ids import EventId
from metricsd.policy import Layers, places_of
from metricsd.protocol import PROTOCOL_VERSION, Capabilities, HelloReply, HelloRequest
from metricsd.store import conflict_log, counters, events, hlc_mark, outbox, place, records, state
from metricsd.store.connection import Store
from metricsd.store.outbox import Stream
from metricsd.sync import plan
from metricsd.sync.outgoing import Outgoing
from metricsd.sync.plan import Action, Decision, LocalStream
from metricsd.sync.plugins import Pool
from metricsd.sync.pull import pull
from metricsd.sync.push import push_counters, push_events, push_records
from metricsd.sync.report import DryRun, Report, failure_of
from metricsd.sync.resolving import Plugins, Policies, Resolver
from metricsd.sync.round import Round, Run
from metricsd.sync.tenant_policy import TenantPolicyFile

T = TypeVar("T")

LAST_SUCCESS = "sync_last_success_us"
LAST_ERROR = "sync_last_error"
"""JSON {"at": microseconds, "code", "message"} of the newest failure; gone after a success."""
NEXT = "sync_next_us"
FAILURES = "sync_failures"
NEWS = "news"
"""Reason of a round that another device's change called for."""
CLOCK_OFFSET = "sync_clock_offset_us"
"""How far the cloud's clock was ahead of ours at the last hello."""

GENTLE_FACTOR = 2
"""Towards a cloud that struggles: so many times the interval, and batches that never grow past so small a share."""
ATTEMPTS_MAX = 4
"""Times that one round starts over after a fork, a gap or a changed history; each heals, so more is a fault."""
CAPABILITIES_TTL_S = 3600.0
ITEMS_MAX = 10_000
BODY_BYTES_MAX = 16 * 1024 * 1024
"""However much a server allows, a batch of ours stays within these: it is built in memory."""
CLOCK_AHEAD_MS_MAX = 4 * 60 * 1000
"""The cloud refuses stamps that are five minutes ahead of it; ours are re-based from a minute below."""
STAMP_CEILING_MS = 5 * 60 * 1000 - 1000
"""How far ahead of the cloud a stamp may be that another device was allowed: ours must stay behind those we saw."""
CLOCK_NOTE_US_MIN = 5 * 60 * US_PER_S
DRY_RUN_EVENTS = 10
FORK_NAME = "fork of {}"
_SEQ_MAX = 2**62
_TIME_US_MAX = 253_402_300_799_999_999
"""The last microsecond of the year 9999."""
_is_id = re.compile(r"[0-9a-fA-F]{0,64}").fullmatch


class Engine:
    """Syncs one home's store with the cloud that it is logged in to."""

    def __init__(
        self,
        paths: Paths,
        store: Store,
        settings: Sync,
        *,
        clock: Clock | None = None,
        run: Run | None = None,
        rng: Random | None = None,
        connect: Callable[[str, str, Sync], CloudClient] = CloudClient,
        policies: Policies | None = None,
        plugins: Plugins | None = None,
        is_gentle: Callable[[], bool] = lambda: False,
        on_outcome: Callable[[Outcome], None] = lambda outcome: None,
    ) -> None:
        """`run` is the executor of the thread that owns the store; `connect(url, token, settings)` makes clients.

        `policies` decide conflicts: those of this home if none are given. `is_gentle` says whether to spare the cloud,
        `on_outcome` is told what each round says about it.
        """
        self._paths = paths
        self._store = store
        self._settings = settings
        self._clock = clock or store.clock
        self._run: Run = run or _Inline()
        self._rng = rng or Random()  # noqa: S311  it spreads load, it keeps no secret
        self._connect = connect
        self._client: CloudClient | None = None
        self._client_of: tuple[str, str] | None = None
        self._capabilities: Capabilities | None = None
        self._capabilities_until = 0.0
        self._busy = asyncio.Lock()
        self._is_gentle = is_gentle
        self._on_outcome = on_outcome
        self._tally = Tally()
        self._plugins = plugins or Pool()
        in_force = policies or Layers(places_of(paths), keep=True)
        self._tenant_policy = TenantPolicyFile(paths)
        self._resolver = Resolver(store, self._run, in_force, self._plugins)

    async def tick(self, *, reason: str = "interval") -> Report:
        """Run one round and return what it did; `reason` other than "interval" forgets earlier failures.

        A round for NEWS only fetches: what waits for the interval goes on waiting.

        Raises StoreError when the local store fails; everything else is in the report.
        """
        async with self._busy:
            began = self._clock.monotonic()
            report = Report()
            self._tally = Tally()
            error: MetricsdError | None = None
            try:
                await self._sync(report, only_fetch=reason == NEWS)
            except StoreError:
                raise
            except MetricsdError as failed:
                error = failed
            report.ok = error is None
            self._judge(error)
            report.error = None if error is None else failure_of(error)
            report.conflicts.open = await self._run(conflict_log.count_open, self._store)
            report.duration_ms = int((self._clock.monotonic() - began) * 1000)
            await self._run(self._remember, report, error, reason != "interval")
            return report

    def _judge(self, error: MetricsdError | None) -> None:
        """Tell what the round says about the cloud; a fault of this machine's settings says nothing."""
        if error is None or isinstance(error, CloudError):
            tally = self._tally
            now = self._clock.monotonic()
            self._on_outcome(outcome_of(error, at_s=now, took_s=tally.slowest_s, answers=tally.answers))

    async def dry_run(self) -> DryRun:
        """Return what a round would send, without asking the cloud."""
        credentials = identity.find_credentials(self._paths)
        key = credentials.tenant_key if credentials else identity.load_identity(self._paths).installation_key
        outgoing = Outgoing(key, self._settings)
        url = credentials.url if credentials else None
        return await self._run(_dry_run, self._store, outgoing, url)

    async def seconds_to_next(self) -> float:
        """Return how long to wait for the next round: zero or less when it is due."""
        planned = await self._run(state.get_int, self._store, NEXT)
        now = self._clock.now_us()
        match plan.due(now, planned, self._interval_s()):
            case plan.Due.NOT_YET:
                return (planned - now) / US_PER_S
            case plan.Due.LATE if planned:
                return plan.wake_jitter_s(self._settings.interval_s, self._rng)
            case _:
                return 0.0

    async def close(self) -> None:
        """Close the connection to the cloud, and end the plug-ins' processes."""
        await asyncio.to_thread(self._plugins.close)
        await self._disconnect()

    async def _disconnect(self) -> None:
        if self._client is not None:
            await self._client.close()
            self._client = self._client_of = None

    async def _sync(self, report: Report, *, only_fetch: bool) -> None:
        """Run rounds until one ends without a fork, a gap or a changed history to heal."""
        for attempt in range(ATTEMPTS_MAX):
            try:
                return await self._round(report, only_fetch=only_fetch)
            except StreamForked:
                if attempt + 1 == ATTEMPTS_MAX:
                    raise
                await self._fork()
            except CursorExpired:
                if attempt + 1 == ATTEMPTS_MAX:
                    raise
                await self._run(outbox.verify, self._store)
            except HistoryChanged:
                if attempt + 1 == ATTEMPTS_MAX:
                    raise
                await self._run(outbox.relist, self._store)
            except CloudRefused as error:
                # 409 is a gap in the stream: the next hello says where the cloud stands.
                if error.status != 409 or attempt + 1 == ATTEMPTS_MAX:
                    raise
        return None

    async def _round(self, report: Report, *, only_fetch: bool) -> None:
        credentials = identity.get_credentials(self._paths)
        identity.confirm_login(self._paths, credentials)
        client = await self._client_for(credentials)
        stream = await self._run(outbox.enrol, self._store, credentials.device_id, _cloud_of(credentials))
        sync = Round(
            store=self._store,
            run=self._run,
            client=client,
            settings=self._settings,
            capabilities=self._spared(await self._ask_capabilities(client)),
            outgoing=Outgoing(credentials.tenant_key, self._settings),
            stream=stream,
            report=report,
        )
        await self._compare(sync)
        pulls = self._settings.pull != "none" and self._settings.direction != "local_first"
        if only_fetch:
            if pulls:
                await pull(sync)
                # What was decided here is news to the others, and nobody else will tell them.
                if await self._resolve(report):
                    await push_records(sync, partial(self._resolve, report))
            return
        if pulls and self._settings.direction == "remote_first":
            await pull(sync)
            await self._resolve(report)
        await push_events(sync)
        if pulls and self._settings.direction != "remote_first":
            await pull(sync)
        # Before anything is pushed: what an earlier round left open is decided by the policy of now.
        await self._resolve(report)
        await push_counters(sync)
        await push_records(sync, partial(self._resolve, report))

    async def _resolve(self, report: Report) -> int:
        """Decide open conflicts and count them in the report; return how many."""
        done = await self._resolver.resolve_open()
        report.conflicts.add(done)
        return done.total()

    async def _compare(self, sync: Round) -> None:
        """Say hello and do what the answer calls for; raise StreamForked for another writer."""
        stream = sync.stream
        known = await self._run(_known_place, self._store)
        reply = await sync.client.hello(
            HelloRequest(
                device_id=stream.device_id,
                epoch=stream.epoch,
                acked_seq=stream.acked_seq,
                acked_id=stream.acked_id,
                cursor=known,
            )
        )
        _check_hello(sync.client.url, reply)
        sync.stream = await self._run(_act, self._store, stream, reply)
        self._note_clock(sync.report, reply.server_time)
        await self._run(_witness_time, self._store, reply.server_time)
        note = await self._tenant_policy.follow(sync.client, reply.policy_hash)
        if note is not None:
            sync.report.notes.append(note)

    async def _fork(self) -> None:
        """Enrol again as a new device whose parent is the id that somebody else uses too."""
        credentials = identity.get_credentials(self._paths)
        client = await self._client_for(credentials)
        old = credentials.device_id
        reply = await client.enrol(FORK_NAME.format(old[:8]), parent=old)
        fresh = credentials_of(credentials.url, reply)
        identity.save_login(self._paths, fresh, parent=old)
        await self._run(outbox.fork, self._store, fresh.device_id)

    async def _client_for(self, credentials: Credentials) -> CloudClient:
        """Return the client of this login, keeping its connection from round to round."""
        wanted = (credentials.url, credentials.token)
        if self._client is None or self._client_of != wanted:
            await self._disconnect()
            self._client = self._connect(credentials.url, credentials.token, self._settings)
            self._client_of = wanted
            self._capabilities = None
        self._client.tally = self._tally
        return self._client

    def _spared(self, limits: Capabilities) -> Capabilities:
        """Return the limits, or smaller ones for a cloud that struggles."""
        if not self._is_gentle():
            return limits
        items = max(1, self._settings.batch_size // GENTLE_FACTOR)
        return msgspec.structs.replace(
            limits, items_max=min(limits.items_max, items), page_max=max(1, limits.page_max // GENTLE_FACTOR)
        )

    def _interval_s(self) -> float:
        return self._settings.interval_s * (GENTLE_FACTOR if self._is_gentle() else 1)

    async def _ask_capabilities(self, client: CloudClient) -> Capabilities:
        now = self._clock.monotonic()
        if self._capabilities is None or now >= self._capabilities_until:
            found = await client.capabilities()
            if found.protocol != PROTOCOL_VERSION:
                raise CloudRefused(
                    f"{client.url} speaks protocol {found.protocol}, this metricsd speaks {PROTOCOL_VERSION}: "
                    "upgrade the older of the two"
                )
            if min(found.items_max, found.body_bytes_max, found.inflated_bytes_max, found.page_max) < 1:
                raise CloudUnreachable(f"{client.url} allows nothing to be sent: check the address")
            self._capabilities = _bounded(found)
            self._capabilities_until = now + CAPABILITIES_TTL_S
        return self._capabilities

    def _note_clock(self, report: Report, server_us: int) -> None:
        ahead_us = self._clock.now_us() - server_us
        if abs(ahead_us) >= CLOCK_NOTE_US_MIN and not report.notes:
            side = "ahead of" if ahead_us > 0 else "behind"
            report.notes.append(
                f"this machine's clock is {_span(abs(ahead_us))} {side} the cloud's: set it right; "
                "nothing is lost, but events are filed under the wrong day"
            )

    def _remember(self, report: Report, error: MetricsdError | None, forgive: bool) -> None:
        """Keep the outcome and when to go again, for `status` and the scheduler."""
        now = self._clock.now_us()
        store, interval_s = self._store, self._interval_s()
        stream = outbox.find(store)
        regular = plan.next_regular_us(now, interval_s, plan.offset_s(stream.device_id if stream else "", interval_s))
        failures = 0 if forgive else state.get_int(store, FAILURES)
        with store.transaction():
            if error is None:
                state.put(store, LAST_SUCCESS, now)
                state.delete(store, LAST_ERROR)
                state.put(store, FAILURES, 0)
                state.put(store, NEXT, now if report.more else regular)
                return
            said = {"at": now, **msgspec.to_builtins(failure_of(error))}
            state.put(store, LAST_ERROR, msgspec.json.encode(said).decode())
            state.put(store, FAILURES, failures + 1)
            if not error.retryable:
                # Only a person can help (a login, an upgrade); asking more often than usual would not.
                state.put(store, NEXT, regular)
                return
            wanted_s = error.retry_after_s if isinstance(error, CloudBusy) else None
            pause_s = plan.backoff_s(failures + 1, self._settings.backoff_max_s, wanted_s, self._rng)
            state.put(store, NEXT, now + int(pause_s * US_PER_S))


class _Inline:
    """Runs the store's functions where they are called; for tests and commands, where nobody else waits."""

    async def __call__(self, fn: Callable[..., T], /, *args: object) -> T:
        return fn(*args)


def credentials_of(url: str, reply: object) -> Credentials:
    """Return the login that an enrolment brought; raise CloudUnreachable for an answer that cannot be one."""
    document = msgspec.to_builtins(reply)
    try:
        return identity.parse_credentials({**document, "url": url, "token": document["device_token"]})
    except (KeyError, TypeError, ValueError) as error:
        raise CloudUnreachable(f"{url} gave an enrolment that cannot be used ({error})") from error


def _bounded(limits: Capabilities) -> Capabilities:
    return msgspec.structs.replace(
        limits,
        items_max=min(limits.items_max, ITEMS_MAX),
        body_bytes_max=min(limits.body_bytes_max, BODY_BYTES_MAX),
    )


def _check_hello(url: str, reply: HelloReply) -> None:
    """Raise CloudUnreachable for a position or a time that no cloud can mean."""
    if not (0 <= reply.last_seq <= _SEQ_MAX and 0 < reply.server_time <= _TIME_US_MAX and _is_id(reply.last_id)):
        raise CloudUnreachable(f"{url} answered with a place in the stream that cannot be: check the address")


def _cloud_of(credentials: Credentials) -> str:
    """Return what names the tenant: a hash of its key, because addresses and names may change."""
    return blake2b(credentials.tenant_key, digest_size=16).hexdigest()


def _known_place(store: Store) -> str:
    return place.newest(store, state.get_text(store, outbox.CURSOR))


def _act(store: Store, stream: Stream, reply: HelloReply) -> Stream:
    """Carry out what a hello's reply calls for, and return the stream after it."""
    decision = plan.decide(_local_view(store, stream, reply), reply)
    return _carry_out(store, stream, decision)


def _local_view(store: Store, stream: Stream, reply: HelloReply) -> LocalStream:
    here = outbox.id_at(store, stream, reply.last_seq)
    return LocalStream(
        epoch=stream.epoch,
        acked_seq=stream.acked_seq,
        acked_id=stream.acked_id,
        last_seq=outbox.last_seq(store, stream),
        id_at_last=here.hex() if here is not None else None,
        holds_last=_holds(store, reply.last_id),
    )


def _holds(store: Store, event_id: str) -> bool:
    try:
        wanted = EventId(bytes.fromhex(event_id))
    except ValueError:
        return False
    return bool(events.locate(store, [wanted]))


def _carry_out(store: Store, stream: Stream, decision: Decision) -> Stream:
    match decision.action:
        case Action.FORK:
            raise StreamForked
        case Action.REOFFER:
            return outbox.rewind(store, stream, decision.seq, decision.id)
        case Action.RESEND:
            # The push that follows starts at our own mark; the cloud answers what it has as `duplicate`.
            stream = outbox.resend(store, stream)
        case Action.IN_SYNC:
            pass
    if decision.reset_cursor:
        outbox.relist(store)
    return stream


def _witness_time(store: Store, server_us: int) -> None:
    """Keep the clocks' distance, and re-base unpushed stamps that a clock ahead of the cloud's made."""
    server_ms = server_us // US_PER_MS
    with store.transaction():
        state.put(store, CLOCK_OFFSET, server_us - store.clock.now_us())
        if hlc_mark.read(store).ms > server_ms + CLOCK_AHEAD_MS_MAX:
            records.restamp(store, server_ms, server_ms + STAMP_CEILING_MS)


def _dry_run(store: Store, outgoing: Outgoing, url: str | None) -> DryRun:
    stream = outbox.find(store)
    base, after = (stream.base, stream.base + stream.settled_seq) if stream else (0, 0)
    rows = events.read_own(store, after, DRY_RUN_EVENTS)
    return DryRun(
        ok=url is not None,
        url=url,
        pending_events=outbox.pending_events(store),
        pending_records=records.pending_count(store) + counters.pending_count(store),
        events=[outgoing.event(event_id, pos - base, event) for pos, event_id, event in rows],
    )


def _span(us: int) -> str:
    for unit, size_s in (("year", 365 * 86400), ("day", 86400), ("hour", 3600)):
        if us >= size_s * US_PER_S:
            count = us // (size_s * US_PER_S)
            return f"{count} {unit}{'s' if count > 1 else ''}"
    return f"{us // (60 * US_PER_S)} minutes"

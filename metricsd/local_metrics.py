"""The daemon's own figures in Prometheus' text format: how it stands, never what the user does.

Every label comes from a closed set (a mode, where something was refused), so the number of series is fixed, and none
names a project, a tool, a person or a device. `render` is pure; `read_store` runs in the store's thread.
"""

from __future__ import annotations

import contextlib
import os
import resource
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from metricsd import __version__
from metricsd.failover import Mode
from metricsd.spool import Pending
from metricsd.store import outbox, state
from metricsd.store.batches import RETRACTED_EVENTS
from metricsd.store.connection import Store

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
_PREFIX = "metricsd_"
_WAITING_RECORDS = """
SELECT (SELECT count(*) FROM record WHERE dirty > 0 AND conflict IS NULL),
       (SELECT count(*) FROM conflict_log WHERE state = 'open'),
       (SELECT count(*) FROM quarantine WHERE state = 'open' AND (reason GLOB 'cloud_*' OR file GLOB 'http*:*')),
       (SELECT count(*) FROM quarantine WHERE state = 'open')
"""


class StoreFigures(NamedTuple):
    """What the store knows: counts, and when the last sync succeeded (microseconds UTC, 0 for never)."""

    events: int
    pending_events: int
    pending_records: int
    conflicts_open: int
    refused_by_cloud: int
    refused_here: int
    last_sync_us: int


class Figures(NamedTuple):
    """Everything of one moment. `store` is None while the store cannot be read."""

    mode: Mode
    forced: bool
    ready: bool
    live_stream: bool
    logged_in: bool
    spool: Pending
    spool_oldest_s: float
    store: StoreFigures | None
    store_bytes: int
    uptime_s: float


def read_store(store: Store) -> StoreFigures:
    """Return the store's counts; every one is stored or of few rows, none is a scan of the events."""
    records, conflicts, by_cloud, refused = store.db.execute(_WAITING_RECORDS).fetchone()
    return StoreFigures(
        events=state.get_int(store, "live_events") - state.get_int(store, RETRACTED_EVENTS),
        pending_events=outbox.pending_events(store),
        pending_records=records,
        conflicts_open=conflicts,
        refused_by_cloud=by_cloud,
        refused_here=refused - by_cloud,
        last_sync_us=state.get_int(store, "sync_last_success_us"),
    )


def render(found: Figures) -> str:
    """Return the figures as text. Pure, but for this process's own use of the machine."""
    lines = [
        *_gauge("info", "Which version runs.", [(f'version="{__version__}"', 1)]),
        *_gauge("ready", "Whether everything is up.", [("", found.ready)]),
        *_gauge("uptime_seconds", "Since the start.", [("", round(found.uptime_s, 1))]),
        *_gauge("mode", "The failover mode in force.", [(f'mode="{mode}"', mode is found.mode) for mode in Mode]),
        *_gauge("mode_forced", "Whether a person chose the mode.", [("", found.forced)]),
        *_gauge("logged_in", "Whether there is a cloud.", [("", found.logged_in)]),
        *_gauge("realtime", "Whether the stream of news lives.", [("", found.live_stream)]),
        *_gauge("spool_files", "Captures that wait.", [("", found.spool.files)]),
        *_gauge("spool_bytes", "Bytes of the captures that wait.", [("", found.spool.bytes)]),
        *_gauge("spool_oldest_seconds", "Age of the oldest one.", [("", round(found.spool_oldest_s, 1))]),
        *_gauge("store_up", "Whether the store can be used.", [("", found.store is not None)]),
        *_gauge("store_bytes", "Size of the store and its log.", [("", found.store_bytes)]),
    ]
    if found.store is not None:
        lines += _of_store(found.store)
    return "\n".join([*lines, *_of_process()]) + "\n"


def _of_store(found: StoreFigures) -> list[str]:
    refused = [('by="here"', found.refused_here), ('by="cloud"', found.refused_by_cloud)]
    waiting = [('kind="events"', found.pending_events), ('kind="records"', found.pending_records)]
    return [
        *_gauge("store_events", "Events that count.", [("", found.events)]),
        *_gauge("sync_pending", "What waits to be sent.", waiting),
        *_gauge("sync_last_success_seconds", "When, since 1970; 0: never.", [("", found.last_sync_us / 1_000_000)]),
        *_gauge("conflicts_open", "Records that wait for a decision.", [("", found.conflicts_open)]),
        *_gauge("quarantined", "What could not be accepted.", refused),
    ]


def _of_process() -> list[str]:
    used = resource.getrusage(resource.RUSAGE_SELF)
    lines = [
        "# HELP metricsd_cpu_seconds_total Processor time.",
        "# TYPE metricsd_cpu_seconds_total counter",
        f"metricsd_cpu_seconds_total {used.ru_utime + used.ru_stime:.3f}",
    ]
    lines += _gauge("resident_bytes", "Memory in use.", [("", _resident_bytes(used.ru_maxrss))])
    with contextlib.suppress(OSError):
        lines += _gauge("open_files", "Open descriptors.", [("", len(list(Path("/dev/fd").iterdir())))])
    return lines


def _resident_bytes(peak: int) -> int:
    """Return the memory in use; where only its peak is known, that."""
    try:
        return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    except (OSError, ValueError, IndexError):
        return peak if sys.platform == "darwin" else peak * 1024


def _gauge(name: str, meaning: str, values: Sequence[tuple[str, float]]) -> list[str]:
    """Return one metric: its two comment lines and a line for each set of labels."""
    lines = [f"# HELP {_PREFIX}{name} {meaning}", f"# TYPE {_PREFIX}{name} gauge"]
    for labels, value in values:
        shown = int(value) if value == int(value) else value
        lines.append(f"{_PREFIX}{name}{{{labels}}} {shown}" if labels else f"{_PREFIX}{name} {shown}")
    return lines

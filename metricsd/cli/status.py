"""`status`: what runs, what waits, and why sync is off if it is. Works with no daemon, no store and no login.

Everything but the daemon's own line is read from the files, so the answer is the same whether the daemon is alive,
busy or gone. This path takes a Python start plus 60 ms at most: it must never import click, msgspec, httpx or
structlog, and every figure it reads is a stored count, not a scan.
"""

from __future__ import annotations

import contextlib
import json
import os
import sqlite3
import sys
import time
from typing import Any

from metricsd import __version__, control, modes
from metricsd.config import Config, Paths, find_paths, load_config
from metricsd.errors import EXIT_DEGRADED, EXIT_LOGIN, EXIT_NO_DAEMON, EXIT_OK, DaemonNotRunning, MetricsdError
from metricsd.failover import Mode, Reason
from metricsd.instance import find_holder
from metricsd.modes import Change, time_text
from metricsd.policy_places import places_of, signature
from metricsd.spool import pending

PROTOCOL_VERSION = 1
"""protocol.PROTOCOL_VERSION, whose module costs an import of msgspec; a test holds the two together."""
ASK_TIMEOUT_S = 0.25
READ_TIMEOUT_S = 0.1
METRICS_TIMEOUT_S = 10.0
_CREDENTIALS_BYTES_MAX = 64 * 1024

NOT_LOGGED_IN = "not logged in"
COUNT_MAX = 10_000
"""outbox.COUNT_MAX"""
_COUNT = "SELECT count(*) FROM (SELECT 1 FROM event WHERE pos > ? LIMIT ?)"
_QUARANTINED = """
SELECT count(*) FILTER (WHERE reason GLOB 'cloud_*' OR file GLOB 'http*:*'), count(*) FROM quarantine WHERE state = 'open'
"""
_COUNTS = """
SELECT (SELECT count(*) FROM session) - (SELECT count(*) FROM record WHERE type = 'session' AND deleted = 1),
       (SELECT count(*) FROM record WHERE type = 'tool_metric' AND deleted = 0)
"""
RETRACTIONS_SCHEMA = 8
"""The step that made the table which the next query reads; the store is read as it is, without upgrading it."""
_WHOLLY_RETRACTED = """
SELECT count(*) FROM (SELECT session, sum(n) AS n FROM retracted_total GROUP BY session) AS r
WHERE r.n >= (SELECT coalesce(sum(c.events), 0) FROM session_counters AS c WHERE c.session = r.session)
AND NOT EXISTS (SELECT 1 FROM session AS s JOIN record AS d ON d.type = 'session' AND d.id = s.app || '/' || s.session_id
    WHERE s.id = r.session AND d.deleted = 1)
"""
"""Sessions that retracted imports alone told of; the deleted ones among them are left out already."""
_BY_REASON = """
SELECT reason, count(*) FROM quarantine WHERE state = 'open' AND NOT (reason GLOB 'cloud_*' OR file GLOB 'http*:*')
GROUP BY reason ORDER BY reason
"""
_PENDING_RECORDS = (
    "SELECT count(*) FROM record WHERE dirty > 0 AND conflict IS NULL",
    "SELECT count(*) FROM session_counters WHERE dirty > 0 AND device = (SELECT value FROM state WHERE key = 'own_device')",
)

Section = dict[str, Any]


def run_status(*, as_json: bool) -> int:
    """Print the status and return the exit code."""
    paths = find_paths()
    found = gather(paths, load_config(paths))
    if as_json:
        print(json.dumps(found, indent=1, ensure_ascii=False))
    else:
        from metricsd.cli.status_text import render

        print(render(found, colour=sys.stdout.isatty() and "NO_COLOR" not in os.environ, encoding=sys.stdout.encoding))
    return exit_code(found)


def print_metrics() -> int:
    """Print the daemon's own figures, as a scraper would get them. Raises DaemonNotRunning, DaemonSilent."""
    print(control.call(find_paths().state_dir, "metrics", timeout_s=METRICS_TIMEOUT_S)["text"], end="")
    return EXIT_OK


def exit_code(found: Section) -> int:
    """Return what the status means to a script: the most urgent of daemon, login, health. Pure."""
    if not found["daemon"]["running"]:
        return EXIT_NO_DAEMON
    if found["mode"]["reason"] == "auth":
        return EXIT_LOGIN
    sync_fails = found["mode"]["reason"] != NOT_LOGGED_IN and found["mode"]["current"] != "hybrid"
    if not found["store"]["healthy"] or sync_fails:
        return EXIT_DEGRADED
    return EXIT_OK


def gather(paths: Paths, config: Config) -> Section:
    """Return the whole status; the shape is DESIGN section 11, and fields are only added."""
    live, daemon = _daemon(paths)
    state, store = _store(paths)
    login = find_login(paths)
    quarantined, by_reason = store.pop("quarantined"), store.pop("by_reason")
    store["repair"] = _repair(paths)
    if live.get("store_trouble"):
        store |= {"healthy": False, "reason": str(live["store_trouble"])}
    return {
        "version": __version__,
        "protocol": PROTOCOL_VERSION,
        "daemon": daemon,
        "mode": _mode(paths, login, live),
        "spool": _spool(paths, quarantined, by_reason, live),
        "store": store,
        "sync": _sync(config, login, state, live),
        "policy": _policy(paths),
    }


def _mode(paths: Paths, login: Section | None, live: Section) -> Section:
    """Return the mode as the living daemon has it (its file may lie on a full disk), else as its file does."""
    told = live.get("mode")
    return told if isinstance(told, dict) and "current" in told else mode_section(paths, login)


def mode_section(paths: Paths, login: Section | None) -> Section:
    """Return the mode in force and why: as the file has it, corrected by a login that changed without a daemon."""
    state = modes.find_state(paths.mode)
    forced = None if state is None else state.forced_at(time.time_ns() // 1000)
    if state is not None and (forced is not None or _still_holds(paths, state.now, login)):
        return modes.section(state.now, forced)
    if login is None:
        return modes.section(Change(0, Mode.LOCAL_ONLY, Reason.NO_LOGIN), None)
    if "damaged" in login:
        return modes.section(Change(0, Mode.LOCAL_ONLY, Reason.AUTH), None)
    return modes.section(Change(0, Mode.HYBRID, Reason.NOT_YET), None)


def _still_holds(paths: Paths, change: Change, login: Section | None) -> bool:
    """Return whether the last change is still true; a login or a logout since it may not have met a daemon."""
    if change.reason is Reason.FORCED or (login is None) != (change.reason is Reason.NO_LOGIN):
        return False
    if login is not None and "damaged" in login:
        return change.reason is Reason.AUTH
    with contextlib.suppress(OSError):
        return change.reason is not Reason.AUTH or paths.credentials.stat().st_mtime_ns // 1000 <= change.at
    return True


def _sync(config: Config, login: Section | None, state: Section, live: Section) -> Section:
    error = _json_state(state, "sync_last_error")
    return {
        "url": login["url"] if login else None,
        "direction": config.sync.direction,
        "interval_s": config.sync.interval_s,
        # Only while the stream lives and beats; the reason is null without a daemon to know it.
        "realtime": live.get("realtime") is True,
        "realtime_reason": live.get("realtime_reason"),
        "last_success": time_text(state.get("sync_last_success_us")),
        "last_error": error.get("message"),
        "next": time_text(live.get("next_sync_us")) if login else None,
        "pending_events": state.get("pending_events", 0),
        "pending_records": state.get("pending_records", 0),
        "quarantined": state.get("sync_quarantined", 0),
        "conflicts_open": state.get("conflicts_open", 0),
        "cursor": state.get("sync_cursor"),
    }


def _json_state(state: Section, key: str) -> Section:
    try:
        found = json.loads(state.get(key, "{}"))
    except (ValueError, TypeError):
        return {}
    return found if isinstance(found, dict) else {}


def _daemon(paths: Paths) -> tuple[Section, Section]:
    """Return what the live daemon says of itself, and the section about it."""
    holder = find_holder(paths.lock)
    if holder is None or holder.role != "daemon":
        return {}, {"running": False, "pid": None, "uptime_s": None, "version": None, "state": "stopped"}
    live: Section = {}
    state = "silent"
    try:
        live = control.call(paths.state_dir, "status", timeout_s=ASK_TIMEOUT_S)
        state = "running" if live.get("ready") is True else "starting"
    except DaemonNotRunning:
        state = "starting"
    except MetricsdError:
        # Silent or of another version: it holds the lock, and that is all that can be said.
        live = {}
    uptime_s = round(max(time.time() - holder.started, 0.0), 1) if holder.started else None
    return live, {
        "running": state == "running",
        "pid": holder.pid or None,
        "uptime_s": uptime_s,
        "version": holder.version or None,
        "state": state,
    }


def _spool(paths: Paths, quarantined: int, by_reason: Section, live: Section) -> Section:
    section: Section = {
        "dir": str(paths.spool),
        "pending_files": 0,
        "pending_bytes": 0,
        "oldest_pending_s": None,
        "taking_per_s": None,
        "eta_s": None,
        "quarantined": quarantined,
        "quarantined_by_reason": by_reason,
    }
    try:
        waiting = pending(paths.spool)
    except OSError as error:
        return {**section, "error": f"{error.filename}: {error.strerror}"}
    section["pending_files"] = waiting.files
    section["pending_bytes"] = waiting.bytes
    if waiting.oldest_mtime_ns is not None:
        section["oldest_pending_s"] = round(max(time.time() - waiting.oldest_mtime_ns / 1e9, 0.0), 1)
    per_s = live.get("taking_per_s")
    if waiting.files and isinstance(per_s, int | float) and per_s > 0:
        section["taking_per_s"] = per_s
        section["eta_s"] = round(waiting.files / per_s, 1)
    return section


def _store(paths: Paths) -> tuple[Section, Section]:
    """Return the store's state values, and the section about it. Never creates a store."""
    section: Section = {
        "path": str(paths.store),
        "events": 0,
        "sessions": 0,
        "tool_metrics": 0,
        "bytes": _size_of(paths),
        "schema": None,
        "healthy": True,
        "reason": None,
        "quarantined": 0,
        "by_reason": {},
    }
    if not paths.store.exists():
        return {}, section
    try:
        with contextlib.closing(
            sqlite3.connect(f"{paths.store.as_uri()}?mode=ro", uri=True, timeout=READ_TIMEOUT_S)
        ) as db:
            db.execute("BEGIN")
            section["schema"] = db.execute("PRAGMA user_version").fetchone()[0]
            state: Section = dict(db.execute("SELECT key, value FROM state"))
            section["events"] = int(state.get("live_events", 0)) - int(state.get("retracted_events", 0))
            section["sessions"], section["tool_metrics"] = db.execute(_COUNTS).fetchone()
            if section["schema"] >= RETRACTIONS_SCHEMA:
                section["sessions"] -= db.execute(_WHOLLY_RETRACTED).fetchone()[0]
            on_wire, all_open = db.execute(_QUARANTINED).fetchone()
            section["quarantined"] = all_open - on_wire
            state["sync_quarantined"] = on_wire
            section["by_reason"] = dict(db.execute(_BY_REASON))
            state["pending_events"] = _pending_events(db, state)
            state["pending_records"] = sum(db.execute(sql).fetchone()[0] for sql in _PENDING_RECORDS)
            state["conflicts_open"] = db.execute("SELECT count(*) FROM conflict_log WHERE state = 'open'").fetchone()[0]
    except (sqlite3.Error, ValueError, TypeError) as error:
        section["healthy"] = False
        section["reason"] = f"{paths.store} cannot be read ({error})"
        return {}, section
    return state, section


def _repair(paths: Paths) -> Section | None:
    """Return what the newest repair of the store brought back; None when there never was one."""
    try:
        with paths.repair.open("rb") as stream:
            found = json.loads(stream.read(_CREDENTIALS_BYTES_MAX))
        missing = found["missing_max"]
        return {
            "at": time_text(found["at_us"]),
            "backup": str(found["backup"]) or None,
            "from_backup": int(found["from_backup"]),
            "saved": int(found["saved"]),
            "missing_max": None if missing is None else int(missing),
            "since": time_text(found["since_us"]),
            "kept": str(found["kept"]) or None,
        }
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _pending_events(db: sqlite3.Connection, state: Section) -> int:
    """Return how many own events wait to be sent, by the rule of store/outbox.py (a test holds the two together)."""
    after = int(state.get("stream_base", 0)) + int(state.get("stream_settled", 0))
    newest = int(state.get("last_pos", 0))
    if newest <= after:
        return 0
    counted = int(db.execute(_COUNT, (after, COUNT_MAX)).fetchone()[0])
    return counted if counted < COUNT_MAX else newest - after


def _size_of(paths: Paths) -> int:
    size = 0
    for file in (paths.store, paths.store.with_name(paths.store.name + "-wal")):
        with contextlib.suppress(OSError):
            size += file.stat().st_size
    return size


def _policy(paths: Paths) -> Section:
    """Return which conflict policy is in force: what the daemon noted, if no file changed since."""
    places = places_of(paths)
    files = signature(places)
    with contextlib.suppress(OSError, ValueError, TypeError, KeyError):
        noted = json.loads(places.report.read_bytes())
        if noted["files"] == files:
            return {key: noted[key] for key in ("name", "version", "sha256", "source", "error")}
    # Parsing costs a few milliseconds, once: the daemon notes what it finds.
    from metricsd.policy import load

    return load(places).report()


def find_login(paths: Paths) -> Section | None:
    """Return the login's address and names, never its secrets; None without one."""
    try:
        with paths.credentials.open("rb") as stream:
            found = json.loads(stream.read(_CREDENTIALS_BYTES_MAX))
        return {key: str(found[key]) for key in ("url", "tenant", "user", "device_id")}
    except FileNotFoundError:
        return None
    except (OSError, ValueError, KeyError, TypeError):
        return {"url": None, "damaged": True}

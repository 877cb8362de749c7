"""`status` for people: one screen, a symbol a line, and the next command to type where something is off.

Pure: a status goes in, text comes out. Symbols fall back to ASCII where the terminal cannot show them.
"""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from enum import StrEnum
from typing import Any, NamedTuple

Section = dict[str, Any]
_NAME_WIDTH = 9
_REPAIR_IS_NEWS = timedelta(days=7)
_REALTIME_CALM = ("switched off (sync.realtime)", "not needed: nothing is pulled", "not logged in", "connecting")
"""Reasons of sync/realtime.py that nobody needs to act on (a test holds the two together)."""


_HELD_BACK = {"hybrid": "kept on", "degraded": "slowed down", "remote_only": "captures go straight to the cloud"}


class Mark(StrEnum):
    """How a line stands."""

    GOOD = "good"
    LOOK = "look"
    BAD = "bad"
    OFF = "off"


_SYMBOLS = {Mark.GOOD: "●", Mark.LOOK: "▲", Mark.BAD: "✗", Mark.OFF: "○"}
_ASCII = {Mark.GOOD: "+", Mark.LOOK: "!", Mark.BAD: "x", Mark.OFF: "-"}
_COLOURS = {Mark.GOOD: "32", Mark.LOOK: "33", Mark.BAD: "31", Mark.OFF: "2"}


class Line(NamedTuple):
    """One line: how it stands, of what, in words, and what to type next if anything."""

    mark: Mark
    name: str
    text: str
    next: str = ""


def render(found: Section, *, colour: bool, encoding: str, now: datetime | None = None) -> str:
    """Return the screen for a status."""
    at = now or datetime.now(UTC)
    lines = [
        _daemon(found["daemon"], found["version"]),
        _spool(found),
        _store(found["store"]),
        *_repair(found["store"], at),
        _sync(found, at),
        *_realtime(found),
        *_attention(found),
    ]
    symbols = _SYMBOLS if "utf" in (encoding or "").lower() else _ASCII
    rows = []
    for line in lines:
        symbol = symbols[line.mark]
        if colour:
            symbol = f"\x1b[{_COLOURS[line.mark]}m{symbol}\x1b[0m"
        rows.append(f"{symbol} {line.name:{_NAME_WIDTH}} {line.text}")
        if line.next:
            rows.append(f"  {'':{_NAME_WIDTH}} next: {line.next}")
    return "\n".join(rows)


def _daemon(daemon: Section, version: str) -> Line:
    if daemon["running"]:
        text = f"running for {_span(daemon['uptime_s'])} (pid {daemon['pid']})"
        if daemon["version"] in (None, version):
            return Line(Mark.GOOD, "daemon", text)
        # An upgrade does not replace a process that runs.
        text = f"{text}, version {daemon['version']}; this command is {version}"
        return Line(Mark.LOOK, "daemon", text, "metricsd up")
    match daemon["state"]:
        case "starting":
            return Line(Mark.LOOK, "daemon", f"starting (pid {daemon['pid']})", "metricsd status")
        case "silent":
            return Line(
                Mark.BAD,
                "daemon",
                f"does not answer (pid {daemon['pid']})",
                "metricsd logs, then metricsd down and metricsd up",
            )
        case _:
            return Line(Mark.BAD, "daemon", "not running; hooks go on recording into the spool", "metricsd up")


def _spool(found: Section) -> Line:
    spool = found["spool"]
    if "error" in spool:
        return Line(Mark.BAD, "spool", f"cannot be read ({spool['error']})", "repair the folder's permissions")
    files = spool["pending_files"]
    if not files:
        return Line(Mark.GOOD, "spool", f"nothing waits ({spool['dir']})")
    text = f"{counted(files, 'capture')} waiting, {_size(spool['pending_bytes'])}, oldest {_span(spool['oldest_pending_s'])}"
    if spool["eta_s"] is not None:
        text += f"; {spool['taking_per_s']:,.0f} a second, {_span(spool['eta_s'])} left"
    return Line(Mark.LOOK, "spool", text, "" if found["daemon"]["running"] else "metricsd up")


def _store(store: Section) -> Line:
    if not store["healthy"]:
        return Line(Mark.BAD, "store", str(store["reason"]), "metricsd logs")
    text = f"{counted(store['events'], 'event')} in {counted(store['sessions'], 'session')}, {_size(store['bytes'])}"
    return Line(Mark.GOOD if store["events"] else Mark.OFF, "store", f"{text} ({store['path']})")


def _repair(store: Section, now: datetime) -> list[Line]:
    """Return a line about a repair of the store for as long as it is news."""
    found = store.get("repair")
    if not found or not found["at"] or now - datetime.fromisoformat(found["at"]) > _REPAIR_IS_NEWS:
        return []
    sources = [
        *([f"{counted(found['from_backup'], 'event')} from {found['backup']}"] if found["backup"] else []),
        *([f"{counted(found['saved'], 'event')} from the damaged file"] if found["saved"] else []),
    ]
    text = f"made {_ago(found['at'], now)}: {' and '.join(sources) or 'nothing could be read'}"
    if found["missing_max"] == 0:
        return [Line(Mark.GOOD, "repair", f"{text}; nothing is missing")]
    many = "an unknown number" if found["missing_max"] is None else f"at most {counted(found['missing_max'], 'event')}"
    text += f"; {many} may be missing that neither the cloud nor the files that are followed still have"
    return [Line(Mark.LOOK, "repair", text, f"look at {found['kept']}" if found["kept"] else "")]


def _sync(found: Section, now: datetime) -> Line:
    sync, mode = found["sync"], found["mode"]
    waiting = f"{counted(sync['pending_events'], 'event')} and {counted(sync['pending_records'], 'record')} to send"
    reason = str(mode["reason"])
    if reason == "not logged in":
        return Line(Mark.OFF, "sync", "off: not logged in; everything stays on this machine", "metricsd login URL")
    if reason == "auth":
        return Line(Mark.BAD, "sync", f"stopped: {sync['last_error']}; {waiting}", "metricsd login URL")
    if mode["current"] != "hybrid" or mode["forced"]:
        return _held_back(mode, sync["last_error"], waiting)
    if sync["last_success"] is None:
        return Line(Mark.LOOK, "sync", f"not yet with {sync['url']}; {waiting}", "metricsd sync --now")
    pace = ", in real time" if sync["realtime"] else ""
    return Line(Mark.GOOD, "sync", f"with {sync['url']}, {_ago(sync['last_success'], now)}{pace}; {waiting}")


def _held_back(mode: Section, last_error: str | None, waiting: str) -> Line:
    """Return the line for a mode in which sync is not as usual: how it goes, why, and what ends that if a person can."""
    reason = str(mode["reason"])
    how = "off" if reason.startswith("store and cloud") else _HELD_BACK.get(mode["current"], "off")
    if mode["forced"]:
        until = f"until {mode['forced_until']}" if mode.get("forced_until") else "until you end it"
        met = f"{last_error}; " if last_error and mode["current"] == "hybrid" else ""
        return Line(Mark.LOOK, "sync", f"{how}: you said so, {until}; {met}{waiting}", "metricsd mode auto")
    if mode["current"] == "local_only":
        return Line(Mark.LOOK, "sync", f"{how}: {last_error or reason}; {waiting}", "metricsd sync --now")
    # A slow cloud or a long backlog ends by itself, and the store's line says what the store needs.
    return Line(Mark.LOOK, "sync", f"{how}: {reason}; {waiting}")


def _realtime(found: Section) -> list[Line]:
    """Say why changes of other devices come by the interval although real time is switched on."""
    reason = found["sync"].get("realtime_reason")
    if found["mode"]["current"] != "hybrid" or found["sync"]["realtime"] or reason in (None, *_REALTIME_CALM):
        return []
    return [Line(Mark.LOOK, "real time", f"off: {reason}")]


def _attention(found: Section) -> list[Line]:
    lines = []
    refused = found["spool"]["quarantined"] + found["sync"]["quarantined"]
    if refused:
        text = f"{counted(refused, 'item')} could not be accepted"
        lines.append(Line(Mark.LOOK, "attention", text, "metricsd quarantine list"))
    if found["policy"]["error"]:
        lines.append(
            Line(Mark.LOOK, "attention", f"a conflict policy: {found['policy']['error']}", "metricsd policy lint")
        )
    if found["sync"]["conflicts_open"]:
        text = f"{counted(found['sync']['conflicts_open'], 'record')} changed on two devices"
        lines.append(Line(Mark.LOOK, "attention", text, "metricsd conflicts list"))
    return lines


def counted(number: int, noun: str) -> str:
    """Return a number of things: "1 event", "2 events"."""
    return f"{number:,} {noun}{'' if number == 1 else 's'}"


def _size(number: int) -> str:
    size = float(number)
    for unit in ("B", "KiB", "MiB", "GiB"):
        if size < 1024:
            return f"{size:.0f} {unit}" if unit == "B" else f"{size:.1f} {unit}"
        size /= 1024
    return f"{size:.1f} TiB"


def _span(seconds: float | None) -> str:
    if seconds is None:
        return "an unknown time"
    for unit, length in (("d", 86400), ("h", 3600), ("min", 60)):
        if seconds >= length:
            return f"{seconds / length:.1f} {unit}"
    return f"{seconds:.0f} s"


def _ago(text: str, now: datetime) -> str:
    return f"{_span(max((now - datetime.fromisoformat(text)).total_seconds(), 0.0))} ago"

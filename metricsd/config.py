"""Settings and folders: defaults, then /etc, then the user's file, then the environment.

Every setting is a field of a section below, with its unit, bounds and meaning in `RULES`; unknown keys and wrong
types are errors that name file, line, key and what was expected. The result is one frozen value. This module
stays free of heavy imports: `metricsd status` reads it within its 60 ms. Secrets never live here: the
login lies in its own 0600 file (see `identity.py`).
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple, get_type_hints

from metricsd.errors import ConfigError

SYSTEM_CONFIG = Path("/etc/metricsd/config.toml")
ENV_PREFIX = "METRICSD_"
ENV_HOME = "METRICSD_HOME"
_LISTEN = re.compile(r"(127\.0\.0\.1|localhost|\[::1\]):[1-9][0-9]{0,4}")


class Tail(NamedTuple):
    """How the daemon watches and reads files."""

    watch_step_ms: int = 20
    rescan_s: float = 5.0
    incomplete_after_s: float = 3600.0
    line_bytes_max: int = 16 * 1024 * 1024
    sources: tuple[str, ...] = ()
    older_hooks: tuple[str, ...] = ("~/.agent-os/metrics", "~/.ai-mesh/metrics")
    watch: str = "auto"
    rotated_wait_s: float = 60.0


class Store(NamedTuple):
    """What the local database keeps."""

    retention_days: int = 0
    backup_keep: int = 2
    backup_hour: int = 3
    quarantine_days: int = 30
    quarantine_bytes_max: int = 256 * 1024 * 1024
    conflict_days: int = 90
    check_s: float = 2.0
    free_bytes_min: int = 100 * 1024 * 1024
    bytes_max: int = 4 * 1024 * 1024 * 1024
    wal_bytes_max: int = 64 * 1024 * 1024


class Sessions(NamedTuple):
    """When a session without an end counts as ended."""

    idle_end_s: float = 1800.0


class Sync(NamedTuple):
    """What goes to the cloud and comes from it, and when."""

    interval_s: float = 300.0
    batch_size: int = 50
    direction: str = "bidirectional"
    pull: str = "all"
    level: str = "metrics"
    share_projects: tuple[str, ...] = ()
    realtime: bool = True
    connect_timeout_s: float = 5.0
    request_timeout_s: float = 30.0
    backoff_max_s: float = 300.0
    ca_file: str = ""


class Failover(NamedTuple):
    """When the daemon changes its mode, and how it finds out that the cloud is gone or back."""

    dwell_s: float = 5.0
    detect_s: float = 20.0
    probe_timeout_s: float = 8.0
    probe_s: float = 5.0
    probe_late_s: float = 25.0
    late_after_s: float = 600.0
    slow_s: float = 5.0
    settle_s: float = 10.0
    backlog_events: int = 5000


class Daemon(NamedTuple):
    """The daemon as a process."""

    stop_timeout_s: float = 5.0
    log_level: str = "info"
    log_bytes_max: int = 5 * 1024 * 1024
    log_keep: int = 3
    metrics_listen: str = ""


class Legacy(NamedTuple):
    """The older API on this machine."""

    listen: str = ""
    body_bytes_max: int = 10 * 1024 * 1024


class Cloud(NamedTuple):
    """Limits of a cloud that this machine serves."""

    body_bytes_max: int = 4 * 1024 * 1024
    inflated_bytes_max: int = 32 * 1024 * 1024
    items_max: int = 5000
    item_bytes_max: int = 256 * 1024
    depth_max: int = 64
    page_max: int = 1000
    commit_delay_ms: float = 5.0
    drain_notice_s: float = 0.0
    drain_timeout_s: float = 5.0
    heartbeat_s: float = 15.0
    stream_poll_s: float = 1.0
    streams_max: int = 1000
    database_connections: int = 16
    database_timeout_s: float = 15.0
    tenant_requests_per_minute: int = 30_000
    tenant_bytes_per_minute: int = 1024 * 1024 * 1024
    tenant_bytes_max: int = 100 * 1024 * 1024 * 1024


class Config(NamedTuple):
    """All settings; `origin` maps "section.key" to the file or variable that set it."""

    tail: Tail
    store: Store
    sessions: Sessions
    sync: Sync
    failover: Failover
    daemon: Daemon
    legacy: Legacy
    cloud: Cloud
    origin: Mapping[str, str]


class Rule(NamedTuple):
    """What a setting may be. `low` and `high` are inclusive bounds, `choices` the allowed words."""

    unit: str
    meaning: str
    low: float | None = None
    high: float | None = None
    choices: tuple[str, ...] = ()


LISTEN_UNIT = "127.0.0.1:PORT, localhost:PORT or [::1]:PORT"

_BOOLS = {"true": True, "1": True, "yes": True, "on": True, "false": False, "0": False, "no": False, "off": False}

_SECTIONS: dict[str, type[Any]] = {
    "tail": Tail,
    "store": Store,
    "sessions": Sessions,
    "sync": Sync,
    "failover": Failover,
    "daemon": Daemon,
    "legacy": Legacy,
    "cloud": Cloud,
}

RULES: dict[str, Rule] = {
    "tail.watch_step_ms": Rule(
        "milliseconds",
        "how long file events are collected before a look; lower shows events sooner and costs more CPU under load",
        1,
        1000,
    ),
    "tail.rescan_s": Rule("seconds", "a full look at the folders, in case the watcher missed something", 0.05, 300),
    "tail.incomplete_after_s": Rule(
        "seconds", "age at which a capture without its final newline goes to quarantine", 0.05, 7 * 86400
    ),
    "tail.line_bytes_max": Rule(
        "bytes", "longest line that is read; longer ones go to quarantine by name and size", 4096, 256 * 1024 * 1024
    ),
    "tail.sources": Rule(
        "absolute paths",
        "folders, or single files, whose `*.jsonl` are read like the spool's shared files and never changed",
    ),
    "tail.older_hooks": Rule(
        "absolute paths",
        "metrics folders of the older hooks, of both generations; read, never changed; `[]` switches it off",
    ),
    "tail.watch": Rule(
        "",
        "how changes are noticed: `auto` takes file events, and polls network and shared file systems",
        choices=("auto", "events", "poll"),
    ),
    "tail.rotated_wait_s": Rule(
        "seconds", "how long a file that lost its name to rotation is read on after its last growth", 0.05, 86400
    ),
    "store.retention_days": Rule(
        "days", "age at which synced events are folded into the daily totals; 0 keeps all", 0, 36500
    ),
    "store.backup_keep": Rule("files", "nightly backups that are kept", 0, 30),
    "store.backup_hour": Rule("hour of the local day", "when the nightly backup runs", 0, 23),
    "store.quarantine_days": Rule("days", "how long quarantined bytes are kept; their summary stays", 1, 3650),
    "store.quarantine_bytes_max": Rule(
        "bytes", "cap of all quarantined bytes; the oldest are summarised first", 0, 1 << 40
    ),
    "store.conflict_days": Rule("days", "how long what lost a conflict can be restored", 1, 36500),
    "store.check_s": Rule("seconds", "how often the daemon looks whether the store is well, and mends it", 0.02, 300),
    "store.free_bytes_min": Rule(
        "bytes", "disk space that the store leaves free, or a twentieth of the disk if that is less", 0, 1 << 44
    ),
    "store.bytes_max": Rule(
        "bytes", "largest size of the store; near it the oldest events that the cloud has are dropped", 1 << 20, 1 << 44
    ),
    "store.wal_bytes_max": Rule("bytes", "size at which the store's write-ahead log is emptied", 1 << 16, 1 << 34),
    "sessions.idle_end_s": Rule(
        "seconds", "silence after which a session without an end is shown as ended (`inferred`)", 0.05, 30 * 86400
    ),
    "sync.interval_s": Rule("seconds", "time between two syncs", 0.1, 86400),
    "sync.batch_size": Rule("items", "items per request; grows to the server's limit when far behind", 1, 5000),
    "sync.direction": Rule("", "which way data goes", choices=("bidirectional", "local_first", "remote_first")),
    "sync.pull": Rule("", "what other devices' data is fetched", choices=("all", "records", "none")),
    "sync.level": Rule(
        "", "what leaves this machine: `metrics` hashes names, `names` sends them", choices=("metrics", "names")
    ),
    "sync.share_projects": Rule("names", "projects whose names are sent at level `metrics`"),
    "sync.realtime": Rule(
        "", "hear of other devices' changes at once, and send ended sessions, failures and edits within a second"
    ),
    "sync.connect_timeout_s": Rule("seconds", "longest wait for a connection to the cloud", 0.05, 300),
    "sync.request_timeout_s": Rule("seconds", "longest wait for an answer of the cloud", 0.05, 600),
    "sync.backoff_max_s": Rule("seconds", "longest pause between attempts while the cloud fails", 0.05, 86400),
    "sync.ca_file": Rule("path", "PEM file of further certificate authorities, beside the system's"),
    "failover.dwell_s": Rule("seconds", "shortest time between two changes of mode", 0.01, 3600),
    "failover.detect_s": Rule("seconds", "longest time without traffic before a dead cloud is noticed", 0.1, 3600),
    "failover.probe_timeout_s": Rule("seconds", "longest wait for the answer to a probe", 0.05, 60),
    "failover.probe_s": Rule("seconds", "longest pause between two probes of a cloud that is away", 0.02, 3600),
    "failover.probe_late_s": Rule("seconds", "the same once it has been away for `late_after_s`", 0.02, 3600),
    "failover.late_after_s": Rule("seconds", "how long an outage is probed often", 0.05, 86400),
    "failover.slow_s": Rule("seconds", "answers that take longer count as slow", 0.02, 600),
    "failover.settle_s": Rule(
        "seconds", "after sleep or a jump of the clock, how long failures say nothing about the cloud", 0.0, 600
    ),
    "failover.backlog_events": Rule(
        "events", "more waiting events than this are sent gently to a cloud that has just come back", 0, 10_000
    ),
    "daemon.stop_timeout_s": Rule("seconds", "how long a stop may take before it is forced", 0.1, 60),
    "daemon.log_level": Rule(
        "", "least severe log line that is written", choices=("debug", "info", "warning", "error")
    ),
    "daemon.log_bytes_max": Rule("bytes", "size at which the log file is rotated", 4096, 1 << 30),
    "daemon.log_keep": Rule("files", "rotated log files that are kept", 0, 100),
    "daemon.metrics_listen": Rule(
        LISTEN_UNIT,
        "where programs on this machine can read the daemon's figures, as `/metrics`; nowhere by default",
    ),
    "legacy.listen": Rule(
        LISTEN_UNIT,
        "where clients and hooks of the older system find its API (they look at 127.0.0.1:3002); nowhere by default",
    ),
    "legacy.body_bytes_max": Rule("bytes", "largest request body of the older API", 1024, 1 << 28),
    "cloud.body_bytes_max": Rule("bytes", "largest request body as received", 1024, 1 << 30),
    "cloud.inflated_bytes_max": Rule("bytes", "largest request body after decompression", 1024, 1 << 31),
    "cloud.items_max": Rule("items", "most items in one request", 1, 100_000),
    "cloud.item_bytes_max": Rule("bytes", "largest single item", 256, 1 << 24),
    "cloud.depth_max": Rule("levels", "deepest nesting of a JSON body", 4, 500),
    "cloud.page_max": Rule("items", "most items in one page of changes", 1, 10_000),
    "cloud.commit_delay_ms": Rule("milliseconds", "how long a write waits for others to share its commit", 0, 10),
    "cloud.drain_notice_s": Rule(
        "seconds", "how long `/readyz` says no at a stop before new connections are refused", 0, 300
    ),
    "cloud.drain_timeout_s": Rule("seconds", "how long open requests may finish at a stop", 0.1, 60),
    "cloud.heartbeat_s": Rule("seconds", "silence after which an open stream of news sends a heartbeat", 0.05, 300),
    "cloud.stream_poll_s": Rule(
        "seconds", "how often a process looks for what other processes stored, and for revoked tokens", 0.05, 60
    ),
    "cloud.streams_max": Rule(
        "streams", "most streams of news in one process; further devices sync by interval", 0, 100_000
    ),
    "cloud.database_connections": Rule(
        "connections", "most connections of one process to one PostgreSQL server", 1, 1000
    ),
    "cloud.database_timeout_s": Rule(
        "seconds", "longest statement on PostgreSQL, and longest wait for a connection", 0.1, 300
    ),
    "cloud.tenant_requests_per_minute": Rule(
        "requests", "most requests of one tenant in a minute, over all processes; 0 means no limit", 0, 100_000_000
    ),
    "cloud.tenant_bytes_per_minute": Rule(
        "bytes",
        "most body bytes of one tenant in a minute, as received, over all processes; 0 means no limit",
        0,
        1 << 50,
    ),
    "cloud.tenant_bytes_max": Rule(
        "bytes", "size of a tenant's database from which its pushes are refused; 0 means no limit", 0, 1 << 60
    ),
}


class Paths(NamedTuple):
    """The folders and files of one home. All are absolute."""

    config_dir: Path
    state_dir: Path
    cache_dir: Path

    @property
    def config_file(self) -> Path:
        return self.config_dir / "config.toml"

    @property
    def spool(self) -> Path:
        return self.state_dir / "spool"

    @property
    def store(self) -> Path:
        return self.state_dir / "store.db"

    @property
    def identity(self) -> Path:
        return self.state_dir / "identity.json"

    @property
    def credentials(self) -> Path:
        return self.config_dir / "credentials.json"

    @property
    def quarantine(self) -> Path:
        return self.state_dir / "quarantine"

    @property
    def backups(self) -> Path:
        return self.state_dir / "backups"

    @property
    def repair(self) -> Path:
        """File about the newest repair of the store."""
        return self.state_dir / "repair.json"

    @property
    def log_file(self) -> Path:
        return self.state_dir / "log" / "metricsd.log"

    @property
    def mode(self) -> Path:
        """File of the failover mode, beside the store and not in it: a store that failed cannot keep it."""
        return self.state_dir / "mode.json"

    @property
    def lock(self) -> Path:
        return self.state_dir / "daemon.lock"

    @property
    def cloud(self) -> Path:
        """Folder of the embedded cloud's databases."""
        return self.state_dir / "cloud"


def find_paths(environ: Mapping[str, str] | None = None) -> Paths:
    """Return the folders of this home: under METRICSD_HOME if set, else the platform's own places."""
    env = os.environ if environ is None else environ
    home = env.get(ENV_HOME)
    if home:
        root = Path(home).expanduser().absolute()
        return Paths(root / "config", root / "state", root / "cache")
    # platformdirs costs 12 ms, which only homes without METRICSD_HOME pay.
    import platformdirs

    return Paths(
        Path(platformdirs.user_config_dir("metricsd", appauthor=False)),
        Path(platformdirs.user_state_dir("metricsd", appauthor=False)),
        Path(platformdirs.user_cache_dir("metricsd", appauthor=False)),
    )


def load_config(paths: Paths, environ: Mapping[str, str] | None = None, *, system_file: Path = SYSTEM_CONFIG) -> Config:
    """Return the settings in force; raise ConfigError that names file, line, key and the expected type."""
    env = os.environ if environ is None else environ
    values: dict[str, dict[str, Any]] = {name: {} for name in _SECTIONS}
    origin: dict[str, str] = {}
    for file in (system_file, paths.config_file):
        _merge_file(file, values, origin)
    _merge_environment(env, values, origin)
    sections = {name: kind(**values[name]) for name, kind in _SECTIONS.items()}
    return Config(**sections, origin=origin)


def settings_of(config: Config) -> dict[str, Any]:
    """Return every setting as {"section.key": value}, in documentation order."""
    return {
        f"{name}.{field}": getattr(getattr(config, name), field)
        for name, kind in _SECTIONS.items()
        for field in kind._fields
    }


def _merge_file(file: Path, values: dict[str, dict[str, Any]], origin: dict[str, str]) -> None:
    try:
        raw = file.read_bytes()
    except (FileNotFoundError, NotADirectoryError):
        return
    except OSError as error:
        raise ConfigError(f"{file}: cannot be read ({error.strerror}): check its permissions") from error
    import tomllib

    try:
        text = raw.decode("utf-8")
        document = tomllib.loads(text)
    except UnicodeDecodeError as error:
        raise ConfigError(f"{file}: not UTF-8 at byte {error.start}: save it as UTF-8") from error
    except tomllib.TOMLDecodeError as error:
        raise ConfigError(f"{file}: not valid TOML: {error}") from error
    for section, body in document.items():
        where = f"{file}:{_line_of(text, section, None)}"
        if section not in _SECTIONS:
            raise ConfigError(f"{where}: unknown section [{section}]; known are {', '.join(_SECTIONS)}")
        if not isinstance(body, dict):
            raise ConfigError(f"{where}: {section} must be a section, written as [{section}]")
        for key, value in body.items():
            name = f"{section}.{key}"
            where = f"{file}:{_line_of(text, section, key)}"
            values[section][key] = _checked(name, value, where)
            origin[name] = where


def _merge_environment(env: Mapping[str, str], values: dict[str, dict[str, Any]], origin: dict[str, str]) -> None:
    for variable, text in env.items():
        if not variable.startswith(ENV_PREFIX):
            continue
        section, _, key = variable[len(ENV_PREFIX) :].lower().partition("_")
        if section not in _SECTIONS or not key:
            continue
        name = f"{section}.{key}"
        values[section][key] = _checked(name, _from_text(name, text, variable), variable)
        origin[name] = variable


def _type_of(name: str, where: str) -> Any:
    section, _, key = name.partition(".")
    if name not in RULES:
        known = ", ".join(_SECTIONS[section]._fields)
        raise ConfigError(f"{where}: unknown key {key!r} in [{section}]; known are {known}")
    return get_type_hints(_SECTIONS[section])[key]


def _from_text(name: str, text: str, where: str) -> Any:
    expected = _type_of(name, where)
    try:
        if expected is int:
            return int(text)
        if expected is float:
            return float(text)
    except ValueError as error:
        raise ConfigError(f"{where}: {name} must be {_describe(name, expected)}, not {text!r}") from error
    if expected is str:
        return text
    if expected is bool:
        return _BOOLS.get(text.strip().lower(), text)
    return [part.strip() for part in text.split(",") if part.strip()]


def _checked(name: str, value: Any, where: str) -> Any:
    expected = _type_of(name, where)
    rule = RULES[name]
    wrong = ConfigError(f"{where}: {name} must be {_describe(name, expected)}, not {value!r}")
    if expected in (int, float):
        if isinstance(value, bool) or not isinstance(value, (int, expected)):
            raise wrong
        if (
            value != value
            or (rule.low is not None and value < rule.low)
            or (rule.high is not None and value > rule.high)
        ):
            raise wrong
        return expected(value)
    if expected is bool:
        if not isinstance(value, bool):
            raise wrong
        return value
    if expected is str:
        if not isinstance(value, str) or (rule.choices and value not in rule.choices):
            raise wrong
        if rule.unit == LISTEN_UNIT and value and not _is_listen(value):
            raise wrong
        return value
    if not isinstance(value, list) or not all(isinstance(item, str) for item in value):
        raise wrong
    if name in ("tail.sources", "tail.older_hooks") and not all(item.startswith(("/", "~")) for item in value):
        raise wrong
    return tuple(value)


def _is_listen(text: str) -> bool:
    return _LISTEN.fullmatch(text) is not None and int(text.rpartition(":")[2]) < 65536


def _describe(name: str, expected: Any) -> str:
    rule = RULES[name]
    if rule.choices:
        return "one of " + ", ".join(rule.choices)
    if rule.unit == LISTEN_UNIT:
        return rule.unit
    kind = {int: "a whole number", float: "a number", str: "text", bool: "true or false"}.get(
        expected, "a list of texts"
    )
    if rule.low is not None:
        kind += f" from {rule.low:g} to {rule.high:g}"
    return f"{kind} ({rule.unit})" if rule.unit else kind


def _line_of(text: str, section: str, key: str | None) -> int:
    """Return the line (from 1) of a key in a section; of the section's head without a key; 1 when unsure."""
    inside = False
    for number, line in enumerate(text.splitlines(), 1):
        bare = line.strip()
        if bare.startswith("["):
            inside = bare.strip("[] \t").split(".")[0].strip("\"' ") == section
            if inside and key is None:
                return number
            continue
        name = bare.split("=")[0].strip().replace('"', "").replace("'", "")
        wanted = (section, f"{section}.") if key is None else (f"{section}.{key}",)
        if name.startswith(wanted) or (inside and name == key):
            return number
    return 1

"""`demo`: everything once, for real, in a throw-away home: two devices, a cloud, an outage, and what came of it.

Every part is the product itself in processes of its own: hooks fire through the shipped `capture` script, two daemons
take them in, one of them serves the cloud, and the other loses its network for a while. Only processes and folders
that the demo made are ended and removed, whatever happens.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import sqlite3
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import click

from metricsd.cli.status import gather
from metricsd.config import ENV_PREFIX, Paths, find_paths, load_config
from metricsd.errors import MetricsdError

if TYPE_CHECKING:
    from metricsd.cli.demo_cable import Cable

STEP_S = 0.005
WITHIN_S = 15.0
"""Longest wait for any one step; a demo that needs more is broken, and says at which step."""
CALLS = 12
TOOLS = ("Read", "Edit", "Bash", "Grep")


class Seen(NamedTuple):
    """A row of the result. Times in milliseconds; `in_cloud` counts what the cloud acknowledged of this device."""

    device: str
    captured: int
    stored: int
    in_cloud: int
    seen_from_other: int
    hook_ms: float
    stored_after_ms: float


@click.command()
@click.option("--keep", is_flag=True, help="Leave the folder of the demo for a look.")
@click.option("--json", "as_json", is_flag=True, help="Print the result as a JSON array; fields are only added.")
def demo(keep: bool, as_json: bool) -> None:
    """Show it all in a throw-away home: two devices, a cloud, an outage. Touches nothing of yours."""
    root = Path(tempfile.mkdtemp(prefix="metricsd-demo-"))
    say = _quiet if as_json else _say
    try:
        rows = _play(root, say)
    finally:
        if keep:
            click.echo(f"kept: {root}", err=True)
        else:
            shutil.rmtree(root, ignore_errors=True)
    if as_json:
        click.echo(json.dumps([row._asdict() for row in rows], indent=1))
    else:
        _print_table(rows)
    counts = {count for row in rows for count in (row.captured, row.stored, row.in_cloud, row.seen_from_other)}
    if len(counts) != 1:
        raise MetricsdError("the demo lost or doubled events, which must never happen: please report this")


def _play(root: Path, say: Callable[[str], None]) -> list[Seen]:
    from metricsd.cli.demo_cable import Cable

    with _device(root / "laptop", "laptop") as laptop, _device(root / "desktop", "desktop") as desktop:
        laptop.start_daemon("--with-cloud")
        cloud = str(laptop.status()["sync"]["url"])
        say("laptop: daemon and cloud are up; the first start made a tenant and enrolled this device")
        with Cable(cloud) as cable:
            token = json.loads(laptop.run("cloud", "token", "create", "--tenant", "local", "--user", "local", "--json"))
            desktop.run("login", cable.url, "--token-stdin", "--name", "desktop", stdin=token["token"])
            desktop.start_daemon()
            say("desktop: logged in with a token, daemon is up")
            laptop.work("s-laptop")
            say(f"laptop: {CALLS} tool calls, each captured by the hook script")
            _outage(cable, desktop, say)
            laptop.sync()
            desktop.sync()
            laptop.sync()
            say("both: metricsd sync --now")
            return [_seen(laptop), _seen(desktop)]


def _outage(cable: Cable, desktop: Device, say: Callable[[str], None]) -> None:
    """Let the desktop work without its network; nothing may fail but the sync."""
    cable.cut()
    desktop.work("s-desktop")
    reason = desktop.try_sync()
    waiting = desktop.status()["sync"]["pending_events"]
    say(f"desktop: offline, {CALLS} tool calls recorded all the same; {waiting} events wait ({reason})")
    cable.mend()
    say("desktop: the network is back")


class Device:
    """One home with its daemon."""

    def __init__(self, root: Path, name: str) -> None:
        self.name = name
        inherited = {key: value for key, value in os.environ.items() if not key.startswith(ENV_PREFIX)}
        source = str(Path(__file__).resolve().parent.parent.parent)
        path = os.pathsep.join([source, *filter(None, [inherited.get("PYTHONPATH")])])
        # Nobody else's login, proxy, settings or history take part.
        self._env = {**inherited, "METRICSD_HOME": str(root), "PYTHONPATH": path, "NO_PROXY": "127.0.0.1"}
        self._env["METRICSD_TAIL_OLDER_HOOKS"] = ""
        self.paths: Paths = find_paths(self._env)
        self._config = load_config(self.paths, self._env)
        self._daemon: subprocess.Popen[bytes] | None = None
        self._hook_ms: list[float] = []
        self._stored_ms: list[float] = []

    def start_daemon(self, *options: str) -> None:
        """Start `metricsd run` and wait until it is ready."""
        self.paths.state_dir.mkdir(parents=True, exist_ok=True, mode=0o700)
        with (self.paths.state_dir / "demo.out").open("wb") as output:
            self._daemon = subprocess.Popen(
                [sys.executable, "-P", "-m", "metricsd", "run", *options],
                env=self._env,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                start_new_session=True,
            )
        self._wait("its daemon is ready", lambda: bool(self.status()["daemon"]["running"]))

    def stop(self) -> None:
        """End the daemon that was started here."""
        if self._daemon is None:
            return
        self._daemon.terminate()
        try:
            self._daemon.wait(self._config.daemon.stop_timeout_s + 1)
        except subprocess.TimeoutExpired:
            self._daemon.kill()
            self._daemon.wait()

    def run(self, *arguments: str, stdin: str = "") -> str:
        """Run one command; raise MetricsdError with its own words when it fails."""
        done = self._command(*arguments, stdin=stdin)
        if done.returncode != 0:
            raise MetricsdError(f"{self.name}: `metricsd {' '.join(arguments)}` failed: {done.stderr.strip()}")
        return done.stdout

    def sync(self) -> None:
        """Sync now."""
        self.run("sync", "--now")

    def try_sync(self) -> str:
        """Sync now, expecting that the cloud cannot be reached; return how the command put it."""
        done = self._command("sync", "--now")
        if done.returncode == 0:
            raise MetricsdError(f"{self.name}: synced although its network is cut")
        return "sync says: cannot be reached" if "cannot be reached" in done.stderr else done.stderr.strip()

    def work(self, session: str) -> None:
        """Fire the hooks of one session with CALLS tool calls, and wait until each is stored."""
        self._fire(session, "SessionStart", source="startup")
        for number in range(CALLS):
            call = f"toolu_{session}_{number:04d}"
            tool = TOOLS[number % len(TOOLS)]
            self._fire(session, "PostToolUse", tool_name=tool, tool_use_id=call, tool_input={}, tool_response={})
        self._fire(session, "SessionEnd", reason="clear")

    def status(self) -> dict[str, Any]:
        """Return what `metricsd status --json` prints in this home."""
        return gather(self.paths, self._config)

    def count(self) -> tuple[int, int]:
        """Return how many events of this device, and of others, lie in its store."""
        with contextlib.closing(sqlite3.connect(f"{self.paths.store.as_uri()}?mode=ro", uri=True)) as db:
            own, foreign = db.execute(
                "SELECT count(*) FILTER (WHERE pos > 0), count(*) FILTER (WHERE pos < 0) FROM event"
            ).fetchone()
        return int(own), int(foreign)

    def figures(self) -> tuple[int, float, float]:
        """Return how many hooks were fired, and the medians of hook time and time to be stored, in milliseconds."""
        return len(self._hook_ms), _median(self._hook_ms), _median(self._stored_ms)

    def _fire(self, session: str, event: str, **fields: Any) -> None:
        from metricsd.resources import data_folder

        payload = {"session_id": session, "hook_event_name": event, **fields}
        before = self.status()["store"]["events"]
        began = time.monotonic()
        subprocess.run(
            ["sh", str(data_folder("hooks") / "capture"), "claude-code", event, str(self.paths.spool)],
            input=json.dumps(payload).encode(),
            env=self._env,
            check=True,
            timeout=WITHIN_S,
        )
        captured = time.monotonic()
        self._wait("the event is stored", lambda: self.status()["store"]["events"] > before)
        self._hook_ms.append((captured - began) * 1000)
        self._stored_ms.append((time.monotonic() - captured) * 1000)

    def _command(self, *arguments: str, stdin: str = "") -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-P", "-m", "metricsd", *arguments],
            env=self._env,
            input=stdin,
            capture_output=True,
            text=True,
            timeout=WITHIN_S,
            check=False,
        )

    def _wait(self, what: str, fact: Callable[[], bool]) -> None:
        deadline = time.monotonic() + WITHIN_S
        while not fact():
            if self._daemon is not None and self._daemon.poll() is not None:
                said = (self.paths.state_dir / "demo.out").read_text(errors="replace").strip()
                raise MetricsdError(f"{self.name}: the daemon ended: {said.splitlines()[-1] if said else 'no word'}")
            if time.monotonic() > deadline:
                raise MetricsdError(f"{self.name}: waited {WITHIN_S:g} s in vain until {what}")
            time.sleep(STEP_S)


@contextlib.contextmanager
def _device(root: Path, name: str) -> Iterator[Device]:
    device = Device(root, name)
    try:
        yield device
    finally:
        device.stop()


def _seen(device: Device) -> Seen:
    captured, hook_ms, stored_ms = device.figures()
    own, foreign = device.count()
    return Seen(
        device=device.name,
        captured=captured,
        stored=own,
        in_cloud=own - int(device.status()["sync"]["pending_events"]),
        seen_from_other=foreign,
        hook_ms=round(hook_ms, 1),
        stored_after_ms=round(stored_ms, 1),
    )


def _median(values: list[float]) -> float:
    return sorted(values)[len(values) // 2] if values else 0.0


def _quiet(text: str) -> None:
    del text


def _say(text: str) -> None:
    click.echo(f"  {text}")


def _print_table(rows: list[Seen]) -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table(title="what happened")
    table.add_column("device")
    for name in ("captured", "stored", "in the cloud", "seen from the other", "hook, ms", "stored after, ms"):
        table.add_column(name, justify="right")
    for row in rows:
        table.add_row(row.device, *(str(value) for value in row[1:]))
    Console().print(table)

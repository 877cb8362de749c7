"""`up` and `down`: start the daemon in the background, and stop it.

`up` returns when the daemon is ready or says why it is not; `down` returns when the process has ended. Both change
nothing when there is nothing to do. Only a process that holds this home's lock is ever signalled.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import click

from metricsd import control
from metricsd.config import Daemon, Paths, find_paths, load_config
from metricsd.errors import ConfigError, DaemonNotRunning, MetricsdError
from metricsd.instance import Holder, find_holder

READY_TIMEOUT_S = 30.0
PING_TIMEOUT_S = 1.0
STEP_S = 0.05
NAME_TRIES = 20
STOP_GRACE_S = 2.0
"""Beyond the daemon's own limit, for the interpreter's exit."""
_OUTPUT_BYTES_MAX = 4096


@click.command()
@click.option("--with-cloud", is_flag=True, help="Serve this home's own cloud too, and sync with it.")
@click.option(
    "--timeout",
    "timeout_s",
    type=click.FloatRange(min=0.1),
    default=READY_TIMEOUT_S,
    show_default=True,
    help="Seconds to wait.",
)
def up(with_cloud: bool, timeout_s: float) -> None:
    """Start the daemon in the background and wait until it is ready."""
    paths = find_paths()
    load_config(paths)
    deadline = time.monotonic() + timeout_s
    holder = find_holder(paths.lock)
    if holder is not None and holder.role == "daemon":
        _wait_ready(paths, None, deadline)
        click.echo(f"metricsd already runs (pid {holder.pid})")
        return
    output = _output_file(paths)
    process = start_detached(paths, output, with_cloud=with_cloud)
    _wait_ready(paths, process, deadline)
    click.echo(f"metricsd runs (pid {process.pid}); `metricsd status` shows what it does")


@click.command()
@click.option(
    "--timeout",
    "timeout_s",
    type=click.FloatRange(min=0.1),
    default=None,
    help="Seconds to wait.  [default: daemon.stop_timeout_s + 2]",
)
def down(timeout_s: float | None) -> None:
    """Stop the daemon and wait until it has ended; nothing is lost."""
    paths = find_paths()
    holder = find_holder(paths.lock)
    if holder is None:
        click.echo("metricsd does not run")
        return
    limit_s = timeout_s or _stop_timeout_s(paths) + STOP_GRACE_S
    _ask_to_stop(paths, holder)
    deadline = time.monotonic() + limit_s
    while find_holder(paths.lock) is not None:
        if time.monotonic() > deadline:
            raise MetricsdError(
                f"the daemon (pid {holder.pid}) still runs after {limit_s:g} s: `kill -9 {holder.pid}` loses nothing"
            )
        time.sleep(STEP_S)
    click.echo(f"metricsd stopped (pid {holder.pid})")


def start_detached(paths: Paths, output: Path, *, with_cloud: bool = False) -> subprocess.Popen[bytes]:
    """Start `metricsd run` in a session of its own, its output in `output`."""
    # -P keeps the working folder off sys.path; "/" so that no mounted folder is held busy.
    command = [sys.executable, "-P", "-m", "metricsd", "run", *(["--with-cloud"] if with_cloud else [])]
    # The same code as this command's, also from a checkout that is not installed.
    source = str(Path(__file__).resolve().parent.parent.parent)
    found = os.environ.get("PYTHONPATH")
    environment = {**os.environ, "PYTHONPATH": f"{source}{os.pathsep}{found}" if found else source}
    with output.open("wb") as stream:
        return subprocess.Popen(
            command,
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=stream,
            stderr=stream,
            cwd="/",
            start_new_session=True,
        )


def _output_file(paths: Paths) -> Path:
    folder = paths.log_file.parent
    try:
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    except OSError as error:
        raise MetricsdError(
            f"{folder}: cannot be created ({error.strerror}): check the disk and permissions"
        ) from error
    return folder / "start.out"


def _wait_ready(paths: Paths, process: subprocess.Popen[bytes] | None, deadline: float) -> None:
    while True:
        with contextlib.suppress(DaemonNotRunning, control.DaemonSilent):
            if control.call(paths.state_dir, "ping", timeout_s=PING_TIMEOUT_S).get("ready") is True:
                return
        if process is not None and process.poll() is not None:
            raise MetricsdError(f"the daemon did not start: {_last_line(paths)}")
        if time.monotonic() > deadline:
            raise MetricsdError(
                "the daemon is not ready in time: `metricsd logs` shows what it does, `metricsd down` stops it"
            )
        time.sleep(STEP_S)


def _last_line(paths: Paths) -> str:
    try:
        text = _output_file(paths).read_bytes()[-_OUTPUT_BYTES_MAX:].decode(errors="replace").strip()
    except OSError:
        text = ""
    return text.splitlines()[-1].removeprefix("metricsd: ") if text else "it said nothing; see `metricsd logs`"


def _ask_to_stop(paths: Paths, holder: Holder) -> None:
    try:
        control.call(paths.state_dir, "stop", timeout_s=PING_TIMEOUT_S)
    except MetricsdError:
        # It starts, hangs or is of another version: ask by signal, but only whoever holds the lock at this moment.
        now = _named_holder(paths)
        if now is None:
            return
        if now.role != "daemon" or now.pid <= 1:
            raise MetricsdError(
                f"another command of metricsd is at work in this home (pid {holder.pid}): wait for its end"
            ) from None
        with contextlib.suppress(ProcessLookupError):
            os.kill(now.pid, signal.SIGTERM)


def _stop_timeout_s(paths: Paths) -> float:
    """Return the daemon's own limit; with settings that are wrong by now, which must not keep it running, the default."""
    try:
        return load_config(paths).daemon.stop_timeout_s
    except ConfigError:
        return Daemon().stop_timeout_s


def _named_holder(paths: Paths) -> Holder | None:
    """Return the lock's holder, giving one that has only just taken it the time to write its name."""
    for _ in range(NAME_TRIES):
        holder = find_holder(paths.lock)
        if holder is None or holder.pid:
            return holder
        time.sleep(STEP_S)
    return holder

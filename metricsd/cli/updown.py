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

from metricsd import __version__, control
from metricsd.config import Daemon, Paths, find_paths, load_config
from metricsd.errors import ConfigError, DaemonNotRunning, MetricsdError
from metricsd.instance import Holder, find_holder
from metricsd.service.find import find_installed, find_manager
from metricsd.service.unit import WITH_CLOUD

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
@click.option("-q", "--quiet", is_flag=True, help="Print nothing but errors: for a shell's profile.")
def up(with_cloud: bool, timeout_s: float, quiet: bool) -> None:
    """Start the daemon in the background and wait until it is ready.

    An installed service is started; a daemon of an older version is replaced.
    """
    paths = find_paths()
    load_config(paths)
    done = start_daemon(paths, with_cloud=with_cloud, timeout_s=timeout_s)
    if not quiet:
        click.echo("\n".join(done))


def start_daemon(paths: Paths, *, with_cloud: bool = False, timeout_s: float = READY_TIMEOUT_S) -> list[str]:
    """Have the daemon of this version run, and return in words what was done for it.

    An installed service is started; a daemon of an older version is replaced. Raises MetricsdError with the reason.
    """
    deadline = time.monotonic() + timeout_s
    done = []
    holder = find_holder(paths.lock)
    if holder is not None and holder.role == "daemon":
        if not _is_older(holder.version, __version__):
            wait_ready(paths, None, deadline)
            return [f"metricsd already runs (pid {holder.pid}){_newer_hint(holder)}"]
        with_cloud = with_cloud or _serves_cloud(holder.pid)
        stop_daemon(paths)
        done = [f"metricsd {holder.version} stopped (pid {holder.pid}): this is {__version__}"]
    manager = None if with_cloud else find_installed(paths, os.environ)
    if manager is not None and isinstance(find_manager(paths, os.environ), type(manager)):
        manager.start()
        wait_ready(paths, None, deadline)
    else:
        manager = None
        wait_ready(paths, start_detached(paths, _output_file(paths), with_cloud=with_cloud), deadline)
    started = find_holder(paths.lock)
    how = " as a service" if manager is not None else ""
    pid = started.pid if started is not None else "unknown"
    return [*done, f"metricsd runs{how} (pid {pid}); `metricsd status` shows what it does"]


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
    holder = stop_daemon(paths, timeout_s)
    click.echo("metricsd does not run" if holder is None else f"metricsd stopped (pid {holder.pid})")


def stop_daemon(paths: Paths, timeout_s: float | None = None) -> Holder | None:
    """Stop this home's daemon and return who it was, when its process has ended; None when none runs.

    `timeout_s` is None for the daemon's own limit and a little more. Raises MetricsdError when it still runs then.
    """
    holder = find_holder(paths.lock)
    if holder is None:
        return None
    limit_s = timeout_s or _stop_timeout_s(paths) + STOP_GRACE_S
    _ask_to_stop(paths, holder)
    deadline = time.monotonic() + limit_s
    while find_holder(paths.lock) is not None:
        if time.monotonic() > deadline:
            raise MetricsdError(
                f"the daemon (pid {holder.pid}) still runs after {limit_s:g} s: `kill -9 {holder.pid}` loses nothing"
            )
        time.sleep(STEP_S)
    return holder


def start_detached(paths: Paths, output: Path, *, with_cloud: bool = False) -> subprocess.Popen[bytes]:
    """Start `metricsd run` in a session of its own, its output in `output`."""
    # -P keeps the working folder off sys.path; "/" so that no mounted folder is held busy.
    command = [sys.executable, "-P", "-m", "metricsd", "run", *([WITH_CLOUD] if with_cloud else [])]
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


def _is_older(version: str, than: str) -> bool:
    """Return whether a version is an older one; what is not a version of ours (a name not written yet) is not."""
    try:
        return [int(part) for part in version.split(".")] < [int(part) for part in than.split(".")]
    except ValueError:
        return False


def _newer_hint(holder: Holder) -> str:
    if not _is_older(__version__, holder.version):
        return ""
    return f"; it is version {holder.version}, newer than this command ({__version__}): upgrade this one"


def _serves_cloud(pid: int) -> bool:
    """Return whether a running daemon was started with a cloud of its own, which its successor must serve too."""
    with contextlib.suppress(OSError):
        return os.fsencode(WITH_CLOUD) in Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
    try:
        found = subprocess.run(["ps", "-o", "args=", "-p", str(pid)], capture_output=True, text=True, check=False)
    except OSError:
        return False
    return WITH_CLOUD in found.stdout.split()


def _output_file(paths: Paths) -> Path:
    folder = paths.log_file.parent
    try:
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    except OSError as error:
        raise MetricsdError(
            f"{folder}: cannot be created ({error.strerror}): check the disk and permissions"
        ) from error
    return folder / "start.out"


def wait_ready(paths: Paths, process: subprocess.Popen[bytes] | None, deadline: float) -> None:
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

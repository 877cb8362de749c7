"""A real systemd user manager in a container that has none: in namespaces of its own, ended with the test.

It needs root, `unshare` and systemd's program. Where the machine is run by systemd already it is not tried: the
real user's manager is nobody's test bed.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

from tests.homes import stop, until

PROGRAMS = (Path("/lib/systemd/systemd"), Path("/usr/lib/systemd/systemd"))
_SETUP = """
set -e
mount -o remount,rw /sys/fs/cgroup 2>/dev/null || :
umount /sys/fs/cgroup/systemd /sys/fs/cgroup/unified 2>/dev/null || :
mount -t cgroup2 none /sys/fs/cgroup
mkdir -p /run/systemd && mount -t tmpfs none /run/systemd && mkdir -p /run/systemd/system
mkdir -p "/sys/fs/cgroup/$1" && echo $$ > "/sys/fs/cgroup/$1/cgroup.procs"
exec "$2" --user --log-target=console --log-level=info
"""

_CLEANUP = """
mount -o remount,rw /sys/fs/cgroup 2>/dev/null || :
umount /sys/fs/cgroup/systemd /sys/fs/cgroup/unified 2>/dev/null || :
mount -t cgroup2 none /sys/fs/cgroup && find "/sys/fs/cgroup/$1" -depth -type d -exec rmdir {} +
"""


def why_not() -> str:
    """Return why no user manager can be started here, empty if one can."""
    if sys.platform != "linux":
        return "systemd exists on Linux only"
    if os.geteuid() != 0:
        return "a user manager of one's own needs root (mounts and a cgroup)"
    if Path("/run/systemd/system").is_dir():
        return "systemd runs this machine: its managers are not for tests"
    if shutil.which("unshare") is None or shutil.which("systemctl") is None or _program() is None:
        return "systemd or unshare is not installed"
    return ""


@contextlib.contextmanager
def user_manager(folder: Path) -> Iterator[dict[str, str]]:
    """Run a user manager; give the variables with which `systemctl --user` finds it. Raises AssertionError."""
    runtime = folder / "run"
    runtime.mkdir(mode=0o700)
    group = f"metricsd-test-{os.getpid()}"
    environ = {"XDG_RUNTIME_DIR": str(runtime), "HOME": str(folder / "user")}
    (folder / "user").mkdir()
    with (folder / "manager.log").open("w") as log:
        process = subprocess.Popen(
            ["unshare", "--mount", "--cgroup", "sh", "-c", _SETUP, "sh", group, str(_program())],
            env={**os.environ, **environ}, stdin=subprocess.DEVNULL, stdout=log, stderr=log, text=True,
        )  # fmt: skip
        try:
            until(lambda: process.poll() is not None or _answers({**os.environ, **environ}), within_s=15)
            assert process.poll() is None, (folder / "manager.log").read_text()[-2000:]
            yield environ
        finally:
            # A manager's orderly end: it stops its units first.
            with contextlib.suppress(ProcessLookupError):
                process.send_signal(signal.SIGRTMIN + 4)
            stop(process)
            subprocess.run(
                ["unshare", "--mount", "--cgroup", "sh", "-c", _CLEANUP, "sh", group], capture_output=True, check=False
            )


def _answers(environ: dict[str, str]) -> bool:
    # Not `is-system-running`: it asks whether the machine was started by systemd.
    done = subprocess.run(
        ["systemctl", "--user", "show", "--property=Version"], env=environ, capture_output=True, check=False
    )
    return done.returncode == 0


def _program() -> Path | None:
    return next((path for path in PROGRAMS if path.exists()), None)

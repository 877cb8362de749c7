"""`run`: the daemon in the foreground, and with `--with-cloud` a cloud of this home's own in the same process.

The only place that joins daemon and cloud; they still meet on the wire, through a loopback port that stays the same
from start to start. The first start makes tenant `local` and enrols this installation as user `local`; a login
elsewhere is left as it is, and said so.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import sys
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import click
import structlog

from metricsd import logs
from metricsd.clock import US_PER_S, Clock, SystemClock
from metricsd.config import Config, Paths, find_paths, load_config
from metricsd.daemon import Daemon
from metricsd.errors import MetricsdError, UsageError
from metricsd.filesystem import check_local
from metricsd.identity import Credentials, find_credentials, load_identity, save_login
from metricsd.instance import InstanceLock
from metricsd.store.newer import refuse_newer

if TYPE_CHECKING:
    from metricsd.cloud.serve import CloudServer
    from metricsd.cloud.sqlite import SqliteBackend

LOCAL = "local"
"""Name of the embedded cloud's tenant, of its user, and of this device in it."""
ENROL_TOKEN_US = 60 * US_PER_S

log = structlog.get_logger("run")


@click.command()
@click.option("--with-cloud", is_flag=True, help="Serve this home's own cloud too, and sync with it.")
@click.option("--host", default="127.0.0.1", show_default=True, help="Address that the cloud listens on.")
@click.option(
    "--port",
    type=click.IntRange(0, 65535),
    default=0,
    show_default=True,
    help="Port of the cloud; 0 keeps the last one.",
)
def run(with_cloud: bool, host: str, port: int) -> None:
    """Run the daemon in the foreground until Ctrl-C or `metricsd down`."""
    paths = find_paths()
    config = load_config(paths)
    check_local(paths)
    # Never given back: the kernel drops it with the process, so `metricsd down` sees the end when it is one.
    InstanceLock.acquire(paths.lock, "daemon")
    refuse_newer(paths.store, paths.backups)
    _start_log(paths, config)
    companion = EmbeddedCloud(paths, config, host, port) if with_cloud else None
    try:
        asyncio.run(_run(Daemon(paths, config, companion=companion), companion))
    except Exception as error:
        # Not `except*`: what is raised inside it leaves as a group again on some versions of Python.
        broken = _first(error)
        if isinstance(broken, MetricsdError):
            raise broken from None
        raise MetricsdError(
            f"the daemon stopped because of a fault ({type(broken).__name__}: {broken}); `metricsd logs` shows it"
        ) from broken


async def _run(daemon: Daemon, companion: EmbeddedCloud | None) -> None:
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        loop.add_signal_handler(number, daemon.stop)

    def ready() -> None:
        if companion is not None and companion.notice:
            click.echo(f"metricsd: {companion.notice}", err=True)
        cloud = f", cloud at {companion.url}" if companion is not None else ""
        # Whoever started us may have closed the pipe; that is no reason to stop.
        with contextlib.suppress(OSError):
            click.echo(f"metricsd runs (pid {os.getpid()}{cloud}); Ctrl-C stops it")

    await daemon.run(ready)


def _start_log(paths: Paths, config: Config) -> None:
    try:
        logs.log_to_file(paths.log_file, config.daemon, terminal=sys.stderr if sys.stderr.isatty() else None)
    except OSError as error:
        raise MetricsdError(
            f"{paths.log_file.parent}: cannot be created ({error.strerror}): check the disk and permissions"
        ) from error


def _first(group: BaseException) -> BaseException:
    while isinstance(group, BaseExceptionGroup):
        group = group.exceptions[0]
    return group


class Address(NamedTuple):
    """Where the cloud listened at its last start."""

    url: str
    port: int


class EmbeddedCloud:
    """The cloud of one home, as the daemon's companion. `url` and `notice` are set once it has joined."""

    def __init__(self, paths: Paths, config: Config, host: str, port: int, *, clock: Clock | None = None) -> None:
        # A stop of the whole process has one limit; open requests may use half of it.
        drain_s = min(config.cloud.drain_timeout_s, config.daemon.stop_timeout_s / 2)
        self._settings = config.cloud._replace(drain_timeout_s=drain_s)
        self._sync = config.sync
        self._paths = paths
        self._host = host
        self._port = port
        self._clock = clock or SystemClock()
        self._joined = asyncio.Event()
        self._last = _read_address(paths)
        self.url = ""
        self.notice = ""

    async def serve(self) -> None:
        """Serve until cancelled."""
        from metricsd.cloud.sqlite import SqliteBackend

        backend = SqliteBackend(self._paths.cloud, self._settings)
        try:
            server = await self._listen(backend)
            try:
                await self._enrol(backend)
                self._joined.set()
                await server.wait()
            finally:
                await server.stop()
        finally:
            await backend.close()

    async def join(self) -> None:
        """Return when the cloud is up and this installation is its device, or logged in elsewhere."""
        await self._joined.wait()

    async def _listen(self, backend: SqliteBackend) -> CloudServer:
        """Listen on the wanted port, else on the last one, else on any free one."""
        from metricsd.cloud.app import create_app
        from metricsd.cloud.serve import CloudServer

        candidates = [self._port] if self._port else [*([self._last.port] if self._last else []), 0]
        for place, port in enumerate(candidates):
            server = CloudServer(create_app(backend, self._settings), self._settings, host=self._host, port=port)
            try:
                self.url = await server.start()
            except UsageError:
                if place == len(candidates) - 1:
                    raise
                log.warning("port.taken", port=port)
                continue
            _write_address(self._paths, Address(self.url, int(self.url.rsplit(":", 1)[1])))
            log.info("cloud.served", url=self.url)
            return server
        raise AssertionError("the last candidate either listens or raises")

    async def _enrol(self, backend: SqliteBackend) -> None:
        """Make this installation a device of the embedded cloud unless it is one, or is one of another cloud."""
        from metricsd.cloud import tenants
        from metricsd.cloud.backend import Scope
        from metricsd.sync.login import login

        registry = backend.directory
        if await tenants.find_tenant(registry, LOCAL) is None:
            await tenants.create_tenant(registry, LOCAL, self._clock)
        found = find_credentials(self._paths)
        if found is not None and await self._is_ours(backend, found):
            self._move(found)
        elif found is not None and found.url != (self._last.url if self._last else None):
            self.notice = (
                f"logged in to {found.url} and stays so; this cloud only serves others (`metricsd logout` changes that)"
            )
            log.warning("login.kept", url=found.url)
        else:
            # No login, or one to a cloud of ours whose folder was emptied since.
            text = await tenants.create_token(
                registry, LOCAL, LOCAL, Scope.ENROL, self._clock, expires_at=self._clock.now_us() + ENROL_TOKEN_US
            )
            made = await login(self._paths, self.url, text, LOCAL, self._sync)
            log.info("login.made", url=self.url, device=made.device_id)

    async def _is_ours(self, backend: SqliteBackend, login: Credentials) -> bool:
        from metricsd.cloud.auth import digest_of, is_valid

        token = await backend.directory.find_token(digest_of(login.token))
        return token is not None and token.device == login.device_id and is_valid(token, self._clock.now_us())

    def _move(self, login: Credentials) -> None:
        """Follow the cloud to another port."""
        if login.url != self.url:
            save_login(self._paths, login._replace(url=self.url), parent=load_identity(self._paths).parent)
            log.info("login.moved", url=self.url)


def _address_file(paths: Paths) -> Path:
    return paths.cloud / "address.json"


def _read_address(paths: Paths) -> Address | None:
    try:
        found = json.loads(_address_file(paths).read_bytes())
        address = Address(str(found["url"]), int(found["port"]))
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return address if 0 < address.port < 65536 else None


def _write_address(paths: Paths, address: Address) -> None:
    file = _address_file(paths)
    draft = file.with_suffix(".draft")
    try:
        draft.write_text(json.dumps(address._asdict()))
        draft.replace(file)
    except OSError as error:
        # The next start picks another port and moves the login; nothing depends on this one.
        log.warning("address.not_kept", reason=error.strerror)

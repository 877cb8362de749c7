"""`metricsd cloud`: serve a cloud; its administration has a file for each noun.

A server stops on SIGTERM or Ctrl-C and finishes open requests first. It prints one line when it answers, which is what
whoever started it waits for.
"""

from __future__ import annotations

import asyncio
import json
import resource
import signal
from pathlib import Path
from typing import TYPE_CHECKING

import click

from metricsd.cli.cloud_options import database_option, json_option, open_backend
from metricsd.cli.parts import Parts
from metricsd.config import find_paths, load_config
from metricsd.errors import UsageError

if TYPE_CHECKING:
    from ssl import SSLContext

    from metricsd.cloud.registry import AdminBackend

DEFAULT_PORT = 8400
FILES_MAX = 512
"""Descriptors of the databases that a server has open at once, and then some."""
_NOUNS = {
    "audit": "metricsd.cli.cloud_audit:audit",
    "device": "metricsd.cli.cloud_device:device",
    "enrol": "metricsd.cli.cloud_enrol:enrol",
    "migrate": "metricsd.cli.cloud_move:migrate",
    "migrate-schema": "metricsd.cli.cloud_schema:migrate_schema",
    "policy": "metricsd.cli.cloud_policy:policy",
    "stats": "metricsd.cli.cloud_stats:stats",
    "tenant": "metricsd.cli.cloud_tenant:tenant",
    "token": "metricsd.cli.cloud_token:token",
    "user": "metricsd.cli.cloud_user:user",
}

_LOOPBACK = ("127.0.0.1", "::1", "localhost")
_PEM = click.Path(path_type=Path, dir_okay=False)


@click.group(cls=Parts, parts=_NOUNS)
def cloud() -> None:
    """Serve a cloud; make its tenants, tokens and policies."""


@cloud.command()
@click.option("--host", default="127.0.0.1", show_default=True, help="Address to listen on.")
@click.option("--port", default=DEFAULT_PORT, show_default=True, type=click.IntRange(0, 65535), help="0 picks one.")
@click.option("--tls-cert", type=_PEM, help="PEM file of the certificate and its chain: serve HTTPS.")
@click.option("--tls-key", type=_PEM, help="PEM file of its private key, without a password.")
@database_option
@json_option
def serve(
    host: str, port: int, tls_cert: Path | None, tls_key: Path | None, database: str | None, as_json: bool
) -> None:
    """Serve until SIGTERM or Ctrl-C; open requests are finished first."""
    from metricsd.cloud.serve import tls_context
    from metricsd.logs import log_to_terminal

    if (tls_cert is None) != (tls_key is None):
        raise UsageError("--tls-cert and --tls-key belong together: give both, or neither behind a proxy with TLS")
    tls = tls_context(tls_cert, tls_key) if tls_cert and tls_key else None
    if tls is None and host not in _LOOPBACK:
        click.echo(f"warning: {host} without TLS: tokens can be read on the way unless a proxy adds it", err=True)
    log_to_terminal()
    asyncio.run(_serve(host, port, tls, database, as_json))


async def _serve(host: str, port: int, tls: SSLContext | None, database: str | None, as_json: bool) -> None:
    from metricsd.cloud.app import create_app
    from metricsd.cloud.connection import CONNECTIONS_MAX
    from metricsd.cloud.serve import CloudServer

    settings = load_config(find_paths()).cloud
    backend = open_backend(database)
    for warning in await _warnings(backend):
        click.echo(f"warning: {warning}", err=True)
    _allow_descriptors(CONNECTIONS_MAX + settings.streams_max + FILES_MAX)
    try:
        server = CloudServer(create_app(backend, settings), settings, host=host, port=port, tls=tls)
        url = await server.start()
        stop = asyncio.Event()
        for number in (signal.SIGTERM, signal.SIGINT):
            asyncio.get_running_loop().add_signal_handler(number, stop.set)
        # One line, when requests are answered: whoever started us waits for it.
        click.echo(json.dumps({"url": url}) if as_json else f"serving on {url} (Ctrl-C stops)")
        stopping = asyncio.create_task(stop.wait(), name="cloud-stop")
        ended = asyncio.create_task(server.wait(), name="cloud-end")
        await asyncio.wait({stopping, ended}, return_when=asyncio.FIRST_COMPLETED)
        stopping.cancel()
        await server.stop()
        await ended
    finally:
        await backend.close()


async def _warnings(backend: AdminBackend) -> list[str]:
    """Return what is to be said of a PostgreSQL database before it is served."""
    ask = getattr(backend, "warnings", None)
    return [] if ask is None else list(await ask())


def _allow_descriptors(wanted: int) -> None:
    """Raise this process's limit of open files as far as it may be: each connection and each open file takes one."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    allowed = wanted if hard == resource.RLIM_INFINITY else min(wanted, hard)
    if soft != resource.RLIM_INFINITY and soft < allowed:
        resource.setrlimit(resource.RLIMIT_NOFILE, (allowed, hard))

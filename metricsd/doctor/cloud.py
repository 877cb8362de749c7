"""Whether the cloud can be reached, is trusted, takes our token, speaks our protocol and agrees about the time.

Nothing is looked at without a login. Each step stands on the one before: what cannot be known because of an earlier
failure is left out instead of blamed. Every wait has a deadline, and no secret is ever printed.
"""

from __future__ import annotations

import asyncio
import ipaddress
import os
import socket
import sys
import time
import urllib.request
from collections.abc import Iterator, Mapping
from pathlib import Path
from urllib.parse import urlsplit

from metricsd import __version__
from metricsd.client import Certificate, CloudClient, is_loopback
from metricsd.doctor.finding import Facts, Finding, Level, fail, not_used, ok, warn
from metricsd.errors import AuthError, CloudError, MetricsdError
from metricsd.identity import Credentials, find_credentials
from metricsd.protocol import PROTOCOL_VERSION, Capabilities

LOOKUP_TIMEOUT_S = 5.0
OFFSET_WARN_S = 5.0
OFFSET_FAIL_S = 300.0
"""Stamps further ahead than this are taken back by the cloud (see hlc)."""
_PROXY_NAMES = (
    "https_proxy",
    "HTTPS_PROXY",
    "http_proxy",
    "HTTP_PROXY",
    "all_proxy",
    "ALL_PROXY",
    "no_proxy",
    "NO_PROXY",
)
_ENVIRON_BYTES_MAX = 1024 * 1024


def check_cloud(facts: Facts) -> list[Finding]:
    """Return how login, network, certificate, token, versions and clocks stand."""
    try:
        login = find_credentials(facts.paths)
    except AuthError as error:
        return [fail("login", str(error), "metricsd login URL")]
    if login is None:
        return [not_used("cloud", "not logged in: everything stays on this machine", "metricsd login URL")]
    host = urlsplit(login.url).hostname or ""
    found = [ok("login", f"{login.url} as {login.user} of {login.tenant}"), *_proxy(facts, host)]
    names = _name(host, proxied=bool(_proxies(host)))
    found.append(names)
    if names.level is Level.FAIL:
        return found
    return [*found, *asyncio.run(_ask(facts, login))]


async def _ask(facts: Facts, login: Credentials) -> list[Finding]:
    """Ask the cloud itself, step by step: is it there and trusted, does it know us, do we understand each other."""
    try:
        async with CloudClient(login.url, login.token, facts.config.sync) as client:
            try:
                certificate = await client.certificate()
            except CloudError as error:
                return [fail("cloud", str(error), "check address, network and proxy; events wait meanwhile")]
            found = [_trust(login.url, certificate)]
            began_us = time.time_ns() // 1000
            try:
                said = await client.capabilities()
            except AuthError as error:
                return [*found, fail("token", str(error), f"metricsd login {login.url}")]
            except CloudError as error:
                return [*found, fail("cloud", str(error), "metricsd sync --now says more")]
            ended_us = time.time_ns() // 1000
    except MetricsdError as error:
        return [fail("cloud", str(error), "metricsd config check")]
    reached = ok("cloud", f"answers in {(ended_us - began_us) / 1000:.0f} ms")
    offset_s = (said.server_time - (began_us + ended_us) / 2) / 1e6
    return [*found, reached, ok("token", "accepted"), _versions(said), _clock(offset_s)]


def _trust(url: str, certificate: Certificate | None) -> Finding:
    if not url.startswith("https:"):
        return not_used("tls", "plain http to this machine itself")
    if certificate is None:
        return ok("tls", "trusted")
    return ok("tls", f"trusted, issued by {certificate.issuer}, good until {certificate.until}")


def _versions(said: Capabilities) -> Finding:
    if said.protocol != PROTOCOL_VERSION:
        older = "the cloud" if said.protocol < PROTOCOL_VERSION else "this metricsd"
        says = f"the cloud ({said.version}) speaks protocol {said.protocol}, this metricsd {PROTOCOL_VERSION}"
        return fail("cloud version", says, f"upgrade {older}")
    return ok("cloud version", f"{said.version}, this one {__version__}; protocol {PROTOCOL_VERSION}")


def _clock(offset_s: float) -> Finding:
    says = f"{abs(offset_s):.1f} s {'behind' if offset_s > 0 else 'ahead of'} the cloud's"
    if abs(offset_s) > OFFSET_FAIL_S:
        return fail("clock", f"{says}: events get wrong times", "let the system set its clock (NTP)")
    if abs(offset_s) > OFFSET_WARN_S:
        return warn("clock", says, "let the system set its clock (NTP)")
    return ok("clock", says)


def _proxies(host: str) -> Mapping[str, str]:
    """Return the proxies that count for a host, by scheme."""
    if is_loopback(host) or urllib.request.proxy_bypass(host):
        return {}
    return {scheme: url for scheme, url in urllib.request.getproxies().items() if scheme in ("https", "http", "all")}


def _proxy(facts: Facts, host: str) -> Iterator[Finding]:
    found = _proxies(host)
    if not found:
        yield not_used("proxy", "none for this address")
    else:
        shown = ", ".join(f"{scheme} through {_without_login(url)}" for scheme, url in sorted(found.items()))
        yield ok("proxy", shown)
    theirs = _daemon_environ(facts)
    if theirs is None or is_loopback(host):
        return
    differing = [name for name in _PROXY_NAMES if theirs.get(name, "") != facts.environ.get(name, "")]
    if differing:
        says = f"the daemon was started with another {' and '.join(differing)} than this shell has"
        place = facts.paths.config_dir / "environment"
        yield warn("proxy", says, f"for a service put it into {place}; else metricsd down, metricsd up")


def _without_login(url: str) -> str:
    parts = urlsplit(url if "//" in url else f"//{url}")
    try:
        port = f":{parts.port}" if parts.port else ""
    except ValueError:
        port = ""
    return f"{parts.hostname or 'an address that cannot be read'}{port}"


def _daemon_environ(facts: Facts) -> Mapping[str, str] | None:
    """Return the environment of the running daemon, which only Linux shows."""
    pid = facts.status["daemon"]["pid"]
    if not facts.runs or not pid or sys.platform != "linux":
        return None
    try:
        with Path(f"/proc/{pid}/environ").open("rb") as stream:
            raw = stream.read(_ENVIRON_BYTES_MAX)
    except OSError:
        return None
    return dict(os.fsdecode(part).split("=", 1) for part in raw.split(b"\0") if b"=" in part)


def _name(host: str, *, proxied: bool) -> Finding:
    """Resolve the cloud's name, unless a proxy does that."""
    if proxied:
        return not_used("dns", "the proxy resolves the name")
    try:
        ipaddress.ip_address(host)
    except ValueError:
        return asyncio.run(_resolve(host))
    return not_used("dns", "the address is a number")


async def _resolve(host: str) -> Finding:
    began = time.monotonic()
    loop = asyncio.get_running_loop()
    try:
        async with asyncio.timeout(LOOKUP_TIMEOUT_S):
            found = await loop.getaddrinfo(host, None, type=socket.SOCK_STREAM)
    except TimeoutError:
        return fail("dns", f"{host} was not resolved within {LOOKUP_TIMEOUT_S:g} s", "check the network or VPN")
    except OSError as error:
        return fail("dns", f"{host} cannot be resolved ({error.strerror or error})", "check the network, VPN or name")
    return ok("dns", f"{host} has {len(found)} addresses, found in {(time.monotonic() - began) * 1000:.0f} ms")

"""The tenant's conflict policy on this device: fetched when its hash changes, kept where the policy layers look for it.

What the cloud sends is not trusted: it is bounded, checked against its hash and parsed before it replaces what is
there, so a broken or forged text changes nothing. It is data; a plug-in that it names must be pinned on this device.
"""

from __future__ import annotations

import hashlib
import os
import re
from pathlib import Path

import structlog

from metricsd.client import CloudClient
from metricsd.config import Paths
from metricsd.errors import CloudRefused, PolicyError
from metricsd.policy import FILE_BYTES_MAX, parse, tenant_file

_is_sha256 = re.compile(r"[0-9a-f]{64}").fullmatch

log = structlog.get_logger("policy")


class TenantPolicyFile:
    """The file of one home, and which hash was refused last: a bad text is fetched once, not with every round."""

    def __init__(self, paths: Paths) -> None:
        self.file = tenant_file(paths)
        self._refused: str | None = None

    async def follow(self, client: CloudClient, wanted: str | None) -> str | None:
        """Make the file the text whose hash the cloud named; return a sentence for the user when that cannot be.

        Raises what a call of the cloud raises, except that it has no policy any more.
        """
        if wanted is None:
            return self._remove()
        if wanted in (_hash_of(self.file), self._refused):
            return None
        try:
            reply = await client.policy()
        except CloudRefused as error:
            # Between the two answers it was taken back; the next round says how it stands.
            log.debug("policy.not_fetched", reason=str(error))
            return None
        raw = reply.text.encode("utf-8", "surrogatepass")
        try:
            _check(raw, reply.sha256, client.url)
        except PolicyError as error:
            self._refused = wanted
            log.warning("policy.refused", reason=str(error))
            return f"the tenant's policy is not used, the last good one stays: {error}"
        return self._keep(raw, reply.version, reply.sha256)

    def _keep(self, raw: bytes, version: int, sha256: str) -> str | None:
        try:
            _write(self.file, raw)
        except OSError as error:
            return f"{self.file}: the tenant's policy cannot be kept ({error.strerror}): check the disk"
        log.info("policy.fetched", version=version, sha256=sha256)
        return None

    def _remove(self) -> str | None:
        try:
            self.file.unlink()
        except FileNotFoundError:
            return None
        except OSError as error:
            return f"{self.file}: this tenant has no policy, and the file cannot be removed ({error.strerror})"
        log.info("policy.removed")
        return None


def _check(raw: bytes, sha256: str, source: str) -> None:
    """Raise PolicyError for a text that must not take force."""
    if len(raw) > FILE_BYTES_MAX:
        raise PolicyError(f"{source}: the tenant's policy is longer than {FILE_BYTES_MAX} bytes")
    if _is_sha256(sha256) is None or hashlib.sha256(raw).hexdigest() != sha256:
        raise PolicyError(f"{source}: the tenant's policy does not match its hash")
    parse(raw, f"{source} (tenant policy)", layer="tenant")


def _hash_of(file: Path) -> str | None:
    try:
        with file.open("rb") as stream:
            return hashlib.sha256(stream.read(FILE_BYTES_MAX + 1)).hexdigest()
    except OSError:
        return None


def _write(file: Path, raw: bytes) -> None:
    """Put the file in place as a whole, readable by its owner alone."""
    draft = file.with_name(f".{file.name}.{os.getpid()}")
    draft.unlink(missing_ok=True)
    descriptor = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    try:
        with os.fdopen(descriptor, "wb") as stream:
            stream.write(raw)
            stream.flush()
            os.fsync(stream.fileno())
        draft.replace(file)
    finally:
        draft.unlink(missing_ok=True)

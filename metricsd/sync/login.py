"""Makes this installation a device of a cloud: enrols with a token or code and keeps what the cloud gives in return.

The store follows at the next round, which finds the new device id in the credentials; so a crash anywhere in between
costs at most a device id that nobody uses.
"""

from __future__ import annotations

from collections.abc import Callable

from metricsd import identity
from metricsd.client import CloudClient, check_url
from metricsd.config import Paths, Sync
from metricsd.errors import UsageError
from metricsd.identity import Credentials
from metricsd.protocol import EraseReply, HelloRequest
from metricsd.sync.engine import credentials_of

NAME_CHARS_MAX = 100
NAME_DEFAULT = "device"
DEVICE_TOKEN = "mdd_"  # noqa: S105 - what such tokens begin with


async def login(
    paths: Paths,
    url: str,
    token: str,
    name: str,
    settings: Sync,
    *,
    connect: Callable[[str, str, Sync], CloudClient] = CloudClient,
) -> Credentials:
    """Enrol at the cloud and write credentials and identity; return the login.

    A device token is no way to enrol: it takes the place of this device's own, which was rotated. Raises UsageError for
    the address, AuthError for the token, CloudError when the cloud does not take it.
    """
    base = check_url(url)
    if token.strip().startswith(DEVICE_TOKEN):
        return await _renew(paths, base, token.strip(), settings, connect)
    # The name is the user's own label; a host's name would tell more than anybody asked for.
    label = name.strip()[:NAME_CHARS_MAX] or NAME_DEFAULT
    earlier = identity.load_identity(paths).device_id
    async with connect(base, token.strip(), settings) as client:
        credentials = credentials_of(base, await client.enrol(label))
    identity.save_login(paths, credentials, parent=earlier)
    return credentials


async def take_back(
    paths: Paths, settings: Sync, *, connect: Callable[[str, str, Sync], CloudClient] = CloudClient
) -> EraseReply:
    """Let the cloud remove what this device wrote, and log out; raise AuthError without a login, CloudError."""
    login = identity.get_credentials(paths)
    async with connect(login.url, login.token, settings) as client:
        removed = await client.erase(login.device_id)
    # Only now: if the answer is lost, the same token may ask again.
    identity.forget_login(paths)
    return removed


async def _renew(
    paths: Paths, base: str, token: str, settings: Sync, connect: Callable[[str, str, Sync], CloudClient]
) -> Credentials:
    """Put a rotated token in the place of this device's own, once the cloud says that it is of the same device."""
    before = identity.find_credentials(paths)
    if before is None:
        raise UsageError("this token is of a device that is logged in, and here is none: log in with an enrolment code")
    async with connect(base, token, settings) as client:
        await client.hello(HelloRequest(device_id=before.device_id, epoch=0, acked_seq=0))
    renewed = before._replace(url=base, token=token)
    identity.save_login(paths, renewed, parent=identity.load_identity(paths).parent)
    return renewed

"""Makes this installation a device of a cloud: enrols with a token and keeps what the cloud gives in return.

The store follows at the next round, which finds the new device id in the credentials; so a crash anywhere in between
costs at most a device id that nobody uses.
"""

from __future__ import annotations

from collections.abc import Callable

from metricsd import identity
from metricsd.client import CloudClient, check_url
from metricsd.config import Paths, Sync
from metricsd.identity import Credentials
from metricsd.sync.engine import credentials_of

NAME_CHARS_MAX = 100
NAME_DEFAULT = "device"


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

    Raises UsageError for the address, AuthError for the token, CloudError when the cloud does not take it.
    """
    base = check_url(url)
    # The name is the user's own label; a host's name would tell more than anybody asked for.
    label = name.strip()[:NAME_CHARS_MAX] or NAME_DEFAULT
    earlier = identity.load_identity(paths).device_id
    async with connect(base, token.strip(), settings) as client:
        credentials = credentials_of(base, await client.enrol(label))
    identity.save_login(paths, credentials, parent=earlier)
    return credentials

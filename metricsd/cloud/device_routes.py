"""Routes of a device's life: enrolment, the question what is here already, and taking a device's data back.

Enrolment alone also takes a one-time code in the place of a token. Whose device or event something is follows from the
token; an id of somebody else's is answered like one that does not exist.
"""

from __future__ import annotations

from litestar import Response, delete, post

from metricsd.cloud import ingest
from metricsd.cloud.access import Scope
from metricsd.cloud.auth import bearer_of, check_device
from metricsd.cloud.backend import Writer
from metricsd.cloud.cloudlet import Cloudlet, header_of
from metricsd.cloud.codes import parse_code
from metricsd.cloud.enrolment import enrol, enrol_by_code, erase_device, find_code
from metricsd.cloud.handling import Req, answer_of, cloudlet_of
from metricsd.cloud.have import ROWS_MAX, parse_have
from metricsd.protocol import PREFIX, EnrolRequest, EraseReply


@post(f"{PREFIX}/devices", status_code=200)
async def devices(request: Req) -> Response[bytes]:
    """Enrol a device, by a token or by a one-time code."""
    cloudlet = cloudlet_of(request)
    directory, clock = cloudlet.backend.directory, cloudlet.clock
    typed = parse_code(bearer_of(header_of(request.scope, b"authorization")))
    if typed is not None:
        code = await find_code(directory, typed, clock.now_us())
        await cloudlet.count(code.tenant, request)
        return answer_of(await enrol_by_code(directory, code, await _wanted(request, cloudlet), clock))
    token = await cloudlet.token(request, Scope.ENROL, Scope.DEVICE)
    return answer_of(await enrol(directory, token, await _wanted(request, cloudlet), clock))


@post(f"{PREFIX}/have", status_code=200)
async def have(request: Req) -> Response[bytes]:
    """Say which events of the user are here already."""
    cloudlet = cloudlet_of(request)
    token = await cloudlet.token(request, Scope.DEVICE)
    with cloudlet.budget.share() as share:
        asked = parse_have(await cloudlet.body(request, share), cloudlet.settings)
        check_device(token, asked.device_id)
        async with cloudlet.backend.tenant(token.tenant) as store:
            return answer_of(await store.have(Writer(token.user, token.device), asked, ROWS_MAX))


@delete(f"{PREFIX}/devices/{{device_id:str}}/data", status_code=200)
async def erase_device_data(request: Req) -> Response[bytes]:
    """Take a device's data back: it is revoked, and what it wrote is removed."""
    cloudlet = cloudlet_of(request)
    device_id = str(request.path_params["device_id"])
    now = cloudlet.clock.now_us()
    token = await cloudlet.token(request, Scope.DEVICE, Scope.ADMIN, erased_too=True)
    user = await erase_device(cloudlet.backend.directory, token, device_id, now)
    async with cloudlet.backend.tenant(token.tenant) as store:
        erased = await store.erase_device(user, device_id, now)
    cloudlet.streams.wake(token.tenant)
    return answer_of(EraseReply(device_id=device_id, events=erased.events, records=erased.records))


async def _wanted(request: Req, cloudlet: Cloudlet) -> EnrolRequest:
    with cloudlet.budget.share() as share:
        return ingest.parse_small(await cloudlet.body(request, share), EnrolRequest, cloudlet.settings)

"""What the framework's handlers share: the type of a request, this process's `Cloudlet`, and how a struct is answered."""

from __future__ import annotations

from typing import Any

import msgspec
from litestar import Request, Response
from litestar.datastructures import State

from metricsd.cloud.cloudlet import Cloudlet

Req = Request[Any, Any, State]


def cloudlet_of(request: Req) -> Cloudlet:
    """Return what the handlers of this process share."""
    cloudlet: Cloudlet = request.app.state["cloudlet"]
    return cloudlet


def answer_of(reply: msgspec.Struct) -> Response[bytes]:
    """Return a struct as the answer."""
    return Response(msgspec.json.encode(reply), media_type="application/json")

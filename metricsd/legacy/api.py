"""The older API: its 21 endpoints and the five of the current hooks, over a Shelf and a Host.

One implementation for every mount: it takes a request and gives an answer, and knows no transport. Where two callers
share a path, they are told apart by the keys of their bodies. What is answered otherwise than the original did, and
why, is listed in docs/api-legacy.md.
"""

from __future__ import annotations

import resource
import sys
import time
from collections.abc import Awaitable, Callable, Mapping
from typing import Any, TypeAlias

from metricsd.analytics import overview
from metricsd.clock import US_PER_MS, Clock
from metricsd.decode.names import repeated_id
from metricsd.errors import StoreError
from metricsd.ids import Occurrences
from metricsd.legacy import calls, figures, hooks, session_form
from metricsd.legacy.answers import VERSION, envelope
from metricsd.legacy.asked import Answer, ApiError, Invalid, Request, leading_number, no_route, segments
from metricsd.legacy.checks import SESSION, TOOL_METRIC, check, check_batch
from metricsd.legacy.kept import Call, Figures, Host, Kept, Session, Shelf, Wanted, Writes
from metricsd.legacy.local_files import baseline_of, indicators_of, usual_of
from metricsd.legacy.moments import find_us
from metricsd.legacy.values import Json, iso

SERVICE = "External Metrics Web Service"
LIST_MAX = 1000
"""Sessions in one answer; a client that wants more asks with `offset`."""
LIST_DEFAULT = 50
DAYS_DEFAULT = 7
DAYS_MAX = 3660
SESSION_NOT_FOUND = "Session not found"
ANSWERS_KEPT = 16
RECENT_RATE = 0.05
"""How much the newest answer weighs in the mean time of answers."""
_RSS_UNIT = 1 if sys.platform == "darwin" else 1024

Handler: TypeAlias = Callable[["Api", Request, str], Awaitable[Answer]]


class Remembered:
    """Answers of one user that are true for as long as the figures they were made of are the newest."""

    def __init__(self) -> None:
        self._made: dict[str, tuple[Figures, Json]] = {}

    def get(self, name: str, figures: Figures, make: Callable[[Figures], Json]) -> Json:
        """Return the answer of this name over these figures, making it if need be."""
        known = self._made.get(name)
        if known is not None and known[0] is figures:
            return known[1]
        if len(self._made) >= ANSWERS_KEPT:
            self._made.clear()
        made = make(figures)
        self._made[name] = (figures, made)
        return made


class Api:
    """The older API of one keeper of data."""

    def __init__(self, shelf: Shelf, host: Host, clock: Clock, remembered: Remembered | None = None) -> None:
        self.shelf = shelf
        self.host = host
        self.clock = clock
        self.remembered = remembered or Remembered()
        self.mean_ms = 0.0

    async def answer(self, request: Request) -> Answer:
        """Answer a request; whatever is wrong with it, or with the store, is an answer too."""
        began = time.perf_counter()
        try:
            found = await self._handle(request)
        except Invalid as wrong:
            found = hooks.refusal(wrong, self.now_ms)
        except ApiError as wrong:
            found = self.refusal(wrong.status, wrong.text)
        except StoreError:
            found = self.refusal(503, "The database cannot be used now: try again in a moment")
        took_ms = (time.perf_counter() - began) * 1000
        self.mean_ms += (took_ms - self.mean_ms) * (RECENT_RATE if self.mean_ms else 1)
        return found

    @property
    def now_ms(self) -> int:
        """Return the time that answers carry."""
        return self.clock.now_us() // US_PER_MS

    def good(self, data: object, status: int = 200, message: str | None = None) -> Answer:
        """Return data in the envelope of that API; a message becomes a key of the data."""
        return Answer(status, envelope({"data": data, "message": message}, now_ms=self.now_ms))

    def refusal(self, status: int, text: str) -> Answer:
        """Return the envelope of an error."""
        return Answer(status, envelope({"success": False, "error": text}, now_ms=self.now_ms))

    async def session(self, name: str) -> Session:
        """Return the session that a client calls by this id; raise ApiError 404."""
        found = await self.shelf.find(repeated_id(name) or "")
        if found is None:
            raise ApiError(404, SESSION_NOT_FOUND)
        return found

    async def _handle(self, request: Request) -> Answer:
        parts = segments(request.path)
        handler = ROUTES.get((request.method, "/".join(parts)))
        if handler is not None:
            return await handler(self, request, "")
        if len(parts) > 1 and parts[-1]:
            handler = ROUTES_OF_ONE.get((request.method, "/".join(parts[:-1])))
            if handler is not None:
                return await handler(self, request, parts[-1])
        raise no_route(request.path)


async def create_session(api: Api, request: Request, _: str) -> Answer:
    """1: keep a session whole; an id that is there is overwritten."""
    body = check(request.parsed(), SESSION)
    name = str(body["session_id"])
    await api.shelf.write(session_form.writes(body, name))
    return await _session_answer(api, name, 201, "Session created successfully")


async def update_session(api: Api, request: Request, name: str) -> Answer:
    """2: replace a session that is there; the id in the path decides."""
    body = check(request.parsed(), SESSION)
    known = await api.session(name)
    await api.shelf.write(session_form.writes(body, name, app=known.key.app))
    return await _session_answer(api, name, 200, "Session updated successfully")


async def read_session(api: Api, _: Request, name: str) -> Answer:
    """3: one session."""
    return api.good(session_form.shown(await api.session(name), api.host.person.user))


async def list_sessions(api: Api, request: Request, _: str) -> Answer:
    """4: sessions of a user, of a time, page by page, in the order in which they became known."""
    query = request.queried()
    limit = leading_number(query.get("limit", str(LIST_DEFAULT)), LIST_DEFAULT)
    skip = leading_number(query.get("offset", "0"), 0)
    if limit is None or skip is None or query.get("user", "") is None:
        # Not a number, or a list where a text belongs: nothing is equal to that.
        return api.good([])
    if limit <= 0 or skip < 0:
        return api.good([])
    wanted = Wanted(
        user=query.get("user") or None,
        owner=api.host.person.user,
        from_us=find_us(query.get("start_date")),
        until_us=find_us(query.get("end_date")),
        skip=skip,
        limit=min(limit, LIST_MAX),
    )
    return api.good([session_form.shown(one, wanted.owner) for one in await api.shelf.list(wanted)])


async def delete_session(api: Api, _: Request, name: str) -> Answer:
    """5: delete a session; its calls stay."""
    await api.shelf.write(session_form.deletion(await api.session(name)))
    return api.good({"deleted": True}, 200, "Session deleted successfully")


async def record_call(api: Api, request: Request, _: str) -> Answer:
    """6: one call of a tool."""
    body = check(request.parsed(), TOOL_METRIC)
    told = calls.read(body, Occurrences())
    await api.shelf.write(_of_calls([told]))
    return api.good(_shown(told), 201, "Tool metric recorded successfully")


async def record_calls(api: Api, request: Request, _: str) -> Answer:
    """7: up to a hundred calls; what is wrong with one takes nothing from the others."""
    items = check_batch(request.parsed())
    occurrences = Occurrences()
    good: list[calls.Told] = []
    results: list[Json] = []
    for item in items:
        try:
            if not isinstance(item, dict):
                raise ApiError(400, calls.BAD_TIME)
            told = calls.read(item, occurrences)
        except ApiError as wrong:
            results.append({"error": wrong.text, "originalData": item})
        else:
            good.append(told)
            results.append(_shown(told))
    if good:
        await api.shelf.write(_of_calls(good))
    data = {"results": results, "processed": len(items), "successful": len(good)}
    return api.good(data, 201, "Batch tool metrics processed")


async def read_calls(api: Api, _: Request, name: str) -> Answer:
    """8: the calls of a session; none for one that nobody knows."""
    return api.good([calls.shown(call) for call in await api.shelf.calls(repeated_id(name) or "")])


async def show_productivity(api: Api, request: Request, _: str) -> Answer:
    """9: how productive the last days were."""
    days = _days(request)
    found = await api.shelf.figures(days, uses=False)
    return api.good(api.remembered.get(f"productivity {days}", found, _productivity))


async def show_tools(api: Api, request: Request, _: str) -> Answer:
    """10: which tools were used, how well, and when."""
    days = _days(request)
    found = await api.shelf.figures(days, uses=True)
    return api.good(api.remembered.get(f"tools {days}", found, _tools))


async def show_session(api: Api, _: Request, name: str) -> Answer:
    """11: one session's figures."""
    return api.good(session_form.analytics(await api.session(name)))


async def show_dashboard(api: Api, _: Request, __: str) -> Answer:
    """12: today, the week, and the open session."""
    found = await api.shelf.figures(DAYS_DEFAULT * 2, uses=False)
    user = api.host.person.user
    return api.good(api.remembered.get("dashboard", found, lambda figures: _dashboard(figures, user)))


async def show_indicators(api: Api, _: Request, __: str) -> Answer:
    """13: the running session against what is usual; as the older hooks' file has it where there is one."""
    kept = api.host.find_file("productivity-indicators.json")
    return api.good(indicators_of(kept, await api.shelf.figures(1, uses=False), api.clock.now_us()))


async def show_baseline(api: Api, _: Request, __: str) -> Answer:
    """14: what is usual; as the older hooks' file has it where there is one."""
    kept = api.host.find_file("historical-baseline.json")
    return api.good(baseline_of(kept, await api.shelf.figures(1, uses=False)))


async def start_hook(api: Api, request: Request, _: str) -> Answer:
    """15, or the current hooks' endpoint of the same path: a session begins."""
    body = request.fields()
    if "start_time" in body:
        return await hooks.session_start(api.shelf, body, api.now_ms)
    return await _hook(api, hooks.start(api.shelf, api.host.person, body, api.clock.now_us()))


async def end_hook(api: Api, request: Request, _: str) -> Answer:
    """16, or the current hooks' endpoint of the same path: a session ends."""
    body = request.fields()
    if "end_time" in body:
        return await hooks.session_end(api.shelf, body, api.now_ms)
    name = hooks.session_named(body)
    return await _hook(api, hooks.end(api.shelf, await api.session(name), name, api.clock.now_us()))


async def usage_hook(api: Api, request: Request, _: str) -> Answer:
    """17: a tool was used, now."""
    told = calls.read_now(request.fields(), api.clock.now_us())

    async def record() -> Json:
        await api.shelf.write(_of_calls([told]))
        shown = _shown(told)
        return {"toolName": shown["tool_name"], "sessionId": shown["session_id"], "recorded": True}

    return await _hook(api, record())


async def line_hook(api: Api, request: Request, _: str) -> Answer:
    """5.1: the record that the current hooks post."""
    told = calls.read_line(hooks.need(request.fields(), "tool_name", "session_id"), api.clock.now_us())
    await api.shelf.write(_of_calls([told]))
    return hooks.recorded(told, request.fields(), api.now_ms)


async def score_hook(api: Api, request: Request, _: str) -> Answer:
    """5.1: a session's score."""
    return await hooks.productivity(api.shelf, request.fields(), api.now_ms)


async def hooks_health(api: Api, _: Request, __: str) -> Answer:
    """5.1: whether the hooks' endpoints answer."""
    return hooks.health(await api.host.trouble(), api.now_ms)


async def show_health(api: Api, _: Request, __: str) -> Answer:
    """18: whether the database can be used, in truth."""
    trouble = await api.host.trouble()
    if trouble is not None:
        return api.refusal(503, f"Health check failed: {trouble}")
    standing = await api.host.standing()
    return api.good(
        {
            "status": "healthy",
            "timestamp": iso(api.now_ms),
            "version": VERSION,
            "compatibility_mode": "legacy",
            "database_status": "connected",
            "hooks_bridge_status": "active" if standing.follows_hooks else "inactive",
        }
    )


async def show_version(api: Api, _: Request, __: str) -> Answer:
    """19: what this is; `mode` is the mode that it is in."""
    standing = await api.host.standing()
    return api.good(
        {
            "api_version": VERSION,
            "compatibility_version": VERSION,
            "service": SERVICE,
            "mode": standing.mode,
            "local_hooks_compatible": standing.follows_hooks,
            "migration_support": True,
        }
    )


async def show_standing(api: Api, _: Request, __: str) -> Answer:
    """20: how much waits for the cloud."""
    found = await api.host.standing()
    return api.good(
        {
            "mode": found.mode,
            "cloudEnabled": found.has_cloud,
            "localFallback": found.is_local,
            "syncStatus": {
                "pending": {"sessions": found.pending_sessions, "toolMetrics": found.pending_calls},
                "failed": {"sessions": found.failed_sessions, "toolMetrics": found.failed_calls},
                # A client parses it as a time: what never was synced was last synced in 1970.
                "lastSync": iso((found.synced_us or 0) // US_PER_MS),
            },
            "performance": {
                "localHooksActive": found.follows_hooks,
                "cloudSyncActive": found.is_syncing,
                "averageResponseTime": round(api.mean_ms, 3),
            },
        }
    )


async def sync_now(api: Api, request: Request, _: str) -> Answer:
    """21: send what waits; the body says nothing, but must be one."""
    request.parsed()
    done = await api.host.sync()
    data: Json = {
        "success": done.ok,
        "sessionsSynced": done.sessions,
        "toolMetricsSynced": done.calls,
        "errors": list(done.errors),
    }
    return api.good(data, 200, "Local data synced successfully")


async def _session_answer(api: Api, name: str, status: int, message: str) -> Answer:
    return api.good(session_form.shown(await api.session(name), api.host.person.user), status, message)


async def _hook(api: Api, work: Awaitable[Mapping[str, Any]]) -> Answer:
    """Return what a hook's script printed: how long the work took, and how much memory the process holds."""
    began = time.perf_counter()
    metrics = await work
    took_ms = round((time.perf_counter() - began) * 1000)
    memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * _RSS_UNIT
    return api.good({"success": True, "executionTime": took_ms, "memoryUsage": memory, "metrics": metrics})


def _productivity(found: Figures) -> Json:
    return figures.productivity(overview.productivity(found.sessions, found.cells, found.day_of, usual_of(found.usual)))


def _tools(found: Figures) -> Json:
    return figures.tools(overview.tool_figures(found.uses, found.hours))


def _dashboard(found: Figures, user: str) -> Json:
    board = overview.dashboard(found.sessions, found.cells, found.day_of, found.today, usual_of(found.usual))
    return figures.dashboard(board, user=user)


def _of_calls(told: list[calls.Told]) -> Writes:
    kept: list[Kept] = [one.kept for one in told if one.kept is not None]
    return Writes(events=[(one.id, one.event) for one in told], documents=kept)


def _shown(told: calls.Told) -> Json:
    return calls.shown(Call(told.event, told.document))


def _days(request: Request) -> int:
    found = leading_number(request.queried().get("days", str(DAYS_DEFAULT)), DAYS_DEFAULT)
    return DAYS_DEFAULT if found is None else min(max(found, 1), DAYS_MAX)


ROUTES: Mapping[tuple[str, str], Handler] = {
    ("POST", "sessions"): create_session,
    ("GET", "sessions"): list_sessions,
    ("POST", "tool-metrics"): record_call,
    ("POST", "tool-metrics/batch"): record_calls,
    ("GET", "analytics/productivity"): show_productivity,
    ("GET", "analytics/tools"): show_tools,
    ("GET", "dashboard/metrics"): show_dashboard,
    ("GET", "dashboard/indicators"): show_indicators,
    ("GET", "dashboard/baseline"): show_baseline,
    ("POST", "hooks/session-start"): start_hook,
    ("POST", "hooks/session-end"): end_hook,
    ("POST", "hooks/tool-usage"): usage_hook,
    ("POST", "hooks/tool-metrics"): line_hook,
    ("POST", "hooks/productivity-data"): score_hook,
    ("GET", "hooks/health"): hooks_health,
    ("GET", "health"): show_health,
    ("GET", "version"): show_version,
    ("GET", "migration/status"): show_standing,
    ("POST", "migration/sync"): sync_now,
}
"""Paths below the prefix."""
ROUTES_OF_ONE: Mapping[tuple[str, str], Handler] = {
    ("GET", "sessions"): read_session,
    ("PUT", "sessions"): update_session,
    ("DELETE", "sessions"): delete_session,
    ("GET", "tool-metrics"): read_calls,
    ("GET", "analytics/sessions"): show_session,
}
"""Paths that end in a session's id."""

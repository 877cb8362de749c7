"""Counters of one process in Prometheus' text format.

Labels come from closed sets, whatever a client sends: an unknown path is `other`, an unknown method `OTHER`. No tenant,
user or device is ever named.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping, Sequence

from metricsd.protocol import PREFIX

DEVICE_DATA = f"{PREFIX}/devices/{{device_id}}/data"
OLDER_API = "/api/v1"
"""The older API is one route here: its clients are few, and their ids stand in its paths."""
ROUTES = frozenset(
    {
        *(
            f"{PREFIX}/{name}"
            for name in ("capabilities", "devices", "hello", "events", "records", "changes", "policy", "have")
        ),
        f"{PREFIX}/changes/stream",
        DEVICE_DATA,
        "/healthz",
        "/readyz",
        "/metrics",
        "/schema/openapi.json",
    }
)
METHODS = frozenset({"GET", "POST", "HEAD", "OPTIONS", "PUT", "PATCH", "DELETE"})
BUCKETS_S = (0.005, 0.02, 0.1, 0.5, 2.0, 10.0)
_PREFIX = "metricsd_cloud_"
_DEVICE_DATA = re.compile(rf"{PREFIX}/devices/[^/]+/data")


def route_of(path: str) -> str:
    """Return the route that a path belongs to, as a label: ids become their names, what is not served `other`. Pure."""
    if path in ROUTES:
        return path
    if path.startswith(OLDER_API):
        return OLDER_API
    return DEVICE_DATA if _DEVICE_DATA.fullmatch(path) else "other"


class Metrics:
    """Counts requests, their time, items by outcome and received bytes."""

    def __init__(self) -> None:
        self._requests: Counter[tuple[str, str, int]] = Counter()
        self._buckets: Counter[tuple[str, float]] = Counter()
        self._seconds: Counter[str] = Counter()
        self._items: Counter[tuple[str, str]] = Counter()
        self._received_bytes = 0

    def answered(self, method: str, path: str, status: int, took_s: float) -> None:
        """Count one answered request."""
        route = route_of(path)
        self._requests[method if method in METHODS else "OTHER", route, status] += 1
        bucket = next((bound for bound in BUCKETS_S if took_s <= bound), float("inf"))
        self._buckets[route, bucket] += 1
        # A counter of seconds holds microseconds, because Counter is typed for whole numbers.
        self._seconds[route] += round(took_s * 1_000_000)

    def received(self, size: int) -> None:
        """Count the bytes of a body."""
        self._received_bytes += size

    def items(self, kind: str, outcomes: Sequence[str]) -> None:
        """Count events or records by what became of them."""
        for outcome, count in Counter(outcomes).items():
            self._items[kind, outcome] += count

    def text(self, gauges: Mapping[str, float]) -> str:
        """Return everything, gauges of the moment included."""
        lines = ["# TYPE metricsd_cloud_requests_total counter"]
        for (method, route, status), count in sorted(self._requests.items()):
            labels = f'method="{method}",route="{route}",status="{status}"'
            lines.append(f"{_PREFIX}requests_total{{{labels}}} {count}")
        lines.append("# TYPE metricsd_cloud_request_seconds histogram")
        for route in sorted(self._seconds):
            lines += self._histogram(route)
        lines.append("# TYPE metricsd_cloud_items_total counter")
        for (kind, outcome), count in sorted(self._items.items()):
            lines.append(f'{_PREFIX}items_total{{kind="{kind}",outcome="{outcome}"}} {count}')
        lines += [
            "# TYPE metricsd_cloud_received_bytes_total counter",
            f"{_PREFIX}received_bytes_total {self._received_bytes}",
        ]
        for name, value in sorted(gauges.items()):
            kind = "counter" if name.endswith("_total") else "gauge"
            lines += [f"# TYPE {_PREFIX}{name} {kind}", f"{_PREFIX}{name} {value:g}"]
        return "\n".join(lines) + "\n"

    def _histogram(self, route: str) -> list[str]:
        lines, below = [], 0
        for bound in (*BUCKETS_S, float("inf")):
            below += self._buckets[route, bound]
            edge = "+Inf" if bound == float("inf") else f"{bound:g}"
            lines.append(f'{_PREFIX}request_seconds_bucket{{route="{route}",le="{edge}"}} {below}')
        lines.append(f'{_PREFIX}request_seconds_sum{{route="{route}"}} {self._seconds[route] / 1_000_000:.6f}')
        lines.append(f'{_PREFIX}request_seconds_count{{route="{route}"}} {below}')
        return lines

"""A daemon that idles for hours grows by nothing: the slope is printed and judged."""

from __future__ import annotations

import pytest

from bench.idle import SAMPLES, Sample, growth, soak

HOURS = 8.0


def samples(mb_per_hour: float, files_per_hour: float, cpu_percent: float) -> list[Sample]:
    """Return a soak whose first quarter filled caches."""
    found = []
    for number in range(SAMPLES):
        hour = number * HOURS / SAMPLES
        warming = max(2.0 - hour, 0.0) * 8.0
        found.append(
            Sample(
                hour * 3600, 50.0 - warming + mb_per_hour * hour, 20 + int(files_per_hour * hour), 5,
                cpu_percent / 100 * hour * 3600,
            )
        )  # fmt: skip
    return found


@pytest.mark.parametrize(
    ("mb_per_hour", "files_per_hour", "cpu_percent", "ok"),
    [
        (0.0, 0.0, 0.1, True),
        (0.2, 0.0, 0.1, True),
        (1.0, 0.0, 0.1, False),
        (0.0, 2.0, 0.1, False),
        (0.0, 0.0, 0.3, False),
    ],
)
def test_what_grows_by_the_hour_is_found(
    mb_per_hour: float, files_per_hour: float, cpu_percent: float, ok: bool
) -> None:
    """Caches that fill in the first hours are no leak; memory, files and processor time are each held to a limit."""
    found = growth(samples(mb_per_hour, files_per_hour, cpu_percent))
    assert found.rss_mb_per_hour == pytest.approx(mb_per_hour, abs=0.01)
    assert found.cpu_percent == pytest.approx(cpu_percent, abs=0.01)
    assert found.ok is ok


@pytest.mark.soak
@pytest.mark.timeout(0)
def test_eight_idle_hours_are_flat(capsys: pytest.CaptureFixture[str]) -> None:
    """Logged in, with its stream and its rounds, and nothing to do."""
    with capsys.disabled():
        found = soak(HOURS)
    assert found.ok, found

"""The decisions of a round, as tables: evidence in, action out, no server."""

from __future__ import annotations

from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from metricsd.clock import US_PER_S
from metricsd.protocol import HelloReply
from metricsd.sync import plan
from metricsd.sync.plan import Action, Decision, Due, LocalStream


def local(acked: int = 10, *, last: int = 20, at_last: str | None = None, holds: bool = False) -> LocalStream:
    return LocalStream(1, acked, f"id{acked}" if acked else "", last, at_last, holds)


def reply(
    last: int, last_id: str | None = None, *, at_acked: str | None = None, epoch: int = 1, cursor_ok: bool = True
) -> HelloReply:
    named = last_id if last_id is not None else (f"id{last}" if last else "")
    return HelloReply(
        server_time=0, epoch=epoch, last_seq=last, last_id=named, id_at_acked=at_acked, cursor_ok=cursor_ok
    )


IN_SYNC, FORK = Decision(Action.IN_SYNC), Decision(Action.FORK, reset_cursor=True)
RESEND = Decision(Action.RESEND)

CASES = [
    ("both new", local(0, last=0), reply(0), IN_SYNC),
    ("first push waits", local(0, last=5), reply(0), IN_SYNC),
    ("nothing new", local(), reply(10), IN_SYNC),
    ("same length, other event", local(), reply(10, "other"), FORK),
    ("the cursor is of another history", local(), reply(10, cursor_ok=False), Decision(Action.IN_SYNC, reset_cursor=True)),
    ("an answer was lost", local(at_last="id15"), reply(15, at_acked="id10"), RESEND),
    ("an answer was lost before any other", local(0, at_last="id3"), reply(3), RESEND),
    ("an answer was lost, retention took the event's place", local(holds=True), reply(15), RESEND),
    ("a clone wrote on", local(at_last="id15"), reply(15, "other", at_acked="id10"), FORK),
    ("a clone wrote on from an older place", local(at_last="id15"), reply(15, at_acked="other"), FORK),
    ("this device was restored", local(last=12), reply(15, at_acked="id10"), FORK),
    ("this device was restored and recorded on", local(last=15), reply(15, at_acked="id10"), FORK),
    ("restored far back, though the event came again", local(last=12, holds=True), reply(15), FORK),
    ("the store is new, the login is not", local(0, last=0), reply(15), FORK),
    ("the cloud lost some", local(at_last="id7"), reply(7), Decision(Action.REOFFER, 7, "id7", reset_cursor=True)),
    ("the cloud lost all", local(), reply(0), Decision(Action.REOFFER, 0, "", reset_cursor=True)),
    ("the cloud lost some, retention dropped the event", local(), reply(7), Decision(Action.REOFFER, 7, "id7", reset_cursor=True)),
    ("the cloud lost some and a clone wrote there", local(at_last="id7"), reply(7, "other"), FORK),
    ("another epoch is written", local(), reply(10, epoch=2), FORK),
    ("another epoch, but nothing in it", local(0), reply(0, epoch=2), IN_SYNC),
]  # fmt: skip


@pytest.mark.parametrize(
    ("evidence", "said", "decision"), [case[1:] for case in CASES], ids=[case[0] for case in CASES]
)
def test_a_hello_is_answered_by(evidence: LocalStream, said: HelloReply, decision: Decision) -> None:
    """Each case of DESIGN section 7: in sync, lost answer, restored cloud, restored device, clone."""
    assert plan.decide(evidence, said) == decision


@given(st.integers(0, 30), st.integers(0, 30), st.integers(0, 30), st.booleans(), st.booleans())
def test_a_decision_never_passes_over_an_unsent_event(acked: int, last: int, cloud: int, known: bool, ok: bool) -> None:
    """Whatever the cloud claims, the mark only moves to a place that the cloud has, and forward only over our events."""
    evidence = local(acked, last=last, at_last=f"id{cloud}" if known else None)
    decision = plan.decide(evidence, reply(cloud, cursor_ok=ok))
    if decision.action is Action.REOFFER:
        assert decision.seq == cloud < acked
    if decision.action is Action.RESEND:
        assert acked < cloud <= last and known


@pytest.mark.parametrize(
    ("size", "full", "limit", "after"),
    [(50, True, 5000, 100), (50, False, 5000, 50), (4000, True, 5000, 5000), (50, True, 20, 20)],
)
def test_batches_grow_to_the_limit_while_behind(size: int, full: bool, limit: int, after: int) -> None:
    """A full batch doubles the next one, a part-full one does not; the server's limit holds."""
    assert plan.next_batch(size, full=full, items_max=limit) == after


def test_the_first_batch_obeys_the_server() -> None:
    """The setting counts unless the server allows less."""
    assert (plan.first_batch(50, 5000), plan.first_batch(50, 10)) == (50, 10)


@given(st.lists(st.integers(1, 1000), min_size=1), st.integers(1, 5000))
def test_a_batch_fits_its_bytes_or_is_one_item(sizes: list[int], limit: int) -> None:
    """As many leading items as fit; one that is too large alone still goes, to get its own verdict."""
    count = plan.take_bytes(sizes, limit)
    assert 1 <= count <= len(sizes)
    assert count == 1 or sum(size + 1 for size in sizes[:count]) <= limit
    assert count == len(sizes) or sum(size + 1 for size in sizes[: count + 1]) > limit


@given(st.lists(st.integers(), min_size=2))
def test_halves_lose_nothing_and_get_smaller(items: list[int]) -> None:
    """Halving ends: both parts are smaller, together they are the whole."""
    left, right = plan.halves(items)
    assert [*left, *right] == items and 0 < len(left) < len(items)


@given(st.integers(1, 10_000), st.integers(0, 2**32), st.none() | st.floats(0, 1e9))
def test_the_pause_is_bounded_and_honours_retry_after(failures: int, seed: int, wanted: float | None) -> None:
    """Never above the maximum without a Retry-After, never below one (up to an hour)."""
    pause = plan.backoff_s(failures, 300.0, wanted, Random(seed))
    assert pause >= min(wanted or 0.0, plan.RETRY_AFTER_MAX_S)
    assert pause <= max(300.0, min(wanted or 0.0, plan.RETRY_AFTER_MAX_S))


def test_the_pause_doubles_to_its_maximum() -> None:
    """The bound of the jitter is 2, 4, 8 ... seconds, then the maximum."""

    class Highest(Random):
        def uniform(self, a: float, b: float) -> float:
            return b

    assert [plan.backoff_s(n, 300.0, None, Highest()) for n in (1, 2, 3, 8, 9, 99)] == [2, 4, 8, 256, 300, 300]


@given(st.text(), st.floats(0.1, 86400), st.integers(0, 2**52))
def test_ticks_lie_on_the_devices_own_grid(device: str, interval_s: float, now_us: int) -> None:
    """The next tick is at most an interval away, and the one after it exactly an interval later."""
    offset = plan.offset_s(device, interval_s)
    assert 0 <= offset <= interval_s and offset == plan.offset_s(device, interval_s)
    first = plan.next_regular_us(now_us, interval_s, offset)
    assert 0 < first - now_us <= int(interval_s * US_PER_S)
    assert plan.next_regular_us(first, interval_s, offset) - first == int(interval_s * US_PER_S)


def test_a_thousand_devices_spread_over_the_interval() -> None:
    """No tenth of the interval has more than twice its share."""
    places = [int(plan.offset_s(f"device-{n}", 10.0)) for n in range(1000)]
    assert max(places.count(tenth) for tenth in range(10)) < 200


@pytest.mark.parametrize(
    ("overdue_s", "answer"),
    [
        (-1, Due.NOT_YET),
        (-300, Due.NOT_YET),
        (0, Due.NOW),
        (60, Due.NOW),
        (200, Due.LATE),
        (8 * 3600, Due.LATE),
        (-10 * 86400, Due.NOW),
    ],
)
def test_a_tick_is_due(overdue_s: int, answer: Due) -> None:
    """Sleep makes one late tick, not many; a clock that was set back does not silence the device."""
    assert plan.due(10**15 + overdue_s * US_PER_S, 10**15, 300.0) is answer


@given(st.floats(0.1, 86400), st.integers())
def test_the_sync_after_sleep_is_spread(interval_s: float, seed: int) -> None:
    """It waits up to a twentieth of the interval, at most 15 s."""
    assert 0 <= plan.wake_jitter_s(interval_s, Random(seed)) <= min(interval_s / 20, 15.0)

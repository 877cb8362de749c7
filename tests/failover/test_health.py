"""How the cloud answers: what is a failure, what is none, and when a few of them mean something."""

from __future__ import annotations

import pytest

from metricsd.errors import (
    AuthError,
    CloudBusy,
    CloudError,
    CloudRefused,
    CloudUnreachable,
    Fault,
    HistoryChanged,
)
from metricsd.failover import CloudHealth
from metricsd.health import WINDOW, CloudWatch, Verdict, outcome_of

SLOW_S = 5.0


class Watched:
    """A watch, and a second that passes before each outcome."""

    def __init__(self) -> None:
        self.watch = CloudWatch(SLOW_S)
        self.at_s = 100.0

    def ok(self, *, took_s: float = 0.1, answers: int = 4) -> CloudHealth:
        return self.met(None, took_s=took_s, answers=answers)

    def met(self, error: CloudError | None, *, took_s: float = 0.1, answers: int = 0) -> CloudHealth:
        self.at_s += 1.0
        self.watch.note(outcome_of(error, at_s=self.at_s, took_s=took_s, answers=answers))
        return self.watch.judge(self.at_s)


@pytest.fixture
def seen() -> Watched:
    return Watched()


def _server_error() -> CloudUnreachable:
    return CloudUnreachable("500", Fault.SERVER)


def test_nothing_is_known_before_it_was_asked(seen: Watched) -> None:
    """A daemon that has just started does not claim that the cloud is well."""
    assert seen.watch.judge(seen.at_s) is CloudHealth.UNKNOWN
    assert seen.ok() is CloudHealth.HEALTHY


@pytest.mark.parametrize("fault", [Fault.REFUSED, Fault.NAME, Fault.TLS, Fault.NOT_OURS, Fault.SILENT])
def test_one_clear_sign_is_enough(seen: Watched, fault: Fault) -> None:
    """Refused, no such name, a certificate that is not trusted, a portal's page, a probe without an answer."""
    seen.ok()
    assert seen.met(CloudUnreachable("gone", fault)) is CloudHealth.UNREACHABLE


@pytest.mark.parametrize("fault", [Fault.RESET, Fault.TIMEOUT, Fault.SERVER, Fault.OTHER])
def test_what_may_pass_by_itself_takes_three_in_a_row(seen: Watched, fault: Fault) -> None:
    """One 500 is no outage; it makes the cloud suspect, so that a probe follows."""
    seen.ok()
    assert seen.met(CloudUnreachable("?", fault)) is CloudHealth.HEALTHY
    assert seen.watch.is_suspect
    assert seen.met(CloudUnreachable("?", fault)) is CloudHealth.HEALTHY
    assert seen.met(CloudUnreachable("?", fault)) is CloudHealth.UNREACHABLE
    assert not seen.watch.is_suspect


def test_an_answer_in_between_begins_the_count_anew(seen: Watched) -> None:
    """Failure, answer, failure, answer is an impaired cloud, never an absent one."""
    for _ in range(10):
        assert seen.met(_server_error()) is not CloudHealth.UNREACHABLE
        found = seen.ok()
    assert found is CloudHealth.FAILING


def test_rounds_that_fail_half_way_impair(seen: Watched) -> None:
    """It says hello and fails every push: it is there, and nothing gets through."""
    found = [seen.met(_server_error(), answers=2) for _ in range(6)]
    assert found[-1] is CloudHealth.FAILING
    assert CloudHealth.UNREACHABLE not in found


def test_two_good_answers_end_an_outage_and_its_failures_are_forgotten(seen: Watched) -> None:
    """What failed during the outage is no measure of what has come back."""
    for _ in range(WINDOW):
        seen.met(CloudUnreachable("gone", Fault.REFUSED))
    assert seen.ok(answers=1) is CloudHealth.UNREACHABLE
    assert seen.ok(answers=1) is CloudHealth.HEALTHY
    assert seen.watch.good_probes == 2


def test_a_whole_round_is_proof_enough(seen: Watched) -> None:
    """It holds several good answers."""
    seen.met(CloudUnreachable("gone", Fault.REFUSED))
    assert seen.ok(answers=3) is CloudHealth.HEALTHY


def test_two_good_rounds_end_an_impairment(seen: Watched) -> None:
    """And one does not."""
    for _ in range(6):
        seen.met(_server_error(), answers=1)
    assert seen.ok() is CloudHealth.FAILING
    assert seen.ok() is CloudHealth.HEALTHY


def test_slow_answers_impair_and_one_slow_answer_does_not(seen: Watched) -> None:
    """The 95th percentile of the window, and never a single slow answer."""
    for _ in range(5):
        seen.ok()
    assert seen.ok(took_s=9.0) is CloudHealth.HEALTHY
    found = [seen.ok(took_s=9.0) for _ in range(4)]
    assert found[-1] is CloudHealth.SLOW
    seen.ok()
    assert seen.ok() is CloudHealth.HEALTHY


def test_being_asked_to_slow_down_is_no_failure(seen: Watched) -> None:
    """429 a hundred times: the mode stays, the schedule honours Retry-After."""
    seen.ok()
    for _ in range(100):
        assert seen.met(CloudBusy("slow down", 5.0)) is CloudHealth.HEALTHY
    assert seen.watch.heard_at_s == seen.at_s


@pytest.mark.parametrize("error", [HistoryChanged("restored")])
def test_what_the_next_round_heals_is_no_failure(seen: Watched, error: CloudError) -> None:
    """A restored cloud answers."""
    for _ in range(10):
        assert seen.met(error) is CloudHealth.UNKNOWN


def test_a_refused_request_was_answered(seen: Watched) -> None:
    """A cloud of another version refuses everything: impaired, not away."""
    found = [seen.met(CloudRefused("no", 400)) for _ in range(5)]
    assert found[-1] is CloudHealth.FAILING
    assert CloudHealth.UNREACHABLE not in found


def test_a_refused_login_stays_refused_until_it_changes_or_is_accepted(seen: Watched) -> None:
    """Neither time nor other failures end it; another login does, and so does the cloud's own answer."""
    seen.ok()
    assert seen.met(AuthError("revoked")) is CloudHealth.AUTH
    assert seen.met(CloudUnreachable("gone", Fault.REFUSED)) is CloudHealth.AUTH
    assert seen.watch.judge(seen.at_s + 1e6) is CloudHealth.AUTH
    seen.watch.note_login(has_login=True)
    assert seen.watch.judge(seen.at_s) is CloudHealth.UNKNOWN
    seen.met(AuthError("revoked"))
    assert seen.ok() is CloudHealth.HEALTHY


def test_without_a_login_there_is_no_cloud(seen: Watched) -> None:
    """Whatever was known of it."""
    seen.ok()
    seen.watch.note_login(has_login=False)
    assert seen.watch.judge(seen.at_s) is CloudHealth.NO_LOGIN


def test_while_frozen_failures_are_not_counted_and_answers_are(seen: Watched) -> None:
    """After the lid was opened the network takes its time."""
    seen.ok()
    seen.watch.freeze(seen.at_s + 10.0)
    for _ in range(5):
        assert seen.met(CloudUnreachable("no network", Fault.NAME)) is CloudHealth.HEALTHY
    seen.at_s += 10.0
    assert seen.met(CloudUnreachable("no network", Fault.NAME)) is CloudHealth.UNREACHABLE
    seen.watch.freeze(seen.at_s + 10.0)
    assert seen.ok() is CloudHealth.HEALTHY


def test_old_failures_say_nothing_about_now(seen: Watched) -> None:
    """An hour later they are gone."""
    for _ in range(6):
        seen.met(_server_error(), answers=1)
    assert seen.watch.judge(seen.at_s + 3700.0) is CloudHealth.HEALTHY


def test_every_outcome_has_a_verdict() -> None:
    """Good, bad, neither, or a matter of the login."""
    said = {
        type(error).__name__: outcome_of(error, at_s=0.0, took_s=0.0, answers=0).verdict
        for error in (None, AuthError("a"), CloudBusy("b"), CloudRefused("c"), CloudUnreachable("d"), CloudError("e"))
    }
    assert said == {
        "NoneType": Verdict.GOOD, "AuthError": Verdict.AUTH, "CloudBusy": Verdict.NEUTRAL, "CloudRefused": Verdict.BAD,
        "CloudUnreachable": Verdict.BAD, "CloudError": Verdict.NEUTRAL,
    }  # fmt: skip

"""Laws of rolling back: exactly what an import brought goes, here and elsewhere, and comes back exactly."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
import threading
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, initialize, invariant, rule, run_state_machine_as_test

from metricsd.crash import ROLLBACK_POINTS, VARIABLE
from metricsd.errors import RollbackUnproven
from metricsd.store import (
    batches,
    befores,
    events,
    older_api,
    records,
    rollbacks,
    sessions,
    state,
    switching,
    tool_metrics,
    witness,
)
from metricsd.store.choosing import Choice
from metricsd.store.connection import Store
from metricsd.store.imports import Batch, Entry, Progress
from metricsd.store.imports import take as take_part
from metricsd.store.retention import fold
from metricsd.store.rollbacks import Wanted
from metricsd.store.suggestions import Suggestion
from metricsd.store.summary import reading
from tests.analytics.support import put
from tests.fakes import START_US, FakeClock
from tests.store.imported import HOUR_US, SESSIONS, TOOLS, carry, counting, fact, load, said, state_digest

FACTS = 24
EXAMPLES = 30
numbers = st.sets(st.integers(0, FACTS - 1), min_size=1, max_size=10)
choices = st.one_of(
    st.builds(lambda tool: Choice(tools=(tool,)), st.sampled_from(TOOLS)),
    st.builds(lambda n: Choice(sessions=(f"s{n}",)), st.integers(0, SESSIONS - 1)),
    st.builds(lambda n: Choice(sessions=(f"claude-code/s{n}",), tools=("Bash",)), st.integers(0, SESSIONS - 1)),
    st.builds(
        lambda a, b: Choice(since_us=START_US + min(a, b) * HOUR_US, until_us=START_US + max(a, b) * HOUR_US),
        st.integers(0, FACTS), st.integers(0, FACTS),
    ),
    st.builds(lambda rule: Choice(rules=(rule,)), st.sampled_from(("odd", "third"))),
)  # fmt: skip


def rules_of(number: int) -> tuple[str, ...]:
    return tuple(name for name, holds in (("odd", number % 2), ("third", number % 3 == 0)) if holds)


def matches(choice: Choice, number: int) -> bool:
    """Say by the number alone whether a choice names a fact."""
    session, at = f"s{number % SESSIONS}", START_US + number * HOUR_US
    return (
        (not choice.sessions or session in {one.rpartition("/")[2] for one in choice.sessions})
        and (not choice.tools or (number >= SESSIONS and TOOLS[number % 2] in choice.tools))
        and (not choice.rules or bool(set(choice.rules) & set(rules_of(number))))
        and choice.since_us <= at < choice.until_us
    )


class Killed(BaseException):
    """Stands for a kill inside the transaction."""


class Laws(RuleBasedStateMachine):
    """A store with imports, live facts, edits, rollbacks and their undoing, beside a model that is sets of numbers."""

    done = Bundle("done")

    def __init__(self) -> None:
        super().__init__()
        self._folder = tempfile.TemporaryDirectory()
        self.path = Path(self._folder.name) / "store.db"
        self.clock = FakeClock()
        self.store = Store.open(self.path, clock=self.clock)
        self.other = Store.open(Path(self._folder.name) / "other.db", clock=self.clock)
        self.stored: set[int] = set()
        self.counts: set[int] = set()
        self.brought: dict[str, list[set[int]]] = {}
        self.by_hand: dict[int, str] = {}
        self.carried = 0

    def teardown(self) -> None:
        self.store.close()
        self.other.close()
        self._folder.cleanup()

    @initialize(live=numbers, first=numbers, second=numbers, third=numbers)
    def begin(self, live: set[int], first: set[int], second: set[int], third: set[int]) -> None:
        """There is something to take back from the first step on."""
        self.capture(live)
        self.import_part("a", first)
        self.import_part("b", second)
        self.import_part("a", third)

    @rule(run=st.sampled_from(["a", "b"]), some=numbers)
    def import_part(self, run: str, some: set[int]) -> None:
        parts = self.brought.setdefault(run, [])
        load(self.store, run, len(parts) + 1, sorted(some), {n: rules_of(n) for n in some})
        parts.append(some - self.counts)
        self.stored |= some
        self.counts |= some

    @rule(some=numbers)
    def capture(self, some: set[int]) -> None:
        """The live tail of the same files: what is known stays as it is, what was taken out too."""
        put(self.store, [fact(n) for n in sorted(some)])
        self.counts |= some - self.stored
        self.stored |= some

    @rule(session=st.integers(0, SESSIONS - 1), text=st.sampled_from(["x", "y"]))
    def write_by_hand(self, session: int, text: str) -> None:
        with self.store.transaction():
            records.edit(self.store, "session", f"claude-code/s{session}", {"description": text})
        self.by_hand[session] = text

    @rule(target=done, run=st.sampled_from(["a", "b"]), first=st.sampled_from([1, 1, 2, 3]))
    def take_back_from(self, run: str, first: int) -> tuple[str, frozenset[int], bool]:
        return self.take_back(run, first, None)

    @rule(target=done, run=st.sampled_from(["a", "b"]), choice=choices)
    def take_back_some(self, run: str, choice: Choice) -> tuple[str, frozenset[int], bool]:
        return self.take_back(run, 1, choice)

    def take_back(self, run: str, first: int, choice: Choice | None) -> tuple[str, frozenset[int], bool]:
        gone = {n for part in self.brought.get(run, [])[first - 1 :] for n in part}
        gone = {n for n in gone & self.counts if choice is None or matches(choice, n)}
        before = state_digest(self.store)
        wanted = Wanted(run, first, choice)
        assert rollbacks.run(self.store, wanted, dry_run=True).events == len(gone)
        assert state_digest(self.store) == before
        result = rollbacks.run(self.store, wanted)
        assert result.events == len(gone)
        self.counts -= gone
        undone = rollbacks.run(self.store, Wanted(run, undo=result.id))
        assert (state_digest(self.store), undone.kept_count) == (before, 0)
        again = rollbacks.run(self.store, Wanted(run, undo=undone.id))
        assert again.events == len(gone)
        return again.id, frozenset(gone), False

    @rule(target=done, one=done)
    def undo(self, one: tuple[str, frozenset[int], bool]) -> tuple[str, frozenset[int], bool]:
        rollback, moved, back = one
        run = rollbacks.find(self.store, rollback)
        assert run is not None
        result = rollbacks.run(self.store, Wanted(run, undo=rollback))
        # `again` above took out what its undone rollback had brought back, so undoing it brings that back.
        changed = moved & self.counts if back else moved - self.counts
        assert result.events == len(changed)
        self.counts = self.counts - changed if back else self.counts | changed
        return result.id, frozenset(changed), not back

    @rule(run=st.sampled_from(["a", "b"]), point=st.sampled_from(ROLLBACK_POINTS[:3]), choice=st.none() | choices)
    def kill(self, run: str, point: str, choice: Choice | None) -> None:
        """What dies in the middle leaves nothing; whoever asks again gets all of it."""
        before = state_digest(self.store)

        def crash(name: str) -> None:
            if name == point:
                raise Killed

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(rollbacks, "crash_point", crash)
            try:
                rollbacks.run(self.store, Wanted(run, choice=choice))
            except Killed:
                pass
            else:
                assert point == "rollback_part" and not self.brought.get(run)
                return
        self.store.close()
        self.store = Store.open(self.path, clock=self.clock)
        assert state_digest(self.store) == before

    @rule()
    def sync(self) -> None:
        """The other device hears of it in any order, and counts the same."""
        self.carried += 1
        carry(self.store, self.other, self.carried)
        assert counting(self.other) == counting(self.store)

    @invariant()
    def exactly_these_count(self) -> None:
        assert counting(self.store) == {fact(n).id for n in self.counts}
        hidden = state.get_int(self.store, batches.RETRACTED_EVENTS)
        assert hidden == len(self.stored) - len(self.counts)
        with reading(self.path) as summary:
            assert sum(cell.n for cell in summary.cells()) == len(self.counts)

    @invariant()
    def what_people_wrote_stays(self) -> None:
        for session, text in self.by_hand.items():
            record = records.get(self.store, "session", f"claude-code/s{session}")
            assert record is not None and record.version.fields["description"] == text


def test_a_rollback_takes_exactly_what_was_brought_and_gives_it_back() -> None:
    """Against a model of plain sets, with live writes, edits, kills and another device in between."""
    run_state_machine_as_test(Laws, settings=settings(max_examples=EXAMPLES, stateful_step_count=12, deadline=None))


@pytest.mark.soak
def test_two_thousand_interleavings_keep_the_laws() -> None:
    """The same, for as long as notes/reliability.md asks."""
    run_state_machine_as_test(Laws, settings=settings(max_examples=2000, stateful_step_count=30, deadline=None))


@pytest.fixture
def store(tmp_path: Path) -> Any:
    made = Store.open(tmp_path / "store.db", clock=FakeClock())
    yield made
    made.close()


def test_what_people_changed_since_is_left_and_listed(store: Store) -> None:
    """Unless somebody says otherwise; the rest goes either way."""
    load(store, "a", 1, range(8))
    before = said(store)
    with store.transaction():
        records.edit(store, "session", "claude-code/s1", {"score": 99})
        records.edit(store, "session", "claude-code/s2", {}, delete=True)
    done = rollbacks.run(store, Wanted("a"))
    assert {one.id for one in done.kept} == {"claude-code/s1", "claude-code/s2"}
    assert (done.kept_count, done.records, done.events) == (2, 4, 8)
    assert said(store)["session/claude-code/s1"][0]["score"] == 99
    rollbacks.run(store, Wanted("a", undo=done.id))
    assert said(store)["session/claude-code/s0"] == before["session/claude-code/s0"]
    done = rollbacks.run(store, Wanted("a", overwrite=True))
    assert [one.id for one in done.kept] == ["claude-code/s2"]
    assert "session/claude-code/s1" not in said(store)


def test_records_get_back_what_they_were(store: Store) -> None:
    """A session that was there before keeps what it had; one that an import made is no session any more."""
    with store.transaction():
        records.edit(store, "session", "claude-code/s0", {"description": "mine", "score": 7})
    put(store, [fact(0), fact(3)])
    load(store, "a", 1, range(6))
    assert len(sessions.read_all(store, lambda app, one: f"{app}/{one}")) == 3
    rollbacks.run(store, Wanted("a"))
    assert said(store) == {"session/claude-code/s0": ({"description": "mine", "score": 7}, 0)}
    (left,) = sessions.read_all(store, lambda app, one: f"{app}/{one}")
    assert (left.session_id, left.numbers["events"], left.numbers["tool_calls"]) == ("s0", 2, 1)


def test_running_it_again_brings_everything_back_and_can_be_taken_back_again(store: Store) -> None:
    """A second migration of the same source doubles nothing, and what it brought back is its own to take back."""
    load(store, "a", 1, range(12))
    before = state_digest(store)
    rollbacks.run(store, Wanted("a"))
    load(store, "b", 1, range(12))
    assert state_digest(store) == before
    assert store.db.execute("SELECT count(*) FROM event").fetchone() == (12,)
    rollbacks.run(store, Wanted("b", choice=Choice(tools=("Read",))))
    assert counting(store) == {fact(n).id for n in range(12) if n < SESSIONS or TOOLS[n % 2] == "Bash"}
    rollbacks.run(store, Wanted("b"))
    assert (counting(store), said(store)) == (set(), {})


def test_a_smaller_source_brings_back_only_what_it_has(store: Store) -> None:
    """Running a part of the source again must not bring the rest."""
    load(store, "a", 1, range(12))
    rollbacks.run(store, Wanted("a"))
    load(store, "b", 1, [4, 5])
    assert counting(store) == {fact(4).id, fact(5).id}


def test_calls_that_came_added_up_go_with_their_import_or_alone(store: Store) -> None:
    """A tool metric has no event: it goes by its batch, or by a selection of no events."""

    def metric(number: int) -> Suggestion:
        values: dict[str, Any] = {
            "app": "legacy", "session": f"s{number}", "tool": TOOLS[number % 2], "execution_count": 10, "batch": "a.1",
            "started_at": START_US,
        }  # fmt: skip
        return Suggestion(tool_metrics.TYPE, f"m{number}", values)

    def calls() -> int:
        with reading(store.path) as summary:
            return sum(cell.n for cell in summary.cells())

    entries = [Entry([], [metric(n)]) for n in range(4)]
    take_part(store, Batch("a", 1, "a.1", "l", "t"), entries, lambda _: (Progress(1, b"", b"", 0), [], b"{}"))
    before = said(store)
    assert calls() == 40
    some = rollbacks.run(store, Wanted("a", choice=Choice(tools=("Bash",))))
    assert calls() == 20
    full = rollbacks.run(store, Wanted("a"))
    assert (calls(), full.kept_count) == (0, 0)
    rollbacks.run(store, Wanted("a", undo=full.id))
    rollbacks.run(store, Wanted("a", undo=some.id))
    assert (calls(), said(store)) == (40, before)
    with store.transaction():
        tool_metrics.put(store, "m1", {"execution_count": 11})
    done = rollbacks.run(store, Wanted("a"))
    assert ([one.id for one in done.kept], calls()) == (["m1"], 11)


def test_older_clients_see_no_more_of_it_either(store: Store) -> None:
    """The older API lists a session's calls one by one, from events and from what arrived added up."""
    load(store, "a", 1, range(9))
    values: dict[str, Any] = {
        "app": "claude-code",
        "session": "s0",
        "tool": "Bash",
        "execution_count": 3,
        "batch": "a.2",
    }
    entries = [Entry([], [Suggestion(tool_metrics.TYPE, "m", values)])]
    take_part(store, Batch("a", 2, "a.2", "l", "t"), entries, lambda _: (Progress(2, b"", b"", 0), [], b"{}"))

    def seen() -> tuple[int, int]:
        with reading(store.path) as summary:
            return len(older_api.calls(summary, "s0")), len(older_api.metrics(summary, "s0"))

    assert seen() == (2, 1)
    done = rollbacks.run(store, Wanted("a"))
    assert seen() == (0, 0)
    rollbacks.run(store, Wanted("a", undo=done.id))
    assert seen() == (2, 1)


def test_a_person_is_found_by_name_and_by_id(store: Store) -> None:
    """By the id in the session's record, or by the name that older clients know."""
    load(store, "a", 1, range(9))
    for user in ("user1", "name2"):
        rollbacks.run(store, Wanted("a", choice=Choice(users=(user,))))
    assert counting(store) == {fact(n).id for n in (0, 3, 6)}
    assert set(said(store)) == {"session/claude-code/s0", "extra/session/s0"}


def test_a_choice_of_more_than_a_selection_holds_is_several(store: Store) -> None:
    """A field on the wire has 16 KiB; what does not fit goes into further records."""
    many = batches.NAMED_MAX * 2 + 10
    load(store, "a", 1, range(many))
    done = rollbacks.run(store, Wanted("a", choice=Choice(until_us=START_US + (many - 1) * HOUR_US)))
    assert (done.events, len(counting(store))) == (many - 1, 1)
    assert sum(1 for _, _, inactive in batches.selections(store, "a.1") if inactive) == 3
    rollbacks.run(store, Wanted("a", undo=done.id))
    assert len(counting(store)) == many


@pytest.mark.parametrize("sql", [
    "UPDATE event SET duration_ms = 1 WHERE pos = 1",
    "UPDATE event SET batch = NULL WHERE pos = 1",
    "DELETE FROM event WHERE pos = (SELECT max(pos) FROM event)",
    "UPDATE rollup SET n = n + 1",
    "UPDATE day_total SET failed = failed + 1",
    "DELETE FROM hour_total",
    "UPDATE record SET fields = '{}' WHERE id = 'claude-code/by-hand'",
    "DELETE FROM record WHERE id = 'claude-code/by-hand'",
    "INSERT INTO record (type, id, fields, stamps) VALUES ('import_batch', 'other.1', '{}', '{}')",
    "DELETE FROM legacy_extra WHERE key = 'by-hand'",
    "UPDATE session_counters SET events = 0",
    "DELETE FROM import_part",
    "INSERT INTO quarantine (key, at, file, offset, bytes, reason, detail, sha256) VALUES (x'00', 1, '', 0, 0, '', '', x'00')",
    "UPDATE state SET value = 7 WHERE key = 'last_pos'",
])  # fmt: skip
def test_nothing_else_can_change_unseen(store: Store, sql: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever else a rollback changed, it is refused, and everything is as it was."""
    load(store, "a", 1, range(6))
    put(store, [fact(20)])
    with store.transaction():
        records.edit(store, "session", "claude-code/by-hand", {"description": "x"})
        store.db.execute(
            "INSERT INTO legacy_extra (kind, key, at, bytes, body) VALUES ('session', 'by-hand', 1, 2, '{}')"
        )
    before = state_digest(store)
    close = switching.close

    def wrong(store: Store, batch: str) -> None:
        store.db.execute(sql)
        close(store, batch)

    monkeypatch.setattr(switching, "close", wrong)
    with pytest.raises(RollbackUnproven):
        rollbacks.run(store, Wanted("a"))
    assert state_digest(store) == before
    monkeypatch.undo()
    assert rollbacks.run(store, Wanted("a")).events == 6


def test_the_witness_knows_every_column_of_an_event(store: Store) -> None:
    """A new column is part of the proof, or nobody would see it change."""
    columns = {row[1] for row in store.db.execute("PRAGMA table_info(event)")}
    assert columns == {*witness._EVENT_COLUMNS, "batch"}


@pytest.mark.parametrize("point", ROLLBACK_POINTS)
def test_a_kill_leaves_all_of_it_or_nothing(point: str, tmp_path: Path) -> None:
    """kill -9 at each edge of the transaction and behind it; the next command goes on from there."""
    path = tmp_path / "store.db"
    store = Store.open(path, clock=FakeClock())
    load(store, "a", 1, range(10))
    load(store, "a", 2, range(10, 20))
    before = state_digest(store)
    store.close()
    code = (
        "import sys; from pathlib import Path; from metricsd.store.connection import Store; "
        "from metricsd.store import rollbacks; "
        "rollbacks.run(Store.open(Path(sys.argv[1])), rollbacks.Wanted('a'))"
    )
    environment = {**os.environ, VARIABLE: point}
    killed = subprocess.run([sys.executable, "-c", code, str(path)], env=environment, check=False, timeout=60)
    assert killed.returncode == -signal.SIGKILL
    store = Store.open(path, clock=FakeClock())
    is_done = point == "rolled_back"
    assert (state_digest(store) == before) is not is_done
    done = rollbacks.run(store, Wanted("a"))
    assert (done.events, counting(store)) == (0 if is_done else 20, set())
    store.close()


def test_taking_back_what_is_out_already_is_nothing_to_take_back(store: Store) -> None:
    """The second rollback took nothing, so taking that one back brings nothing."""
    load(store, "a", 1, range(5))
    first = rollbacks.run(store, Wanted("a"))
    second = rollbacks.run(store, Wanted("a"))
    rollbacks.run(store, Wanted("a", undo=second.id))
    assert (second.events, counting(store)) == (0, set())
    assert rollbacks.run(store, Wanted("a", undo=first.id)).events == 5


def test_what_is_folded_goes_with_its_part(store: Store) -> None:
    """Retention dropped the rows and kept their totals: these count until the whole part is taken back."""

    def total() -> int:
        with reading(store.path) as summary:
            return sum(cell.n for cell in summary.cells())

    load(store, "a", 1, range(20))
    assert isinstance(store.clock, FakeClock)
    store.clock.jump((10 * HOUR_US) / 1_000_000 + 86_400)
    assert fold(store, days=1, synced_through=None) == 10
    assert rollbacks.run(store, Wanted("a", choice=Choice(tools=TOOLS, since_us=0))).events == 10
    assert total() == 10
    done = rollbacks.run(store, Wanted("a"))
    assert (done.events, total()) == (0, 0)
    rollbacks.run(store, Wanted("a", undo=done.id))
    assert (total(), counting(store)) == (10, set())
    rollbacks.run(store, Wanted("a", undo="a~1"))
    assert total() == 20


def test_what_went_to_the_cloud_alone_is_taken_back_by_its_records(store: Store) -> None:
    """This machine never had the events; their records came with a sync, and switching them tells everybody."""
    with store.transaction():
        for part in (1, 2):
            records.edit(store, "import_batch", f"c.{part}", {"active": True})
    assert rollbacks.is_known(store, "c") and not rollbacks.is_stored(store, "c")
    done = rollbacks.run(store, Wanted("c", first_part=2))
    assert (switching.is_out(store, "c.1"), switching.is_out(store, "c.2")) == (False, True)
    undone = rollbacks.run(store, Wanted("c", undo=done.id))
    assert not switching.is_out(store, "c.2")
    rollbacks.run(store, Wanted("c", undo=undone.id))
    assert (switching.is_out(store, "c.1"), switching.is_out(store, "c.2")) == (False, True)


def test_captures_go_on_beside_it(store: Store) -> None:
    """Another program writes the store meanwhile, as a daemon does: both wait for each other, and nobody loses a thing."""
    load(store, "a", 1, range(200))
    ended = threading.Event()
    captured: list[int] = []

    def capture() -> None:
        with closing(Store.open(store.path)) as daemon:
            while not ended.is_set() or not captured:
                number = 1000 + len(captured)
                put(daemon, [fact(number)])
                captured.append(number)

    writer = threading.Thread(target=capture)
    writer.start()
    try:
        for _ in range(5):
            done = rollbacks.run(store, Wanted("a"))
            assert done.events == 200
            assert rollbacks.run(store, Wanted("a", undo=done.id)).events == 200
        done = rollbacks.run(store, Wanted("a"))
    finally:
        ended.set()
        writer.join()
    assert captured and counting(store) == {fact(number).id for number in captured}


def test_a_journal_keeps_the_first_before_and_the_last_after(store: Store) -> None:
    """A record that a part changes twice is put back to what it was before the first."""
    values: list[Any] = [
        Suggestion("session", "claude-code/s0", {"score": 5}), Suggestion("session", "claude-code/s0", {"user_id": "u"}),
    ]  # fmt: skip
    entries = [Entry([fact(0, "a.1")], values)]
    take_part(store, Batch("a", 1, "a.1", "l", "t"), entries, lambda _: (Progress(1, b"", b"", 0), [], b"{}"))
    (one,) = befores.of_part(store, "a", 1)
    assert one.before is None
    assert one.after == befores.mark_of("session", "claude-code/s0", {"fields": {"score": 5, "user_id": "u"}})
    assert rollbacks.run(store, Wanted("a")).kept_count == 0
    assert said(store) == {} and events.last_pos(store) == 1

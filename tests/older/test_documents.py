"""Documents that come late, are rewritten, break or vanish; and what a restart may not do again."""

from __future__ import annotations

import json
import os
from typing import Any

import pytest

from metricsd.clock import US_PER_S
from metricsd.config import Tail as Settings
from metricsd.ids import DeviceId, line_id
from metricsd.older import documents
from metricsd.store import events, legacy_extra, outbox, quarantine, records
from metricsd.store.connection import Store
from metricsd.store.events import Identified
from metricsd.store.ingest import Taken
from metricsd.store.outbox import Settled
from metricsd.store.retention import fold
from tests.older.support import NAMES, Older, call, start, summary
from tests.samples import make_event

AT = [f"2026-01-05T08:{minute:02}:00Z" for minute in range(60)]


def score_of(store: Store, session: str) -> object:
    found = records.get(store, "session", f"legacy/{session}")
    return None if found is None else found.version.fields.get("score")


def counted(older: Older) -> dict[str, int]:
    """Return how many calls each session has by its counters, which must be what its events say."""
    sql = "SELECT s.session_id, c.tool_calls FROM session_counters AS c JOIN session AS s ON s.id = c.session"
    found = {name: calls for name, calls in older.store.db.execute(sql) if calls}
    assert found == {name: older.owners.count(name) for name in set(older.owners)}
    return found


class TestLate:
    """The file that tells of a session comes after its calls."""

    def test_calls_move_to_the_session_that_becomes_known(self, older: Older) -> None:
        """As when the second folder is copied here first; the counters move with them, and the ids stay."""
        older.bring("second", "mesh")
        older.quiet()
        before = {event_id for (event_id,) in older.store.db.execute("SELECT id FROM event")}
        assert set(older.owners) == {"default-session"}
        older.bring("second", "agent")
        older.quiet()
        assert counted(older) == {NAMES["second"]: 15}
        assert before < {event_id for (event_id,) in older.store.db.execute("SELECT id FROM event")}

    def test_after_a_restart_too(self, older: Older) -> None:
        """Nothing of it is remembered in memory alone."""
        older.write(older.mesh / "tool-metrics.jsonl", call("default-session", AT[5]))
        older.quiet()
        older.restart()
        older.document("one.json", start("one", AT[0]))
        older.quiet()
        assert counted(older) == {"one": 1}

    def test_only_what_the_cloud_has_not_acknowledged_moves(self, older: Older) -> None:
        """What was sent is the same everywhere, and stays."""
        outbox.enrol(older.store, DeviceId("d" * 32), "cloud")
        older.write(older.mesh / "tool-metrics.jsonl", call("default-session", AT[5]), call("default-session", AT[6]))
        older.quiet()
        stream = outbox.find(older.store)
        assert stream is not None
        first = outbox.next_items(older.store, stream, 1)[0]
        outbox.acknowledge(older.store, stream, Settled(first.seq, first.id.hex(), [first.seq]))
        older.document("one.json", start("one", AT[0]))
        older.quiet()
        assert counted(older) == {"default-session": 1, "one": 1}

    def test_what_an_import_brought_stays_as_it_is(self, older: Older) -> None:
        """It is proven against its source, event by event."""
        event = make_event(app="legacy", session="default-session", at=1_767_600_300_000_000, batch="import-1.1")
        with older.store.transaction():
            item = Identified(line_id(b"x", event.at // 1000, 0), event)
            events.insert(older.store, [item], device=events.own_device(older.store))
        older.write(older.mesh / "tool-metrics.jsonl", call("default-session", AT[5]))
        older.document("one.json", start("one", AT[20]))
        older.quiet()
        older.document("zero.json", start("zero", AT[0]))
        older.quiet()
        assert counted(older) == {"default-session": 1, "zero": 1}

    def test_a_session_of_somebody_else_claims_nothing(self, older: Older) -> None:
        """Who made the calls is remembered beside them, on this machine."""
        older.document("two.json", start("two", AT[0], user="eve"))
        older.document("three.json", start("three", AT[0], user="bob"))
        older.write(older.mesh / "tool-metrics.jsonl", call("default-session", AT[5]))
        older.quiet()
        older.document("four.json", start("four", AT[1], user="eve"))
        older.quiet()
        assert counted(older) == {"default-session": 1}
        older.document("one.json", start("one", AT[1]))
        older.quiet()
        assert counted(older) == {"one": 1}

    def test_calls_of_several_people_are_claimed_only_where_they_agree(self, older: Older) -> None:
        """Which of them made a call is not kept, so a session of one of them is no answer."""
        people = ("dev1@example.test", "bob@example.test")
        lines = [call("default-session", at, user=user) for at, user in zip(AT[5:7], people, strict=True)]
        older.write(older.mesh / "tool-metrics.jsonl", *lines)
        older.quiet()
        older.document("one.json", start("one", AT[0]))
        older.document("two.json", start("two", AT[50], user="bob"))
        older.quiet()
        assert counted(older) == {"default-session": 2}

    def test_sessions_that_are_still_being_copied_claim_nothing(self, older: Older) -> None:
        """A session whose end has not arrived yet would claim the calls of those behind it."""
        lines = [call("default-session", f"2026-01-05T{hour:02}:05:00Z") for hour in range(8, 12)]
        older.write(older.mesh / "tool-metrics.jsonl", *lines)
        older.later()
        for hour in range(8, 12):
            began = f"2026-01-05T{hour:02}:00:00Z"
            older.document(f"s{hour}.json", start(f"s{hour}", began))
            older.clock.advance(1.0)
            older.tick()
            older.document(f"s{hour}_summary.json", summary(f"s{hour}", began, f"2026-01-05T{hour:02}:30:00Z"))
            older.clock.advance(1.0)
            older.tick()
        older.quiet()
        assert counted(older) == {f"s{hour}": 1 for hour in range(8, 12)}

    def test_a_document_that_appears_between_two_looks_is_known_to_its_calls(self, older: Older) -> None:
        """It is there before its first call, so it is looked for when lines were read."""
        older.document("old.json", start("old", "2026-01-05T07:00:00Z"))
        older.quiet()
        take = older.tail._older._documents.tick

        def then_the_hooks_write(*, done: list[bool] = []) -> object:  # noqa: B006
            found = take()
            if not done:
                done.append(True)
                older.document("one.json", start("one", AT[0]))
                older.write(older.mesh / "tool-metrics.jsonl", call("default-session", AT[5]))
            return found

        older.tail._older._documents.tick = then_the_hooks_write  # type: ignore[method-assign,assignment]
        older.tick()
        assert older.owners == ["one"]
        assert [event.session for event in older.of("session_started")] == ["old", "one"]

    def test_an_end_without_its_session_is_its_sessions(self, older: Older) -> None:
        """Hooks that did not find the session named its last files after the stand-in."""
        older.document("one.json", start("one", AT[0]))
        older.document("default-session_summary.json", summary("one", AT[0], AT[9]))
        end = {"event": "session_end", "timestamp": AT[9], "session_id": "default-session", "productivity_score": 8}
        older.write(older.agent / "sessions" / "default-session.jsonl", end)
        older.quiet()
        assert [(event.kind, event.session) for event in older.events] == [
            ("session_started", "one"),
            ("session_ended", "one"),
        ]


class TestRewritten:
    """Documents that say something else than before."""

    def test_a_session_that_ends_twice_ends_at_last(self, older: Older) -> None:
        """Both ends are facts; the later one is the session's, and so is its score."""
        older.document("one.json", start("one", AT[0]))
        older.document("one_summary.json", summary("one", AT[0], AT[9], 8))
        older.later()
        older.document("one_summary.json", summary("one", AT[0], AT[20], 9))
        older.later()
        ends = older.of("session_ended")
        assert [event.at // US_PER_S % 3600 // 60 for event in ends] == [9, 20]
        end_at = older.store.db.execute("SELECT max(end_at) FROM session_counters").fetchone()[0]
        assert (end_at, score_of(older.store, "one")) == (ends[-1].at, 90)

    def test_a_score_changes_with_its_file_but_not_against_a_person(self, older: Older) -> None:
        """A person's edit stands, whatever the file says later."""
        older.document("one_summary.json", summary("one", AT[0], AT[9], 8))
        older.later()
        older.document("one_summary.json", summary("one", AT[0], AT[9], 3))
        older.later()
        assert score_of(older.store, "one") == 30
        with older.store.transaction():
            records.edit(older.store, "session", "legacy/one", {"score": 55})
        older.document("one_summary.json", summary("one", AT[0], AT[9], 4))
        older.later()
        assert score_of(older.store, "one") == 55

    def test_files_that_disagree_come_to_rest(self, older: Older) -> None:
        """However often they are read, and by whom first."""
        older.document("one_summary.json", summary("one", AT[0], AT[9], 9))
        ends = [
            {"event": "session_end", "timestamp": at, "session_id": "one", "productivity_score": score}
            for at, score in ((AT[5], 7), (AT[9], 9))
        ]
        older.write(older.agent / "sessions" / "one.jsonl", *ends)
        history = [summary("one", AT[0], AT[5], 7), summary("one", AT[0], AT[9], 9)]
        older.write(older.agent / "session-history.jsonl", *history)
        older.later()
        stamps = _stamps(older.store)
        older.store.db.execute("DELETE FROM source")
        older.store.db.commit()
        older.restart()
        older.later()
        assert (score_of(older.store, "one"), _stamps(older.store)) == (90, stamps)

    def test_a_change_within_the_grain_of_the_files_times_is_seen(
        self, older: Older, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """A document that changed just now is read once more, whatever its times say then."""
        path = older.document("one_summary.json", summary("one", AT[0], AT[9], 8))
        now_ns = older.clock.now_us() * 1000
        os.utime(path, ns=(now_ns, now_ns))
        look = documents._look_of(str(path))
        monkeypatch.setattr(documents, "_look", lambda found: look)
        older.tick()
        path.write_text(json.dumps(summary("one", AT[0], AT[9], 5)))
        os.utime(path, ns=(now_ns, now_ns))
        older.clock.advance(0.01)
        older.tick()
        assert score_of(older.store, "one") == 80
        older.clock.advance(documents.YOUNG_S)
        older.tick()
        assert score_of(older.store, "one") == 50

    def test_a_document_that_goes_on_changing_stays_young(self, older: Older) -> None:
        """Each change starts its second anew, and only a look that lasted is kept for the next start."""
        sql = "SELECT count(*) FROM source WHERE form = 'older-document'"
        kept = []
        for score in (8, 7, 6, None, None):
            if score is not None:
                path = older.document("one_summary.json", summary("one", AT[0], AT[9], score))
                now_ns = older.clock.now_us() * 1000
                os.utime(path, ns=(now_ns, now_ns))
            older.tick()
            kept.append(older.store.db.execute(sql).fetchone()[0])
            older.clock.advance(0.6)
        assert (score_of(older.store, "one"), kept) == (60, [0, 0, 0, 0, 1])


class TestBad:
    """Documents that cannot be read."""

    def test_lines_that_were_half_written_are_settled_when_they_are_whole(self, older: Older) -> None:
        """And not looked at in every round for ever."""
        path = older.agent / "sessions" / "one.jsonl"
        path.parent.mkdir(parents=True)
        line = json.dumps({"event": "session_start", "timestamp": AT[0], "session_id": "one"})
        path.write_text(line[:30])
        older.later()
        assert older.tail._older._documents._bad
        path.write_text(line + "\n")
        older.later()
        assert not older.tail._older._documents._bad
        assert (len(older.events), older.reasons) == (1, [])

    def test_a_link_that_leads_nowhere_hides_no_document(self, older: Older) -> None:
        """One bad entry of a folder is passed over."""
        for number in range(20):
            older.document(f"s{number}.json", start(f"s{number}", AT[number]))
            (older.agent / "sessions" / f"x{number}.json").symlink_to("nowhere")
        older.later()
        assert len(older.of("session_started")) == 20

    @pytest.mark.parametrize(
        "more",
        [
            {"productivity_score": 10**18},
            {"productivity_metrics": {"lines": 10**25, "deep": [[["x"]]], "auth_token": ["s3cret"]}},
            {"session_id": "☃ " * 300},
            {"user": "\0", "git_branch": "\udc80".encode("utf-8", "surrogatepass").decode("latin-1")},
        ],
    )
    def test_a_hostile_document_stops_nothing(self, older: Older, more: dict[str, object]) -> None:
        """What lies beside it is read all the same."""
        older.document("a.json", start("a", AT[0]) | more)
        older.document("b.json", start("b", AT[1]))
        older.write(older.agent / "session-history.jsonl", start("c", AT[2]) | more | {"end_time": AT[3]})
        older.write(older.mesh / "tool-metrics.jsonl", call("b", AT[4]))
        older.later()
        assert {"b"} == {event.session for event in older.of("tool_used")}
        assert "b" in {event.session for event in older.of("session_started")}

    def test_what_the_store_refuses_is_quarantined_and_the_rest_goes_on(
        self, older: Older, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Of a document as of a line, and once: the next round does not meet it again."""
        put = legacy_extra.Extra.put

        def refuse(self: legacy_extra.Extra, store: Store) -> None:
            if self.key in ("a", "c"):
                raise OverflowError("too large")
            put(self, store)

        monkeypatch.setattr(legacy_extra.Extra, "put", refuse)
        for name in ("a", "b"):
            older.document(f"{name}.json", start(name, AT[0]))
        older.write(older.agent / "session-history.jsonl", start("c", AT[2]), start("d", AT[3]))
        older.later()
        older.later()
        assert {event.session for event in older.of("session_started")} == {"a", "b", "c", "d"}
        assert older.reasons == ["store_refused", "store_refused"]


class TestRestart:
    """What is stored stays so."""

    def test_nothing_is_stored_again(self, older: Older, monkeypatch: pytest.MonkeyPatch) -> None:
        """Not even to find that it is known: a start with years of documents writes nothing."""
        older.bring("six")
        older.later()
        older.restart()
        taken: list[object] = []
        sink = older.tail._older._documents._sink
        take = sink.take

        def watched(items: list[Identified], **more: Any) -> Taken:
            taken.extend(items)
            return take(items, **more)

        monkeypatch.setattr(sink, "take", watched)
        older.later()
        assert taken == []

    def test_but_it_is_known_whose_calls_come_next(self, older: Older) -> None:
        """A session goes on over a restart."""
        older.document("one.json", start("one", AT[0]))
        older.later()
        older.restart()
        older.write(older.mesh / "tool-metrics.jsonl", call("default-session", AT[5]))
        older.later()
        assert older.owners == ["one"]

    def test_old_documents_are_not_blamed_after_a_fold(self, older: Older) -> None:
        """Retention has folded their events into the totals; they are not new, and not too old."""
        older.bring("six")
        older.later()
        older.clock.advance(100 * 86400.0)
        assert fold(older.store, days=1, synced_through=None) == 66
        assert not older.events
        older.restart()
        older.later()
        assert (older.reasons, older.events) == ([], [])

    def test_a_document_that_is_gone_is_forgotten_and_what_it_said_stays(self, older: Older) -> None:
        """The store does not fill with files that are no more."""
        path = older.document("one.json", start("one", AT[0]))
        older.later()
        sql = "SELECT count(*) FROM source WHERE form = 'older-document'"
        assert older.store.db.execute(sql).fetchone()[0] == 1
        path.unlink()
        older.later()
        assert older.store.db.execute(sql).fetchone()[0] == 0
        assert len(older.of("session_started")) == 1


def test_two_equal_lines_are_two_calls(older: Older) -> None:
    """They have their order in the file; reading it again changes nothing."""
    older.write(older.mesh / "tool-metrics.jsonl", *[call("s", AT[0])] * 2)
    older.later()
    older.store.db.execute("DELETE FROM source")
    older.store.db.commit()
    older.restart()
    older.later()
    assert len(older.of("tool_used")) == 2


def test_bytes_of_bad_lines_stay_where_they_are(older: Older) -> None:
    """Such lines are full of commands and tokens, torn ones too; place, length and reason are kept."""
    torn = json.dumps(call("s", AT[0]))[:150].encode()
    (older.mesh).mkdir(parents=True)
    (older.mesh / "tool-metrics.jsonl").write_bytes(torn + b"\n")
    older.document("bad.json", ["secret"])
    older.later()
    older.clock.advance(Settings().incomplete_after_s + 1)
    older.later()
    entries = quarantine.list_open(older.store)
    assert sorted((entry.file, entry.bytes, entry.stored) for entry in entries) == [
        ("sessions/bad.json", 10, None),
        ("tool-metrics.jsonl", 150, None),
    ]


def _stamps(store: Store) -> object:
    found = records.get(store, "session", "legacy/one")
    return found.version.stamps if found is not None else None

"""Bugs on purpose: the proof that the tests can fail.

    python -m tests.mutants [NAME ...]        (or `make mutants`)

Each mutant is one wrong line in a copy of the source tree, with the test that must notice it. The copy lies in a
temporary folder; the tree itself is never touched. Ends with 1 if a mutant survives, if a test fails without one, or
if the text that a mutant replaces is no longer there.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parents[1]
COPIED = ("metricsd", "hooks", "tests", "conflict_policies", "systemd", "launchd", "docs", "bench")
COPIED_FILES = ("pyproject.toml", "README.md", "CHANGELOG.md", "Makefile")
DEADLINE_S = 300
PASSED, FAILED = 0, 1
"""pytest's exit codes; every other one means that it did not get as far as the test."""

HISTORIES = "tests/tail/test_histories.py::test_two_thousand_random_steps_lose_nothing_and_double_nothing"
ROTATION = "tests/tail/test_rotation.py::test_looks_between_the_steps_of_a_rotation_lose_no_generation"
POWER_LOSS = "tests/store/test_power_loss.py::test_what_the_disk_may_hold_after_a_power_loss_has_every_event_once"
CRASH = "tests/e2e/test_crash_points.py"
RESTORED = "tests/sync/test_restored_store.py"
KEEPER = "tests/daemon/test_storekeeper.py"
STORE_FAULTS = "tests/e2e/test_failover_store.py"
POSTGRES = "tests/cloud/test_postgres"
PROOF = "tests/migration/test_proof.py"
RECONCILED = "tests/migration/test_reconcile.py"
TOTALS = "tests/analytics/test_totals_equal_events.py"
OLDER = "tests/older/test_documents.py"


class Mutant(NamedTuple):
    """One seeded bug: in `file`, `old` (which occurs once) becomes `new`, and `test` must fail."""

    name: str
    file: str
    old: str
    new: str
    test: str


MUTANTS = (
    Mutant(
        "a retraction counts as it was read, not as it is now",
        "metricsd/store/batches.py",
        "    if is_in is not counts:\n        return\n",
        "    if counts:\n        return\n",
        "tests/store/test_batches.py::test_what_is_kept_added_up_is_what_making_it_anew_gives",
    ),
    Mutant(
        "a rollback takes what people changed since",
        "metricsd/store/rollbacks.py",
        "        if is_deleted or (changed_since and not self._wanted.overwrite):\n",
        "        if is_deleted:\n",
        "tests/store/test_rollbacks.py::test_what_people_changed_since_is_left_and_listed",
    ),
    Mutant(
        "a rollback deletes sessions",
        "metricsd/store/rollbacks.py",
        "        records.edit(self._store, one.type, one.id, cleared | dict(one.fields))\n",
        "        records.edit(self._store, one.type, one.id, {}, delete=True)\n",
        "tests/store/test_rollbacks.py::test_records_get_back_what_they_were",
    ),
    Mutant(
        "a dry run is done",
        "metricsd/store/rollbacks.py",
        "                raise _DryRun\n",
        "                return done[0]\n",
        "tests/store/test_rollbacks.py::test_a_rollback_takes_exactly_what_was_brought_and_gives_it_back",
    ),
    Mutant(
        "the proof does not look at totals",
        "metricsd/store/witness.py",
        "        problems += self._uneven_totals()\n",
        "",
        "tests/store/test_rollbacks.py::test_nothing_else_can_change_unseen",
    ),
    Mutant(
        "running it again brings the rest of the batch too",
        "metricsd/store/switching.py",
        "    _exclude(store, batch, rest)\n    switch(store, batch, active=True)\n",
        "    switch(store, batch, active=True)\n",
        "tests/store/test_rollbacks.py::test_a_smaller_source_brings_back_only_what_it_has",
    ),
    Mutant(
        "a journal keeps the first after",
        "metricsd/store/befores.py",
        "ON CONFLICT DO UPDATE SET after = excluded.after\n",
        "ON CONFLICT DO NOTHING\n",
        "tests/store/test_rollbacks.py::test_a_journal_keeps_the_first_before_and_the_last_after",
    ),
    Mutant(
        "a selection leaves the machine as a batch",
        "metricsd/sync/outgoing.py",
        "self.opaque(base_of(e.batch))",
        "self.opaque(e.batch)",
        "tests/sync/test_rolled_back.py::test_what_was_taken_back_before_it_was_ever_sent_never_counts_elsewhere",
    ),
    Mutant(
        "of two imports each keeps its own",
        "metricsd/store/feed.py",
        "    batches.adopt(store, theirs)\n",
        "    batches.adopt(store, {})\n",
        "tests/sync/test_rolled_back.py::test_two_devices_that_imported_one_folder_agree_on_whose_import_it_is",
    ),
    Mutant(
        "an event comes in past its selection",
        "metricsd/store/events.py",
        "        items = _labelled(store, items)\n",
        "        items = list(items)\n",
        "tests/store/test_batches.py::test_an_event_that_comes_after_its_selection_is_left_out",
    ),
    Mutant(
        "checkpoint before rows",
        "metricsd/store/ingest.py",
        "        store = self._store\n        try:\n",
        "        store = self._store\n        if checkpoint is not None:\n            with store.transaction():\n"
        "                sources.put(store, checkpoint)\n        try:\n",
        "tests/tail/test_shared.py::test_the_checkpoint_is_not_committed_before_its_rows",
    ),
    Mutant(
        "one line's end is enough to trust a file",
        "metricsd/growing.py",
        "max(MARK_BYTES, last_line)",
        "MARK_BYTES",
        "tests/tail/test_follow.py::test_a_rewrite_behind_the_head_that_ends_alike_is_read",
    ),
    Mutant(
        "unlink before commit",
        "metricsd/tail.py",
        '        taken = self._take_split(captures)\n        crash_point("before_unlink")\n',
        "        for capture in captures:\n            self._delete(capture.name)\n"
        '        taken = self._take_split(captures)\n        crash_point("before_unlink")\n',
        HISTORIES,
    ),
    Mutant(
        "unlink without FULL",
        "metricsd/tail.py",
        "            return self._sink.take(items, rejects=rejects, full=True)\n",
        "            return self._sink.take(items, rejects=rejects)\n",
        POWER_LOSS,
    ),
    Mutant(
        "FULL is only said",
        "metricsd/store/connection.py",
        "{'FULL' if full else 'NORMAL'}",
        "NORMAL",
        POWER_LOSS,
    ),
    Mutant(
        "seek on doubt",
        "metricsd/growing.py",
        "    return _hash(head) == checkpoint.head_hash and _hash(mark) == checkpoint.mark_hash\n",
        "    return len(head) + len(mark) > 0\n",
        HISTORIES,
    ),
    Mutant(
        "only the head is compared",
        "metricsd/growing.py",
        "    return _hash(head) == checkpoint.head_hash and _hash(mark) == checkpoint.mark_hash\n",
        "    return _hash(head) == checkpoint.head_hash and len(mark) >= 0\n",
        "tests/tail/test_bytes.py::test_other_lines_behind_an_unchanged_beginning_are_read",
    ),
    Mutant(
        "a file smaller than the offset is trusted",
        "metricsd/growing.py",
        "    if size < checkpoint.offset:\n        return False\n    head =",
        "    if size < checkpoint.offset:\n        return True\n    head =",
        HISTORIES,
    ),
    Mutant(
        "a rotated file is known by its name",
        "metricsd/shared.py",
        "        place = growing.rotated_place(growing.path_before(path), status)\n",
        "        place = found.path\n",
        ROTATION,
    ),
    Mutant(
        "the last descriptor is kept",
        "metricsd/shared.py",
        "        if listing.is_short:\n",
        "        if False and listing.is_short:\n",
        "tests/tail/test_follow.py::test_kept_handles_never_use_up_the_last_descriptor",
    ),
    Mutant(
        "what was rotated unseen is looked for behind late writes",
        "metricsd/growing.py",
        "    since = min(_written_us(moved.status), old.seen_at)\n",
        "    since = _written_us(moved.status)\n",
        ROTATION,
    ),
    Mutant(
        "events during a look are forgotten",
        "metricsd/inotify.py",
        "            events.forget()\n            yield\n",
        "            yield\n            events.forget()\n",
        "tests/tail/test_watch.py::test_an_event_is_a_look_long_before_the_rescan",
    ),
    Mutant(
        "text-mode reading: line ends",
        "metricsd/growing.py",
        "            data = os.pread(self._handle, size, self.checkpoint.offset)\n",
        '            data = os.pread(self._handle, size, self.checkpoint.offset).replace(b"\\r\\n", b"\\n")\n',
        "tests/tail/test_bytes.py::test_an_offset_counts_bytes_whatever_the_lines_hold",
    ),
    Mutant(
        "text-mode reading: decoding",
        "metricsd/growing.py",
        "            data = os.pread(self._handle, size, self.checkpoint.offset)\n",
        '            data = os.pread(self._handle, size, self.checkpoint.offset).decode(errors="replace").encode()\n',
        "tests/tail/test_bytes.py::test_an_offset_counts_bytes_whatever_the_lines_hold",
    ),
    Mutant(
        "splitlines",
        "metricsd/lines.py",
        '        for raw in data.split(b"\\n"):\n',
        '        for raw in (line.encode(errors="replace") for line in data.decode(errors="replace").splitlines()):\n',
        "tests/tail/test_bytes.py::test_only_a_newline_ends_a_line",
    ),
    Mutant(
        "a partial last line is taken",
        "metricsd/growing.py",
        '            end = data.rfind(b"\\n") + 1\n            if end:\n',
        '            end = len(data) if b"\\n" in data else 0\n            if end:\n',
        HISTORIES,
    ),
    Mutant(
        "no occurrence number",
        "metricsd/ids.py",
        "        return seen\n",
        "        return min(seen, 0)\n",
        "tests/core/test_ids.py::test_equal_lines_are_different_events_and_a_second_reading_gives_the_same_ids",
    ),
    Mutant(
        "occurrences forgotten at a commit",
        "metricsd/growing.py",
        "occurrences=occurrences.pack(),",
        'occurrences=b"",',
        "tests/tail/test_shared.py::test_equal_lines_that_span_a_commit_are_two_events",
    ),
    Mutant(
        "mtime in the id",
        "metricsd/tail.py",
        "capture_id(line.s or 0, name, data, self._key)",
        'capture_id(line.s or 0, f"{name}{mtime_ns}", data, self._key)',
        "tests/tail/test_captures.py::test_a_copied_capture_that_lost_its_time_keeps_its_id",
    ),
    Mutant(
        "pid-less capture id",
        "metricsd/ids.py",
        '        name.encode("utf-8", "surrogateescape") + b"\\0" + line,',
        "        line,",
        "tests/core/test_ids.py::test_captures_with_equal_bytes_and_other_names_differ",
    ),
    Mutant(
        "the twin window is forgotten at a restart",
        "metricsd/store/recent.py",
        "reversed(events.read_newest(self._store, WINDOW_CALLS))",
        "reversed(events.read_newest(self._store, 0))",
        "tests/store/test_retention.py::TestTwins::test_twins_are_known_after_a_restart",
    ),
    Mutant(
        "a block of rows is passed over",
        "metricsd/store/events.py",
        "range(0, whole, _ROWS_AT_ONCE)",
        "range(0, whole, 2 * _ROWS_AT_ONCE)",
        "tests/store/test_events.py::test_many_events_at_once_are_all_there_and_some_of_them_twice_too",
    ),
    Mutant(
        "the first event's hour is everyone's",
        "metricsd/store/events.py",
        "        if e.at // QUARTER_US != quarter:\n",
        "        if quarter is None:\n",
        "tests/store/test_events.py::test_many_events_at_once_are_all_there_and_some_of_them_twice_too",
    ),
    Mutant(
        "known rows counted in the totals",
        "metricsd/store/events.py",
        "        rows, aggregates = _prepare(store, fresh, device, own)\n",
        "        rows, _ = _prepare(store, fresh, device, own)\n",
        "tests/store/test_events.py::test_ids_are_stored_once_and_totals_equal_a_full_scan",
    ),
    Mutant(
        "the fold's horizon is not kept",
        "metricsd/store/retention.py",
        "        state.put(store, FOLD_BEFORE, max(latest + 1, folded))\n",
        "        state.put(store, FOLD_BEFORE, folded)\n",
        "tests/store/test_retention.py::TestFold::test_a_line_older_than_the_fold_is_refused_not_counted_twice",
    ),
    Mutant(
        "a backup under its last name from the start",
        "metricsd/store/backup.py",
        '    partial = target.with_suffix(".partial")\n',
        "    partial = target\n",
        f"{CRASH}::test_a_kill_during_the_backup_leaves_no_half_copy",
    ),
    Mutant(
        "a schema step without a transaction",
        "metricsd/schema.py",
        'f"BEGIN IMMEDIATE;\\n{step.sql}\\nPRAGMA user_version = {step.number};"',
        'f"{step.sql}\\nBEGIN IMMEDIATE;\\nPRAGMA user_version = {step.number};"',
        f"{CRASH}::test_a_kill_during_a_schema_step_leaves_the_old_schema",
    ),
    Mutant(
        "two daemons share the lock",
        "metricsd/instance.py",
        "fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)",
        "fcntl.flock(fd, fcntl.LOCK_SH | fcntl.LOCK_NB)",
        "tests/daemon/test_instance.py::test_second_instance_is_refused_and_told_who_holds_the_lock",
    ),
    Mutant(
        "cursor before rows",
        "metricsd/store/feed.py",
        "    with store.transaction():\n        own = events.device_id_of(",
        "    with store.transaction():\n        state.put(store, CURSOR, cursor)\n"
        "    with store.transaction():\n        own = events.device_id_of(",
        "tests/sync/test_order.py::test_the_cursor_stays_when_the_page_cannot_be_stored",
    ),
    Mutant(
        "acknowledged without being on disk",
        "metricsd/store/outbox.py",
        "    with store.transaction(full=True):\n        now = find(store)\n",
        "    with store.transaction():\n        now = find(store)\n",
        "tests/sync/test_outbox.py::test_an_acknowledgement_is_on_disk_before_it_counts",
    ),
    Mutant(
        "acknowledged before the cloud answered",
        "metricsd/sync/push.py",
        "    reply = await sync.client.push_events(body)\n    settled",
        "    mine = Settled(batch[-1].seq, batch[-1].id.hex(), [item.seq for item in batch])\n"
        "    await sync.run(outbox.acknowledge, sync.store, stream, mine)\n"
        "    reply = await sync.client.push_events(body)\n    settled",
        "tests/sync/test_order.py::test_nothing_is_acknowledged_before_the_cloud_has_answered",
    ),
    Mutant(
        "the cloud answers before the commit",
        "metricsd/cloud/sqlite_group.py",
        "            transaction.commit()\n        except",
        "            _settle(running)\n            transaction.commit()\n        except",
        "tests/cloud/test_group_commit.py::test_a_failed_commit_fails_all_of_its_group_and_nobody_else",
    ),
    Mutant(
        "the base of a record is not compared",
        "metricsd/cloud/comparing.py",
        "    if change.type != COUNTERS and change.base_rev != current.rev:\n",
        "    if change.type != COUNTERS and change.base_rev is None:\n",
        "tests/cloud/test_records.py::test_a_push_on_an_old_base_gets_the_current_version_and_changes_nothing",
    ),
    Mutant(
        "change numbers without the counter",
        "metricsd/cloud/sqlite_group.py",
        '            self.db.execute("UPDATE counter SET change = ?", (self.change,))\n',
        "",
        "tests/cloud/test_events.py::test_change_numbers_have_no_holes",
    ),
    Mutant(
        "tokens are remembered whatever is committed",
        "metricsd/cloud/sqlite_cache.py",
        "        if version != self._version or",
        "        if self._version == -1 or",
        "tests/cloud/test_security.py::test_v7_4_1_a_revoked_or_expired_token_opens_nothing",
    ),
    Mutant(
        "each request of a crowd takes a part of the minute",
        "metricsd/cloud/rate.py",
        "            async with left.taking:\n                await",
        "            if True:\n                await",
        "tests/cloud/test_rates.py::test_a_crowd_at_once_gets_exactly_the_limit",
    ),
    Mutant(
        "a process takes its part of a minute beyond the limit",
        "metricsd/cloud/rate.py",
        "max(0, min(wanted.requests, limit.requests - before.requests)),",
        "wanted.requests,",
        "tests/cloud/test_rates.py::test_processes_share_the_minute",
    ),
    Mutant(
        "values are counted after decoding",
        "metricsd/cloud/ingest.py",
        "        check_shape(body, settings)\n    try:",
        "        pass\n    try:",
        "tests/cloud/test_shape.py::test_a_body_of_nothing_but_values_neither_fills_the_memory_nor_takes_long",
    ),
    Mutant(
        "tokens are compared on a prefix",
        "metricsd/cloud/sqlite_directory.py",
        "hmac.compare_digest(row[1], digest)",
        "hmac.compare_digest(row[1][:LOOKUP_BYTES], digest[:LOOKUP_BYTES])",
        "tests/cloud/test_tokens.py::test_a_token_is_known_by_its_whole_hash",
    ),
    Mutant(
        "tokens are compared on a prefix on PostgreSQL",
        "metricsd/cloud/pg_directory.py",
        "hmac.compare_digest(row[1], digest)",
        "hmac.compare_digest(row[1][:LOOKUP_BYTES], digest[:LOOKUP_BYTES])",
        "tests/cloud/test_tokens.py::test_a_token_is_known_by_its_whole_hash",
    ),
    Mutant(
        "a role outlives its transaction",
        "metricsd/cloud/pg_session.py",
        "self._opening = f'SET LOCAL ROLE",
        "self._opening = f'SET ROLE",
        f"{POSTGRES}_faults.py::test_it_works_behind_a_proxy_that_pools_transactions",
    ),
    Mutant(
        "statements are prepared by name",
        "metricsd/cloud/pg_pool.py",
        "statement_cache_size=0,",
        "statement_cache_size=100,",
        f"{POSTGRES}_faults.py::test_it_works_behind_a_proxy_that_pools_transactions",
    ),
    Mutant(
        "a connection is used again whatever it is in",
        "metricsd/cloud/pg_pool.py",
        "        if clean and not self._closed and not connection.is_closed() and not connection.is_in_transaction():\n",
        "        if not self._closed and not connection.is_closed():\n",
        f"{POSTGRES}_faults.py::test_after_a_cancelled_request_the_next_one_of_another_tenant_is_clean",
    ),
    Mutant(
        "change numbers without the head's lock",
        "metricsd/cloud/pg_session.py",
        'LOCK = "SELECT 1 FROM head FOR UPDATE"',
        'LOCK = "SELECT 1 FROM head"',
        f"{POSTGRES}_order.py::test_a_writer_that_commits_late_is_seen_by_a_puller_who_came_between",
    ),
    Mutant(
        "numbers of texts outlive the server that gave them",
        "metricsd/cloud/pg_terms.py",
        "        if self._losses != self._pool.losses:\n",
        "        if self._losses > self._pool.losses:\n",
        f"{POSTGRES}_restore.py::test_a_restored_database_is_told_from_the_one_that_went_on",
    ),
    Mutant(
        "known texts use up numbers",
        "metricsd/cloud/pg_terms.py",
        "WHERE NOT EXISTS (SELECT 1 FROM term WHERE term.text = new.text) ORDER",
        "ORDER",
        f"{POSTGRES}_terms.py::test_known_texts_use_up_no_numbers",
    ),
    Mutant(
        "the ingest login has its tenants' rights at all times",
        "metricsd/cloud/pg_install.py",
        '"LOGIN NOINHERIT"',
        '"LOGIN INHERIT"',
        f"{POSTGRES}_isolation.py::test_the_ingest_login_owns_nothing_and_serves_all",
    ),
    Mutant(
        "a schema step does not note its number",
        "metricsd/cloud/pg_install.py",
        '    await db.execute("UPDATE head SET step = $1", steps[-1].number)\n',
        "",
        f"{POSTGRES}_schema.py::test_a_tenant_on_a_step_that_is_too_old_is_refused_with_what_to_do",
    ),
    Mutant(
        "a moved tenant is not compared",
        "metricsd/cloud/move.py",
        "        if there[name] != digest:\n",
        "        if there[name].rows != digest.rows:\n",
        f"{POSTGRES}_move.py::test_a_difference_is_found",
    ),
    Mutant(
        "who is in a moved tenant is not compared",
        "metricsd/cloud/move.py",
        "        return _compared(tenant, _source_digests(db) | people, there, _change(db), already=True)\n",
        "        return _compared(tenant, _source_digests(db), there, _change(db), already=True)\n",
        f"{POSTGRES}_move.py::test_a_token_that_was_revoked_between_two_tries_does_not_count_again",
    ),
    Mutant(
        "a dropped event's position is forgotten",
        "metricsd/cloud/pg_retention.py",
        "FROM old WHERE seq IS NOT NULL\n",
        "FROM old WHERE false\n",
        f"{POSTGRES}_retention.py::test_old_events_go_and_their_positions_stay_settled",
    ),
    Mutant(
        "a server's clock alone says what is old in the cloud",
        "metricsd/cloud/pg_retention.py",
        "    return min(now, int(",
        "    return max(now, int(",
        f"{POSTGRES}_retention.py::test_one_clock_that_is_years_ahead_drops_nothing",
    ),
    Mutant(
        "events do not say what time it is in the cloud",
        "metricsd/cloud/pg_retention.py",
        "        if look.is_settled() and await _is_there(db, _IS_DUE, horizon) and await _is_current(db, now):\n",
        "        if look.is_settled():\n",
        f"{POSTGRES}_retention.py::test_both_clocks_years_ahead_drop_nothing_while_events_say_otherwise",
    ),
    Mutant(
        "a leap of the clocks makes everything old in the cloud",
        "metricsd/cloud/pg_retention.py",
        "now if self.leaps_to(now) else self.steady_since)",
        "self.steady_since)",
        f"{POSTGRES}_retention.py::test_after_a_leap_of_every_clock_nothing_goes_for_a_day",
    ),
    Mutant(
        "the older API stamps behind a wrong clock's stamps",
        "metricsd/cloud/older_api.py",
        "    stamp = min(next_stamp(mark, now_us // US_PER_MS, device), highest_stamp(now_us, device)).text()\n",
        "    stamp = next_stamp(mark, now_us // US_PER_MS, device).text()\n",
        "tests/cloud/test_wrong_clocks.py::test_the_older_api_goes_on_after_it",
    ),
    Mutant(
        "the hook without set -C",
        "hooks/capture",
        "\nset -C\n",
        "\n:\n",
        "tests/hooks/test_capture_faults.py::test_a_used_name_is_never_written_into",
    ),
    Mutant(
        "probe counted",
        "metricsd/tail.py",
        "            if spool.is_probe(line.app, line.event):\n",
        "            if not line.app:\n",
        "tests/cli/test_doctor.py::test_a_probe_that_was_left_behind_never_becomes_an_event",
    ),
    Mutant(
        "ready before it answers",
        "metricsd/daemon.py",
        "        await parts.control.start()\n",
        "        self._notifier.ready()\n        await asyncio.sleep(0.2)\n        await parts.control.start()\n",
        "tests/daemon/test_notify.py::test_a_manager_hears_ready_status_heartbeats_and_the_end",
    ),
    Mutant(
        "heartbeat beside the loop",
        "metricsd/notify.py",
        "        self.ready()\n        pause_s",
        "        self.ready()\n        import threading, time\n        threading.Thread(target=lambda: [(self.beat(), time.sleep(0.1))"
        " for _ in range(600)], daemon=True).start()\n        pause_s",
        "tests/daemon/test_notify.py::test_a_daemon_that_hangs_stops_beating",
    ),
    Mutant(
        "any Host answered",
        "metricsd/loopback.py",
        "len(hosts) != 1 or hosts[0] not in names",
        "len(hosts) > 1",
        "tests/daemon/test_local_metrics.py::test_only_this_machines_names_for_it_are_answered",
    ),
    Mutant(
        "a retry of the older API is another call",
        "metricsd/legacy/calls.py",
        "call.id(occurrences.next(call.fact))",
        "call.id(secrets.randbelow(1 << 30))",
        "tests/legacy/test_local_writes.py::test_a_retry_is_one_call_and_two_equal_ones_of_a_batch_are_two",
    ),
    Mutant(
        "calls with other parameters merged",
        "metricsd/legacy/calls.py",
        "if more and own_id is None:",
        "if not more and own_id is None:",
        "tests/legacy/test_local_writes.py::test_a_retry_is_one_call_and_two_equal_ones_of_a_batch_are_two",
    ),
    Mutant(
        "the older API answers before the disk has it",
        "metricsd/storekeeper.py",
        "return self._ingest.take(items, beside=beside, full=True)",
        "return self._ingest.take(items, beside=beside)",
        "tests/legacy/test_local_writes.py::test_an_answer_is_given_after_the_commit_is_on_disk",
    ),
    Mutant(
        "a failure told as text becomes a success",
        "metricsd/legacy/calls.py",
        'flag_in(body.get("success")) is False',
        'body.get("success") is False',
        "tests/legacy/test_golden_api_daemon.py::test_every_recording_is_answered_as_it_should_be",
    ),
    Mutant(
        "a page may write through the older API",
        "metricsd/loopback.py",
        'name == "origin" or ',
        "",
        "tests/legacy/test_port.py::test_a_page_cannot_write",
    ),
    Mutant(
        "a deleted session of the older API is shown",
        "metricsd/store/older_api.py",
        "if row is not None and row[1]:",
        "if row is not None and row[1] > 1:",
        "tests/legacy/test_local_writes.py::test_a_deleted_session_is_gone_and_its_calls_stay",
    ),
    Mutant(
        "an escaped slash in an id ends it",
        "metricsd/legacy/asked.py",
        'raw = path[len(PREFIX) + 1 :].encode("latin-1", "replace")',
        "raw = unquote_to_bytes(path[len(PREFIX) + 1 :])",
        "tests/legacy/test_api_hostile.py::test_an_id_is_data",
    ),
    Mutant(
        "what waited for the store is forgotten",
        "metricsd/legacy_local.py",
        "kept = [Kept(CALL, one.id, one.document) for one in some if one.document is not None]",
        "some, kept = [], []",
        "tests/legacy/test_golden_api_daemon.py::test_what_came_while_the_database_was_down_is_in_the_store_once",
    ),
    Mutant(
        "figures of the older API are never made anew",
        "metricsd/legacy_local.py",
        "self._keeper.store.days.of(now_us), mark)",
        "self._keeper.store.days.of(now_us), ())",
        "tests/legacy/test_local_writes.py::test_figures_are_remembered_until_something_is_written",
    ),
    Mutant(
        "what was remembered of sessions is told after they changed",
        "metricsd/store/remembered.py",
        "        known = self._pages.get(page)\n        if known is not None and mark is not None and known.mark == mark:",
        "        known = self._pages.get(page)\n        if known is not None and mark is not None:",
        "tests/analytics/test_remembered.py::test_whoever_writes_moves_the_marks",
    ),
    Mutant(
        "what was remembered of a day is told after it changed",
        "metricsd/store/remembered.py",
        "known[day][:2] == (mark, summary.retracted)",
        "known[day].without == summary.retracted",
        "tests/analytics/test_remembered.py::test_whoever_writes_moves_the_marks",
    ),
    Mutant(
        "a session that changes leaves its page's mark",
        "metricsd/store/schema/0009_add_change_marks.sql",
        "AFTER UPDATE ON session_counters",
        "AFTER UPDATE OF started_at ON session_counters",
        "tests/analytics/test_remembered.py::test_whoever_writes_moves_the_marks",
    ),
    Mutant(
        "what was noted of a session before a span is forgotten",
        "metricsd/store/session_totals.py",
        "        if one not in written:\n",
        "        if one not in notes:\n",
        "tests/analytics/test_session_totals.py"
        "::test_what_was_noted_long_ago_is_told_of_a_session_that_was_active_lately",
    ),
    Mutant(
        "the older API tells of other users",
        "metricsd/cloud/older_reads.py",
        "WHERE s.person = ? AND s.session = ? ORDER",
        "WHERE s.person != -? AND s.session = ? ORDER",
        "tests/legacy/test_cloud_writes.py::test_users_of_a_tenant_are_apart",
    ),
    Mutant(
        "any token speaks the older API",
        "metricsd/cloud/older_mount.py",
        "cloudlet.token(call, TokenScope.LEGACY)",
        "cloudlet.token(call, *TokenScope)",
        "tests/legacy/test_cloud_writes.py::test_limits_and_tokens_hold",
    ),
    Mutant(
        "what was taken back still counts for the older API",
        "metricsd/cloud/older_fold.py",
        "    yield Many(_ANEW, [(person,)])\n",
        "",
        "tests/legacy/test_cloud_writes.py::test_what_devices_pushed_is_told_and_taken_back",
    ),
    Mutant(
        "a retraction is not noticed by the older API on SQLite",
        "metricsd/cloud/sqlite_records.py",
        "        transaction.db.execute(RECOUNT, (place.user,))\n",
        "        transaction.db.execute(RECOUNT, (-1,))\n",
        "tests/legacy/test_cloud_retracted.py::test_the_sums_equal_a_full_scan",
    ),
    Mutant(
        "a retraction is not noticed by the older API on PostgreSQL",
        "metricsd/cloud/pg_records.py",
        "    work.switches |= switches(",
        "    work.switches &= switches(",
        "tests/legacy/test_cloud_retracted.py::test_the_sums_equal_a_full_scan",
    ),
    Mutant(
        "only the first page of selections takes events out",
        "metricsd/cloud/older_retracted.py",
        "        if len(page) < SELECTIONS_PER_PAGE:\n",
        "        if page is not None:\n",
        "tests/legacy/test_cloud_retracted.py::test_the_sums_equal_a_full_scan",
    ),
    Mutant(
        "sums are made anew on top of some of the old ones",
        "metricsd/cloud/older_fold.py",
        "    for sql in _EMPTY.values():\n",
        "    for sql in list(_EMPTY.values())[1:]:\n",
        "tests/legacy/test_cloud_retracted.py::test_the_sums_equal_a_full_scan",
    ),
    Mutant(
        "a secret of an older client is kept in the cloud",
        "metricsd/cloud/older_reads.py",
        "scrub(_encode(values))",
        "(_encode(values))",
        "tests/legacy/test_cloud_writes.py::test_a_secret_is_not_kept",
    ),
    Mutant(
        "another home's hook removed",
        "metricsd/cli/uninstall.py",
        "if row.registration and str(row.registration.capture) in row.registration.commands]",
        "if row.registration and row.registered]",
        "tests/cli/test_uninstall.py::test_another_homes_registration_is_left_alone",
    ),
    Mutant(
        "data removed unasked",
        "metricsd/cli/uninstall.py",
        "    return Choice(data=bool(data), cloud=bool(cloud))\n",
        "    return Choice(data=data is not False, cloud=bool(cloud))\n",
        "tests/cli/test_uninstall.py::test_without_a_terminal_and_flags_all_data_stays",
    ),
    Mutant(
        "old daemon kept",
        "metricsd/cli/updown.py",
        "        if not _is_older(holder.version, __version__):\n",
        "        if holder.version:\n",
        "tests/e2e/test_upgrade.py::test_up_replaces_an_older_daemon",
    ),
    Mutant(
        "newer store run without",
        "metricsd/cli/run.py",
        "    refuse_newer(paths.store, paths.backups)\n",
        "",
        "tests/e2e/test_upgrade.py::test_a_store_of_a_newer_version_is_refused_and_kept",
    ),
    Mutant(
        "percent sign expanded",
        "metricsd/service/unit.py",
        """.replace('"', '\\\\"').replace("%", "%%")""",
        """.replace('"', '\\\\"')""",
        "tests/cli/test_service.py::test_systemd_accepts_the_unit",
    ),
    Mutant(
        "network home accepted",
        "metricsd/filesystem.py",
        "    if kind in NETWORK:\n",
        "    if kind == NETWORK:\n",
        "tests/cli/test_doctor.py::test_a_network_file_system_is_refused_with_the_way_out",
    ),
    Mutant(
        "a repaired store goes on as the same device",
        "metricsd/store/salvage.py",
        "            outbox.doubt(store)\n",
        "            pass\n",
        f"{RESTORED}::test_a_repaired_store_goes_on_as_a_new_device_once",
    ),
    Mutant(
        "an answer is settled in another store",
        "metricsd/store/outbox.py",
        "            raise StoreReplaced\n",
        "            now = stream\n",
        f"{RESTORED}::test_a_round_that_began_on_the_store_before_notes_nothing_in_the_one_after",
    ),
    Mutant(
        "one bad page ends the reading",
        "metricsd/store/damaged.py",
        "                if low < high:\n                    middle",
        "                if False:\n                    middle",
        "tests/store/test_salvage.py::test_whatever_page_is_bad_the_rest_comes_back_once_and_the_gap_is_told",
    ),
    Mutant(
        "a deleted store is begun anew",
        "metricsd/storekeeper.py",
        "        salvage.save_open(self.store, self._paths, self._clock)\n",
        "",
        f"{KEEPER}::TestFile::test_deleted_under_the_daemon_it_comes_back_as_it_was",
    ),
    Mutant(
        "a stale WAL is laid over the restored store",
        "metricsd/store/salvage.py",
        "            _drop_side_files(path)\n            rebuilt.replace(path)\n",
        "            rebuilt.replace(path)\n",
        f"{KEEPER}::TestFile::test_deleted_under_the_daemon_it_comes_back_as_it_was",
    ),
    Mutant(
        "unsynced events are dropped for room",
        "metricsd/store/retention.py",
        "    if synced_through is None:\n        return 0\n    found",
        "    synced_through = 1 << 60\n    found",
        f"{KEEPER}::TestLimits::test_a_store_at_its_limit_keeps_what_nobody_else_has",
    ),
    Mutant(
        "both captures of one fact go to the cloud",
        "metricsd/direct.py",
        "        return first == event_id\n",
        "        return True\n",
        "tests/sync/test_direct.py::test_two_captures_of_one_fact_are_one_event_everywhere",
    ),
    Mutant(
        "the tail keeps the other capture",
        "metricsd/storekeeper.py",
        "            self._ingest.expect(calls)\n",
        "            _ = calls\n",
        f"{KEEPER}::test_of_two_captures_the_one_that_went_to_the_cloud_is_kept",
    ),
    Mutant(
        "a store that was made read-only is not noticed",
        "metricsd/storekeeper.py",
        "        elif not is_writable(self.store.path):\n",
        "        elif False:\n",
        f"{STORE_FAULTS}::test_a_store_that_may_not_be_written_is_bypassed",
    ),
    Mutant(
        "retracted imports count",
        "metricsd/store/summary.py",
        '_RETRACTED = "SELECT batch FROM retracted_batch"',
        '_RETRACTED = "SELECT batch FROM retracted_batch WHERE 0"',
        "tests/cli/test_report.py::test_what_was_retracted_or_deleted_does_not_count_and_metrics_do",
    ),
    Mutant(
        "deleted sessions count",
        "metricsd/store/summary.py",
        "        if self.deleted:\n            found.extend",
        "        if not self.deleted:\n            found.extend",
        f"{TOTALS}::test_totals_say_what_the_events_say",
    ),
    Mutant(
        "a fold forgets what it hid",
        "metricsd/store/rollups.py",
        "    add(store, *gone, sign=-1)",
        "    add(store, *Sums({}, {}), sign=-1)",
        f"{TOTALS}::test_what_was_deleted_before_it_was_folded_stays_out",
    ),
    Mutant(
        "a fold forgets imports",
        "metricsd/store/rollups.py",
        "    store.db.execute(_KEEP_BATCHES",
        "    positions_sql and store.db.execute('SELECT 1') or store.db.execute(_KEEP_BATCHES",
        "tests/analytics/test_session_totals.py::test_a_retracted_import_is_taken_back_from_its_sessions",
    ),
    Mutant(
        "days of whoever writes",
        "metricsd/store/rollups.py",
        "    elif noted != store.days.name:\n",
        "    elif noted == store.days.name:\n",
        f"{TOTALS}::test_the_zone_of_the_totals_is_the_first_writers",
    ),
    Mutant(
        "no sum is bounded",
        "metricsd/totals.py",
        "COUNTED_MAX = 1 << 40",
        "COUNTED_MAX = (1 << 63) - 1",
        "tests/analytics/test_hostile.py::test_huge_numbers_of_one_event_cannot_overflow_a_sum",
    ),
    Mutant(
        "the original overwrites an edit",
        "metricsd/legacy/convert.py",
        "value = origin.get(name, missing) if now is missing or now == then else now",
        "value = origin.get(name, missing)",
        "tests/legacy/test_convert_laws.py::test_what_was_changed_in_between_stays_changed",
    ),
    Mutant(
        "a spreadsheet runs a tool's name",
        "metricsd/cli/table.py",
        "if isinstance(value, str) and value.startswith(_FORMULA):",
        "if isinstance(value, str) and not value.startswith(_FORMULA):",
        "tests/cli/test_report.py::test_names_of_strangers_steer_no_terminal_and_no_spreadsheet",
    ),
    Mutant(
        "a session that becomes known late claims nothing",
        "metricsd/older/sessions.py",
        "        self._fresh[session] = new\n",
        "",
        f"{OLDER}::TestLate::test_calls_move_to_the_session_that_becomes_known",
    ),
    Mutant(
        "sessions claim calls while they are being copied",
        "metricsd/older/documents.py",
        "        is_quiet = not self._waiting and ",
        "        is_quiet = not self._waiting or ",
        f"{OLDER}::TestLate::test_sessions_that_are_still_being_copied_claim_nothing",
    ),
    Mutant(
        "calls move that the cloud has",
        "metricsd/store/orphans.py",
        "    after = 0 if stream is None else stream.base + stream.settled_seq\n",
        "    after = 0\n",
        f"{OLDER}::TestLate::test_only_what_the_cloud_has_not_acknowledged_moves",
    ),
    Mutant(
        "calls are matched before their session is looked for",
        "metricsd/older/lines.py",
        "        self._before()\n",
        "",
        f"{OLDER}::TestLate::test_a_document_that_appears_between_two_looks_is_known_to_its_calls",
    ),
    Mutant(
        "an agent's announcement counts",
        "metricsd/decode/older_hooks.py",
        "    if kind == AGENT_LINE:\n        return None\n    if kind == TOOL_LINE:\n",
        '    if kind == AGENT_LINE:\n        line = {**line, "tool_name": "Task"}\n    if kind in (AGENT_LINE, TOOL_LINE):\n',
        "tests/older/test_folders.py::test_a_recorded_folder_is_one_session_with_every_call_once",
    ),
    Mutant(
        "a file's score stands over a person's",
        "metricsd/store/suggestions.py",
        "(name in before and before[name] == now.get(name))",
        "name in before",
        f"{OLDER}::TestRewritten::test_a_score_changes_with_its_file_but_not_against_a_person",
    ),
    Mutant(
        "every start stores all documents again",
        "metricsd/older/documents.py",
        "        if self._seen.get(path) == look and path in self._unnoted:\n",
        "        if not look:\n",
        f"{OLDER}::TestRestart::test_nothing_is_stored_again",
    ),
    Mutant(
        "a bad line of the older hooks is kept with its token",
        "metricsd/older/lines.py",
        "return Reject(name, offset, None, rejected.reason, rejected.detail, len(raw))",
        "return Reject(name, offset, raw, rejected.reason, rejected.detail)",
        f"{OLDER}::test_bytes_of_bad_lines_stay_where_they_are",
    ),
    Mutant(
        "the earlier edit wins",
        "metricsd/conflict.py",
        "        wins = local.stamp > remote.stamp\n",
        "        wins = local.stamp < remote.stamp\n",
        "tests/conflict/test_laws.py::test_an_edit_made_after_seeing_another_does_not_lose_to_it",
    ),
    Mutant(
        "a union brings removed labels back",
        "metricsd/conflict.py",
        "    items = (here | there) - (old - here) - (old - there)\n",
        "    items = (here | there) - (old - here - there)\n",
        "tests/sync/test_resolving.py::test_a_clash_takes_the_later_text_and_the_union_of_tags",
    ),
    Mutant(
        "a decision overwrites an edit that it did not see",
        "metricsd/store/records.py",
        "    if record is None or record.conflict != entry.id or record.version != entry.local:\n",
        "    if record is None or record.conflict != entry.id:\n",
        "tests/sync/test_resolving.py::test_an_edit_made_while_a_conflict_is_decided_is_not_lost",
    ),
    Mutant(
        "whatever a plug-in answers is a field",
        "metricsd/sync/plugins.py",
        "            if wrong is not None:\n",
        "            if wrong == '':\n",
        "tests/policy/test_plugins.py::test_misbehaviour_is_an_answer_without_fields",
    ),
    Mutant(
        "a plug-in that fell silent is waited for",
        "metricsd/sync/plugins.py",
        "        if left <= 0 or not poll.poll(left * 1000):\n",
        "        if left <= 0 or not poll.poll(60_000):\n",
        "tests/policy/test_plugins.py::test_a_plug_in_that_holds_off_its_limit_is_killed",
    ),
    Mutant(
        "a swapped plug-in runs",
        "metricsd/policy/lint.py",
        "    if found != plugin.sha256:\n",
        "    if not found:\n",
        "tests/policy/test_plugins.py::test_only_what_was_pinned_runs",
    ),
    Mutant(
        "a lock locks nothing",
        "metricsd/policy/layers.py",
        "            if rule.lock:\n                break\n",
        "",
        "tests/policy/test_layers.py::test_an_override_goes_before_an_unlocked_rule",
    ),
    Mutant(
        "a policy that others can write is obeyed",
        "metricsd/policy/trust.py",
        "    if stat.S_ISLNK(found.st_mode) or not found.st_mode & _WRITABLE:\n",
        "    if stat.S_ISLNK(found.st_mode) or found.st_uid == own:\n",
        "tests/policy/test_trust.py::test_group_or_others_may_not_write",
    ),
    Mutant(
        "all devices come at the same second",
        "metricsd/sync/plan.py",
        "    return share * interval_s\n",
        "    return min(share, 0.0) * interval_s\n",
        "tests/sync/test_fleet.py::test_a_thousand_devices_come_one_after_the_other",
    ),
    Mutant(
        "news get around the backoff",
        "metricsd/syncing.py",
        "        if connected or not self._failing:\n",
        "        if self._paths:\n",
        "tests/daemon/test_hurry.py::test_while_rounds_fail_only_the_schedule_asks",
    ),
    Mutant(
        "a clock that is set right is not noticed by sync",
        "metricsd/steering.py",
        "        self._parts.syncing.look_again()\n",
        "",
        "tests/sim/test_days.py::test_days_end_well",
    ),
    Mutant(
        "a daemon does not sync when the cloud is back",
        "metricsd/steering.py",
        "            self._parts.syncing.resume()\n",
        "            self._parts.syncing.look_again()\n",
        "tests/daemon/test_long_life.py::test_what_waited_is_sent_as_soon_as_the_cloud_is_back",
    ),
    Mutant(
        "every missed time is counted",
        "metricsd/schedule.py",
        "self._note, _Skipping(trigger), args",
        "self._note, trigger, args",
        "tests/daemon/test_schedule.py::test_a_clock_that_jumps_by_years_costs_one_run",
    ),
    Mutant(
        "a clock that was ahead puts chores off",
        "metricsd/schedule.py",
        "            if job is None or job.next_run_time >",
        "            if job is None or job.next_run_time <",
        "tests/daemon/test_schedule.py::test_a_clock_that_is_set_back_does_not_put_chores_off",
    ),
    Mutant(
        "the fold's horizon is where a wrong clock says",
        "metricsd/store/retention.py",
        "        state.put(store, FOLD_BEFORE, max(latest + 1, folded))\n",
        "        state.put(store, FOLD_BEFORE, horizon)\n",
        "tests/store/test_retention.py::TestFold::test_a_clock_that_was_years_ahead_refuses_nothing_afterwards",
    ),
    Mutant(
        "a leap of the clock makes everything old",
        "metricsd/store/retention.py",
        "    return 0 < now - seen <= LEAP_US\n",
        "    return 0 < now - seen\n",
        "tests/store/test_retention.py::TestClock::test_after_a_leap_nothing_goes_by_age_before_the_next_look",
    ),
    Mutant(
        "attempts are logged",
        "metricsd/prober.py",
        '        log.debug("probe.failed",',
        '        log.info("probe.failed",',
        "tests/daemon/test_long_life.py::test_a_weekend_offline_writes_under_a_hundred_lines",
    ),
    Mutant(
        "each probe leaves a task",
        "metricsd/prober.py",
        "            anew.cancel()\n            await asyncio.gather(task, anew, return_exceptions=True)\n",
        "            await asyncio.gather(task, return_exceptions=True)\n",
        "tests/daemon/test_long_life.py::test_three_hundred_outages_leave_nothing_behind",
    ),
    Mutant(
        "no dwell",
        "metricsd/failover.py",
        "    if health.since_switch_s < limits.dwell_s or (health.frozen",
        "    if (health.frozen",
        "tests/failover/test_next_mode.py::test_no_switch_within_the_dwell_but_by_hand",
    ),
    Mutant(
        "one good answer brings a cloud back",
        "metricsd/failover.py",
        "    return health.good_probes >= limits.good_probes and",
        "    return health.good_probes >= 1 and",
        "tests/failover/test_next_mode.py::test_an_outage_ends_after_two_good_probes",
    ),
    Mutant(
        "patience counts as failure",
        "metricsd/health.py",
        "            return Outcome(Verdict.NEUTRAL, at_s, took_s, answers, None, str(error))\n        case CloudUnreachable():",
        "            return Outcome(Verdict.BAD, at_s, took_s, answers, None, str(error))\n        case CloudUnreachable():",
        "tests/failover/test_health.py::test_being_asked_to_slow_down_is_no_failure",
    ),
    Mutant(
        "a portal's page is an answer",
        "metricsd/client.py",
        "        if not is_json(answer):\n            raise not_ours(self.url, answer)\n\n    async def enrol",
        "        not_ours(self.url, answer)\n\n    async def enrol",
        "tests/sync/test_client.py::test_a_portals_page_is_no_sign_of_life",
    ),
    Mutant(
        "a refused login is probed on",
        "metricsd/prober.py",
        "        if subject.cloud in (CloudHealth.NO_LOGIN, CloudHealth.AUTH) or",
        "        if subject.cloud is CloudHealth.NO_LOGIN or",
        "tests/failover/test_prober.py::test_nobody_is_asked_without_a_login_or_against_a_persons_will",
    ),
    Mutant(
        "a closed lid is an outage",
        "metricsd/health.py",
        "            case Verdict.BAD if not frozen:\n",
        "            case Verdict.BAD:\n",
        "tests/failover/test_health.py::test_while_frozen_failures_are_not_counted_and_answers_are",
    ),
    Mutant(
        "a cloud that asks for patience stays suspect",
        "metricsd/health.py",
        "        if outcome.verdict is not Verdict.BAD or not frozen:\n",
        "        if outcome.verdict is not Verdict.NEUTRAL and not frozen:\n",
        "tests/failover/test_prober.py::test_a_busy_cloud_is_not_probed_harder_for_what_came_before",
    ),
    Mutant(
        "a search for retention reads the whole table",
        "metricsd/cloud/pg_retention.py",
        '"SET LOCAL enable_seqscan = off"',
        '"SET LOCAL enable_seqscan = on"',
        "tests/cloud/test_postgres_retention.py::test_an_old_range_is_found_without_reading_everything",
    ),
    Mutant(
        "what came back as events is counted with what was dropped",
        "metricsd/store/damaged.py",
        "            _take_away(totals, row[:7], row[7:])\n",
        "            _take_away({}, row[:7], row[7:])\n",
        "tests/store/test_salvage.py::test_totals_of_what_retention_dropped_come_back_once",
    ),
    Mutant(
        "a cloud forgets which imports are out",
        "metricsd/cloud/sqlite_records.py",
        " AND type != '{import_batch.TYPE}'",
        "",
        "tests/cloud/test_tombstones.py::test_what_takes_an_import_out_is_kept_for_ever",
    ),
    Mutant(
        "notes are remembered without a bound",
        "metricsd/store/remembered.py",
        " or sum(len(notes.texts) for _, notes in spans) > NOTES_MAX:",
        ":",
        "tests/analytics/test_remembered.py::test_the_newest_spans_notes_are_remembered",
    ),
    Mutant(
        "an outage is told by its first cause for ever",
        "metricsd/governor.py",
        "            self._retell(reason)\n",
        "",
        "tests/failover/test_governor.py::test_what_is_wrong_now_is_told",
    ),
    Mutant(
        "a force ends with the process",
        "metricsd/modes.py",
        '        "forced": None if forced is None else {"mode": forced.mode.value, "until": forced.until_us},\n',
        '        "forced": None,\n',
        "tests/failover/test_governor.py::test_a_forced_mode_survives_restarts_and_ends_when_told",
    ),
    Mutant(
        "a stop waits for a silent cloud",
        "metricsd/daemon.py",
        "        self._stop.set()\n        self._force_later()\n",
        "        self._stop.set()\n        import time\n        time.sleep(5.5)\n",
        "tests/e2e/test_failover_cloud.py::test_a_stop_does_not_wait_for_a_silent_cloud",
    ),
    Mutant(
        "a policy's mistake is nowhere said",
        "metricsd/doctor/daemon.py",
        '            if found.severity == "error":\n',
        '            if found.severity == "fatal":\n',
        "tests/cli/test_doctor.py::test_a_mistake_in_a_policy_is_said_though_the_policy_is_in_force",
    ),
    Mutant(
        "status advises what a forced mode refuses",
        "metricsd/cli/status_text.py",
        '    if mode["forced"]:\n        until',
        "    if not mode:\n        until",
        "tests/cli/test_status.py::test_the_screen_says_how_a_mode_goes_and_what_ends_it",
    ),
    Mutant(
        "growth by the hour is not looked at",
        "bench/idle.py",
        "            self.rss_mb_per_hour <= RSS_MB_PER_HOUR_MAX\n            and self",
        "            self",
        "tests/daemon/test_idle_soak.py::test_what_grows_by_the_hour_is_found",
    ),
    Mutant(
        "occurrences are forgotten between two parts",
        "metricsd/migration/parse.py",
        "form_of(file.kind, start.occurrences, self._work.is_inactive)",
        'form_of(file.kind, b"", self._work.is_inactive)',
        "tests/migration/test_reading.py::test_parts_are_the_same_wherever_a_run_was_cut_off",
    ),
    Mutant(
        "a session is what its first file says of it",
        "metricsd/migration/merging.py",
        "end_us=_first(note.end_us for note in notes)",
        "end_us=notes[0].end_us",
        "tests/migration/test_reading.py::test_six_sessions_are_merged_from_all_their_files",
    ),
    Mutant(
        "a source that changed is loaded all the same",
        "metricsd/migration/parse.py",
        "            content.skip(file.size)\n            if content.digest() != file.digest:\n                raise _changed(file)\n",
        "            content.skip(file.size)\n",
        "tests/migration/test_reading.py::test_a_source_that_changed_is_refused_and_one_that_grew_is_not",
    ),
    Mutant(
        "a part's checkpoint is not stored with it",
        "metricsd/store/imports.py",
        "        store.db.execute(_PUT_RUN, (batch.run, *after))\n    return stored",
        "    with store.transaction():\n        store.db.execute(_PUT_RUN, (batch.run, *after))\n    return stored",
        "tests/migration/test_load.py::test_rows_and_checkpoint_of_a_part_commit_together",
    ),
    Mutant(
        "what the daemon brought is brought again",
        "metricsd/store/imports.py",
        "fresh = [item for item in entry.items if item.id not in known]",
        "fresh = list(entry.items)",
        "tests/migration/test_load.py::test_the_daemon_and_a_migration_bring_nothing_twice",
    ),
    Mutant(
        "merged entries are not counted",
        "metricsd/migration/load.py",
        "                tally[0] += 1\n                tally[1] += others\n",
        "                tally[0] += 1\n",
        "tests/migration/test_load.py::test_six_sessions_arrive_whole",
    ),
    Mutant(
        "the ledger keeps what belongs to no part",
        "metricsd/migration/ledger.py",
        "os.ftruncate(descriptor, min(size, os.fstat(descriptor).st_size))",
        "os.fstat(descriptor)",
        "tests/migration/test_kills.py::test_a_crash_at_an_edge_is_made_good",
    ),
    Mutant(
        "hooks and transcript count one session twice",
        "metricsd/migration/load.py",
        "return event.session in self._sessions",
        "return not self._sessions",
        "tests/migration/test_other_sources.py::test_calls_that_hooks_captured_are_skipped_and_counted",
    ),
    Mutant(
        "what a lost answer brought counts as somebody else's",
        "metricsd/migration/load_cloud.py",
        "            self._work.note_sending(part, {key: key in held for key in asked})\n",
        "",
        "tests/migration/test_load_cloud.py::test_a_run_that_was_cut_off_counts_what_it_sent_as_its_own",
    ),
    Mutant(
        "a request's usage counts with each of its lines",
        "metricsd/decode/transcript.py",
        'return [(_id("usage", key if message.id else line.uuid or key), event)]',
        'return [(_id("usage", line.uuid or key), event)]',
        "tests/migration/test_other_sources.py::test_a_tree_of_transcripts_is_loaded_once",
    ),
    Mutant(
        "a session that is ended again keeps its first end",
        "metricsd/older/lines.py",
        "self._sessions.ended_before(str(event.session), event.at):",
        "event.at < 0:",
        f"{OLDER}::TestRewritten::test_a_session_that_ends_twice_ends_at_last",
    ),
    Mutant(
        "a day on which clocks change has one offset",
        "metricsd/store/calendar.py",
        " and at_first - first == at_last - last\n",
        "\n",
        "tests/store/test_calendar.py::test_a_slot_is_the_zones_day_and_hour",
    ),
    Mutant(
        "tokens of deleted sessions count",
        "metricsd/store/token_totals.py",
        "json.dumps(sorted(summary.deleted))",
        '"[]"',
        "tests/analytics/test_tokens.py::test_tokens_are_those_of_the_events",
    ),
    Mutant(
        "a comparison overlooks doubled rows",
        "metricsd/migration/compare.py",
        "                if ours:\n                    rows.extra += 1\n",
        "                if not ours:\n                    rows.extra += 1\n",
        f"{PROOF}::test_whatever_happens_to_the_target_is_found_and_named",
    ),
    Mutant(
        "a comparison takes what is missing for left out",
        "metricsd/migration/compare.py",
        "                rows.missing += 1\n",
        "                rows.excluded += 1\n",
        f"{PROOF}::test_whatever_happens_to_the_target_is_found_and_named",
    ),
    Mutant(
        "a comparison trusts rows that it brought itself",
        "metricsd/migration/compare.py",
        "            elif ours:\n                rows.different += 1\n",
        "            elif not ours:\n                rows.different += 1\n",
        f"{PROOF}::test_whatever_happens_to_the_target_is_found_and_named",
    ),
    Mutant(
        "a reader goes on for a run that is gone",
        "metricsd/migration/leash.py",
        "    os._exit(EXIT_CODE)\n",
        "    return\n",
        "tests/migration/test_beside.py::test_a_reader_ends_with_the_run_that_started_it",
    ),
    Mutant(
        "faults are never put in",
        "metricsd/migration/sensitivity/measure.py",
        "        with opened(seams):\n",
        "        with opened(_NO_FAULT):\n",
        f"{PROOF}::test_enough_faults_make_a_pass",
    ),
    Mutant(
        "counts reconcile without the second reader",
        "metricsd/migration/reconcile.py",
        '    return [f"{one:,} {what}, {other:,} {which}" for what, one, which, other in pairs if one != other]\n',
        '    return [f"{one:,} {what}, {other:,} {which}" for what, one, which, other in pairs[1:2] if one != other]\n',
        f"{RECONCILED}::test_every_sum_is_compared",
    ),
    Mutant(
        "the second reader forgets equal facts too early",
        "metricsd/migration/second/numbers.py",
        "REMEMBERED_MAX = 1024\n",
        "REMEMBERED_MAX = 1000\n",
        "tests/migration/test_second_reader.py::test_both_forget_a_fact_after_1024_others",
    ),
    Mutant(
        "a score is rounded up to a hundred",
        "metricsd/migration/confidence.py",
        "    return math.floor(round(share * 10_000, 6)) / 100\n",
        "    return round(share * 100, 2)\n",
        "tests/migration/test_evidence.py::test_percentages_are_cut_and_not_rounded",
    ),
    Mutant(
        "hashes of rows have no key",
        "metricsd/migration/digest.py",
        "blake2b(digest_size=_HASH_BYTES, key=key)",
        "blake2b(digest_size=_HASH_BYTES)",
        "tests/migration/test_evidence.py::test_different_values_have_different_hashes",
    ),
    Mutant(
        "a run of rules forgets the last call when it is cut off",
        "metricsd/migration/validate.py",
        "        running.last_call = calls.last\n",
        "",
        "tests/migration/test_rules.py::test_a_resumed_run_finds_what_an_undisturbed_one_does",
    ),
    Mutant(
        "rows pass that a broken rule of one's own never saw",
        "metricsd/migration/custom_rules.py",
        '                raise UsageError(f"{self.path}: {error}: repair it, then resume the run") from error\n',
        "                continue\n",
        "tests/migration/test_custom_rules.py::test_a_file_that_fails_stops_the_run",
    ),
    Mutant(
        "a finding shows the value",
        "metricsd/migration/rules_calls.py",
        'add(found, "tool_is_name", place, "tool_name", class_of(raw.get("tool_name")))',
        'add(found, "tool_is_name", place, "tool_name", str(raw.get("tool_name")))',
        "tests/migration/test_rules.py::test_a_rule_on_calls_fires",
    ),
    Mutant(
        "a page shows names as they are",
        "metricsd/migration/report_page.py",
        "    return f'<span class=\"mono\">{escape(text)}</span>'\n",
        "    return f'<span class=\"mono\">{text}</span>'\n",
        "tests/migration/test_report.py::test_the_page_shows_a_hostile_name_as_text",
    ),
    Mutant(
        "what works beside a run outlives it",
        "metricsd/migration/sensitivity/__main__.py",
        "    hold_to_parent()\n",
        "",
        "tests/migration/test_leash.py::test_letting_go_of_the_leash_ends_the_process",
    ),
)


class Outcome(NamedTuple):
    """What became of a mutant: `how` is killed, survived or broken, with what pytest said last."""

    mutant: Mutant
    how: str
    said: str


def copy_tree(folder: Path) -> Path:
    """Copy what the tests need, without what tools left there."""
    # Some tests run by root become nobody, who must be able to read the code.
    folder.chmod(0o755)
    for name in COPIED:
        shutil.copytree(ROOT / name, folder / name, ignore=shutil.ignore_patterns("__pycache__", "*.pyc"))
    for name in COPIED_FILES:
        shutil.copy2(ROOT / name, folder / name)
    return folder


def run_tests(tree: Path, tests: Sequence[str]) -> tuple[int, str]:
    """Run tests in a tree; return pytest's exit code and its last lines."""
    environment = {key: value for key, value in os.environ.items() if not key.startswith("METRICSD_")}
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-x", "-m", "not soak", "-p", "no:cacheprovider", *tests],
        cwd=tree,
        env={**environment, "PYTHONPATH": str(tree), "PYTHONDONTWRITEBYTECODE": "1"},
        capture_output=True,
        text=True,
        timeout=DEADLINE_S,
        check=False,
    )
    lines = (done.stdout.strip() or done.stderr.strip()).splitlines()
    return done.returncode, " | ".join(lines[-3:])


def try_mutant(mutant: Mutant) -> Outcome:
    """Seed one bug into a fresh copy and run its test."""
    with tempfile.TemporaryDirectory(prefix="metricsd-mutant-") as folder:
        tree = copy_tree(Path(folder))
        path = tree / mutant.file
        text = path.read_text()
        if text.count(mutant.old) != 1:
            return Outcome(mutant, "broken", f"the text to replace occurs {text.count(mutant.old)} times")
        path.write_text(text.replace(mutant.old, mutant.new))
        try:
            code, said = run_tests(tree, [mutant.test])
        except subprocess.TimeoutExpired:
            return Outcome(mutant, "killed", f"no end within {DEADLINE_S} s")
    return Outcome(mutant, {FAILED: "killed", PASSED: "survived"}.get(code, "broken"), said)


def main(names: list[str]) -> int:
    """Try the named mutants (all without a name) and print what became of each."""
    chosen = [mutant for mutant in MUTANTS if not names or mutant.name in names]
    if len(chosen) != len(names or MUTANTS):
        print(f"unknown mutant; there are: {', '.join(mutant.name for mutant in MUTANTS)}", file=sys.stderr)
        return 2
    began = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="metricsd-mutant-") as folder:
        code, said = run_tests(copy_tree(Path(folder)), sorted({mutant.test for mutant in chosen}))
    if code != PASSED:
        print(f"the tests fail without any mutant: {said}")
        return 1
    bad = 0
    with ThreadPoolExecutor(max_workers=os.cpu_count()) as pool:
        for outcome in pool.map(try_mutant, chosen):
            bad += outcome.how != "killed"
            print(f"{outcome.how:<9} {outcome.mutant.name}\n          {outcome.mutant.test}", flush=True)
            if outcome.how != "killed":
                print(f"          {outcome.said}", flush=True)
    print(f"{len(chosen) - bad} of {len(chosen)} killed in {time.monotonic() - began:.0f} s")
    return 1 if bad else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

"""A flood of bad lines: bounded files, nothing lost that can be kept, codes that mean something."""

from __future__ import annotations

import ast
import json
import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from metricsd.reasons import CLOUD_PREFIX, MEANINGS, Reason, meaning_of
from metricsd.store import quarantine
from metricsd.store.connection import Store
from metricsd.store.ingest import Ingest
from metricsd.store.quarantine import EACH_MAX, Reject, pack
from tests.e2e.support import homes, wait_for

ROOT = Path(__file__).resolve().parents[2]


def test_a_flood_of_bad_lines_makes_few_files_and_keeps_every_line(store: Store) -> None:
    """The first ones have entries of their own; the others share entries that can be retried as a whole."""
    lines = [b"bad %06d" % number for number in range(200_000)]
    with store.transaction():
        quarantine.add_all(store, [Reject("x.jsonl", n * 11, line, "bad_json", "why") for n, line in enumerate(lines)])
    entries = quarantine.list_open(store)
    assert EACH_MAX < len(entries) <= EACH_MAX + 3
    kept = b"\n".join((quarantine.bytes_of(store, entry) or b"").rstrip(b"\n") for entry in reversed(entries))
    assert kept.split(b"\n") == lines
    assert all(entry.bytes <= quarantine.BYTES_KEPT_MAX for entry in entries)


@given(
    st.lists(
        st.tuples(st.sampled_from(["a", "b", "new/c"]), st.sampled_from(["nul", "bad_json"]), st.binary(max_size=40)),
        max_size=120,
    )
)
def test_packing_keeps_every_line_and_every_capture_apart(items: list[tuple[str, str, bytes]]) -> None:
    """Whatever is mixed: each line is in one entry of its file and reason; captures are never joined."""
    rejects = [Reject(file, n, data.replace(b"\n", b"."), reason) for n, (file, reason, data) in enumerate(items)]
    packed = pack(rejects)

    def lines(found: list[Reject]) -> list[tuple[str, str, bytes]]:
        return sorted(
            (each.file, each.reason, line)
            for each in found
            for line in (each.data or b"").removesuffix(b"\n").split(b"\n")
        )

    assert lines(packed) == lines(rejects)
    captures = [each for each in packed if each.file.startswith("new/")]
    assert len(captures) == sum(each.file.startswith("new/") for each in rejects)


def test_a_flood_without_bytes_is_one_summary(store: Store) -> None:
    """Too old events of a file that is read again: their rows would be as many as the events."""
    with store.transaction():
        quarantine.add_all(store, [Reject(f"event:{n:x}", 0, None, "too_old") for n in range(5000)])
    entries = quarantine.list_open(store)
    assert len(entries) == EACH_MAX + 1
    assert entries[0].detail.startswith(f"{5000 - EACH_MAX} alike")


def test_a_flood_stays_below_the_cap_between_sweeps(store: Store) -> None:
    """Oldest bytes go first and their summaries stay: nothing is dropped silently."""
    cap = 4 * 1024 * 1024
    ingest = Ingest(store, quarantine_bytes_max=cap)
    for n in range(20):
        ingest.take([], rejects=[Reject(f"{n}.jsonl", 0, b"x" * 900_000, "bad_json")])
    size = sum(file.stat().st_size for file in quarantine.folder_of(store).iterdir())
    assert size <= cap + cap // 8 + quarantine.BYTES_KEPT_MAX
    entries = quarantine.list_open(store)
    assert len(entries) == 20
    assert entries[0].stored is not None
    assert entries[-1].stored is None


def used_reasons() -> Iterator[tuple[str, str]]:
    """Yield each reason that the code names, with its file."""
    for path in sorted((ROOT / "metricsd").rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Call):
                name = getattr(node.func, "id", getattr(node.func, "attr", ""))
                place = {"LineRejected": 0, "Reject": 3}.get(name)
                if place is not None and len(node.args) > place:
                    word = node.args[place]
                    if isinstance(word, ast.Constant):
                        yield str(path), str(word.value)


def test_every_reason_is_a_stable_code_and_has_a_meaning() -> None:
    """Nothing is quarantined for a reason that nobody can look up."""
    used = {reason for _, reason in used_reasons()}
    assert {reason for reason in used if not reason.startswith(CLOUD_PREFIX)} - set(Reason) == set()
    assert set(MEANINGS) == set(Reason)
    assert meaning_of("cloud_bad_id") == "the cloud refused it: bad_id"
    assert "does not know" in meaning_of("of_the_future")


def test_every_reason_is_documented_with_its_meaning() -> None:
    """docs/reliability.md has a row for each code, in the code's words, and no other."""
    text = (ROOT / "docs" / "reliability.md").read_text().split("## Why something is quarantined")[1].split("\n## ")[0]
    rows = dict(re.findall(r"^\| `(\w+)` \| (.*?) \|$", text, re.M))
    assert rows == {reason.value: meaning for reason, meaning in MEANINGS.items()}


@pytest.mark.timeout(120)
def test_a_flood_is_counted_by_reason_and_retried_as_a_whole(tmp_path: Path) -> None:
    """The command line on a real daemon: counts, a filter by reason, and lines that are refused again stay."""
    with homes(tmp_path, "home") as (home,):
        home.start_ready()
        later = json.dumps({"v": 2, "app": "claude-code", "event": "Stop", "ts": 1, "payload": {}})
        with (home.spool / "later.jsonl").open("w") as file:
            file.writelines(later + "\n" for _ in range(100))
            file.write("torn {\n")
        wait_for(lambda: home.status()["spool"]["quarantined"] == EACH_MAX + 2, "a hundred lines are a few entries")
        assert home.status()["spool"]["quarantined_by_reason"] == {"bad_json": 1, "newer_version": EACH_MAX + 1}
        first, second = home.json("quarantine", "list", "--by-reason")
        assert (first["reason"], first["entries"], second["reason"]) == ("newer_version", EACH_MAX + 1, "bad_json")
        assert "upgrade" in first["meaning"]
        assert len(home.json("quarantine", "retry", "--reason", "newer_version")) == EACH_MAX + 1
        retried = (home.spool / "retried.jsonl").read_text().splitlines()
        assert retried == [later] * 100
        home.json("quarantine", "purge", "--reason", "bad_json")
        assert "bad_json" not in home.status()["spool"]["quarantined_by_reason"]
        assert home.end() == 0

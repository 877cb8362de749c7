"""What a run leaves to read: whole, private, without content, and safe to open whatever the source is called."""

from __future__ import annotations

import json
import re
from html.parser import HTMLParser
from pathlib import Path

import msgspec
import pytest

from metricsd.errors import UsageError
from metricsd.migration import report, report_text
from metricsd.migration.charts import COLUMNS_MAX, Bar, bars, columns
from metricsd.migration.report_model import Report
from metricsd.migration.report_page import page
from tests.migration.proven import Proven, prove
from tests.migration.rows_of import call, first, summary, write

SECRET = "5ec2e7-not-to-be-seen"
HOSTILE = '<script>alert("x")</script>&\'"'


class Page(HTMLParser):
    """Tags and texts of a page; a tag that is not closed, or closed twice, is an error."""

    VOID = frozenset(("meta", "line", "rect", "br", "link"))

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.attributes: list[tuple[str, str | None]] = []
        self.texts: list[str] = []
        self._open: list[str] = []
        self.feed(text)
        self.close()
        assert self._open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += attrs
        if tag not in self.VOID:
            self._open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += attrs

    def handle_endtag(self, tag: str) -> None:
        assert self._open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.texts.append(data)


@pytest.fixture(scope="module")
def ran(tmp_path_factory: pytest.TempPathFactory) -> Proven:
    """A run over data with secrets in it, bad lines, and files with hostile names."""
    folder = tmp_path_factory.mktemp("report")
    lines: list[object] = [
        call(f"2026-11-{day:02d}T18:59:{second:02d}Z", command=f"git push {SECRET}", file_path=f"/home/dev1/{SECRET}.py",
             auth_token=SECRET, error_message=SECRET)
        for day in range(20, 23) for second in range(60)
    ]  # fmt: skip
    lines += [f'{{"torn":"{SECRET}'.encode(), call("2019-01-01T00:00:00Z", error_message=SECRET)]
    source = write(folder / "source", lines, [first(working_directory=f"/home/dev1/{SECRET}"), summary()])
    write(
        folder / "source",
        [call("2026-11-23T18:59:00Z", tool_name="mcp__x__y"), b"bad"],
        name=f"tool-{HOSTILE.replace('/', '_')}.jsonl",
    )
    return prove(folder / "home", source)


def test_the_folder_holds_three_files_for_their_owner_alone(ran: Proven) -> None:
    """Each appears whole; nothing else is left of the proof."""
    files = sorted(path.name for path in ran.folder.report.iterdir())
    assert files == ["errors.jsonl", "report.html", "report.json"]
    assert {path.stat().st_mode & 0o777 for path in ran.folder.report.iterdir()} == {0o600}
    assert list(ran.folder.path.glob("proof*")) == []


def test_nothing_of_the_report_holds_content(ran: Proven) -> None:
    """No command, path, token or message, in any of the files."""
    for path in ran.folder.report.iterdir():
        assert SECRET not in path.read_text()


def test_errors_say_where_and_by_which_rule(ran: Proven) -> None:
    """One JSON line each, in the order of the source: rejected entries with a hash, soft findings with a class."""
    found = [json.loads(line) for line in (ran.folder.report / "errors.jsonl").read_text().splitlines()]
    rejected = [one for one in found if one["severity"] == "hard"]
    assert [(one["rule"], one["line"]) for one in rejected if one["file"] == "tool-metrics.jsonl"] == [
        ("entry_is_json", 181), ("time_too_early", 182),
    ]  # fmt: skip
    assert all(re.fullmatch("[0-9a-f]{16}", one["hash"]) for one in rejected)
    soft = [one for one in found if one["severity"] == "soft"]
    assert {one["rule"] for one in soft} >= {"failure_is_consistent", "call_in_session_span"}
    assert all(one["value"] and not one["hash"] for one in soft)
    line = (Path(ran.report.source) / "tool-metrics.jsonl").read_bytes().split(b"\n")[180]
    torn = next(one for one in rejected if one["line"] == 181)
    assert (Path(ran.report.source) / "tool-metrics.jsonl").read_bytes()[torn["offset"] :].startswith(line)


def test_the_json_is_read_back_as_it_was_written(ran: Proven) -> None:
    """And tells the same as the summary of the run."""
    data = (ran.folder.report / "report.json").read_bytes()
    found = msgspec.json.decode(data, type=Report)
    assert found == ran.report
    assert found.counts.tool_events == ran.summary.tool_events
    assert found.confidence == ran.summary.confidence
    assert found.quality_score == ran.summary.quality_score < 100
    assert {stage.name for stage in found.stages} >= {"survey", "parse", "transform", "validate", "load", "compare"}
    assert all(stage.peak_rss_mb > 0 for stage in found.stages)
    assert found.merges[0].others == 1
    assert {one.name: one.count for one in found.ignored} == {}


def test_a_folder_without_a_report_says_what_to_do(tmp_path: Path) -> None:
    """Instead of a traceback."""
    with pytest.raises(UsageError, match="metricsd migrate verify"):
        report.read(tmp_path)
    (tmp_path / "report.json").write_text("{")
    with pytest.raises(UsageError, match=r"report\.json"):
        report.read(tmp_path)


def test_the_page_needs_nothing_and_runs_nothing(ran: Proven) -> None:
    """No script, no address, no event handler; its own policy forbids what could slip through."""
    text = (ran.folder.report / "report.html").read_text()
    found = Page(text)
    assert not {"script", "img", "link", "iframe", "object", "form", "a", "base"} & set(found.tags)
    assert not [name for name, _ in found.attributes if name.startswith("on") or name in ("href", "src", "action")]
    assert "default-src 'none'" in text
    assert "http://" not in text and "https://" not in text and "url(" not in text
    assert found.tags.count("svg") >= 5


def test_the_page_shows_a_hostile_name_as_text(ran: Proven) -> None:
    """Escaped where it stands, so it can be read and does nothing."""
    told = msgspec.structs.replace(
        ran.report,
        source=HOSTILE,
        reasons=(HOSTILE,),
        rejects=tuple(msgspec.structs.replace(one, name=HOSTILE) for one in ran.report.rejects),
        tools=tuple(msgspec.structs.replace(one, name=HOSTILE) for one in ran.report.tools),
        merges=tuple(msgspec.structs.replace(one, file=HOSTILE) for one in ran.report.merges),
    )
    text = page(told)
    found = Page(text)
    assert "<script>" not in text
    assert sum(HOSTILE in one for one in found.texts) >= 4


def test_the_page_says_what_the_json_says(ran: Proven) -> None:
    """Verdict, counts, every rule that fired, every metric, every kind of fault."""
    text = " ".join(Page((ran.folder.report / "report.html").read_text()).texts)
    told = ran.report
    assert ("PASS" if told.ok else "FAIL") in text
    for name in (
        *(one.id for one in told.baseline),
        *(one.name for one in told.findings),
        *(one.rule for one in told.recommendations),
    ):
        assert name in text
    assert f"{told.counts.total.source:,}" in text
    assert all(f"{tool.source:,}" in text for tool in told.tools)


def test_the_summary_on_a_terminal_fits_and_tells_the_verdict(ran: Proven) -> None:
    """No line is wider than 100 columns; reasons, counts and what to do are there."""
    lines = list(report_text.lines(ran.report))
    assert max(map(len, lines)) <= 100
    assert lines[0].startswith("FAIL  confidence >=")
    assert any("0 of 0 faults" in line for line in lines)
    assert any(line.split() == ["tool", "events", "184", "181", "0", "3", "0"] for line in lines)
    assert any("entry_is_json" in line for line in lines)


def test_bars_and_columns_draw_what_they_are_given() -> None:
    """Lengths are in proportion; many neighbours join and lose nothing; nothing to draw says so."""
    drawn = bars([Bar("a", 10, "10"), Bar("b", 5, "5"), Bar("zero", 0, "0")], "t")
    widths = [float(width) for width in re.findall(r'<rect [^>]*width="([0-9.]+)"', drawn)]
    assert widths[0] == pytest.approx(2 * widths[1])
    assert widths[2] == 0
    labels = [f"d{number}" for number in range(2 * COLUMNS_MAX)]
    many = columns(labels, [1] * len(labels), [1] * len(labels), "t")
    assert many.count("<rect") == 2 * COLUMNS_MAX
    assert "source 2, target 2" in many
    assert bars([], "t") == columns([], [], [], "t") == '<p class="none">nothing</p>'

"""`metricsd policy`: what it says about the files of a home, and that it never changes any."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

from metricsd.cli.app import run_command
from metricsd.cli.status import gather
from metricsd.config import Paths, load_config
from metricsd.errors import EXIT_FAILED, EXIT_OK, PolicyError, UsageError
from metricsd.hlc import Stamp
from metricsd.policy import Layers, parse, places_of
from metricsd.policy_places import FOLDER
from metricsd.protocol import RecordState
from metricsd.resources import data_folder
from metricsd.store import records
from metricsd.store.connection import Store
from metricsd.sync.cases import find_cases
from metricsd.sync.plugins import Pool
from metricsd.sync.resolving import Resolver
from tests.conflict.samples import stamp
from tests.policy.support import example_plugin, policy_text, put, rule

ROOT = Path(__file__).resolve().parents[2]
PAGES = [ROOT / "conflict_policies" / "README.md", ROOT / "docs" / "extending.md"]


@pytest.fixture
def user(home: Paths) -> Path:
    """The folder of the user's policies."""
    folder = home.config_dir / FOLDER
    folder.mkdir(parents=True, mode=0o755)
    for one in (folder, *folder.parents):
        if one.is_relative_to(home.config_dir.parent):
            one.chmod(0o755)
    return folder


def run(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, Any]:
    """Run `metricsd policy ... --json` and return its exit code and document."""
    code = run_command(["policy", *arguments, "--json"])
    return code, json.loads(capsys.readouterr().out)


def test_list_names_every_file_and_whether_it_is_in_force(user: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Your own on top, then the shipped ones, of which one is in force; a broken file has its error."""
    put(user / "good.toml", policy_text(default="latest_wins", version=7))
    put(user / "bad.toml", "version = 'x'")
    code, rows = run(capsys, "list")
    assert code == EXIT_OK
    assert [(row["name"], row["layer"], row["in_force"]) for row in rows] == [
        (None, "user", False),
        ("good", "user", True),
        ("custom_example", "shipped", False),
        ("latest_wins", "shipped", False),
        ("local_wins", "shipped", False),
        ("merge_fields", "shipped", True),
        ("remote_wins", "shipped", False),
    ]
    assert "bad.toml:1" in rows[0]["error"]
    assert run_command(["policy", "list"]) == EXIT_OK
    assert "good, version 7, 0 rules" in capsys.readouterr().out


def test_show_prints_the_rules_in_the_order_asked(user: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Layers, rules, defaults and the delete rule, each with its source."""
    file = put(user / "mine.toml", policy_text(rule("remote_wins", field="tags"), default="latest_wins"))
    _, document = run(capsys, "show")
    assert [one["name"] for one in document["policies"]] == ["mine", "merge_fields"]
    first = document["policies"][0]["rules"][0]
    assert (first["strategy"], first["source"]) == ("remote_wins", f"{file}:4")
    assert document["delete"]["policy"] == "delete_wins"
    assert run_command(["policy", "show"]) == EXIT_OK
    assert "session.tags" in capsys.readouterr().out


def test_lint_fails_on_errors_and_with_strict_on_warnings(user: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Findings carry file and line; without FILE every file of the home is checked."""
    file = put(user / "mine.toml", policy_text(default="local_wins"))
    code, rows = run(capsys, "lint", str(file))
    assert (code, [row["code"] for row in rows]) == (EXIT_OK, ["converge"])
    assert run(capsys, "lint", str(file), "--strict")[0] == EXIT_FAILED
    put(file, policy_text(rule("latest_wins", field="tgas")))
    code, rows = run(capsys, "lint")
    assert (code, rows[0]["line"], rows[0]["source"]) == (EXIT_FAILED, 3, str(file))
    assert run_command(["policy", "lint"]) == EXIT_FAILED
    said = capsys.readouterr()
    assert f"{file}:3: error: unknown field 'tgas'" in said.out
    assert said.err == "1 error, 0 warnings\n"
    with pytest.raises(UsageError, match="no such file"):
        run_command(["policy", "lint", str(user / "none.toml")])


def test_lint_is_content_with_a_fresh_home(user: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The shipped default has no findings."""
    assert run(capsys, "lint") == (EXIT_OK, [])


def test_explain_names_the_rule_and_those_that_it_beat(user: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """By tag and project too."""
    file = put(
        user / "mine.toml",
        policy_text('[[rule]]\nmatch = { tag = "review", project = "web-*" }\nstrategy = "remote_wins"'),
    )
    _, plain = run(capsys, "explain", "session", "tags")
    assert (plain["strategy"], plain["clash"], plain["layer"], plain["kind"]) == (
        "merge_fields",
        "union",
        "shipped",
        "list",
    )
    _, found = run(capsys, "explain", "session", "tags", "--tag", "review", "--project", "web-shop")
    assert (found["strategy"], found["source"]) == ("remote_wins", f"{file}:3")
    assert [one["chosen"] for one in found["considered"]] == [True, False]
    assert run(capsys, "explain", "session", "unheard_of")[1]["known"] is False
    assert run_command(["policy", "explain", "session", "tags"]) == EXIT_OK
    assert "merge_fields (union)" in capsys.readouterr().out
    for words in (["sesion", "tags"], ["tool_metric", "average_duration_ms"]):
        with pytest.raises(UsageError):
            run_command(["policy", "explain", *words])


def test_test_shows_what_a_policy_makes_of_every_field(user: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A policy is tried on one sample conflict for each field, plug-in included."""
    code, sha256 = example_plugin()
    put(user / "p.py", code)
    extra = f'plugin = "p.py"\nsha256 = "{sha256}"\nfallback = "merge_fields"'
    file = put(user / "mine.toml", policy_text(rule("custom", field="description", extra=extra)))
    code_, rows = run(capsys, "test", str(file))
    found = {row["name"]: row for row in rows}
    assert code_ == EXIT_OK
    assert found["session.description"]["decided"] == {"description": "custom=merged"}
    assert found["session.tags"]["got"] == {"tags": ["cloud", "here", "kept"]}
    assert found["tool_metric.execution_count"]["got"] == {"execution_count": 17}
    put(user / "p.py", "def resolve(*_):\n    return 5\n")
    code_, rows = run(capsys, "test", str(file))
    assert code_ == EXIT_FAILED
    assert any("has sha256" in problem for row in rows for problem in row["problems"])


CASES = """
policy = "team.toml"
[[case]]
name = "tags unite"
base = { tags = ["a", "b"] }
local = { tags = ["b", "l"] }
remote = { tags = ["a", "b", "r"] }
expect = { tags = ["b", "l", "r"] }
[[case]]
name = "the later edit"
local = { description = "l" }
remote = { description = "r" }
later = "local"
expect = { description = "l" }
[[case]]
name = "delete wins"
base = { score = 1 }
local = { score = 2 }
remote = "deleted"
expect = "deleted"
"""


def test_test_runs_cases(user: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """All good: exit 0. One that expects otherwise: exit 1, with what came instead."""
    put(tmp_path / "team.toml", policy_text(default="merge_fields"))
    file = put(tmp_path / "cases.toml", CASES)
    code, rows = run(capsys, "test", str(file))
    assert [row["ok"] for row in rows] == [False, True, True], "team.toml's default leaves tags to the later edit"
    put(tmp_path / "team.toml", policy_text())
    assert run(capsys, "test", str(file))[0] == EXIT_OK
    put(file, CASES.replace('later = "local"', ""))
    code, rows = run(capsys, "test", str(file))
    assert (code, rows[1]["got"], rows[1]["expect"]) == (EXIT_FAILED, {"description": "r"}, {"description": "l"})
    assert run_command(["policy", "test", str(file)]) == EXIT_FAILED
    assert "FAIL  the later edit" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[[case]]\nlocal = 5\nremote = {}\nexpect = {}", "case 1: local: expected a table"),
        ("[[case]]\nlocal = { tgas = 1 }\nremote = {}\nexpect = {}", "tgas: unknown"),
        ("[[case]]\nentity = 'x'\nlocal = {}\nremote = {}\nexpect = {}", "entity: expected one of"),
        ("[[case]]\nlater = 'x'\nlocal = {}\nremote = {}\nexpect = {}", "later: expected local or remote"),
        ("[[case]]\nlocal = {}\nremote = {}", "expect: expected a table"),
        ("[[case]]\nx = 1", "'x'|x: unknown key"),
        ("case = 1", "expected at most"),
        ("case = [", "not valid TOML"),
    ],
)
def test_wrong_cases_are_usage_errors(tmp_path: Path, text: str, message: str) -> None:
    """With the number of the case and what was expected."""
    with pytest.raises(PolicyError, match=message):
        find_cases(put(tmp_path / "cases.toml", text))


async def logged(home: Paths, policies: Layers) -> None:
    """Log a conflict that the policy in force resolved, and one that is still open."""
    store = Store.open(home.store)

    async def inline(work: Any, /, *args: Any, **kwargs: Any) -> Any:
        return work(*args, **kwargs)

    try:
        for name in ("resolved", "open"):
            with store.transaction():
                old = {"description": "old", "tags": ["a"]}
                records.pulled(store, _state(name, "1-x", old, 1))
                records.edit(store, "session", f"app/{name}", {"description": "here", "tags": ["a", "l"]})
                records.pulled(store, _state(name, "2-x", {"description": "cloud", "tags": ["a", "r"]}, 2))
            if name == "resolved":
                pool = Pool()
                assert sum((await Resolver(store, inline, policies, pool).resolve_open()).values()) == 1
                pool.close()
    finally:
        store.close()


def _state(name: str, rev: str, fields: dict[str, Any], at: int) -> RecordState:
    stamps = dict.fromkeys(fields, Stamp(at, 0, "other").text())
    return RecordState(type="session", id=f"app/{name}", rev=rev, device="other", fields=fields, stamps=stamps)


async def test_dry_run_shows_what_would_have_been_decided_otherwise(
    home: Paths, user: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Over resolved and open conflicts; the log is not touched, and the same policy changes nothing."""
    await logged(home, Layers(places_of(home)))
    capsys.readouterr()
    before = home.store.read_bytes()
    file = put(tmp_path / "mine.toml", policy_text(default="remote_wins"))
    code, rows = run(capsys, "dry-run", str(file))
    assert code == EXIT_OK
    assert [(row["record_id"], row["strategy_was"], row["strategy"]) for row in rows] == [
        ("app/open", "merge_fields", "remote_wins"),
        ("app/resolved", "merge_fields", "remote_wins"),
    ]
    assert rows[1]["fields"] == {
        "description": {"was": "here", "would_be": "cloud"},
        "tags": {"was": ["a", "l", "r"], "would_be": ["a", "r"]},
    }
    assert run(capsys, "dry-run", str(data_folder(FOLDER) / "merge_fields.toml"))[1] == []
    assert run_command(["policy", "dry-run", str(file)]) == EXIT_OK
    assert "2 of 2 logged conflicts" in capsys.readouterr().err
    assert home.store.read_bytes() == before
    with pytest.raises(PolicyError):
        run_command(["policy", "dry-run", str(put(tmp_path / "bad.toml", "version = 'x'"))])


def test_dry_run_without_a_store_has_nothing_to_show(
    user: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A fresh home has no conflicts, and gets no store from looking."""
    file = put(tmp_path / "mine.toml", policy_text(default="remote_wins"))
    assert run(capsys, "dry-run", str(file)) == (EXIT_OK, [])


def test_status_says_which_policy_is_in_force(home: Paths, user: Path) -> None:
    """Without a daemon from the files; with one from its note, until a file changes."""

    def section() -> dict[str, Any]:
        found: dict[str, Any] = gather(home, load_config(home, {}, system_file=Path("/nonexistent")))["policy"]
        return found

    assert (section()["name"], section()["error"]) == ("merge_fields", None)
    home.state_dir.mkdir(parents=True, exist_ok=True, mode=0o755)
    layers = Layers(places_of(home), keep=True)
    file = put(user / "mine.toml", policy_text(default="latest_wins", version=4))
    noted = layers.current().report()
    assert section() == noted
    assert (noted["name"], noted["version"], noted["source"]) == ("mine", 4, str(file))
    report = json.loads(places_of(home).report.read_text())
    places_of(home).report.write_text(json.dumps(report | {"name": "from the note"}))
    assert section()["name"] == "from the note"
    put(file, "broken")
    assert section()["name"] == "mine"
    assert "last good version stays in force" in section()["error"]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_examples_of_the_guides_work(page: Path, tmp_path: Path) -> None:
    """Every TOML block is a policy (or cases), every Python block a plug-in: of a policy, or of a migration."""
    text = page.read_text()
    blocks = re.findall(r"```toml\n(.*?)```", text, re.DOTALL)
    assert blocks
    for number, block in enumerate(blocks):
        filled = re.sub(r'"<sha256sum [^"]*>"', f'"{"0" * 64}"', block)
        if "[[case]]" in filled:
            assert find_cases(put(tmp_path / f"{number}.toml", filled)) is not None
        else:
            parse(filled if "version" in filled else f"version = 1\n{filled}", page)
    for block in re.findall(r"```python\n(.*?)```", text, re.DOTALL):
        space: dict[str, Any] = {}
        exec(block, space)
        if "RULES" in space:
            slow = {"kind": "tool_used", "tool": "Edit", "duration_ms": 2000}
            assert [found[0] for found in space["check"](slow)] == list(space["RULES"])
            continue
        sides: tuple[dict[str, str], ...] = ({}, {"description": "a"}, {"description": "bb"})
        assert space["resolve"](*sides, {"fields": ["description"], "stamps": {"local": {"description": stamp(1)}}})

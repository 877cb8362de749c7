"""`legacy convert` as a program: lines in, lines out, and what is wrong with one on stderr."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

from metricsd.legacy.convert import DIRECTIONS
from tests.homes import REPOSITORY, Home
from tests.legacy.golden import THROWS, is_like, recordings
from tests.legacy.test_golden_converter import AS_RECORDED

GOOD = '{"session_id":"a","start_time":"2025-01-01T00:00:00Z","user":"u"}'


def test_a_bad_line_is_named_and_the_stream_goes_on(tmp_path: Path) -> None:
    """Good lines before and behind come out in order; the exit code is 1."""
    bad = [
        "nope",
        '{"session_id":NaN}',
        '{"session_id":"a","start_time":1e400}',
        "[]",
        '{"a":' * 5000,
        '"\\ud800"',
        "\xff",
    ]
    done = Home(tmp_path).run("legacy", "convert", "session:local->cloud", stdin="\n".join([GOOD, "", *bad, GOOD]))
    assert [json.loads(line)["id"] for line in done.stdout.splitlines()] == ["a", "a"]
    said = done.stderr.splitlines()
    assert [line.split(":")[1].strip() for line in said[:-1]] == [f"line {number}" for number in range(3, 3 + len(bad))]
    assert said[-1] == f"metricsd: {len(bad)} lines could not be converted"
    assert done.returncode == 1


def test_a_file_goes_there_and_back(tmp_path: Path) -> None:
    """FILE in place of stdin; `--lossless` brings a record back byte for byte."""
    (tmp_path / "in").write_text(
        '{"user":"u","session_id":"a","start_time":"2025-01-01T02:00:00+02:00","more":[1.0]}\n'
    )
    home = Home(tmp_path / "home")
    there = home.ok("legacy", "convert", "session:local->cloud", str(tmp_path / "in"), "--lossless")
    back = home.ok("legacy", "convert", "session:cloud->local", stdin=there)
    assert json.loads(back) == json.loads((tmp_path / "in").read_text())


def test_a_recorded_conversion_through_the_program(tmp_path: Path) -> None:
    """The command line gives what the recording shows."""
    one = next(one for one in recordings("converter.jsonl") if one["direction"] == "sessions:local->cloud")
    out = Home(tmp_path).ok("legacy", "convert", one["direction"], stdin=json.dumps(one["input"]))
    assert json.loads(out) == one["output"]


def test_every_recorded_conversion_through_the_program(tmp_path: Path) -> None:
    """Each direction as one stream: answers in order, a bad line for each that threw."""
    home = Home(tmp_path)
    by_direction: dict[str, list[dict[str, Any]]] = {}
    for one in AS_RECORDED:
        by_direction.setdefault(one["direction"], []).append(one)
    for direction, some in by_direction.items():
        lines = "".join(json.dumps(one["input"]) + "\n" for one in some)
        done = home.run("legacy", "convert", direction, stdin=lines)
        answers = iter(map(json.loads, done.stdout.splitlines()))
        refused = 0
        for one in some:
            if isinstance(one["output"], dict) and THROWS in one["output"]:
                refused += 1
            else:
                assert is_like(one["output"], next(answers)), one["name"]
        assert list(answers) == []
        assert done.stderr.count(": line ") == refused
        assert done.returncode == (1 if refused else 0)


def test_directions_are_listed_and_a_wrong_one_is_a_wrong_command_line(tmp_path: Path) -> None:
    """Exit code 2, and what to type."""
    home = Home(tmp_path)
    assert tuple(home.ok("legacy", "convert", "--list").splitlines()) == DIRECTIONS
    for arguments in (["session:up"], [], ["session:local->cloud", str(tmp_path / "missing")]):
        done = home.run("legacy", "convert", *arguments)
        assert (done.returncode, done.stdout) == (2, ""), done
        assert done.stderr.startswith("metricsd: ")


def test_a_reader_that_goes_away_is_no_error(tmp_path: Path) -> None:
    """`| head` ends it in silence."""
    home = Home(tmp_path)
    code = f"{sys.executable} -m metricsd legacy convert session:local-\\>cloud | head -n 1"
    done = subprocess.run(
        ["sh", "-c", code], input=f"{GOOD}\n" * 50_000, env=home.env, cwd=REPOSITORY,
        capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
    assert (len(done.stdout.splitlines()), done.stderr) == (1, "")

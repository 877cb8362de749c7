"""The hook writes what it was given, with every shell and awk that is here."""

from __future__ import annotations

import json
import os
import re
import stat
import time
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from metricsd.decode.envelope import parse_line
from metricsd.errors import LineRejected
from metricsd.spool import PAYLOAD_BYTES_MAX, captures_folder, parse_name
from tests.hooks.programs import (
    AWKS,
    CAPTURE,
    SHELLS,
    need,
    only_line,
    path_with,
    payload_of,
    run_capture,
    shell_command,
)

SOURCE = 'def f(path):\n\treturn f"{path}/a\\b %s %d" % ("q", 1)  # ½ "quoted" \\n\n'


def _value(size: int) -> dict[str, Any]:
    return {"session_id": "s", "tool_response": {"content": (SOURCE * (size // len(SOURCE) + 1))[:size]}}


VALID: dict[str, bytes] = {
    "2 KB": json.dumps(_value(2048)).encode(),
    "64 KB": json.dumps(_value(65536), ensure_ascii=False).encode(),
    "1 MB": json.dumps(_value(1 << 20)).encode(),
    "1 MB without a separator": json.dumps({"a": "x" * (1 << 20)}).encode(),
    "pretty-printed": json.dumps({"rows": [{"a": i, "b": "c/d"} for i in range(500)]}, indent=2).encode() + b"\n",
    "pretty-printed with CRLF": json.dumps({"rows": [1, {"b": "c/d"}]}, indent=2).replace("\n", "\r\n").encode(),
    "percent, backslash, quote": json.dumps({"a": "%s %d %% \\n \\\\ \" ' $HOME `id` & \u0000\u001f/"}).encode(),
    "slashes": b'{"//":"/","u":"http://h/p/"}',
    "a bare number": b"42",
}
HOSTILE: dict[str, bytes] = {
    "NUL in a string": b'{"a":"x\0y"}',
    "NUL between tokens": b'{"a":1,\0"b":2}',
    "NUL and more JSON behind": b'{"a":1}\0{"b":2}',
    "NUL on a line of its own": b'{"a":1,\n\0\n"b":\n2}',
    "line break in a string": b'{"a":"x\ny"}',
    "line break in a number": b'{"a":1\n2}',
    "carriage return in a string": b'{"a":"x\ry"}',
    "cut": b'{"a":"x',
    "no JSON": b"hello\nworld\n",
    "two values": b'{"a":1}\n{"b":2}\n',
}


@pytest.mark.parametrize("awk", AWKS)
@pytest.mark.parametrize("shell", SHELLS)
def test_every_shell_and_awk_keep_every_payload(shell: str, awk: str, tmp_path: Path) -> None:
    """The line's payload equals what was given, byte sequences that are no UTF-8 included; an empty one is null."""
    command, env = shell_command(shell), {"PATH": path_with(tmp_path, awk)}
    spool = tmp_path / "spool"
    for name, payload in VALID.items():
        before = int(time.time())
        run_capture(payload, spool, shell=command, env=env)
        line = only_line(spool)
        got = json.loads(line)
        assert got.pop("payload") == json.loads(payload), name
        # A clock that is being corrected may step back between two looks.
        assert before - 1 <= got.pop("s") <= int(time.time()) + 1
        assert got == {"v": 1, "app": "claude-code", "event": "PostToolUse"}
    for payload in (b"", b"\n", b" \n\r\n\t"):
        run_capture(payload, spool, shell=command, env=env)
        assert payload_of(only_line(spool)) is None
    run_capture(b'{"a":"\xff\xfe\x80\xc3"}', spool, shell=command, env=env)
    assert b'"payload":{"a":"\xff\xfe\x80\xc3"}}\n' in only_line(spool)


@pytest.mark.parametrize("awk", AWKS)
def test_what_is_no_json_never_becomes_other_json(awk: str, tmp_path: Path) -> None:
    """A line of a broken payload is either refused by a strict reader or means the payload with its NULs as spaces."""
    env = {"PATH": path_with(tmp_path, awk)}
    spool = tmp_path / "spool"
    for name, payload in HOSTILE.items():
        run_capture(payload, spool, env=env)
        line = only_line(spool)
        try:
            got = payload_of(line)
        except ValueError:
            continue
        assert got == json.loads(payload.replace(b"\0", b" ")), name


@pytest.mark.parametrize("awk", AWKS)
def test_a_payload_above_the_cap_leaves_a_note_of_its_size(awk: str, tmp_path: Path) -> None:
    """At the cap the payload is kept; above it, on one line or many, only name and size are, and never a part."""
    env = {"PATH": path_with(tmp_path, awk)}
    spool = tmp_path / "spool"
    edge = b'{"a":"' + "½".encode() * ((PAYLOAD_BYTES_MAX - 8) // 2) + b'"}'
    assert len(edge) == PAYLOAD_BYTES_MAX
    run_capture(edge, spool, env=env)
    assert payload_of(only_line(spool))["a"].count("½") == (PAYLOAD_BYTES_MAX - 8) // 2
    one_too_long = edge[:-2] + b'z"}'
    for payload in (one_too_long, b"[" + b'"y/",\n' * 3_000_000 + b"0]"):
        run_capture(payload, spool, env=env)
        line = only_line(spool)
        assert len(line) < 200
        got = json.loads(line)
        assert "payload" not in got
        assert got["oversize"] == len(payload)
        with pytest.raises(LineRejected, match="oversize"):
            parse_line(line)


def test_mawk_is_taken_where_it_is(tmp_path: Path) -> None:
    """It starts in half the time of gawk, so that it goes before whatever `awk` is."""
    folder = tmp_path / "bin"
    folder.mkdir()
    (folder / "mkdir").symlink_to(need("mkdir"))
    (folder / "mawk").symlink_to(need("mawk"))
    (folder / "awk").symlink_to(need("false"))
    run_capture(b'{"a":1}', tmp_path / "spool", env={"PATH": str(folder)})
    assert payload_of(only_line(tmp_path / "spool")) == {"a": 1}


def test_the_epoch_second_is_left_out_when_awk_cannot_tell_it(tmp_path: Path) -> None:
    """An awk whose srand() answers anything but the time gives second 0, which means: ask the file."""
    folder = tmp_path / "bin"
    folder.mkdir()
    (folder / "mkdir").symlink_to(need("mkdir"))
    fake = folder / "awk"
    program = "$(printf '%s' \"$1\" | sed 's/srand()$/NR + (calls = calls * 7 + 1000000)/')"
    fake.write_text(f'#!/bin/sh\nPATH={os.environ["PATH"]}\nprogram={program}\nshift\nexec awk "$program" "$@"\n')
    fake.chmod(0o755)
    run_capture(b"{}", tmp_path / "spool", env={"PATH": str(folder)})
    assert json.loads(only_line(tmp_path / "spool"))["s"] == 0


_SLOW_IS_FINE = settings(max_examples=40)
_JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**53), 2**53) | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=5), inner, max_size=4),
)


@_SLOW_IS_FINE
@given(value=_JSON, indent=st.sampled_from([None, 0, 3]), ascii_only=st.booleans())
def test_any_json_value_comes_back(tmp_path: Path, value: Any, indent: int | None, ascii_only: bool) -> None:
    """capture(json) == json, however it was printed."""
    payload = json.dumps(value, indent=indent, ensure_ascii=ascii_only).encode("utf-8", "surrogatepass")
    run_capture(payload, tmp_path / "spool")
    assert payload_of(only_line(tmp_path / "spool").decode("utf-8", "surrogatepass").encode("utf-8")) == value


@_SLOW_IS_FINE
@given(text=st.text('{}[]",:\\ \n\r\0a1\t', max_size=12))
def test_no_bytes_are_repaired_into_json(tmp_path: Path, text: str) -> None:
    """If the line can be read, its payload means what the bytes meant with NULs as spaces, or they were blank."""
    run_capture(text.encode(), tmp_path / "spool")
    line = only_line(tmp_path / "spool")
    try:
        got = payload_of(line)
    except ValueError:
        return
    bare = text.replace("\0", " ")
    assert got == (json.loads(bare) if bare.strip() else None)


@pytest.mark.parametrize("shell", SHELLS)
def test_name_and_modes_are_the_contract(shell: str, tmp_path: Path) -> None:
    """EVENT-PID-PPID-0.jsonl, 0600 in 0700 folders made on the way, whatever the umask of the tool."""
    spool = tmp_path / 'it\'s a "spool" $x' / "spool"
    run_capture(b"{}", spool, shell=shell_command(shell), umask=0)
    (file,) = captures_folder(spool).iterdir()
    name = parse_name(file.name)
    assert (name.event, name.ppid, name.counter) == ("PostToolUse", os.getpid(), 0)
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    assert [stat.S_IMODE(folder.stat().st_mode) for folder in (spool, spool / "new")] == [0o700, 0o700]


@pytest.mark.parametrize("shell", SHELLS)
@pytest.mark.parametrize(
    ("app", "event"),
    [
        ("a b", "../x"),
        ("", ""),
        ('"', 'E"v'),
        ("é", "-n"),
        ("x" * 65, ".hidden"),
        ("a", "x" * 65),
        ("a\nb", "E\n"),
        ("$(id)", "E/x"),
    ],
)
def test_words_that_fit_no_file_name_become_unknown(shell: str, app: str, event: str, tmp_path: Path) -> None:
    """Nothing from the command line can leave the folder, hide the file or break the JSON."""
    spool = tmp_path / "spool"
    expected = tuple("unknown" if word != "a" else word for word in (app, event))
    run_capture(b"{}", spool, shell=shell_command(shell), app=app, event=event)
    (file,) = captures_folder(spool).iterdir()
    assert parse_name(file.name).event == "unknown"
    got = json.loads(only_line(spool))
    assert (got["app"], got["event"]) == expected


def test_all_allowed_characters_are_kept(tmp_path: Path) -> None:
    """Letters, digits, `_`, `.` and `-` pass, up to 64 of them."""
    for word in ("A-z_0.9", "x" * 64):
        run_capture(b"{}", tmp_path, app=word, event=word)
        (file,) = captures_folder(tmp_path).iterdir()
        assert parse_name(file.name).event == word
        assert json.loads(only_line(tmp_path))["app"] == word


@pytest.mark.parametrize(
    ("env", "folder"),
    [
        ({"METRICSD_HOME": "{tmp}/m"}, "m/state/spool"),
        ({"METRICSD_HOME": "~/m", "HOME": "{tmp}"}, "m/state/spool"),
        ({"METRICSD_HOME": "", "XDG_STATE_HOME": "{tmp}/x y"}, "x y/metricsd/spool"),
        ({"METRICSD_HOME": "", "XDG_STATE_HOME": "", "HOME": "{tmp}/h"}, "h/.local/state/metricsd/spool"),
    ],
)
@pytest.mark.skipif(os.path.isdir("/System/Library/CoreServices"), reason="these are the folders of Linux")
def test_without_a_spool_it_goes_where_metricsd_looks(env: dict[str, str], folder: str, tmp_path: Path) -> None:
    """METRICSD_HOME, then XDG_STATE_HOME, then the home folder: as metricsd.config has it."""
    from metricsd.config import find_paths

    filled = {key: value.format(tmp=tmp_path) for key, value in env.items()}
    run_capture(b"{}", None, env=filled)
    assert payload_of(only_line(tmp_path / folder)) == {}
    with pytest.MonkeyPatch.context() as patch:
        for key, value in filled.items():
            patch.setenv(key, value)
        assert find_paths().spool == tmp_path / folder


def test_the_cap_in_the_script_is_the_one_of_the_contract() -> None:
    """hooks/capture holds PAYLOAD_BYTES_MAX as a number."""
    (found,) = re.findall(r"^ *max = (\d+)$", CAPTURE.read_text(), re.MULTILINE)
    assert int(found) == PAYLOAD_BYTES_MAX

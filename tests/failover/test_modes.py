"""The mode file: kept whole or not at all, read without trust, small for ever."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from metricsd.failover import Forced, Mode, Reason
from metricsd.modes import FILE_BYTES_MAX, HISTORY_MAX, Change, State, find_state, reason_text, save_state

NOW_US = 1_790_000_000_000_000
STATE = State((Change(NOW_US, Mode.LOCAL_ONLY, Reason.UNREACHABLE, "refused"),), Forced(Mode.HYBRID, NOW_US + 1))

json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
    max_leaves=12,
)
changes = st.builds(
    Change, st.integers(0, 2**50), st.sampled_from(Mode), st.sampled_from(Reason), st.text("abc äöü", max_size=50)
)
states = st.builds(
    State,
    st.lists(changes, min_size=1, max_size=20).map(tuple),
    st.none() | st.builds(Forced, st.sampled_from(Mode), st.none() | st.integers(0, 2**50)),
)


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "state" / "mode.json"


@given(state=states)
def test_what_is_saved_is_found(file: Path, state: State) -> None:
    """Every field, and no draft is left."""
    save_state(file, state)
    assert find_state(file) == state
    assert [entry.name for entry in file.parent.iterdir()] == ["mode.json"]


@given(document=json_values, key=st.sampled_from(["v", "history", "forced", None]))
def test_hostile_content_is_no_state(file: Path, document: object, key: str | None) -> None:
    """Any JSON in the file's or a field's place is a state that can be shown, or none."""
    file.parent.mkdir(exist_ok=True)
    whole = {"v": 1, "history": [[1, "hybrid", "synced", ""]], "forced": None} | ({key: document} if key else {})
    file.write_text(json.dumps(whole if key else document))
    found = find_state(file)
    assert found is None or (found.now.mode in Mode and found.now.reason in Reason and reason_text(found.now))


@pytest.mark.parametrize(
    "raw",
    [b"", b"{", b"\xff\xfe", b"[" * 100_000, b"null", b'{"v":2,"history":[[1,"hybrid","synced",""]],"forced":null}',
     b'{"v":1,"history":[],"forced":null}', b'{"v":1,"history":[[true,"hybrid","synced",""]],"forced":null}',
     b'{"v":1,"history":[[1,"sideways","synced",""]],"forced":null}',
     b'{"v":1,"history":[[1,"hybrid","synced",""]],"forced":{"mode":"hybrid","until":1e300}}',
     b'{"v":1,"history":[[1,"hybrid","synced",""]],"forced":null}' + b" " * FILE_BYTES_MAX],
)  # fmt: skip
def test_a_file_that_is_not_ours_counts_as_none(file: Path, raw: bytes) -> None:
    """Torn, of another version, too long, with a time that is none."""
    file.parent.mkdir()
    file.write_bytes(raw)
    assert find_state(file) is None


def test_a_pipe_or_a_folder_in_its_place_holds_nobody_up(file: Path) -> None:
    """Looking never waits."""
    file.parent.mkdir()
    assert find_state(file) is None
    os.mkfifo(file)
    assert find_state(file) is None
    file.unlink()
    file.mkdir()
    assert find_state(file) is None


def test_what_steers_a_terminal_is_not_shown(file: Path) -> None:
    """The reason ends on somebody's screen."""
    save_state(file, State((Change(1, Mode.HYBRID, Reason.ERRORS, "a\x1b[2Jb\nc" + "d" * 1000),)))
    found = find_state(file)
    assert found is not None
    assert reason_text(found.now).isprintable()
    assert len(reason_text(found.now)) < 400


def test_the_history_is_bounded(file: Path) -> None:
    """The oldest go; the file stays below what is read."""
    state = STATE
    for number in range(3 * HISTORY_MAX):
        state = state.entered(Change(number, Mode.HYBRID, Reason.ERRORS, "\U0001f600" * 300))
    assert len(state.history) == HISTORY_MAX
    save_state(file, state)
    assert file.stat().st_size < FILE_BYTES_MAX
    found = find_state(file)
    assert found is not None
    assert found.now.at == 3 * HISTORY_MAX - 1


def test_the_file_is_private_and_a_failed_write_leaves_the_old_one(file: Path) -> None:
    """0600; a folder that cannot be written leaves what was there, and no draft."""
    save_state(file, STATE)
    assert file.stat().st_mode & 0o777 == 0o600
    code = (
        "import resource, signal, sys; from pathlib import Path; from metricsd.modes import *\n"
        "signal.signal(signal.SIGXFSZ, signal.SIG_IGN); resource.setrlimit(resource.RLIMIT_FSIZE, (10, 10))\n"
        "file = Path(sys.argv[1])\n"
        "try: save_state(file, find_state(file), durable=True)\n"
        "except OSError: print('failed')\n"
    )
    done = subprocess.run([sys.executable, "-c", code, str(file)], capture_output=True, text=True, check=True)
    assert done.stdout == "failed\n"
    assert find_state(file) == STATE
    assert [entry.name for entry in file.parent.iterdir()] == ["mode.json"]


def test_a_force_ends_by_itself() -> None:
    """Until its time, and no longer; without a time for ever."""
    assert STATE.forced_at(NOW_US) == STATE.forced
    assert STATE.forced_at(NOW_US + 1) is None
    assert STATE._replace(forced=Forced(Mode.DEGRADED)).forced_at(2**60) == Forced(Mode.DEGRADED)

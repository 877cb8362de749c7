"""The hook when the world is against it: no folder, no space, no rights, killed, or sixty-four at once."""

from __future__ import annotations

import contextlib
import json
import os
import resource
import signal
import subprocess
from pathlib import Path
from typing import Any

import pytest

from metricsd.spool import captures_folder
from tests.hooks.matrix import NOBODY, until
from tests.hooks.programs import AWKS, CAPTURE, DEADLINE_S, SHELLS, lines_in, path_with, run_capture, shell_command


@pytest.mark.parametrize("shell", SHELLS)
def test_sixty_four_at_once_lose_nothing_and_tear_nothing(shell: str, tmp_path: Path) -> None:
    """Each process has a file of its own with its own whole payload, the spool being made by whoever is first."""
    command = [*shell_command(shell), str(CAPTURE), "app", "Stop", str(tmp_path / "spool")]
    processes = [subprocess.Popen(command, stdin=subprocess.PIPE) for _ in range(64)]
    for number, process in enumerate(processes):
        assert process.stdin is not None
        process.stdin.write(json.dumps({"n": number, "x": "y/z" * 3000}).encode())
        process.stdin.close()
    assert [process.wait(DEADLINE_S) for process in processes] == [0] * 64
    got = [json.loads(line) for line in lines_in(tmp_path / "spool")]
    assert sorted(line["payload"]["n"] for line in got) == list(range(64))
    assert all(line["payload"]["x"] == "y/z" * 3000 for line in got)


@pytest.mark.parametrize("shell", SHELLS)
def test_a_used_name_is_never_written_into(shell: str, tmp_path: Path) -> None:
    """With its first names taken, by a file, a link to nothing and a link to a file, it takes the next number."""
    new = captures_folder(tmp_path)
    new.mkdir()
    outside = tmp_path / "outside"
    outside.write_text("precious")
    # The shell becomes the hook by `exec`, so that its number is known before.
    script = (
        'base=$1/new/Stop-$$-$PPID; echo old >"$base-0.jsonl"; ln -s /nowhere "$base-1.jsonl"; '
        'ln -s "$1/outside" "$base-2.jsonl"; shift; exec "$@"'
    )
    words = [*shell_command(shell), str(CAPTURE), "app", "Stop", str(tmp_path)]
    done = subprocess.run(
        ["sh", "-c", script, "sh", str(tmp_path), *words], input=b"{}", capture_output=True, timeout=DEADLINE_S
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, b"", b"")
    files = {file.name.rpartition("-")[2]: file for file in new.iterdir()}
    assert sorted(files) == ["0.jsonl", "1.jsonl", "2.jsonl", "3.jsonl"]
    assert files["0.jsonl"].read_text() == "old\n"
    assert outside.read_text() == "precious"
    assert json.loads(files["3.jsonl"].read_bytes())["payload"] == {}


@pytest.mark.parametrize("awk", AWKS)
def test_killed_half_way_it_does_not_look_complete(awk: str, tmp_path: Path) -> None:
    """What kill -9 leaves has no newline at its end, even when the payload so far was whole JSON."""
    spool = tmp_path / "spool"
    command = [str(CAPTURE), "app", "Stop", str(spool)]
    env = {**os.environ, "PATH": path_with(tmp_path, awk)}
    process = subprocess.Popen(command, stdin=subprocess.PIPE, env=env, start_new_session=True)
    assert process.stdin is not None
    process.stdin.write(b'{"a":"' + b"/x\\n" * 50_000 + b'"}\n' + b" \n" * 20_000)
    process.stdin.flush()
    until(
        lambda: (
            captures_folder(spool).is_dir() and any(f.stat().st_size > 4096 for f in captures_folder(spool).iterdir())
        )
    )
    os.killpg(process.pid, signal.SIGKILL)
    process.wait(DEADLINE_S)
    process.stdin.close()
    (line,) = lines_in(spool)
    assert line.startswith(b'{"v":1,')
    assert b"\n" not in line


def test_a_hangup_of_the_terminal_does_not_stop_it(tmp_path: Path) -> None:
    """Closing the terminal is when sessions end: the capture under way is still completed."""
    spool = tmp_path / "spool"
    process = subprocess.Popen(
        [str(CAPTURE), "app", "SessionEnd", str(spool)], stdin=subprocess.PIPE, start_new_session=True
    )
    until(lambda: captures_folder(spool).is_dir() and bool(list(captures_folder(spool).iterdir())))
    os.killpg(process.pid, signal.SIGHUP)
    process.communicate(b'{"a":1}', timeout=DEADLINE_S)
    assert process.returncode == 0
    (line,) = lines_in(spool)
    assert json.loads(line)["payload"] == {"a": 1}


def test_no_process_is_left_behind(tmp_path: Path) -> None:
    """When the hook has ended, so has everything it started."""
    process = subprocess.Popen([str(CAPTURE), "a", "b", str(tmp_path)], stdin=subprocess.PIPE, start_new_session=True)
    process.communicate(b"{}", timeout=DEADLINE_S)
    with pytest.raises(ProcessLookupError):
        os.killpg(process.pid, 0)


@pytest.mark.parametrize("shell", SHELLS)
@pytest.mark.parametrize("what", ["file for a spool", "file for new", "dangling link"])
def test_a_spool_that_cannot_be_is_silence(shell: str, what: str, tmp_path: Path) -> None:
    """Whatever stands in the spool's place, the tool sees exit 0 and nothing else, and nothing is overwritten."""
    spool = tmp_path / "spool"
    if what == "file for a spool":
        spool.write_text("mine")
    elif what == "file for new":
        spool.mkdir()
        captures_folder(spool).write_text("mine")
    else:
        spool.symlink_to(tmp_path / "no" / "where" / "\n")
    run_capture(b"{}", spool, shell=shell_command(shell))
    assert all(file.read_text() == "mine" for file in tmp_path.rglob("*") if file.is_file() and "bin" not in str(file))


@pytest.mark.parametrize("shell", SHELLS)
def test_a_folder_without_write_permission_is_silence(shell: str, open_folder: Path) -> None:
    """A read-only spool costs the event and nothing else. Root may write anywhere, so it becomes nobody first."""
    new = captures_folder(open_folder / "spool")
    new.mkdir(parents=True)
    new.chmod(0o555)
    identity: dict[str, Any] = {"user": NOBODY, "group": NOBODY, "extra_groups": ()} if os.geteuid() == 0 else {}
    done = subprocess.run(
        [*shell_command(shell), str(open_folder / "capture"), "app", "Stop", str(open_folder / "spool")],
        input=b"{}",
        capture_output=True,
        timeout=DEADLINE_S,
        cwd="/",
        **identity,
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, b"", b"")
    assert list(new.iterdir()) == []
    new.chmod(0o755)


@pytest.mark.parametrize("awk", AWKS)
def test_a_file_size_limit_leaves_an_incomplete_file(awk: str, tmp_path: Path) -> None:
    """Stopped by the system in the middle of writing, it exits 0, prints nothing, and the line has no end."""
    payload = json.dumps({"a": "x/y" * 20_000}).encode()
    run_capture(
        payload,
        tmp_path / "spool",
        env={"PATH": path_with(tmp_path, awk)},
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (16384, 16384)),
    )
    (line,) = lines_in(tmp_path / "spool")
    assert len(line) == 16384
    assert b"\n" not in line


@pytest.mark.parametrize("awk", AWKS)
def test_a_full_disk_is_silence_and_never_half_a_line(awk: str, tmp_path: Path) -> None:
    """On a real file system of 64 KiB a payload of 200 KB ends in a file without a newline, exit 0, no output."""
    script = (
        'mount -t tmpfs -o size=64k none "$1" || exit 77; shift; "$@"; echo "exit=$?"; cat "$0"/new/* | tail -c 200'
    )
    room = tmp_path / "full"
    room.mkdir()
    done = subprocess.run(
        [
            "unshare",
            "--mount",
            "--map-root-user",
            "sh",
            "-c",
            script,
            str(room),
            str(room),
            str(CAPTURE),
            "app",
            "Stop",
            str(room),
        ],
        input=json.dumps({"a": "x/y" * 70_000}).encode(),
        capture_output=True,
        timeout=DEADLINE_S,
        env={**os.environ, "PATH": f"{path_with(tmp_path, awk)}:{os.environ['PATH']}"},
    )
    if done.returncode == 77 or b"unshare" in done.stderr:
        pytest.skip(f"no private mount here ({done.stderr.decode().strip()}): a full disk was NOT tested")
    assert done.stderr == b""
    first, _, rest = done.stdout.partition(b"\n")
    assert first == b"exit=0"
    assert rest
    assert b"\n" not in rest


@pytest.mark.parametrize("shell", SHELLS)
def test_without_dev_null_it_is_still_silence(shell: str, tmp_path: Path) -> None:
    """In a bare sandbox even /dev/null may be missing: exit 0, no output."""
    script = 'mount -t tmpfs -o ro none /dev || exit 77; exec "$@"'
    words = [*shell_command(shell), str(CAPTURE), "app", "Stop", str(tmp_path)]
    command = ["unshare", "--mount", "--map-root-user", "sh", "-c", script, "sh", *words]
    done = subprocess.run(command, input=b"{}", capture_output=True, timeout=DEADLINE_S)
    if done.returncode == 77 or b"unshare" in done.stderr:
        pytest.skip(f"no private mount here ({done.stderr.decode().strip()}): a missing /dev/null was NOT tested")
    assert (done.returncode, done.stdout, done.stderr) == (0, b"", b"")


@pytest.mark.parametrize("shell", SHELLS)
def test_closed_streams_do_not_matter(shell: str, tmp_path: Path) -> None:
    """With stdin, stdout and stderr closed there is still one whole line, of null."""
    words = [*shell_command(shell), str(CAPTURE), "app", "Stop", str(tmp_path)]
    done = subprocess.run(["sh", "-c", '"$@" <&- >&- 2>&-', "sh", *words], capture_output=True, timeout=DEADLINE_S)
    assert (done.returncode, done.stdout, done.stderr) == (0, b"", b"")
    (line,) = lines_in(tmp_path)
    assert line.endswith(b'"payload":null}\n')


@pytest.mark.parametrize("shell", SHELLS)
def test_nothing_to_go_by_is_silence(shell: str, tmp_path: Path) -> None:
    """No arguments, no home, no awk: exit 0."""
    command = shell_command(shell)
    bare = {"PATH": str(tmp_path), "HOME": "", "METRICSD_HOME": "", "XDG_STATE_HOME": ""}
    done = subprocess.run([*command, str(CAPTURE)], input=b"{}", capture_output=True, env=bare, timeout=DEADLINE_S)
    assert (done.returncode, done.stdout, done.stderr) == (0, b"", b"")
    run_capture(b"{}", tmp_path / "spool", shell=command, env={"PATH": str(tmp_path)})
    with contextlib.suppress(FileNotFoundError):
        assert all(not line.endswith(b"\n") or b"{}" in line for line in lines_in(tmp_path / "spool"))

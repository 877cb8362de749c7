"""`metricsd login` with a one-time code: as an argument, from stdin, and typed at a terminal."""

from __future__ import annotations

import contextlib
import json
import os
import pty
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from metricsd import identity
from tests.homes import REPOSITORY, Home, opened, until


@pytest.fixture
def home(tmp_path: Path) -> Iterator[Home]:
    with opened(tmp_path / "one") as found:
        yield found


@pytest.fixture
def url(home: Home) -> str:
    home.ok("cloud", "tenant", "create", "team")
    server = home.start("cloud", "serve", "--port", "0", "--json")
    assert server.stdout is not None
    found: str = json.loads(server.stdout.readline())["url"]
    return found


def new_code(home: Home) -> str:
    return home.ok("cloud", "enrol", "--tenant", "team", "--user", "ann").strip()


def typed_at_a_terminal(home: Home, url: str, *lines: str) -> tuple[int, str]:
    """Run `login` on a pseudo-terminal, typing each line when it asks; return the exit code and what was on it."""
    ours, theirs = pty.openpty()
    process = subprocess.Popen(
        [sys.executable, "-m", "metricsd", "login", url],
        env=home.env, cwd=REPOSITORY, stdin=theirs, stdout=theirs, stderr=theirs, start_new_session=True,
    )  # fmt: skip
    home.processes.append(process)  # type: ignore[arg-type]
    os.close(theirs)
    os.set_blocking(ours, False)
    shown = ""

    def read() -> str:
        nonlocal shown
        with contextlib.suppress(BlockingIOError, OSError):
            shown += os.read(ours, 4096).decode()
        return shown

    for number, line in enumerate(lines, 1):
        until(lambda number=number: read().count(": ") >= number)  # type: ignore[misc]
        os.write(ours, f"{line}\n".encode())
    until(lambda: read() and process.poll() is not None)
    read()
    os.close(ours)
    return process.returncode, shown


def test_a_code_logs_one_device_in(home: Home, url: str, tmp_path: Path) -> None:
    """As an argument, however it is written; a second device with it is told to log in with another."""
    code = new_code(home)
    done = json.loads(home.ok("login", url, "--code", code.lower().replace("-", " "), "--json"))
    assert (done["tenant"], done["user"]) == ("team", "ann")
    assert identity.get_credentials(home.paths).token.startswith("mdd_")
    with opened(tmp_path / "two") as other:
        again = other.run("login", url, "--code", code)
        assert again.returncode == 5 and "used up" in again.stderr


def test_a_code_comes_from_stdin_too(home: Home, url: str) -> None:
    """Scripts need not know whether they were given a code or a token."""
    home.ok("login", url, "--token-stdin", stdin=f"  {new_code(home).lower()}\n")
    assert identity.get_credentials(home.paths).user == "ann"


def test_a_code_is_typed_at_a_terminal(home: Home, url: str) -> None:
    """The command asks for it; Enter asks for a token instead, which does not appear on the screen."""
    exit_code, shown = typed_at_a_terminal(home, url, new_code(home))
    assert exit_code == 0 and "enrolment code" in shown and "logged in" in shown
    home.ok("logout")
    token = json.loads(home.ok("cloud", "token", "create", "--tenant", "team", "--user", "ann", "--json"))["token"]
    exit_code, shown = typed_at_a_terminal(home, url, "", token)
    assert exit_code == 0 and "enrolment token" in shown and token not in shown


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("--code", "nonsense"), "twelve letters"),
        (("--code", "mde_" + "x" * 43), "--token-stdin"),
        (("--code", "0000-0000-0000", "--token-stdin"), "one of them"),
        ((), "no terminal"),
    ],
)
def test_what_cannot_be_a_code_is_a_usage_error(home: Home, arguments: tuple[str, ...], said: str) -> None:
    """Before anything is asked of a cloud; a token that was given by mistake is not repeated."""
    done = home.run("login", "http://127.0.0.1:9", *arguments)
    assert done.returncode == 2 and said in done.stderr and "xxxx" not in done.stderr

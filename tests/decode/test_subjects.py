"""A command becomes a program from the list, a path an extension from the list, or `other`."""

from __future__ import annotations

import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from metricsd.decode.subjects import EXTENSIONS, PROGRAMS, command_subject, file_subject


@pytest.mark.parametrize(
    ("command", "program"),
    [
        ("git status", "git"),
        ("  git status", "git"),
        ("\tgit\nstatus", "git"),
        ("/usr/local/bin/python3 x.py", "python3"),
        ("./node_modules/.bin/eslint .", "eslint"),
        ("C:\\tools\\git.exe log", "git"),
        ('"git" log', "git"),
        ("A=1 B='x y' C=\"p q\"r npm test", "npm"),
        ("sudo apt-get install x", "apt-get"),
        ("sudo -E -u root -- ls", "ls"),
        ("sudo -u root env -u HOME X=1 nice -n 10 make", "make"),
        ("(cd src && make)", "cd"),
        ("! grep -q x y", "grep"),
        ("ls;rm x", "other"),
        ("ls; rm x", "ls"),
        ("SECRET=hunter2", "other"),
        ("hunter2 --now", "other"),
        ("sudo", "other"),
        ("", "other"),
        ("   ", "other"),
        ("-u", "other"),
        ("sudo " * 50, "other"),
    ],
)
def test_first_program_of_a_command(command: str, program: str) -> None:
    """Assignments, wrappers with their options, paths and quotes in front do not count."""
    assert command_subject(command) == program


@pytest.mark.parametrize(
    ("path", "extension"),
    [
        ("/a/b.py", ".py"),
        ("b.TSX", ".tsx"),
        ("/a.d/b", "other"),
        ("C:\\x\\y.cs", ".cs"),
        ("x.tar.gz", "other"),
        ("x.hunter2", "other"),
        ("Makefile", "other"),
        ("", "other"),
        (".", "other"),
        ("x." + "y" * 10_000, "other"),
    ],
)
def test_extension_of_a_path(path: str, extension: str) -> None:
    """Only the extension, in lower case, and only a common one."""
    assert file_subject(path) == extension


@given(st.text())
def test_subject_is_always_a_listed_word(text: str) -> None:
    """Whatever the text, nothing of it that is not on the lists comes out."""
    assert command_subject(text) in PROGRAMS | {"other"}
    assert file_subject(text) in EXTENSIONS | {"other"}


@pytest.mark.parametrize(
    "text", ["A=" * 100_000, 'A="' * 100_000, "A=" + "x" * 1_000_000, "sudo -" * 100_000, " " * 1_000_000]
)
def test_hostile_command_costs_no_time(text: str) -> None:
    """Every pattern is linear and the text is cut: a megabyte costs less than a tenth of a second."""
    started = time.process_time()
    command_subject(text)
    assert time.process_time() - started < 0.1

"""Whose files are obeyed: nobody but the user and root may be able to change them, anywhere on their path."""

from __future__ import annotations

import os
import stat
from pathlib import Path

import pytest

from metricsd.policy import find_weakness

SOMEBODY = 12345


@pytest.fixture
def file(tmp_path: Path) -> Path:
    folder = tmp_path / "a" / "b"
    folder.mkdir(parents=True, mode=0o755)
    file = folder / "x.toml"
    file.touch(mode=0o644)
    return file


def test_a_private_file_is_trusted(file: Path) -> None:
    """Readable by all is fine; the sticky folder of root's above it too."""
    assert find_weakness(file) is None


@pytest.mark.parametrize("mode", [stat.S_IWGRP, stat.S_IWOTH])
@pytest.mark.parametrize("depth", [0, 1, 2])
def test_group_or_others_may_not_write(file: Path, mode: int, depth: int) -> None:
    """Neither the file nor a folder above it; the message says what to do."""
    weak = [file, *file.parents][depth]
    weak.chmod(weak.stat().st_mode | mode)
    found = find_weakness(file) or ""
    assert found.startswith(str(weak))
    assert "chmod go-w" in found


def test_a_sticky_folder_counts_only_if_it_is_roots(file: Path) -> None:
    """Root's /tmp keeps others from replacing what is not theirs; a sticky folder of anybody else's does not count."""
    file.parent.chmod(0o1777)
    own = os.geteuid()
    if own == 0:
        assert find_weakness(file) is None
        own = SOMEBODY
        for one in (file, file.parent):
            os.chown(one, own, own)
    assert str(file.parent) in (find_weakness(file, uid=own) or "")


def test_a_link_is_followed_on_both_sides(file: Path, tmp_path: Path) -> None:
    """Who can write beside the link or beside its target can change what is read."""
    outside = tmp_path / "links"
    outside.mkdir(mode=0o755)
    link = outside / "link.toml"
    link.symlink_to(file)
    assert find_weakness(link) is None
    file.parent.chmod(0o777)
    assert str(file.parent) in (find_weakness(link) or "")
    file.parent.chmod(0o755)
    outside.chmod(0o777)
    assert str(outside) in (find_weakness(link) or "")


def test_a_link_within_the_path_is_followed(file: Path, tmp_path: Path) -> None:
    """The same for a folder that is a link."""
    (tmp_path / "short").symlink_to(file.parent)
    file.parent.chmod(0o777)
    assert str(file.parent) in (find_weakness(tmp_path / "short" / file.name) or "")


def test_a_file_of_another_user_is_refused(file: Path) -> None:
    """Seen from another user, this one's file is not to be obeyed unless this one is root."""
    if os.geteuid() == 0:
        os.chown(file, SOMEBODY, SOMEBODY)
        found = find_weakness(file)
    else:
        found = find_weakness(file, uid=SOMEBODY)
    assert "belongs to another user" in (found or "")


def test_a_loop_of_links_is_an_error(tmp_path: Path) -> None:
    """It can neither be trusted nor followed for ever."""
    (tmp_path / "a").symlink_to(tmp_path / "b")
    (tmp_path / "b").symlink_to(tmp_path / "a")
    with pytest.raises((OSError, RuntimeError)):
        find_weakness(tmp_path / "a")

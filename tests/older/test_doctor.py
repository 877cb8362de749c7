"""What doctor says of the older hooks' folders."""

from __future__ import annotations

from pathlib import Path

from metricsd.cli.status import gather
from metricsd.config import find_paths, load_config
from metricsd.doctor.finding import Facts, Finding
from metricsd.doctor.home import check_home
from metricsd.hooks.places import find_places
from tests.users import as_nobody, let_nobody_reach


def test_a_folder_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    """What is written there would be missing without a word; folders that do not exist are nobody's."""
    sessions = tmp_path / "metrics" / "sessions"
    sessions.mkdir(parents=True)
    let_nobody_reach(tmp_path)
    environ = {"METRICSD_HOME": str(tmp_path / "home"), "METRICSD_TAIL_OLDER_HOOKS": str(sessions.parent)}
    paths = find_paths(environ)
    config = load_config(paths, environ)
    facts = Facts(paths, config, environ, find_places(environ), gather(paths, config), lambda: "")

    def findings() -> list[Finding]:
        return [one for one in check_home(facts) if one.check == "older hooks"]

    assert findings() == []
    sessions.chmod(0)
    with as_nobody():
        (found,) = findings()
    sessions.chmod(0o700)
    assert str(sessions) in found.says and found.fix

"""A real daemon takes a changed policy into force without a restart, and keeps the last good one."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from metricsd.policy_places import FOLDER
from tests.homes import opened, until
from tests.policy.support import policy_text, put


def test_a_running_daemon_follows_the_policy_files(tmp_path: Path) -> None:
    """Put in place, broken, repaired, removed: `status` follows within a look of the daemon's."""
    with opened(tmp_path / "home") as home:
        home.env["METRICSD_TAIL_RESCAN_S"] = "0.2"
        home.start_daemon()
        folder = home.paths.config_dir / FOLDER
        folder.mkdir(parents=True)
        for one in (folder, home.paths.config_dir, home.paths.config_dir.parent):
            one.chmod(0o755)

        def policy() -> dict[str, Any]:
            found: dict[str, Any] = home.status()["policy"]
            return found

        def noted() -> str:
            return (home.paths.state_dir / "policy.json").read_text()

        assert policy()["name"] == "merge_fields"
        file = put(folder / "mine.toml", policy_text(default="latest_wins", version=2))
        assert until(lambda: '"mine"' in noted())
        assert (policy()["name"], policy()["version"], policy()["error"]) == ("mine", 2, None)
        put(file, "version = 'x'")
        assert until(lambda: "last good" in noted())
        assert (policy()["name"], policy()["version"]) == ("mine", 2)
        assert "mine.toml:1: version" in policy()["error"]
        file.unlink()
        assert until(lambda: '"merge_fields"' in noted())
        assert policy()["error"] is None

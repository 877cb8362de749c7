"""Settings: layered, typed, and errors that name file, line, key and expected type."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from metricsd.config import RULES, Paths, find_paths, load_config, settings_of
from metricsd.errors import ConfigError

NOWHERE = Path("/nonexistent/config.toml")


def load(home: Paths, text: str, environ: dict[str, str] | None = None, system: Path = NOWHERE) -> object:
    home.config_dir.mkdir(parents=True, exist_ok=True)
    home.config_file.write_text(text)
    return load_config(home, environ or {}, system_file=system)


def test_every_setting_has_a_rule_and_every_rule_a_setting(home: Paths) -> None:
    """A setting without unit, bounds and meaning cannot be documented."""
    settings = settings_of(load_config(home, {}, system_file=NOWHERE))
    assert list(settings) == list(RULES)
    assert all(rule.meaning for rule in RULES.values())


def test_defaults_keep_their_own_rules(home: Paths) -> None:
    """A default that its rule forbids could be shown but not written down."""
    lines = []
    for name, value in settings_of(load_config(home, {}, system_file=NOWHERE)).items():
        section, key = name.split(".")
        shown = list(value) if isinstance(value, tuple) else value
        lines.append(f"[{section}]\n{key} = {str(shown).lower() if isinstance(shown, bool) else repr(shown)}\n")
    for line in lines:
        load(home, line)


def test_the_users_file_beats_the_systems_and_the_environment_beats_both(home: Paths, tmp_path: Path) -> None:
    """Precedence, and where each value came from."""
    system = tmp_path / "system.toml"
    system.write_text("[sync]\ninterval_s = 100\nbatch_size = 7\npull = 'none'\n")
    home.config_dir.mkdir(parents=True)
    home.config_file.write_text("[sync]\ninterval_s = 200\nbatch_size = 8\n")
    config = load_config(home, {"METRICSD_SYNC_INTERVAL_S": "0.5"}, system_file=system)
    assert (config.sync.interval_s, config.sync.batch_size, config.sync.pull) == (0.5, 8, "none")
    assert config.origin["sync.interval_s"] == "METRICSD_SYNC_INTERVAL_S"
    assert config.origin["sync.batch_size"] == f"{home.config_file}:3"


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("[sync]\n\nintervall_s = 3\n", r"config.toml:3: unknown key 'intervall_s' in \[sync\]; known are interval_s"),
        ("[sink]\n", r"config.toml:1: unknown section \[sink\]; known are tail"),
        (
            "\n\n[sync]\ninterval_s = '5'\n",
            r"config.toml:4: sync.interval_s must be a number from 0.1 to 86400 \(seconds\), not '5'",
        ),
        ("[sync]\nbatch_size = true\n", "must be a whole number"),
        ("[sync]\nbatch_size = 0\n", "from 1 to 5000"),
        ("[sync]\ninterval_s = nan\n", "must be a number"),
        ("[sync]\npull = 'some'\n", "must be one of all, records, none"),
        ("[sync]\nshare_projects = 'x'\n", "must be a list of texts"),
        ("sync = 3\n", r"config.toml:1: sync must be a section, written as \[sync\]"),
        ("[sync\n", "not valid TOML"),
    ],
)
def test_a_mistake_is_named_with_file_line_key_and_expected_type(home: Paths, text: str, said: str) -> None:
    """The user can mend the file from the message alone."""
    with pytest.raises(ConfigError, match=said):
        load(home, text)


def test_a_file_that_is_not_utf8_is_named(home: Paths) -> None:
    """Bytes from another encoding do not end in a traceback."""
    home.config_dir.mkdir(parents=True)
    home.config_file.write_bytes(b"[sync]\n# \xff\n")
    with pytest.raises(ConfigError, match="not UTF-8 at byte 9"):
        load_config(home, {}, system_file=NOWHERE)


def test_an_unknown_key_in_the_environment_is_an_error_and_foreign_variables_are_not(home: Paths) -> None:
    """METRICSD_SYNC_X names no setting; METRICSD_HOME and others of ours are no settings at all."""
    with pytest.raises(ConfigError, match="METRICSD_SYNC_X: unknown key"):
        load_config(home, {"METRICSD_SYNC_X": "1"}, system_file=NOWHERE)
    load_config(home, {"METRICSD_HOME": "/x", "METRICSD_TEST_DATABASE_URL": "y"}, system_file=NOWHERE)


def test_lists_in_the_environment_are_separated_by_commas(home: Paths) -> None:
    """The one form that a shell can write without quoting TOML."""
    config = load_config(home, {"METRICSD_SYNC_SHARE_PROJECTS": "a, b,"}, system_file=NOWHERE)
    assert config.sync.share_projects == ("a", "b")


@given(st.binary(max_size=200))
def test_any_bytes_are_settings_or_a_config_error(tmp_path_factory: pytest.TempPathFactory, data: bytes) -> None:
    """Hostile files raise ConfigError and nothing else."""
    home = find_paths({"METRICSD_HOME": str(tmp_path_factory.mktemp("home"))})
    home.config_dir.mkdir(parents=True)
    home.config_file.write_bytes(data)
    try:
        load_config(home, {}, system_file=NOWHERE)
    except ConfigError as error:
        assert str(home.config_file) in str(error)


def test_a_home_holds_everything(tmp_path: Path) -> None:
    """METRICSD_HOME moves config, state, spool and cache under one folder."""
    paths = find_paths({"METRICSD_HOME": str(tmp_path)})
    assert paths.config_file == tmp_path / "config" / "config.toml"
    assert paths.spool == tmp_path / "state" / "spool"
    assert paths.cache_dir == tmp_path / "cache"

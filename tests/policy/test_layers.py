"""Layers: who is asked first, what a lock and an override do, and that only a good file takes force."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import pytest

from metricsd.policy import Layers, Places, load
from tests.policy.support import chosen, example_plugin, places_in, policy_text, put, rule


@pytest.fixture
def places(tmp_path: Path) -> Places:
    return places_in(tmp_path / "home")


def test_without_a_file_the_shipped_merge_is_in_force(places: Places) -> None:
    """Every field has its rule, and status can say which policy that is."""
    found = load(places)
    assert found.lookup("session", "tags").clash == "union"
    assert found.lookup("session", "unheard_of").strategy == "merge_fields"
    assert found.delete.policy == "delete_wins"
    sha256 = hashlib.sha256(places.shipped.read_bytes()).hexdigest()
    assert found.report() == {
        "name": "merge_fields", "version": 1, "sha256": sha256, "source": str(places.shipped), "error": None
    }  # fmt: skip
    assert not places.report.exists()


def test_system_over_tenant_over_user_over_shipped(places: Places) -> None:
    """The highest layer with an answer gives it; a file's default is an answer too."""
    layers = Layers(places)
    assert chosen(layers) == "merge_fields"
    put(places.user / "mine.toml", policy_text(default="local_wins"))
    assert chosen(layers) == "local_wins"
    put(places.tenant, policy_text(rule("remote_wins", field="tags")))
    assert chosen(layers) == "remote_wins"
    assert chosen(layers, "score") == "local_wins"
    put(places.system / "all.toml", policy_text(default="latest_wins"))
    assert chosen(layers) == "latest_wins"
    assert layers.current().name == "all + tenant_policy + mine"


def test_files_of_a_folder_are_asked_by_name(places: Places) -> None:
    """The first match wins over files as within one; hidden files and others are not policies."""
    layers = Layers(places)
    put(places.user / "b.toml", policy_text(rule("local_wins")))
    put(places.user / "a.toml", policy_text(rule("remote_wins", field="tags")))
    put(places.user / ".hidden.toml", policy_text(rule("latest_wins")))
    put(places.user / "notes.txt", "no policy")
    assert (chosen(layers), chosen(layers, "score")) == ("remote_wins", "local_wins")
    assert not layers.current().errors


def test_rules_match_on_tag_and_project(places: Places) -> None:
    """First match wins; a record whose project is unknown matches no rule that asks for one."""
    layers = Layers(places)
    put(
        places.user / "mine.toml",
        policy_text(
            '[[rule]]\nmatch = { tag = "rev*" }\nstrategy = "local_wins"',
            '[[rule]]\nmatch = { project = "web-*" }\nstrategy = "remote_wins"',
            default="latest_wins",
        ),
    )
    assert chosen(layers, tag="review", project="web-shop") == "local_wins"
    assert chosen(layers, project="web-shop") == "remote_wins"
    assert chosen(layers, project="api") == "latest_wins"
    assert chosen(layers) == "latest_wins"


def test_an_override_goes_before_an_unlocked_rule(places: Places) -> None:
    """A lower layer overrides on purpose only, and never what is locked."""
    layers = Layers(places)
    put(places.user / "mine.toml", policy_text(rule("local_wins", extra="override = true")))
    put(places.system / "all.toml", policy_text(rule("remote_wins")))
    assert chosen(layers) == "local_wins"
    put(places.system / "all.toml", policy_text(rule("remote_wins", extra="lock = true")))
    assert chosen(layers) == "remote_wins"
    put(places.system / "all.toml", policy_text(default="latest_wins", top="lock = true\n"))
    assert chosen(layers) == "latest_wins"
    put(places.system / "all.toml", policy_text(default="latest_wins"))
    put(places.tenant, policy_text(rule("remote_wins", extra="lock = true")))
    assert chosen(layers) == "latest_wins", "the tenant's lock keeps the user from overriding"


def test_the_first_delete_rule_holds(places: Places) -> None:
    """The highest layer that has one decides about deletes."""
    layers = Layers(places)
    put(places.user / "mine.toml", policy_text(top='[delete]\npolicy = "edit_wins"\n'))
    assert layers.current().delete.policy == "edit_wins"
    put(places.tenant, policy_text(top='[delete]\npolicy = "latest_wins"\n'))
    assert layers.current().delete.policy == "latest_wins"


def test_a_changed_file_takes_force_without_a_restart(places: Places) -> None:
    """Written, replaced, removed: the next look sees it."""
    layers = Layers(places)
    file = put(places.user / "mine.toml", policy_text(default="local_wins"))
    first = layers.current()
    assert layers.current() is first
    put(file, policy_text(default="remote_wins", version=2))
    assert (layers.current().version, chosen(layers)) == (2, "remote_wins")
    assert layers.current().sha256 != first.sha256
    file.unlink()
    assert chosen(layers) == "merge_fields"


@pytest.mark.parametrize("bad", ["version = 'x'", "not toml", policy_text(rule("best_wins")), "\0"])
def test_a_broken_file_leaves_the_last_good_one_in_force(places: Places, bad: str) -> None:
    """Also after a restart; the error names file and line until it is repaired."""
    file = put(places.user / "mine.toml", policy_text(default="local_wins"))
    layers = Layers(places, keep=True)
    assert chosen(layers) == "local_wins"
    put(file, bad)
    for again in (layers, Layers(places, keep=True), Layers(places)):
        assert chosen(again) == "local_wins"
        assert "mine.toml:" in str(again.current().report()["error"])
    put(file, policy_text(default="remote_wins"))
    assert chosen(layers) == "remote_wins"
    assert layers.current().report()["error"] is None


def test_a_file_that_never_was_good_is_not_in_force(places: Places) -> None:
    """There is no last good version: the layers below decide, and the error says so."""
    put(places.user / "mine.toml", "version = 'x'")
    layers = Layers(places, keep=True)
    assert chosen(layers) == "merge_fields"
    assert layers.current().errors[0].endswith("it is not in force")


def test_a_removed_file_is_not_kept(places: Places) -> None:
    """Who removes a policy means it: its copy does not come back with a broken file of the same name."""
    layers = Layers(places, keep=True)
    file = put(places.user / "mine.toml", policy_text(default="local_wins"))
    assert chosen(layers) == "local_wins"
    file.unlink()
    assert chosen(layers) == "merge_fields"
    put(file, "broken")
    assert chosen(layers) == "merge_fields"


@pytest.mark.parametrize("who", ["file", "folder"])
def test_a_file_that_others_can_write_is_refused(places: Places, who: str) -> None:
    """The last good version stays; a repaired permission puts the file into force."""
    layers = Layers(places)
    file = put(places.user / "mine.toml", policy_text(default="local_wins"))
    assert chosen(layers) == "local_wins"
    put(file, policy_text(default="remote_wins"))
    weak = file if who == "file" else places.user
    before = weak.stat().st_mode & 0o777
    weak.chmod(before | 0o020)
    assert chosen(layers) == "local_wins"
    assert "chmod go-w" in layers.current().errors[0]
    weak.chmod(before)
    put(file, policy_text(default="remote_wins"))
    assert chosen(layers) == "remote_wins"


def test_a_tenants_plug_in_must_be_pinned_on_the_device(places: Places) -> None:
    """Without a pin of the device's own, or with another hash, the fallback decides and status says so."""
    code, sha256 = example_plugin()
    custom = rule("custom", extra='plugin = "custom_example.py"\nfallback = "remote_wins"\nPIN')
    put(places.tenant, policy_text(custom.replace("PIN", "")))
    layers = Layers(places)
    assert chosen(layers) == "remote_wins"
    assert "not pinned on this device" in str(layers.current().report()["error"])
    put(places.user / "custom_example.py", code)
    put(places.user / "pins.toml", policy_text(top=f'[plugins]\n"custom_example.py" = "{sha256}"\n'))
    found = layers.current().lookup("session", "tags")
    assert found.strategy == "custom"
    assert found.plugin is not None
    assert (found.plugin.path, found.plugin.sha256) == (places.user / "custom_example.py", sha256)
    assert layers.current().errors == ()
    put(places.tenant, policy_text(custom.replace("PIN", f'sha256 = "{"0" * 64}"')))
    assert chosen(layers) == "remote_wins"


def test_the_daemons_layers_say_what_is_in_force(places: Places) -> None:
    """`status` reads a small private file instead of parsing policies."""
    Layers(places, keep=True).current()
    noted = json.loads(places.report.read_text())
    assert (noted["name"], noted["error"]) == ("merge_fields", None)
    assert places.report.stat().st_mode & 0o077 == 0


def test_a_full_or_read_only_disk_does_not_stop_policies(places: Places) -> None:
    """The copies are a comfort: a state folder that is a file costs them and nothing else."""
    blocked = places._replace(kept=places.shipped / "no", report=places.shipped / "no")
    put(places.user / "mine.toml", policy_text(default="local_wins"))
    assert chosen(Layers(blocked, keep=True)) == "local_wins"

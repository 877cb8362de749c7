"""A private folder with policy files, and layers over it."""

from __future__ import annotations

import hashlib
from pathlib import Path

from metricsd.config import Paths
from metricsd.policy import Layers, Places, places_of
from metricsd.policy_places import FOLDER
from metricsd.resources import data_folder


def places_in(folder: Path) -> Places:
    """Return places of a home in this folder, with a system folder of its own."""
    for name in ("config", "state", "cache"):
        (folder / name).mkdir(mode=0o700, parents=True, exist_ok=True)
    paths = Paths(folder / "config", folder / "state", folder / "cache")
    places = places_of(paths, system=folder / "etc")
    for one in (places.system, places.user):
        one.mkdir(mode=0o700, exist_ok=True)
    return places


def put(file: Path, text: str) -> Path:
    """Write a file that its owner alone can change, as a new inode, so that no time stamp hides the change."""
    beside = file.with_name(file.name + ".new")
    beside.write_text(text)
    beside.chmod(0o600)
    return beside.replace(file)


def rule(strategy: str, *, field: str = "*", extra: str = "", entity: str = "session") -> str:
    """Return the text of one rule."""
    return f'[[rule]]\nmatch = {{ entity = "{entity}", field = "{field}" }}\nstrategy = "{strategy}"\n{extra}\n'


def policy_text(*rules: str, default: str = "", top: str = "", version: int = 1) -> str:
    """Return the text of a policy."""
    head = f"version = {version}\n" + (f'default = "{default}"\n' if default else "") + top + "\n"
    return head + "\n".join(rules)


def chosen(layers: Layers, field: str = "tags", **about: str) -> str:
    """Return the strategy that decides a session's field."""
    tags = frozenset([about["tag"]]) if "tag" in about else frozenset()
    return layers.current().lookup("session", field, tags, about.get("project")).strategy


def example_plugin() -> tuple[str, str]:
    """Return the shipped plug-in and its SHA-256."""
    code = (data_folder(FOLDER) / "custom_example.py").read_text()
    return code, hashlib.sha256(code.encode()).hexdigest()

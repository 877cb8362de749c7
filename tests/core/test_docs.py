"""README and docs are held to the code: every command, option of note, setting and error is documented."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path

import click
import pytest

from metricsd.cli import COMMANDS
from metricsd.cli.app import app
from metricsd.config import RULES, find_paths, load_config, settings_of

ROOT = Path(__file__).resolve().parents[2]
PAGES = [
    ROOT / "README.md",
    ROOT / "CHANGELOG.md",
    *sorted((ROOT / "docs").glob("*.md")),
    *sorted(ROOT.glob("conflict_policies/*.md")),
]
MENTIONED = re.compile(r"metricsd ((?:[a-z][a-z\\|-]*)(?: [a-z][a-z\\|-]*)*)")


def commands(group: click.Group, path: tuple[str, ...] = ()) -> Iterator[tuple[str, ...]]:
    """Yield the words of every command."""
    context = click.Context(group)
    for name in group.list_commands(context):
        command = group.get_command(context, name)
        assert command is not None
        yield (*path, name)
        if isinstance(command, click.Group):
            yield from commands(command, (*path, name))


def expand(words: str) -> Iterator[tuple[str, ...]]:
    """Yield what `a b|c` stands for: (a, b), (a, c)."""
    parts = [part.split("|") for part in words.replace("\\", "").split(" ")]
    found: list[tuple[str, ...]] = [()]
    for choices in parts:
        found = [(*start, choice) for start in found for choice in choices]
    yield from found


def code_of(page: Path) -> str:
    """Return the page's code spans and blocks, where commands stand."""
    text = page.read_text()
    blocks = re.findall(r"```sh\n(.*?)```", text, re.DOTALL)
    return "\n".join([*blocks, *re.findall(r"`([^`\n]+)`", re.sub(r"```.*?```", "", text, flags=re.DOTALL))])


KNOWN = set(commands(app))


def test_every_command_is_in_the_readme() -> None:
    """A command that README does not name does not exist for a user."""
    named = {words for line in MENTIONED.findall(code_of(ROOT / "README.md")) for words in expand(line)}
    missing = [" ".join(words) for words in sorted(KNOWN) if not any(found[: len(words)] == words for found in named)]
    assert missing == []


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_command_that_a_page_names_exists(page: Path) -> None:
    """A page never promises what is not there."""
    groups = {words[:1] for words in KNOWN if len(words) > 1}
    for line in MENTIONED.findall(code_of(page)):
        for words in expand(line):
            depth = 2 if words[:1] in groups and words[:1] != ("cloud",) else 1
            depth = 3 if words[:2] in {found[:2] for found in KNOWN if len(found) > 2} else depth
            assert words[:depth] in KNOWN or words[: max(depth - 1, 1)] in KNOWN, (
                f"{page.name}: metricsd {' '.join(words)}"
            )
            assert words[0] in COMMANDS, f"{page.name}: metricsd {' '.join(words)}"


def test_every_command_says_what_it_does() -> None:
    """`--help` of each command has a sentence, and its line in the list another."""
    context = click.Context(app)
    for words in sorted(KNOWN):
        command: click.Command | None = app
        for word in words:
            assert isinstance(command, click.Group)
            command = command.get_command(context, word)
        assert command is not None
        assert command.help, words
    assert all(entry.help for entry in COMMANDS.values())


def test_every_setting_is_documented_with_its_default() -> None:
    """docs/configuration.md has a row for each setting, in its section, with its default, and no row for any other."""
    text = (ROOT / "docs" / "configuration.md").read_text()
    config = load_config(find_paths({"METRICSD_HOME": "/nonexistent"}), {}, system_file=Path("/nonexistent"))
    sections = {part.split("]")[0]: part for part in text.split("\n## [")[1:]}
    rows = {
        f"{name}.{key}": default
        for name, part in sections.items()
        for key, default in re.findall(r"^\| `(\w+)` \| `(.*?)` \|", part, re.M)
    }
    assert list(rows) == list(RULES)
    for name, value in settings_of(config).items():
        shown = (
            str(value).lower()
            if isinstance(value, bool)
            else json.dumps(value)
            if isinstance(value, tuple)
            else f'"{value}"'
            if isinstance(value, str)
            else f"{value:g}"
            if isinstance(value, float)
            else str(value)
        )
        assert rows[name] == shown, name


def test_every_dependency_has_its_reason() -> None:
    """A dependency needs a line in docs/architecture.md."""
    import tomllib

    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    page = (ROOT / "docs" / "architecture.md").read_text()
    declared = [*project["dependencies"], *project["optional-dependencies"]["postgres"]]
    for requirement in declared:
        name = re.split(r"[<>=]", requirement)[0]
        assert ">=" in requirement, f"{requirement}: no lower bound"
        assert name in page, f"{name}: docs/architecture.md does not say why"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_between_pages_lead_somewhere(page: Path) -> None:
    """No dead link inside the repository."""
    for target in re.findall(r"\]\(([^)#:]+)\)", page.read_text()):
        assert (page.parent / target).exists(), f"{page.name} -> {target}"

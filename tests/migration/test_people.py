"""Names of people become ids by one of three rules, and nothing else of them travels."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from metricsd.errors import UsageError
from metricsd.ids import user_uuid
from metricsd.migration.people import NAMES_CACHED_MAX, make_people


def test_create_gives_a_name_the_older_apis_id() -> None:
    """The same on every machine; nobody has none; memory stays bounded by whatever many names."""
    people = make_people("create", None, None)
    assert people.id_of("ann") == user_uuid("ann") == make_people("create", None, None).id_of("ann")
    assert people.id_of(None) is people.id_of("") is None
    for number in range(NAMES_CACHED_MAX + 10):
        people.id_of(f"name{number}")
    assert people.id_of("ann") == user_uuid("ann")


def test_map_takes_ids_from_a_file(tmp_path: Path) -> None:
    """Who is not in it has the default, or none."""
    file = tmp_path / "people.json"
    file.write_text(json.dumps({"ann": "u-1", "bob@example.test": "u-2"}))
    people = make_people("map", str(file), None)
    assert [people.id_of(name) for name in ("ann", "bob@example.test", "carol")] == ["u-1", "u-2", None]
    assert make_people("map", str(file), "u-0").id_of("carol") == "u-0"


def test_default_gives_everything_to_one_id() -> None:
    """Also what names nobody."""
    people = make_people("default", None, "team")
    assert (people.id_of("ann"), people.id_of(None)) == ("team", "team")


@pytest.mark.parametrize("text", ["[]", "{", '{"ann": 5}', '{"ann": "a b"}', '{"ann": ""}', "[" * 100_000])
def test_a_file_that_is_no_map_is_refused(tmp_path: Path, text: str) -> None:
    """The option is named, and what a map is."""
    file = tmp_path / "people.json"
    file.write_text(text)
    with pytest.raises(UsageError, match="--users-file"):
        make_people("map", str(file), None)
    with pytest.raises(UsageError, match="--default-user"):
        make_people("default", None, "a b")

"""200 secrets of more than 30 kinds, in every string of every payload: none is in the event's bytes.

The strings that are kept as they are (opaque ids and names) are listed in `tests.secrets.KEPT_FIELDS`; everything
else must vanish or become a word of a closed list.
"""

from __future__ import annotations

import msgspec
import pytest

from metricsd.decode import decode_line, parse_line
from metricsd.decode.repository import Repositories
from tests.decode.support import AT_US, Case, cases, line_bytes, payloads_of_tools
from tests.fakes import FakeClock
from tests.secrets import KEPT_FIELDS, kinds, plant, planted_secrets, traces

SECRETS = planted_secrets(200)


def test_secrets_are_many_different_and_always_the_same() -> None:
    """At least 30 kinds, no secret twice, and the same ones in each run."""
    assert len(SECRETS) == 200
    assert len({kind for kind, _ in SECRETS}) == len(kinds()) >= 30
    assert len({text for _, text in SECRETS}) == 200
    assert planted_secrets(200) == SECRETS


def test_plant_reaches_every_string_that_is_not_kept() -> None:
    """Nested ones, ones in lists, and a field that nobody knows; kept ones stay."""
    variants = list(plant({"session_id": "s", "a": "x", "b": [{"c": "y"}], "n": 1}, "SECRET-12345678"))
    assert variants[0] == {
        "session_id": "s",
        "a": "SECRET-12345678",
        "b": [{"c": "SECRET-12345678"}],
        "n": 1,
        "a_field_of_a_later_version": "SECRET-12345678",
    }
    assert {"session_id": "s", "a": "x", "b": [{"c": "y SECRET-12345678"}], "n": 1} in variants
    assert len(variants) == 1 + 2 * 3


@pytest.mark.parametrize("number", range(len(cases())))
def test_no_planted_secret_is_in_the_event(number: int) -> None:
    """The whole event as bytes, for each string alone and for all at once, in place, behind and in front."""
    case = cases()[number]
    repositories = Repositories(FakeClock())
    for kind, secret in SECRETS:
        words = [word.encode() for word in traces(secret)]
        for payload in plant(case.payload, secret):
            event = decode_line(parse_line(line_bytes(payload, case.event, case.app)), AT_US, repositories)
            kept = msgspec.json.encode(event)
            assert not any(word in kept for word in words), (kind, case.name, payload)


@pytest.mark.parametrize("tool", payloads_of_tools())
def test_no_planted_secret_of_any_tool_is_in_the_event(tool: str) -> None:
    """The same for the payloads of six tools, most of which have no decoder of their own."""
    repositories, payloads = Repositories(FakeClock()), payloads_of_tools()[tool]
    for kind, secret in SECRETS:
        words = [word.encode() for word in traces(secret)]
        for event, bare in payloads:
            for payload in plant(bare, secret):
                kept = msgspec.json.encode(
                    decode_line(parse_line(line_bytes(payload, event, tool)), AT_US, repositories)
                )
                assert not any(word in kept for word in words), (kind, event, payload)


def test_a_field_that_kept_its_text_would_be_seen() -> None:
    """The search itself works: with the list of kept fields empty, secrets in names do show up."""
    case = next(case for case in cases() if case.name == "subagent called")
    seen = 0
    for _, secret in SECRETS:
        words = [word.encode() for word in traces(secret)]
        for payload in plant(case.payload, secret, keep=frozenset()):
            event = decode_line(parse_line(line_bytes(payload, case.event)), AT_US, Repositories(FakeClock()))
            seen += any(word in msgspec.json.encode(event) for word in words)
    assert seen > 0


def test_every_kept_field_is_in_some_payload() -> None:
    """The list of exceptions is short and true: a field that no payload has does not belong on it."""
    found: set[str] = set()
    for case in cases():
        found |= {name for name in KEPT_FIELDS if _has(case, name)}
    assert found == KEPT_FIELDS


def _has(case: Case, name: str) -> bool:
    value: object = case.payload
    for part in name.split("."):
        value = value.get(part) if isinstance(value, dict) else None
    return isinstance(value, str)

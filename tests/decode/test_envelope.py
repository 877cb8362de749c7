"""The wrapper: what is forgiven, what is refused and with which reason, and times."""

from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta, timezone

import pytest
from hypothesis import given
from hypothesis import strategies as st

from metricsd.config import RULES
from metricsd.decode.envelope import LINE_BYTES_MAX, Line, parse_line, stamp_ms, stamp_us
from metricsd.errors import LineRejected

GOOD = b'{"v":1,"s":1795378739,"app":"claude-code","event":"Stop","payload":{"session_id":"s"}}'


def _line(**fields: object) -> bytes:
    return json.dumps({"v": 1, "app": "claude-code", "event": "Stop", "payload": {}, **fields}).encode()


def _reason(data: bytes) -> str:
    with pytest.raises(LineRejected) as caught:
        parse_line(data)
    return caught.value.reason


def test_capture_is_parsed() -> None:
    """All fields of the hook's line, the payload untouched."""
    line = parse_line(GOOD)
    assert (line.v, line.s, line.app, line.event) == (1, 1_795_378_739, "claude-code", "Stop")
    assert bytes(line.payload) == b'{"session_id":"s"}'
    assert (line.ts, line.id, line.oversize) == (None, None, None)


@pytest.mark.parametrize("data", [b"\xef\xbb\xbf" + GOOD, GOOD + b"\r\n", GOOD + b"\n", b"  \t" + GOOD, GOOD + b" "])
def test_what_editors_do_to_a_good_line_is_forgiven(data: bytes) -> None:
    """A byte order mark, CRLF and spaces do not make a line another line."""
    line = parse_line(data)
    assert (line.event, bytes(line.payload)) == ("Stop", b'{"session_id":"s"}')


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"", "bad_json"),
        (b"\n", "bad_json"),
        (b"not json", "bad_json"),
        (GOOD[:-1], "bad_json"),
        (GOOD + GOOD, "bad_json"),
        (GOOD.replace(b'"s"}', b'"s\x01"}'), "bad_json"),
        (GOOD.replace(b'"s"}', b'"\xff"}'), "bad_utf8"),
        (GOOD.replace(b'"s"}', b'"\xed\xa0\x80"}'), "bad_utf8"),
        (GOOD.replace(b'"s"}', b'"\xc3"}'), "bad_utf8"),
        (b"\0\0\0", "nul"),
        (GOOD.replace(b"Stop", b"St\0p"), "nul"),
        (b"[]", "bad_fields"),
        (b"null", "bad_fields"),
        (b"{}", "bad_fields"),
        (_line(v=2), "newer_version"),
        (b'{"v":2,"application":"x"}', "newer_version"),
        (_line(v=0), "bad_fields"),
        (_line(v=True), "bad_fields"),
        (_line(v="1"), "bad_fields"),
        (_line(app=""), "bad_fields"),
        (_line(app="x" * 129), "bad_fields"),
        (_line(app=None), "bad_fields"),
        (_line(event=""), "bad_fields"),
        (_line(event="x" * 129), "bad_fields"),
        (_line(event=5), "bad_fields"),
        (_line(id=5), "bad_fields"),
        (_line(id=""), "bad_fields"),
        (_line(id="x" * 513), "bad_fields"),
        (_line(s="now"), "bad_fields"),
        (_line(ts=[]), "bad_fields"),
        (_line(s=-1), "bad_time"),
        (_line(s=10**10), "bad_time"),
        (b'{"v":1,"app":"a","event":"b"}', "bad_fields"),
        (_line(oversize=20_000_000), "oversize"),
        (b'{"v":1,"app":"a","event":"b","oversize":20000000}', "oversize"),
        (b'{"v":1,"app":"a","event":"b","payload":' + b"[" * 100_000 + b"]" * 100_000 + b"}", "too_deep"),
        (b'{"x":' + b"[" * 100_000, "too_deep"),
    ],
    ids=lambda value: value if isinstance(value, str) else None,
)
def test_what_cannot_be_accepted_has_a_stable_reason(data: bytes, reason: str) -> None:
    """The reason is the key of the quarantine; it never depends on the parser's wording."""
    assert _reason(data) == reason


def test_longest_line_is_what_the_setting_allows(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing longer is parsed, whoever calls."""
    assert RULES["tail.line_bytes_max"].high == LINE_BYTES_MAX
    monkeypatch.setattr("metricsd.decode.envelope.LINE_BYTES_MAX", len(GOOD))
    assert parse_line(GOOD).event == "Stop"
    assert _reason(GOOD + b" ") == "oversize"


def test_long_text_is_checked_across_chunks() -> None:
    """A bad byte behind the first megabyte is found, a letter across the border of two chunks is none."""
    good = _line(payload={"x": "a" + "é" * 1_500_000}).decode("unicode_escape").encode()
    assert parse_line(good).event == "Stop"
    assert _reason(good[:-3] + b"\xff" + good[-3:]) == "bad_utf8"
    assert _reason(good + b"\xc3") == "bad_utf8"


def test_payload_nested_as_deep_as_tools_nest_is_accepted() -> None:
    """The limit is far above what any tool sends."""
    nested = json.loads("[" * 200 + "]" * 200)
    assert parse_line(_line(payload={"tool_input": nested})).event == "Stop"


@pytest.mark.parametrize("half", ["\\ud83d", "\\uDE00", "\\\\\\ud83d", "\\ud83dx\\ude00", "\\ud83d\\ud83d\\ude00"])
def test_half_of_a_surrogate_pair_is_repaired_in_place(half: str) -> None:
    """JavaScript cuts text inside an emoji; the line is kept and no size changes."""
    data = GOOD.replace(b'"s"}', f'"{half}"}}'.encode())
    line = parse_line(data)
    assert b"\\ufffd" in bytes(line.payload)
    assert len(bytes(line.payload)) == len(half) + len('{"session_id":""}')


@pytest.mark.parametrize("whole", ["\\ud83d\\ude00", "\\\\ud83d", "\\u0041"])
def test_whole_escapes_are_left_alone(whole: str) -> None:
    """A pair is a character, and an escaped backslash before `ud83d` is text."""
    assert (
        bytes(parse_line(GOOD.replace(b'"s"}', f'"{whole}"}}'.encode())).payload)
        == f'{{"session_id":"{whole}"}}'.encode()
    )


def test_repair_changes_nothing_but_the_half() -> None:
    """In a line that needs it: escaped backslashes, pairs and other escapes stay as they are."""
    data = GOOD.replace(b'"s"}', b'"\\\\ud83d \\ud83d\\ude00 \\n \\ud83d"}')
    assert bytes(parse_line(data).payload) == b'{"session_id":"\\\\ud83d \\ud83d\\ude00 \\n \\ufffd"}'


def test_own_id_is_the_lines_or_the_older_hooks() -> None:
    """`id` wins; without one `enhanced_activity.id` counts, at the top level alone."""
    assert parse_line(_line(id="a", enhanced_activity={"id": "b"})).id == "a"
    assert parse_line(_line(enhanced_activity={"id": "b", "user": {"email": "x"}})).id == "b"
    assert parse_line(_line(enhanced_activity={"id": 7})).id is None
    assert parse_line(_line(enhanced_activity="b")).id is None
    assert parse_line(_line(payload={"enhanced_activity": {"id": "b"}})).id is None


def _at(ts: int | float | str | None) -> Line:
    return Line(v=1, app="a", event="b", ts=ts)


@pytest.mark.parametrize(
    ("ts", "at_us"),
    [
        (None, None),
        (0, 0),
        (1_795_378_739_123, 1_795_378_739_123_000),
        (1_795_378_739_123.5, 1_795_378_739_123_500),
        ("1970-01-01T00:00:00Z", 0),
        ("2026-01-05T10:04:58.248Z", 1_767_607_498_248_000),
        ("2026-01-05T10:04:58.123456789Z", 1_767_607_498_123_456),
        ("2026-01-05t10:04:58.2z", 1_767_607_498_200_000),
        ("2026-01-05 10:04:58Z", 1_767_607_498_000_000),
        ("2026-01-05T15:34:58+05:30", 1_767_607_498_000_000),
        ("2026-01-05T02:04:58-08:00", 1_767_607_498_000_000),
        ("2016-12-31T23:59:60Z", 1_483_228_800_000_000),
        ("2286-11-20T17:46:39.999999Z", 9_999_999_999_999_999),
    ],
)
def test_stamp_is_read_in_every_allowed_form(ts: int | float | str | None, at_us: int | None) -> None:
    """RFC 3339 with up to nanoseconds, or milliseconds since 1970; asking twice gives the same."""
    assert stamp_us(_at(ts)) == at_us
    assert stamp_us(_at(ts)) == at_us
    assert stamp_ms(_at(ts)) == (None if at_us is None else at_us // 1000)


@pytest.mark.parametrize(
    "ts",
    [
        "",
        "yesterday",
        "1795378739",
        "2026-01-05",
        "2026-01-05T10:04:58",
        "2026-01-05T10:04Z",
        "2026-01-05T10:04:58,2Z",
        "2026-W02-1T10:04:58Z",
        "2026-13-05T10:04:58Z",
        "2026-02-30T10:04:58Z",
        "2026-01-05T25:04:58Z",
        "2026-01-05T10:04:61Z",
        "2026-01-05T10:04:58.1234567890Z",
        "2026-01-05T10:04:58+99:00",
        "２026-01-05T10:04:58Z",
        "1969-12-31T23:59:59Z",
        "2286-11-20T17:46:40Z",
        "9999-12-31T23:59:59-23:00",
        "0001-01-01T00:00:00+23:00",
        "2026-01-05T10:04:58Z" + " " * 100,
        -1,
        10_000_000_000_000,
        10**30,
        float("nan"),
        float("inf"),
        -0.6,
    ],
)
def test_stamp_that_is_no_time_is_refused(ts: int | float | str) -> None:
    """Nothing is guessed: a wrong time would put the event into a wrong day for ever."""
    for read in (stamp_us, stamp_ms):
        with pytest.raises(LineRejected) as caught:
            read(_at(ts))
        assert caught.value.reason == "bad_time"


@given(
    st.datetimes(datetime(1970, 1, 2), datetime(2286, 1, 1)),
    st.integers(-23 * 60, 23 * 60).map(lambda minutes: timezone(timedelta(minutes=minutes))),
)
def test_stamp_of_any_moment_is_exact(moment: datetime, zone: timezone) -> None:
    """Whatever offset a writer uses, the microsecond is the same."""
    utc = moment.replace(tzinfo=UTC)
    expected = (utc - datetime(1970, 1, 1, tzinfo=UTC)) // timedelta(microseconds=1)
    assert stamp_us(_at(utc.astimezone(zone).isoformat())) == expected


@given(st.binary(max_size=200) | st.text(max_size=200).map(str.encode))
def test_no_bytes_raise_anything_but_line_rejected(data: bytes) -> None:
    """The tail goes on behind every line."""
    for candidate in (data, GOOD[:40] + data, data.join((b"{", b"}"))):
        try:
            parse_line(candidate)
        except LineRejected as rejected:
            assert rejected.reason in {"bad_json", "bad_utf8", "nul", "bad_fields", "newer_version", "bad_time"}

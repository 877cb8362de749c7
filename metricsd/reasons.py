"""Why something was not accepted: the stable codes of the quarantine, each with what it means.

A code is part of what users script against: it is never renamed and never given another meaning. Everything that
quarantines uses one of these; a test holds the code and docs/reliability.md to this list.
"""

from __future__ import annotations

from enum import StrEnum

CLOUD_PREFIX = "cloud_"
"""The cloud refused it; what follows is the cloud's own reason as one word."""


class Reason(StrEnum):
    """A code. `MEANINGS` says what it means."""

    BAD_JSON = "bad_json"
    BAD_UTF8 = "bad_utf8"
    NUL = "nul"
    TOO_DEEP = "too_deep"
    BAD_FIELDS = "bad_fields"
    BAD_TIME = "bad_time"
    NEWER_VERSION = "newer_version"
    OVERSIZE = "oversize"
    TOO_LONG = "too_long"
    INCOMPLETE = "incomplete"
    TOO_OLD = "too_old"
    STORE_REFUSED = "store_refused"
    CAPTURE_NAME = "capture_name"
    CAPTURE_PATH = "capture_path"
    CAPTURE_SYMLINK = "capture_symlink"
    CAPTURE_NOT_REGULAR = "capture_not_regular"
    CAPTURE_OWNER = "capture_owner"
    CAPTURE_HARD_LINK = "capture_hard_link"
    CAPTURE_UNREADABLE = "capture_unreadable"
    UNREADABLE = "unreadable"
    BAD_CHANGE = "bad_change"
    BAD_RECORD = "bad_record"
    BAD_CURSOR = "bad_cursor"


MEANINGS = {
    Reason.BAD_JSON: "not JSON: torn, or written by something else",
    Reason.BAD_UTF8: "text that is not UTF-8",
    Reason.NUL: "a NUL byte inside a line: the file was truncated or copied while it was written",
    Reason.TOO_DEEP: "nested deeper than anything a tool sends",
    Reason.BAD_FIELDS: "a field that must be there is missing or of the wrong type",
    Reason.BAD_TIME: "a time that is none, or outside 1970 to 2286",
    Reason.NEWER_VERSION: "written by a newer metricsd: upgrade, then retry",
    Reason.OVERSIZE: "a capture above `line_bytes_max`, or a note of the hook that a payload was too long",
    Reason.TOO_LONG: "a line above `line_bytes_max`: walked over, only its place and size are kept",
    Reason.INCOMPLETE: "never got its newline: its writer died, or the file went away",
    Reason.TOO_OLD: "older than what retention has folded: whether it was counted can no longer be told",
    Reason.STORE_REFUSED: "a value that the database cannot hold",
    Reason.CAPTURE_NAME: "a file in `new/` whose name is not a capture's",
    Reason.CAPTURE_PATH: "a name that is no plain file name",
    Reason.CAPTURE_SYMLINK: "a link in `new/`: never followed",
    Reason.CAPTURE_NOT_REGULAR: "a pipe, socket or device in `new/`",
    Reason.CAPTURE_OWNER: "a file in `new/` that belongs to another user",
    Reason.CAPTURE_HARD_LINK: "a file in `new/` that has further names elsewhere",
    Reason.CAPTURE_UNREADABLE: "cannot be read now; it waits and is not quarantined",
    Reason.UNREADABLE: "a migration's file that cannot be read to its end: permissions, or a packed file that is torn",
    Reason.BAD_CHANGE: "a change from the cloud that cannot be one",
    Reason.BAD_RECORD: "a record from the cloud that cannot be one",
    Reason.BAD_CURSOR: "a place in the cloud's feed that cannot be one",
}


def meaning_of(reason: str) -> str:
    """Return what a code means, also for the cloud's own and for codes of a newer version."""
    if reason.startswith(CLOUD_PREFIX):
        return f"the cloud refused it: {reason.removeprefix(CLOUD_PREFIX)}"
    try:
        return MEANINGS[Reason(reason)]
    except ValueError:
        return "a reason that this version does not know"

"""The registration fragment and the program that ship with metricsd, with their places filled in."""

from __future__ import annotations

import json

from metricsd.hooks.registration import TOOL, Handler
from metricsd.resources import data_folder


def load_fragment(capture: str, spool: str) -> dict[str, Handler]:
    """Return the handler of each event that is registered, in order, for a program and a spool."""
    fragment = json.loads((data_folder("hooks") / f"{TOOL}.json").read_text("utf-8"))
    places = {"@CAPTURE@": capture, "@SPOOL@": spool}
    handlers: dict[str, Handler] = {}
    for event, groups in fragment["hooks"].items():
        handler = dict(groups[0]["hooks"][0])
        handler["command"] = places[handler["command"]]
        handler["args"] = [places.get(word, word) for word in handler["args"]]
        handlers[event] = handler
    return handlers


def shipped_capture() -> bytes:
    """Return the program as it ships."""
    return (data_folder("hooks") / "capture").read_bytes()

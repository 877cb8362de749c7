"""Writes the capture hook as a plugin folder of Claude Code, for those who rather share a plugin than edit settings.

The folder holds everything it needs: a manifest, the registration and the program itself, run by the tool's own path
to the plugin, so that it works on any machine that it is copied to. It names no spool; the program finds the default
one of whoever runs it. It must never overwrite a folder that holds anything else.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, NamedTuple

from metricsd import __version__
from metricsd.errors import HooksError
from metricsd.hooks.fragment import load_fragment, shipped_capture
from metricsd.hooks.settings_file import write_atomically
from metricsd.hooks.survey import MANIFEST, PLUGIN, is_our_plugin

CAPTURE = "${CLAUDE_PLUGIN_ROOT}/bin/capture"
PROGRAM = Path("bin") / "capture"


class Exported(NamedTuple):
    """What an export wrote: the folder, and which of its files are new or changed."""

    folder: Path
    changed: tuple[Path, ...]


def plugin_files() -> dict[Path, bytes]:
    """Return the files of the plugin by their place in its folder."""
    manifest = {
        "name": PLUGIN,
        "version": __version__,
        "description": "Captures events of coding sessions for metricsd: numbers and names, never content",
        "license": "MIT",
    }
    registration = {"hooks": {event: [{"hooks": [_handler(event)]}] for event in load_fragment(CAPTURE, "")}}
    return {
        MANIFEST: _printed(manifest),
        Path("hooks") / "hooks.json": _printed(registration),
        PROGRAM: shipped_capture(),
    }


def export_plugin(folder: Path) -> Exported:
    """Write the plugin into `folder`, which must be missing, empty or an older export; writing twice changes nothing.

    Raises HooksError, with nothing written, for a folder that holds anything else, and when it cannot be written.
    """
    folder = folder.expanduser().absolute()
    changed = []
    try:
        if folder.is_dir() and any(folder.iterdir()) and not is_our_plugin(folder):
            raise HooksError(f"{folder}: holds other files: name a folder that is missing or empty")
        for place, data in plugin_files().items():
            file, mode = folder / place, 0o755 if place == PROGRAM else 0o644
            if file.is_file() and file.read_bytes() == data and file.stat().st_mode & 0o777 == mode:
                continue
            file.parent.mkdir(parents=True, exist_ok=True)
            write_atomically(file, data, mode=mode)
            changed.append(file)
    except OSError as error:
        raise HooksError(f"{error.filename}: cannot be written ({error.strerror}): check its permissions") from error
    return Exported(folder, tuple(changed))


def _handler(event: str) -> dict[str, Any]:
    """Return the handler without its spool: the default is found when it runs."""
    handler = load_fragment(CAPTURE, "")[event]
    return {**handler, "args": handler["args"][:2]}


def _printed(value: Any) -> bytes:
    return (json.dumps(value, indent=2) + "\n").encode()
